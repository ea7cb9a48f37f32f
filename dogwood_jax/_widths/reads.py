"""How a program reads its weights along each axis, noted for every equation in one place: ``note``.

The rules of primitives say which dimensions are the same. Three more facts are noted here, for all
primitives in the same way, so that no rule can forget them:

- ``Value.reach``: the axes of weights whose units lie along each of its axes. ``tanh(x @ kernel)``
  is reached by ``kernel[1]`` along its last axis.
- ``Value.bounds``: the bounds of its entries.
- ``Trace.reads``: where weights are not simply factors in a sum, as in ``tanh(kernel)``. If copies
  share weights, such a read changes outputs. If weights are zero, a division by them is infinite.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from dogwood_jax._program.bounds import (
    KEEP_SUMS,
    PARTIAL,
    bounds_of,
    bounds_of_complex,
    domains,
    domains_of_complex,
    kept,
    slopes,
)
from dogwood_jax._program.elementwise import is_linear
from dogwood_jax._program.intervals import ANY_NUMBER, NOTHING_KNOWN, UNKNOWN, Bounds, at
from dogwood_jax._program.moves import MOVES
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.values import FILLS, Entry, Read, Trace, Value

# The bounds of weights by how new entries are filled in, in the order of ``FILLS``.
OF_WEIGHTS = (ANY_NUMBER, at(1.0), at(0.0))
# A value made of weights alone has bounds for each fill. Data has bounds for random weights.
_RANDOM, _ZEROS = FILLS.index("random"), FILLS.index("zeros")

# Primitives whose rules say which axes weights reach, because they move or drop axes one by one.
_BY_RULES = frozenset(
    "transpose squeeze broadcast_in_dim reduce_sum psum psum_invariant reduce_max "
    "reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce".split()
)
_KEEP_AXES = frozenset(name for name, move in MOVES.items() if move.stays)
_PIECES = frozenset(name for name, move in MOVES.items() if move.pieces)
# f(a + b) = f(a) + f(b) in the first operand, or in every one.
_LINEAR = frozenset(
    (
        *(name for name, move in MOVES.items() if move.linear and not move.indexed),
        *("reduce_sum", "psum", "psum_invariant", "cumsum", "reduce_window_sum", "fft"),
    )
)
_LINEAR_IN_THE_FIRST = frozenset(
    ("div", *(name for name, move in MOVES.items() if move.linear and move.indexed))
)
# Sums, or values side by side: the places of their terms among the operands.
_SUMS: dict[str, slice] = {
    **dict.fromkeys(
        "add add_any sub complex concatenate stack pad unvmap_all".split(), slice(None)
    ),
    "select_n": slice(1, None),
    "dynamic_update_slice": slice(0, 2),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), slice(0, 3, 2)),
}
_PRODUCTS = frozenset("mul dot_general conv_general_dilated ragged_dot_general".split())


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
        found.append(_of_pieces(trace, value) if reached and name in _PIECES else value)
    if reached:
        if name in PARTIAL:
            _note_poles(trace, eqn, operands)
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
    if name in ("dot_general", "conv_general_dilated"):
        found = [0] * result.ndim
        for axis, (value, own) in _sources(name, params, operands):
            found[axis] |= value.reach_along(own)
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
        value.dims[axis].is_same(dim) or (name in _KEEP_AXES and _overlap(value.dims[axis], dim))
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


def _sources(
    name: str, params: Mapping[str, Any], operands: Sequence[Value]
) -> Iterator[tuple[int, tuple[Value, int]]]:
    """Yields each axis of a contraction's result, with the operand and axis it comes from."""
    x, y = operands[:2]
    if name == "dot_general":
        (contract_x, contract_y), (batch_x, batch_y) = params["dimension_numbers"]
        for axis, pair in enumerate(zip(batch_x, batch_y, strict=True)):
            yield axis, (x, pair[0])
            yield axis, (y, pair[1])
        axis = len(batch_x)
        for value, used in ((x, {*contract_x, *batch_x}), (y, {*contract_y, *batch_y})):
            for own in range(value.ndim):
                if own not in used:
                    yield axis, (value, own)
                    axis += 1
        return
    numbers = params["dimension_numbers"]
    batch, feature, *space = numbers.out_spec
    yield batch, (x, numbers.lhs_spec[0])
    yield feature, (y, numbers.rhs_spec[0])
    if params["feature_group_count"] > 1:
        yield feature, (x, numbers.lhs_spec[1])
    for axis, own in zip(space, numbers.lhs_spec[2:], strict=True):
        yield axis, (x, own)


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
    if name in _LINEAR or is_linear(name, params):
        return
    others = operands
    if name in _LINEAR_IN_THE_FIRST:
        others = operands[1:]
    elif name in _PRODUCTS:
        _note_products(trace, name, params, operands, results[0])
        others = operands[2:]
    elif name in _SUMS:
        terms = [value for value in operands[_SUMS[name]] if value.number != 0]
        joined = params.get("dimension", params.get("axis")) if name != "pad" else None
        for axis, dim in enumerate(results[0].dims):
            if axis != joined:
                _note_sum(trace, dim, [_along(name, value, results[0], axis) for value in terms])
        others = [value for value in operands if value not in operands[_SUMS[name]]]
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
    if name == "mul":
        pairs = [(a, a) for a in range(result.ndim) if x.ndim == y.ndim == result.ndim]
    elif name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        pairs = [(numbers.lhs_spec[1], numbers.rhs_spec[1])]
        if params["feature_group_count"] > 1:
            pairs.append((numbers.lhs_spec[1], numbers.rhs_spec[0]))
    else:
        numbers = params.get("ragged_dot_dimension_numbers")
        numbers = numbers.dot_dimension_numbers if numbers else params["dimension_numbers"]
        pairs = [pair for axes in numbers for pair in zip(*axes, strict=True)]
    for a, b in pairs:
        terms = x.reach_along(a), y.reach_along(b)
        if all(terms):
            trace.reads.append(Read("product", x.dims[a], terms))


# Where functions are not finite -------------------------------------------------------------------


def _note_poles(trace: Trace, eqn: Any, operands: Sequence[Value]) -> None:
    """Notes where values of new units may leave the domain of a function."""
    name, params = eqn.primitive.name, eqn.params
    dtype = getattr(eqn.outvars[0].aval, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return

    def finite(fill: int, with_slope: bool) -> list[bool]:
        """Whether a function is finite for each operand; ``with_slope``, its slope, too."""
        bounds = [value.bounds_for(fill) for value in operands]
        if jnp.issubdtype(dtype, jnp.complexfloating):
            found = domains_of_complex(name, len(bounds))
        else:
            found = (slopes if with_slope else domains)(name, params, bounds)
        if with_slope:
            bounds = [replace(b, atoms=True) for b in bounds]
        return [domain is None or domain(b) for domain, b in zip(found, bounds, strict=False)]

    # The bounds of data are the same for each fill.
    fills = range(len(FILLS) if any(value.origin == "parameter" for value in operands) else 1)
    by_fill = [finite(fill, with_slope=False) for fill in fills] * (len(FILLS) // len(fills))
    sure = [finite(fill, with_slope=True) for fill in (_RANDOM, _ZEROS)[: len(fills)]]
    for place, value in enumerate(operands[: len(by_fill[0])]):
        is_data = value.origin != "parameter"
        kinds = frozenset(kind for kind, ok in zip(FILLS, by_fill, strict=True) if ok[place])
        silent = sure[0 if is_data else 1][place]
        if value.bounds[0].sparse and not kinds:
            for axis, dim in enumerate(value.dims):
                if not value.reach_along(axis):
                    dim.endanger(f"{name} is not finite where nothing was added to a sum along it")
        for dim, reach in zip(value.dims, value.reach, strict=False):
            if reach and len(kinds) < (1 if is_data else len(FILLS)):
                trace.reads.append(Read("stray", dim, (reach,), name, kinds))
            if reach and not silent:
                trace.reads.append(Read("pole", dim, (reach,), name))


def _bounds(
    eqn: Any, operands: Sequence[Value], results: Sequence[Value]
) -> Iterator[tuple[Bounds, ...]]:
    name, params = eqn.primitive.name, eqn.params
    kinds = [_kind(atom) for atom in (*eqn.invars, *eqn.outvars[:1])]
    is_complex = "c" in kinds
    one_by_one = name in ("optimization_barrier", "psum", "psum_invariant", "pvary")
    for place, result in enumerate(results):
        own = operands[place : place + 1] if one_by_one else operands
        if result.number is not None:
            yield (at(result.number),)
        elif name in KEEP_SUMS and result.origin == operands[0].origin:
            yield tuple(kept(name, bounds) for bounds in operands[0].bounds)
        elif name == "top_k" and place == 1:
            yield (Bounds(0, operands[0].dims[-1].size - 1),)
        elif len(results) > 1 and not one_by_one and name not in ("split", "unstack"):
            yield NOTHING_KNOWN
        else:
            fills = range(len(FILLS) if result.origin == "parameter" else 1)
            found = []
            for fill in fills:
                bounds = [value.bounds_for(fill) for value in own]
                if is_complex:
                    found.append(bounds_of_complex(name, bounds, is_real=kinds[-1] != "c"))
                else:
                    found.append(bounds_of(name, params, own, bounds))
            if kinds[-1] == "b":
                found = [Bounds(max(b.low, 0), min(b.high, 1), compared=b.compared) for b in found]
            yield NOTHING_KNOWN if found == [UNKNOWN] else tuple(found)


def _kind(atom: Any) -> str:
    """Returns the kind of numbers of an operand or a result, as NumPy has it; of tokens none."""
    return getattr(getattr(atom.aval, "dtype", None), "kind", "")
