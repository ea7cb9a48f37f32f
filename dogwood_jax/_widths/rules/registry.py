"""One rule per primitive: how the dimensions of its results follow from its operands.

A rule takes the trace, the equation and the values of its operands and returns the values of its
results. It unifies what the operation ties, and notes what stops a dimension from growing or what
growing it would change. Primitives without a rule fix every dimension that passes through them.

This file holds the table and what the rules share. The other files of this folder hold the rules.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Literal

from dogwood_jax._widths.dims import REPEATED, Dim, atoms, cut, factors, product
from dogwood_jax._widths.positions import POSITIONS
from dogwood_jax._widths.reasons import Reason
from dogwood_jax._widths.values import (
    Entry,
    Silencer,
    Silencers,
    Trace,
    Value,
    every,
)

Rule = Callable[..., list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def shapes_out(eqn: Any) -> list[tuple[int, ...]]:
    return [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]


def origin_of(values: Iterable[Value]) -> str:
    origins = {v.origin for v in values}
    return next((o for o in ("data", "parameter") if o in origins), "constant")


def noise_of(values: Iterable[Value]) -> Literal["noise", "mask"] | None:
    kinds = {v.noise for v in values}
    return "noise" if "noise" in kinds else "mask" if "mask" in kinds else None


def mixed(values: Sequence[Value], dims: Sequence[Dim], **known: Any) -> Value:
    """Returns a value computed from others.

    A constant made of constants is taken to vary along every axis unless more is known of it.
    """
    origin = origin_of(values)
    if origin == "constant" and known.get("number") is None:
        known.setdefault("positional", frozenset(range(len(dims))))
    leaves: frozenset[int] = frozenset()
    if origin == "parameter":
        leaves = frozenset().union(*(v.leaves for v in values))
    return Value(tuple(dims), origin, leaves=leaves, **known)  # type: ignore[arg-type]


def unknown(trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
    """Fixes every dimension that passes through a primitive without a rule."""
    if not eqn.outvars:
        return []
    name = eqn.primitive.name
    reason = (
        f"it passes through the primitive {name}, for which there is no rule; with trace(..., "
        f"kernels={{{name!r}: reference}}), a function of JAX is read in its place"
    )
    for value in operands:
        trace.use(value, "contract")
        for dim in value.dims:
            dim.fix(reason)
    return [mixed(operands, [Dim(n, reason) for n in shape]) for shape in shapes_out(eqn)]


def of_sum(terms: Iterable[tuple[Value, Silencers]]) -> Silencers:
    """Silencers of a sum: all terms must be silenced, except terms that are zero anyway."""
    needed = [silencers for value, silencers in terms if value.number != 0]
    return every(needed) if needed else ()


def plain(value: Value) -> bool:
    return value.origin == "data" and value.noise is None and value.number is None


def positions_used(value: Value) -> None:
    for axis in value.positional if value.noise is None else ():
        value.dims[axis].endanger(POSITIONS)


# Outputs move, although an evaluation takes these numbers to be the same for old entries.
DRAWN = Reason("random numbers are drawn along it, and a new shape draws others", "drawn")


def positions_cut(value: Value, axis: int, start: int) -> None:
    if axis in value.positional and start:
        value.dims[axis].endanger("a table of positions is cut along it")


def noise_used(value: Value) -> None:
    for axis, dim in enumerate(value.dims):
        if value.origin == "constant":
            if axis not in value.positional:
                continue  # A mask for each example is the same for all units.
            dim.endanger(
                "random numbers are drawn along it with a key inside the network, and a new shape "
                "draws others; trace the network in evaluation, or pass the key as an input"
            )
        elif value.noise == "noise":
            dim.endanger(DRAWN)
        else:
            dim.note("a random mask is drawn along it: growing it draws another mask")


def pick(x: Value, axes: Sequence[int]) -> Value:
    """Returns a value with a selection of its axes, in a new order."""
    x = blend(x, [a for a in range(x.ndim) if a not in axes and x.dims[a].size > 1])
    return x.but(
        dims=tuple(x.dims[a] for a in axes),
        silencers=tuple(x.silencers[a] for a in axes) if x.silencers else (),
        positional=frozenset(i for i, a in enumerate(axes) if a in x.positional),
        weighted=frozenset(i for i, a in enumerate(axes) if a in x.weighted),
    )


def spread(x: Value, shape: Sequence[int], places: Sequence[int]) -> Value:
    """Returns a value with its axes at these places among new ones."""
    dims = [Dim(n) for n in shape]
    silencers: list[Silencers] = [()] * len(shape)
    place_of: dict[int, int] = {}
    for axis, place in enumerate(places):
        if x.dims[axis].size != shape[place]:
            x.dims[axis].fix(REPEATED)
            continue
        dims[place] = x.dims[axis]
        silencers[place] = x.silencers_of(axis)
        place_of[axis] = int(place)
    return x.but(
        dims=tuple(dims),
        silencers=tuple(silencers) if x.silencers else (),
        positional=frozenset(place_of[a] for a in x.positional if a in place_of),
        weighted=frozenset(place_of[a] for a in x.weighted if a in place_of),
    )


def narrowed(silencers: Silencers, whole: Dim, part: Dim) -> Silencers:
    """Silencers along a factor of a dimension, given the silencers along the whole dimension."""
    own = {f.root for f in factors(part)}
    others = {f.root for f in factors(whole)} - own

    def factor(entry: Entry) -> Entry | None:
        parts = [f.root for f in factors(entry.dim)]
        inside = [i for i, f in enumerate(parts) if f in own]
        if not others & {*parts}:
            return entry
        if inside:
            shared = product(parts[i] for i in inside)
            return entry.factor(shared, prod(f.size for f in parts[inside[-1] + 1 :]))
        return None if others >= {*parts} else entry

    return _each_entry(silencers, factor) if others else silencers


def _each_entry(silencers: Silencers, change: Callable[[Entry], Entry | None]) -> Silencers:
    """Silencers with changed entries; entries that become None are left out, unless all do."""

    def changed(entries: frozenset[Entry]) -> frozenset[Entry]:
        found = frozenset(e for e in map(change, entries) if e is not None)
        return found or entries

    return tuple(Silencer(changed(s.entries), s.behind) for s in silencers)


def with_axis(x: Value, axis: int, dim: Dim, silencers: Silencers = ()) -> Value:
    """Returns a value with another dimension along an axis."""
    along = [*x.silencers]
    if along:
        along[axis] = silencers
    return x.but(dims=(*x.dims[:axis], dim, *x.dims[axis + 1 :]), silencers=tuple(along))


def part_of(x: Value, axis: int, part: Dim, start: int) -> Value:
    """Returns the piece of a value that begins at ``start`` along an axis."""
    whole = x.dims[axis]
    positions_cut(x, axis, start)
    others = {*atoms(whole)} - {*atoms(part)}

    def along(entry: Entry) -> Entry | None:
        if entry.dim.is_same(whole):
            return entry.piece(part, start)
        return None if others >= {*atoms(entry.dim)} else entry

    # A factor inside each unit of a cut dimension moves to the same piece of the leaf's axis.
    elsewhere = frozenset().union(*(x.entries(a) for a in range(x.ndim) if a != axis))
    cut = [e for e in x.entries(axis) - elsewhere if e.dim.is_same(whole)]

    def across(entry: Entry) -> Entry:
        for outer in cut:
            if outer.contains(entry):
                piece = outer.piece(part, start)
                return replace(entry, start=piece.start, stop=piece.stop)
        return entry

    silencers = tuple(
        _each_entry(s, along if a == axis else across) for a, s in enumerate(x.silencers)
    )
    return with_axis(x, axis, part).but(silencers=silencers)


def sliced(x: Value, axis: int, start: int, size: int) -> Value:
    """Returns ``size`` units of a value along an axis, from ``start`` on."""
    whole = x.dims[axis]
    if size == whole.size:
        return x
    if size == 0:
        return part_of(x, axis, Dim(0), 0)
    sizes = [n for n in (start, size, whole.size - start - size) if n]
    return part_of(x, axis, cut(whole, sizes)[1 if start else 0], start)


def blend(x: Value, axes: Iterable[int]) -> Value:
    """Returns a value whose units along some axes have come to depend on each other."""
    outer = [e for a in axes for e in x.entries(a) if e.stride > 1]

    def inner(entry: Entry) -> Entry:
        return replace(entry, blended=True) if any(o.contains(entry) for o in outer) else entry

    if not outer:
        return x
    return x.but(silencers=tuple(_each_entry(s, inner) for s in x.silencers))
