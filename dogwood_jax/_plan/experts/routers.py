"""The routers of a program, and the arrays that their choices index: ``routers_of``.

A router gives each expert a logit, and picks the largest ones by ``top_k``. Gates are computed from
the logits. Values that are computed from the picks alone, such as one-hot vectors or the order of
tokens, select the experts of each token.

This is enough to propose copies of all experts. The effect on gates is not derived here, because
both programs are evaluated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dogwood_jax._program.dims import Dim, parts_of
from dogwood_jax._program.values import Step, Trace, Value


@dataclass(frozen=True)
class Router:
    """A choice of experts in a program.

    Attributes:
        experts: the dimension of the logits.
        choices: the dimension of the chosen experts.
        leaves: indices of the arrays that make the logits.
        stacks: the dimensions that count experts in arrays, as far as the program shows which
            arrays the choices index.
        dispatch: indices of the steps that only assign tokens to experts.
        gates: names of the primitives that compute gates or use them. Gates with the same names
            change in the same way if experts are copied.
    """

    experts: Dim
    choices: Dim
    leaves: frozenset[int]
    stacks: frozenset[Dim]
    dispatch: frozenset[int]
    gates: tuple[str, ...]

    @property
    def chosen(self) -> int:
        """The number of experts that are chosen for each token."""
        return self.choices.size


def routers_of(trace: Trace) -> list[Router]:
    """Returns the routers of a program: each ``top_k`` or ``approx_top_k``, in program order.

    Args:
        trace: the program as it was read, with all dimensions known.
    """
    steps = [*trace.steps]
    choices = [i for i, step in enumerate(steps) if step.name in ("top_k", "approx_top_k")]
    return [_router(steps, index) for index in choices]


def _router(steps: Sequence[Step], index: int) -> Router:
    choice, params = steps[index], steps[index].eqn.params
    (logits, *_), (values, *_) = choice.operands, choice.results
    axis = params.get("axis", params.get("reduction_dimension", -1)) % logits.ndim
    experts, chosen = logits.dims[axis].root, values.dims[axis].root
    leaves, gates = _makes(steps[:index], logits, experts)
    stacks, dispatch, picks = set[Dim](), set[int](), set[int]()
    computed = list[str]()
    for place, step in enumerate(steps):
        picked = [id(value) in picks for value in step.operands]
        weighed = [id(value) in gates for value in step.operands]
        if any(weighed) or any(id(value) in gates for value in step.results):
            computed.append(step.name)
        if any(picked):
            known = [*map(any, zip(picked, weighed, strict=True))]
            stacks |= {dim.root for dim in _found(step, known, experts, chosen)}
            if not any(weighed):
                dispatch.add(place)
        if step is choice:
            gates.add(id(step.results[0]))
            picks.add(id(step.results[1]))
        elif step.name == "sort" and any(weighed):  # each operand has a result
            picks |= {id(value) for value, is_pick in zip(step.results, picked) if is_pick}
            gates |= {id(value) for value, is_gate in zip(step.results, weighed) if is_gate}
        elif any(picked) or any(weighed):
            marks = zip(step.operands, picked, weighed, strict=True)
            if all(is_pick or is_gate or v.origin == "constant" for v, is_pick, is_gate in marks):
                (gates if any(weighed) else picks).update(id(value) for value in step.results)
    dispatch |= _positions(steps, dispatch)
    found = frozenset(stacks), frozenset(dispatch), tuple(computed)
    return Router(experts, chosen, leaves, *found)


def _makes(steps: Sequence[Step], logits: Value, experts: Dim) -> tuple[frozenset[int], set[int]]:
    """Returns the arrays, and the activations along experts, from which logits are computed."""
    leaves, found = set[int](), {id(logits)}
    for step in reversed(steps):
        if any(id(value) in found for value in step.results):
            along = [value for value in step.operands if _has(value, experts)]
            found |= {id(value) for value in along if value.origin == "data"}
            leaves.update(*(value.leaves for value in along if value.origin == "parameter"))
    return frozenset(leaves), found


def _found(step: Step, known: Sequence[bool], experts: Dim, chosen: Dim) -> Iterator[Dim]:
    """Yields the dimensions of experts along which a step indexes the chosen experts.

    Args:
        step: a step with an operand that is computed from the choice.
        known: whether each operand is computed from the choice or from gates.
        experts: the dimension of the logits.
        chosen: the dimension of the chosen experts.
    """
    operands = step.operands
    if step.name.startswith("scatter") and known[1]:
        written = step.eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
        dims = (operands[0].dims[axis] for axis in written)
        yield from (dim for dim in dims if dim.size == experts.size)
    elif step.name == "ragged_dot_general":
        groups = step.eqn.params["ragged_dot_dimension_numbers"].rhs_group_dimensions
        yield from (operands[1].dims[axis] for axis in groups)
    elif step.name == "gather" and not known[0]:
        looked_up = step.eqn.params["dimension_numbers"].start_index_map
        yield from (operands[0].dims[axis] for axis in looked_up)
    elif step.name == "eq" and _has(step.results[0], chosen):  # one-hot vectors
        others = [value for value, is_known in zip(operands, known, strict=True) if not is_known]
        if others and all(value.origin == "constant" for value in others):
            taken = {dim.root for v, is_known in zip(operands, known) if is_known for dim in v.dims}
            yield from (dim for dim in step.results[0].dims if dim.root not in taken)


def _positions(steps: Sequence[Step], dispatch: set[int]) -> set[int]:
    """Returns the steps that make constants only for steps in ``dispatch``, such as positions."""
    found, wanted = set[int](), set[int]()  # constants that other steps take, too
    for index, step in reversed(list(enumerate(steps))):
        is_constant = all(value.origin == "constant" for value in step.results)
        if is_constant and step.results and not any(id(v) in wanted for v in step.results):
            found.add(index)
        elif index not in dispatch:
            wanted.update(id(value) for value in step.operands)
    return found


def _has(value: Value, dim: Dim) -> bool:
    return any(part is dim for along in value.dims for part in parts_of(along))
