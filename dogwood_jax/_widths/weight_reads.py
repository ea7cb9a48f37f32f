"""How a program reads its weights along each axis, noted for every equation in one place: ``note``.

The rules of primitives say which dimensions are the same. Three more facts are noted here, for all
primitives in the same way, so that no rule can forget them:

- ``Value.reach``: the axes of weights whose units lie along each of its axes. ``tanh(x @ kernel)``
  is reached by ``kernel[1]`` along its last axis.
- ``Value.bounds``: the bounds of its entries.
- ``Trace.reads``: where weights are not simply factors in a sum, as in ``tanh(kernel)``. If copies
  share weights, such a read changes outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dogwood_jax._program.primitives.bounds import bounds_of
from dogwood_jax._program.primitives.intervals import UNKNOWN, Bounds, at
from dogwood_jax._program.primitives.table import is_linear, primitive
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.values import Entry, Read, Trace, Value, axes_between

# Primitives whose rules say which axes weights reach, because they move or drop axes one by one.
_BY_RULES = frozenset(
    "transpose squeeze broadcast_in_dim reduce_sum psum psum_invariant reduce_max "
    "reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce".split()
)


def note(trace: Trace, eqn: Any, operands: Sequence[Value], results: list[Value]) -> list[Value]:
    """Notes how an equation reads its operands; returns its results with what is known of them.

    Args:
        trace: what is noted of the program.
        eqn: the equation.
        operands: the values that it takes.
        results: what its rule returned.
    """
    name, params = eqn.primitive.name, eqn.params
    if not operands or not results:
        return results
    reached = [value for value in operands if any(value.reach)]
    found = []
    for value, bounds in zip(results, _bounds(eqn, operands, results), strict=True):
        if value not in operands:
            value.bounds = bounds
            if not reached:
                value.reach = ()
            elif name not in _BY_RULES:
                value.reach = _reach(name, params, operands, reached, value)
        found.append(_of_pieces(trace, value) if reached and primitive(name).pieces else value)
    if reached:
        _note_linearity(trace, name, params, operands, found)
    return found


# Which weights lie along an axis ------------------------------------------------------------------


def _reach(
    name: str,
    params: Mapping[str, Any],
    operands: Sequence[Value],
    reached: Sequence[Value],
    result: Value,
) -> tuple[int, ...]:
    if primitive(name).contracts:
        axes = axes_between(name, params, operands, result)
        assert axes is not None
        found = [0] * result.ndim
        for axis in range(result.ndim):
            for place, own in axes.sources(axis):
                found[axis] |= operands[place].reach_along(own)
        return tuple(found)
    if len(reached) == 1 and reached[0].dims == result.dims:
        return reached[0].reach
    found = [0] * result.ndim
    for value in reached:
        for axis in range(result.ndim):
            found[axis] |= _along(name, value, result, axis)
    return tuple(found)


def _along(name: str, value: Value, result: Value, axis: int) -> int:
    """What reaches an operand along the axis of a result."""
    if not any(value.reach):
        return 0
    dim = result.dims[axis]
    if value.ndim == result.ndim and (
        value.dims[axis].is_same(dim) or (primitive(name).stays and _overlap(value.dims[axis], dim))
    ):
        return value.reach[axis]
    found = 0
    for own, mask in enumerate(value.reach):
        if mask and _overlap(value.dims[own], dim):
            found |= mask
    return found


def _overlap(a: Dim, b: Dim) -> bool:
    a, b = a.root, b.root
    if a is b:
        return True
    if a.kind is None and b.kind is None:
        return False
    return not {*atoms(a)}.isdisjoint(atoms(b))


def _of_pieces(trace: Trace, value: Value) -> Value:
    """Returns a value whose reach names pieces of axes, where its silencers show the pieces."""
    if not value.silencers or not value.reach:
        return value
    reach = list(value.reach)
    for axis in range(value.ndim):
        known: dict[tuple[int, int], list[Entry]] = {}
        for entry in value.entries(axis):
            known.setdefault((entry.leaf, entry.axis), []).append(entry)
        for bit, whole in trace.pieces_of(reach[axis]) if known else ():
            pieces = [
                trace.bit(*whole[:2], entry.start, entry.stop)
                for entry in known.get(whole[:2], ())
                if whole.start <= entry.start and entry.stop <= whole.stop
            ]
            if pieces:
                reach[axis] &= ~bit
                for piece in pieces:
                    reach[axis] |= piece
    return value if tuple(reach) == value.reach else value.but(reach=tuple(reach))


# Linear and other reads ---------------------------------------------------------------------------


def _note_linearity(
    trace: Trace,
    name: str,
    params: Mapping[str, Any],
    operands: Sequence[Value],
    results: Sequence[Value],
) -> None:
    record, others = primitive(name), operands
    if is_linear(name, params):
        return
    if record.linear_in_first:
        others = operands[1:]
    elif record.contracts or record.powers:
        _note_products(trace, name, params, operands, results[0])
        others = operands[2:]
    elif record.terms is not None:
        terms = [value for value in operands[record.terms] if value.number != 0]
        joined = params.get("dimension", params.get("axis")) if name != "pad" else None
        for axis, dim in enumerate(results[0].dims):
            if axis != joined:
                _note_sum(trace, dim, [_along(name, value, results[0], axis) for value in terms])
        others = [value for value in operands if value not in operands[record.terms]]
    for value in others:
        for dim, reach in zip(value.dims, value.reach, strict=False):
            if reach:
                trace.reads.append(Read("nonlinear", dim, (reach,)))


def _note_sum(trace: Trace, dim: Dim, terms: Sequence[int]) -> None:
    if len({*terms}) > 1:
        trace.reads.append(Read("sum", dim, tuple(terms)))


def _note_products(
    trace: Trace, name: str, params: Mapping[str, Any], operands: Sequence[Value], result: Value
) -> None:
    x, y = operands[:2]
    axes = axes_between(name, params, operands, result)
    for a, b in axes.met() if axes else ():
        terms = x.reach_along(a), y.reach_along(b)
        if all(terms):
            trace.reads.append(Read("product", x.dims[a], terms))


# Bounds -------------------------------------------------------------------------------------------


def _bounds(eqn: Any, operands: Sequence[Value], results: Sequence[Value]) -> Iterator[Bounds]:
    name, params = eqn.primitive.name, eqn.params
    is_complex = "c" in map(_kind, (*eqn.invars, *eqn.outvars[:1]))
    one_by_one = name in ("optimization_barrier", "psum", "psum_invariant", "pvary")
    for place, result in enumerate(results):
        own = operands[place : place + 1] if one_by_one else operands
        if result.number is not None:
            yield at(result.number)
        elif name == "top_k" and place == 1:
            yield Bounds(0, operands[0].dims[-1].size - 1)
        elif is_complex or (
            len(results) > 1 and not one_by_one and name not in ("split", "unstack")
        ):
            yield UNKNOWN
        else:
            found = bounds_of(name, params, own, [value.bounds for value in own])
            if _kind(eqn.outvars[place]) == "b":
                found = Bounds(max(found.low, 0), min(found.high, 1), found.compared)
            yield found


def _kind(atom: Any) -> str:
    """Returns the kind of numbers of an operand or a result, as NumPy has it; of tokens none."""
    return getattr(getattr(atom.aval, "dtype", None), "kind", "")
