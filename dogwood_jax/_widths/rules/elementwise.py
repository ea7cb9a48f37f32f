"""Rules for elementwise operations."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import jax.numpy as jnp

from dogwood_jax._program.primitives.table import folded, functions, primitive
from dogwood_jax._program.shards import mesh_axes
from dogwood_jax._widths.dims import DEVICES, REPEATED, Dim, parts_of, unify
from dogwood_jax._widths.rules.registry import (
    RULES,
    mixed,
    noise_of,
    noise_used,
    of_sum,
    origin_of,
    plain,
    positions_used,
    rule,
    shapes_out,
    unknown,
)
from dogwood_jax._widths.values import Silencer, Silencers, Trace, Value, behind, either

_SUMS = ("add", "sub", "add_any", "complex", "max", "min")


@rule(*functions(lambda law: law.takes == 1 and law.linear))
def _linear(trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
    number, name, is_same = x.number, eqn.primitive.name, False
    if number is not None and name == "neg":
        number = -number
    if name == "convert_element_type":
        number = _converted(number, eqn.params["new_dtype"])
        is_real = jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact)
        is_same = not is_real or x.origin == "data"
        if x.positional and is_real and x.number is None:
            positions_used(x)
    return [
        x.but(
            number=number,
            index=x.index if is_same else False,
            wrapped=x.wrapped if is_same else False,
            quantized=x.quantized and is_same,
        )
    ]


def _converted(number: float | None, dtype: Any) -> float | None:
    """Returns what a number becomes where it is cast: integers have no fraction."""
    if number is None or jnp.issubdtype(dtype, jnp.inexact):
        return number
    if jnp.issubdtype(dtype, bool):
        return float(number != 0)
    return float(int(number)) if isfinite(number) else None


@rule(*functions(lambda law: law.takes == 1 and law.zero and not law.linear))
def _zero_to_zero(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    name = eqn.primitive.name
    zero_stays = name != "integer_pow" or eqn.params["y"] > 0
    if not zero_stays:
        return [_reciprocal(trace, x)]
    silencers = x.silencers if x.origin == "parameter" else tuple(map(behind, x.silencers))
    return [x.but(silencers=silencers, number=_fold(name, x.number), index=False)]


def _reciprocal(trace: Trace, x: Value, number: float | None = None) -> Value:
    """Something like 1 / x: not finite where x is zero."""
    trace.use(x, "positive")
    return x.but(silencers=(), number=number, index=False)


@rule(*functions(lambda law: law.takes == 1 and not law.zero))
def _other_unary(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    name = eqn.primitive.name
    (shape,) = shapes_out(eqn)
    if len(shape) != x.ndim:  # a bitcast between element sizes adds or drops a dimension
        return unknown(trace, eqn, x)
    if primitive(name).pole:
        return [_reciprocal(trace, x, _fold(name, x.number))]
    return [x.but(silencers=(), number=_fold(name, x.number), index=False)]


def _fold(name: str, *numbers: float | None) -> float | None:
    """Computes with known numbers, so that constants are recognised however they were made."""
    found = folded(name, *numbers)
    return None if found is None or isinstance(found, complex) else float(found)


def _aligned(eqn: Any, values: Sequence[Value]) -> tuple[tuple[Dim, ...], list[set[int]]]:
    """Unifies operands axis by axis; returns the result's dimensions and each operand's axes.

    An axis of size 1 beside a longer one is broadcast: it has no part in the result's axis.
    """
    shape = shapes_out(eqn)[0]
    axes: list[set[int]] = [set() for _ in values]
    dims = []
    for axis, size in enumerate(shape):
        found: Dim | None = None
        for value, own in zip(values, axes, strict=True):
            if not value.ndim:
                continue
            dim = value.dims[axis]
            if dim.size != size:
                dim.fix(REPEATED)
            else:
                own.add(axis)
                if found is None:
                    found = dim
                else:
                    unify(found, dim)
        dims.append(Dim(size) if found is None else found)
    return tuple(dims), axes


def _nary(trace: Trace, eqn: Any, values: Sequence[Value], how: str) -> Value:
    """An elementwise operation of several operands, silencers aside."""
    dims, axes = _aligned(eqn, values)
    origin = origin_of(values)
    noise = noise_of(values)
    # If a sum meets other data, a later constant scales both and says nothing of the sum alone,
    # unless it makes scores: 1 / sqrt(head_dim) also scales (q + u) @ k + (q + v) @ positions.
    data = [v for v in values if v.origin == "data"]
    sums = [v for v in values if len(data) < 2 and (v.origin != "constant" or not data)]
    scores = data if how == "add" and len(data) > 1 else ()
    for value in values:
        if origin != "constant" and value.origin == "constant":
            positions_used(value)
            for dim in value.summed:
                dim.endanger("a constant is computed by summing over it")
        if origin == "data":
            trace.join(value, how)
        if value.noise and any(v.origin == "parameter" or plain(v) for v in values):
            noise_used(value)
            noise = None
    return mixed(
        values,
        dims,
        positional=frozenset().union(
            *(v.positional & own for v, own in zip(values, axes, strict=True))
        ),
        noise=noise,
        contracted=(
            *(d for v in sums for d in v.contracted),
            *(d for v in scores for d in v.contracted if any(p.bilinear for p in parts_of(d))),
        ),
        summed=tuple(d for v in sums for d in v.summed),
    )


@rule("mul")
def _mul(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    out = _nary(trace, eqn, (x, y), "multiply")
    silencers: tuple[Silencers, ...] = ()
    weighted = {
        a
        for v in (x, y)
        for a, d in enumerate(out.dims)
        if v.origin == "parameter" and v.ndim and v.dims[a].size == d.size
    }
    if x.silencers or y.silencers:
        factors = [_kept(v, out) for v in (x, y)]
        silencers = tuple(either(*options) for options in zip(*factors, strict=True))
        if x.origin == y.origin == "data":
            weighted |= {a for a, (s, t) in enumerate(zip(*factors, strict=True)) if _apart(s, t)}
    number = _fold("mul", x.number, y.number)
    return [out.but(silencers=silencers, number=number, weighted=frozenset(weighted))]


def _apart(one: Silencers, other: Silencers) -> bool:
    """Whether other weights silence each factor, so that one may be zero while the other is not."""
    leaves = [{entry.leaf for s in side for entry in s.entries} for side in (one, other)]
    return bool(leaves[0] and leaves[1]) and leaves[0].isdisjoint(leaves[1])


@rule("div")
def _div(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    out = _nary(trace, eqn, (x, _reciprocal(trace, y)), "multiply")
    silencers = _kept(x, out) if x.silencers else ()
    number = _fold("div", x.number, y.number)
    return [out.but(silencers=silencers, number=number)]


def _kept(value: Value, out: Value) -> tuple[Silencers, ...]:
    """The silencers of one operand along the axes of the result that it has."""
    return tuple(
        value.silencers_of(a) if value.ndim and value.dims[a].size == d.size else ()
        for a, d in enumerate(out.dims)
    )


@rule(*_SUMS)
def _sum(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    name = eqn.primitive.name
    out = _nary(trace, eqn, (x, y), "add")
    terms = [value for value in (x, y) if not _keeps_zero(name, value)]
    silencers = _terms(terms, out)
    indexed = next((a.index for a, b in ((x, y), (y, x)) if b.number is not None), False)
    clipped = len(terms) == 1  # max(index, 0) leaves indices within their range
    if name in ("max", "min"):
        silencers = silencers if out.origin == "parameter" else tuple(map(behind, silencers))
    # jnp adds the length of an axis to negative indices. The results are still indices.
    wrapped = indexed if name == "add" else False
    number = _fold(name, x.number, y.number)
    index = indexed if clipped else False
    return [out.but(silencers=silencers, number=number, index=index, wrapped=wrapped)]


def _keeps_zero(name: str, other: Value) -> bool:
    """Whether the maximum or minimum of zero and this number is zero."""
    if name not in ("max", "min") or other.number is None:
        return False
    return other.number <= 0 if name == "max" else other.number >= 0


def _terms(values: Sequence[Value], out: Value) -> tuple[Silencers, ...]:
    """Silencers of a sum along each axis of the result."""
    terms = [_kept(v, out) for v in values]
    return tuple(of_sum(zip(values, axis, strict=True)) for axis in zip(*terms, strict=True))


@rule(*functions(lambda law: law.compares))
def _compare(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    dims, axes = _aligned(eqn, (x, y))
    one_hot = eqn.primitive.name == "eq" and (x if x.positional else y).index is True
    one_hot &= bool(x.positional) != bool(y.positional)
    positional = frozenset((x.positional & axes[0]) | (y.positional & axes[1]))
    silencers: tuple[Silencers, ...] = ()
    if one_hot:
        # No old value of the other operand equals a new position: the row is zero there.
        table, other = (x, y) if x.positional else (y, x)
        free = {a for a in table.positional if not other.ndim or other.dims[a].size == 1}
        if free == table.positional and other.index:
            silencers = tuple(
                (Silencer(frozenset()),) if a in free else () for a in range(len(dims))
            )
            positional = frozenset()
            for axis in free if other.index is True else ():
                dims[axis].root.interface = True
    noise = "mask" if x.noise or y.noise else None
    out = mixed((x, y), dims, positional=positional, noise=noise)
    number = _fold(eqn.primitive.name, x.number, y.number)
    return [out.but(silencers=silencers, number=number)]


@rule("select_n")
def _select_n(trace: Trace, eqn: Any, which: Value, *cases: Value) -> list[Value]:
    out = _nary(trace, eqn, (which, *cases), "add")
    # jnp adds the length of an axis to negative indices. These indices are never negative.
    known = [c.index or c.wrapped or c.number == 0 for c in cases]
    names = {index.root if isinstance(index, Dim) else None for index in known}
    index = (
        next((c.index for c in cases if c.index), False)
        if all(known) and len(names) == 1
        else False
    )
    silencers = _terms(cases, out)
    number = None if which.number is None else cases[int(which.number)].number
    return [out.but(silencers=silencers, index=index, number=number)]


@rule("clamp")
def _clamp(trace: Trace, eqn: Any, low: Value, x: Value, high: Value) -> list[Value]:
    out = _nary(trace, eqn, (low, x, high), "add")
    clipped = _keeps_zero("max", low) and (high.number is None or _keeps_zero("min", high))
    silencers = _kept(x, out) if clipped and high.number is not None else ()
    silencers = silencers if out.origin == "parameter" else tuple(map(behind, silencers))
    return [out.but(silencers=silencers, index=x.index if clipped else False)]


@rule(*functions(lambda law: law.same))
def _identity(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    return list(values)


@rule("name")
def _name(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    """A name says nothing, unless it says that a value has axes of a mesh in front."""
    for dim in x.dims[: mesh_axes(eqn.params["name"])]:
        dim.fix(DEVICES)
    return [x]


_OF_SEVERAL = functions(lambda law: law.takes != 1 and not law.same and not law.compares)


@rule(*(name for name in _OF_SEVERAL if name not in RULES))
def _other_nary(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    out = _nary(trace, eqn, values, "add")
    number = _fold(eqn.primitive.name, *(v.number for v in values))
    return [out.but(number=number)] * len(eqn.outvars)
