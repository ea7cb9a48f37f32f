"""Labels the widths of attention: ``label_attention``; finds its ``keys_and_values``.

Attention is found by its two contractions of activations. The first makes scores. The second
contracts the scores, perhaps after a softmax, with a third activation:
``q[t, heads, head_dim]``, ``k[s, heads, head_dim] -> scores[heads, t, s]``, then
``v[s, heads, dim]``. Linear attention contracts keys and values first.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dogwood_jax._program.dims import Dim, atoms
from dogwood_jax._program.values import Step, Trace, Value
from dogwood_jax._widths.roles import Roles

HEADS = ("heads", "kv_heads", "groups")
# The dimension of queries and keys, and that of values if it is separate.
HEAD_DIM, VALUE_DIM = "head_dim", "value_dim"


def label_attention(trace: Trace, roles: Roles) -> None:
    """Labels heads and the dimensions of heads, if weights produce them.

    If several query heads share one head of keys and values, the shared heads are ``kv_heads``,
    and the query heads of each are ``groups``.
    """
    made = _made_by_weights(trace, roles)
    for first, second, scores in _pairs(trace):
        heads, dims, values = _labels(
            first, second, second.free[scores], second.free[1 - scores], made
        )
        shared = heads & made & {*first.batch}
        groups = heads & made - shared
        if shared and groups:  # several query heads share a key head
            found = {"kv_heads": shared, "groups": groups}
        else:
            found = {"heads": heads & made}
        found |= {HEAD_DIM: dims & made, VALUE_DIM: (values - dims) & made}
        for label, atoms_so_called in found.items():
            for atom in atoms_so_called:
                atom.named(label)


def keys_and_values(trace: Trace) -> Iterator[tuple[Step, Sequence[Value]]]:
    """Yields the possible keys and the values of each attention, with the steps that contract them.

    In self-attention, dimensions do not distinguish keys from queries.
    """
    for first, second, scores in _pairs(trace):
        summed = {*second.contracted}
        sides = zip(first.step.operands, first.free, strict=True)
        if keys := [value for value, free in sides if summed & {*free}]:
            yield first.step, keys
            yield second.step, [second.step.operands[1 - scores]]


def _pairs(trace: Trace) -> Iterator[tuple["_Contraction", "_Contraction", int]]:
    """Yields both contractions of each attention, and the place of scores in the second one."""
    known: dict[Sequence[int], _Contraction] = {}
    steps = trace.program.flat(names=("dot_general",))
    contractions = (_Contraction.of(step) for step in steps if _is_of_activations(step))
    for second in contractions:
        for scores in (0, 1):
            first = known.get(_key((*second.batch, *second.contracted, *second.free[scores])))
            if first is not None:
                yield first, second, scores
        known[_key((*second.batch, *second.free[0], *second.free[1]))] = second


class _Contraction(NamedTuple):
    """A contraction of two activations, with its dimensions split into atoms."""

    step: Step
    batch: tuple[Dim, ...]
    contracted: tuple[Dim, ...]
    free: tuple[tuple[Dim, ...], tuple[Dim, ...]]

    @classmethod
    def of(cls, step: Step) -> "_Contraction":
        x, y = step.operands
        (contract_x, contract_y), (batch_x, batch_y) = step.eqn.params["dimension_numbers"]
        free_x = [a for a in range(x.ndim) if a not in {*contract_x, *batch_x}]
        free_y = [a for a in range(y.ndim) if a not in {*contract_y, *batch_y}]
        return cls(
            step,
            _atoms(x.dims[a] for a in batch_x),
            _atoms(x.dims[a] for a in contract_x),
            (_atoms(x.dims[a] for a in free_x), _atoms(y.dims[a] for a in free_y)),
        )


def _is_of_activations(step: Step) -> bool:
    return all(value.origin == "data" for value in step.operands)


def _labels(
    first: _Contraction,
    second: _Contraction,
    scored: Sequence[Dim],
    other: Sequence[Dim],
    made: set[Dim],
) -> tuple[set[Dim], set[Dim], set[Dim]]:
    """Returns the dimensions that count heads, the dimensions of keys, and those of values."""
    free = {*first.free[0], *first.free[1]}
    if {*first.contracted} & made:
        if not (free - made) & {*second.contracted}:
            return set(), set(), set()  # no sum over positions of keys: a gradient, not attention
        # Heads that share a key or a value are not a batch axis of that contraction.
        heads = {*first.batch, *free} & {*second.batch, *second.contracted, *scored}
        # Values after the output's weights no longer have head dimensions.
        values = set() if heads & made & {*second.contracted} else {*other}
        return heads, {*first.contracted}, values - heads
    heads = {*first.batch} & {*second.batch}
    return heads, {*second.contracted} if heads & made else set(), set()


def _made_by_weights(trace: Trace, roles: Roles) -> set[Dim]:
    """Returns the hidden dimensions that weights of layers produce, unlike positions."""
    return {
        spot.atom
        for (leaf, _), spots in roles.spots.items()
        if leaf in trace.uses and trace.uses[leaf].how == "contract"
        for spot in spots
        if roles.produces(spot) == 2 and not (spot.atom.interface or spot.atom.fixed)
    }


def _atoms(dims: Iterable[Dim]) -> tuple[Dim, ...]:
    def walk() -> Iterator[Any]:
        for dim in dims:
            yield from atoms(dim)

    return tuple(atom for atom in walk() if atom.size > 1)


def _key(dims: Iterable[Dim]) -> Sequence[int]:
    return tuple(sorted(map(id, dims)))
