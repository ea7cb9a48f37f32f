"""Tables inside a network that vary along a width: ``POSITIONS``, ``CONSTANT``, ``moved``.

A table such as ``2.0 ** -(jnp.arange(heads) + 1)``, slopes of ALiBi, has a number for each unit.
Whether old units keep their numbers in a larger network, its program tells: they do where each
entry is computed from its own position and from numbers that are the same in every size.
"""

from collections.abc import Iterable

from dogwood_jax._dims import Dim, atoms
from dogwood_jax._values import Step

POSITIONS = "a table of positions is computed along it"
CONSTANT = "a constant of shape {} inside the network varies along it"

# What computes each entry from entries in the same place, whatever these are.
_IN_PLACE = frozenset(
    "iota add sub mul neg abs sign max min clamp floor square exp exp2 tanh sin cos eq ne lt le gt "
    "ge and or not xor select_n convert_element_type broadcast_in_dim reshape squeeze expand_dims "
    "transpose copy stop_gradient".split()
)


def is_of_table(hazard: str) -> bool:
    """Whether a hazard says that a table varies along a dimension."""
    return hazard == POSITIONS or hazard.endswith(CONSTANT.partition("{}")[2])


def moved(steps: Iterable[Step]) -> set[Dim]:
    """Returns the dimensions along which entries of tables may change although programs agree.

    Entries are mixed along them, as by a sum, or old units are not first along an axis, as where it
    counts ``heads * head_dim``.
    """
    found: set[Dim] = set()
    for step in steps:
        tables = [value for value in step.operands if value.origin == "constant"]
        made = step.results and all(value.origin == "constant" for value in step.results)
        is_in_place = not made or step.name in _IN_PLACE or _is_finite(step)
        for value in (*tables, *(step.results if made else ())):
            for dim in value.dims if value.number is None else ():
                if not is_in_place or dim.root.kind is not None:
                    found |= {*atoms(dim)}
    return found


def _is_finite(step: Step) -> bool:
    """Whether a step is a quotient or a power that is finite for all entries of a table."""
    if step.name in ("div", "rem"):
        return bool(step.operands[1].number)
    if step.name == "integer_pow":
        return bool(step.params["y"] >= 0)
    return step.name == "pow" and (step.operands[0].number or 0) > 0
