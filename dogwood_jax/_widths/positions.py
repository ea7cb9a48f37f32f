"""Tables inside a network that vary along a width: ``POSITIONS``, ``of_constant``, ``moved``.

A table such as ``2.0 ** -(jnp.arange(heads) + 1)``, slopes of ALiBi, has a number for each unit.
The program of a larger network shows whether old units keep their numbers there. They keep them if
each entry is computed from its own position and from numbers that are the same in every size.
"""

from collections.abc import Callable, Collection, Iterable

import numpy as np

from dogwood_jax._program.bounds import bounds_of
from dogwood_jax._program.elementwise import ELEMENTWISE
from dogwood_jax._program.intervals import UNKNOWN, Bounds, at
from dogwood_jax._program.moves import KEEP_ENTRIES
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.reasons import Reason
from dogwood_jax._widths.values import Step, Value

POSITIONS = Reason("a table of positions is computed along it", "table")

# Operations that compute each entry from entries at the same place. Joined arrays keep their
# entries' places in the layout of the joined axis.
_IN_PLACE = KEEP_ENTRIES | {"iota", "concatenate", *ELEMENTWISE}


def of_constant(shape: tuple[int, ...]) -> Reason:
    """Says that a constant of a shape varies along a dimension."""
    return Reason(f"a constant of shape {shape} inside the network varies along it", "table")


# Operations of a table with data that change nothing for old units: each result is computed from
# entries at the same place, and is finite for all of them. The steps inside loops stand alone.
MEETS = frozenset(
    "mul add sub max min select_n eq ne lt le gt ge and or not xor broadcast_in_dim "
    "scan while cond".split()
)
LARGEST = 6e4  # which every dtype can hold


def moved(steps: Iterable[Step]) -> set[Dim]:
    """Returns the dimensions along which entries of tables may change although programs agree.

    Entries are mixed along them, as by a sum. Or positions are counted along an axis where old
    units are not first, as in ``heads * head_dim``.
    """
    found: set[Dim] = set()
    for step in steps:
        tables = [value for value in step.operands if value.origin == "constant"]
        made = step.results and all(value.origin == "constant" for value in step.results)
        if made:
            tables += step.results
            is_kept = step.name in _IN_PLACE
        else:
            is_kept = step.name in MEETS and all(
                value.number is None or abs(value.number) <= LARGEST for value in tables
            )
        for value in tables:
            for dim in value.dims if value.number is None else ():
                if not is_kept or (step.name == "iota" and dim.root.kind is not None):
                    found |= {*atoms(dim)}
    return found


def are_small(
    steps: Iterable[Step],
    sizes: Collection[int],
    but: Callable[[Value], bool] = lambda value: False,
) -> bool:
    """Whether all tables of a larger program along axes of these sizes are known to be small.

    A table that overflows has infinite entries, and zero weights times infinity is NaN.

    Args:
        steps: the program.
        sizes: the sizes.
        but: whether a table is known to be small for another reason.
    """
    known: dict[int, Bounds] = {}

    def bounds(value: Value) -> Bounds:
        if value.number is not None:
            return at(value.number)
        if value.table is not None and np.isfinite(array := value.table.array).all():
            if np.iscomplexobj(array):
                array = np.abs(array)
            return Bounds(float(array.min()), float(array.max()))
        return known.get(id(value), UNKNOWN)

    for step in steps:
        if not step.results or any(value.origin != "constant" for value in step.results):
            continue
        if step.name == "iota":
            made = Bounds(0, max(dim.size for dim in step.results[0].dims))
        else:
            made = bounds_of(step.name, step.params, step.operands, [*map(bounds, step.operands)])
        for value in step.results:
            known[id(value)] = made
        tables = [value for value in (*step.operands, *step.results) if value.number is None]
        for value in tables:
            if any(dim.size in sizes for dim in value.dims) and not but(value):
                found = bounds(value)
                if not (-LARGEST <= found.low and found.high <= LARGEST):
                    return False
    return True
