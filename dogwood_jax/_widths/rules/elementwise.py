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
    origin_of,
    rule,
    shapes_out,
    together,
    unknown,
)
from dogwood_jax._widths.values import Along, Trace, Value

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
    return [
        x.but(
            number=number,
            index=x.index if is_same else False,
            wrapped=x.wrapped if is_same else False,
        )
    ]


def _converted(number: float | None, dtype: Any) -> float | None:
    """Returns what a number becomes where it is cast: integers have no fraction."""
    if number is None or jnp.issubdtype(dtype, jnp.inexact):
        return number
    if jnp.issubdtype(dtype, bool):
        return float(number != 0)
    return float(int(number)) if isfinite(number) else None


def _function(x: Value, number: float | None) -> Value:
    """Returns a function of the entries of a value that need not be linear."""
    along = x.along if x.origin == "parameter" else ()
    nowhere = frozenset[int]()
    return x.but(along=along, one_hot=nowhere, weighted=nowhere, number=number, index=False)


def _reciprocal(trace: Trace, x: Value, number: float | None = None) -> Value:
    """Something like 1 / x: not finite where x is zero."""
    trace.use(x, "positive")
    return _function(x, number)


@rule(*functions(lambda law: law.takes == 1 and not law.linear))
def _unary(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    name = eqn.primitive.name
    (shape,) = shapes_out(eqn)
    if len(shape) != x.ndim:  # a bitcast between element sizes adds or drops a dimension
        return unknown(trace, eqn, x)
    if primitive(name).pole or eqn.params.get("y", 1) < 0:
        return [_reciprocal(trace, x, _fold(name, x.number))]
    return [_function(x, _fold(name, x.number))]


def _fold(name: str, *numbers: float | None) -> float | None:
    """Computes with known numbers, so that constants are recognised however they were made."""
    found = folded(name, *numbers)
    return None if found is None or isinstance(found, complex) else float(found)


def _aligned(eqn: Any, values: Sequence[Value]) -> tuple[Dim, ...]:
    """Unifies operands axis by axis, and returns the result's dimensions.

    An axis of size 1 beside a longer one is broadcast: it has no part in the result's axis.
    """
    shape = shapes_out(eqn)[0]
    dims = []
    for axis, size in enumerate(shape):
        found: Dim | None = None
        for value in values:
            if not value.ndim:
                continue
            dim = value.dims[axis]
            if dim.size != size:
                dim.fix(REPEATED)
            elif found is None:
                found = dim
            else:
                unify(found, dim)
        dims.append(Dim(size) if found is None else found)
    return tuple(dims)


def _nary(trace: Trace, eqn: Any, values: Sequence[Value], how: str) -> Value:
    """An elementwise operation of several operands."""
    dims, origin = _aligned(eqn, values), origin_of(values)
    # If a sum meets other data, a later constant scales both and says nothing of the sum alone,
    # unless it makes scores: 1 / sqrt(head_dim) also scales (q + u) @ k + (q + v) @ positions.
    data = [v for v in values if v.origin == "data"]
    sums = [v for v in values if len(data) < 2 and (v.origin != "constant" or not data)]
    scores = data if how == "add" and len(data) > 1 else ()
    for value in values:
        if origin == "data":
            trace.join(value, how)
    return mixed(
        values,
        dims,
        along=together(values, dims) if origin == "parameter" else (),
        contracted=(
            *(d for v in sums for d in v.contracted),
            *(d for v in scores for d in v.contracted if any(p.bilinear for p in parts_of(d))),
        ),
        summed=tuple(d for v in sums for d in v.summed),
    )


@rule("mul")
def _mul(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    out = _nary(trace, eqn, (x, y), "multiply")
    arrays = [v for v in (x, y) if v.ndim and v.origin != "constant"]
    weighted = frozenset(
        axis
        for axis, dim in enumerate(out.dims)
        if len(arrays) == 2 and x is not y and x.dims[axis].size == y.dims[axis].size == dim.size
    )
    # Of a product of weights, it is enough if one factor reads units.
    weights = sorted(
        (v for v in (x, y) if v.origin == "parameter"), key=lambda v: -sum(map(bool, v.along))
    )
    each = [together([weight], out.dims) for weight in weights]
    along = tuple(next(filter(None, its), Along()) for its in zip(*each, strict=True))
    return [out.but(along=along, number=_fold("mul", x.number, y.number), weighted=weighted)]


@rule("div")
def _div(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    out = _nary(trace, eqn, (x, _reciprocal(trace, y)), "multiply")
    return [out.but(number=_fold("div", x.number, y.number))]


@rule(*_SUMS)
def _sum(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    name = eqn.primitive.name
    out = _nary(trace, eqn, (x, y), "add")
    terms = [value for value in (x, y) if not _keeps_zero(name, value)]
    indexed = next((a.index for a, b in ((x, y), (y, x)) if b.number is not None), False)
    clipped = len(terms) == 1  # max(index, 0) leaves indices within their range
    # jnp adds the length of an axis to negative indices. The results are still indices.
    wrapped = indexed if name == "add" else False
    number = _fold(name, x.number, y.number)
    index = indexed if clipped else False
    return [out.but(number=number, index=index, wrapped=wrapped)]


def _keeps_zero(name: str, other: Value) -> bool:
    """Whether the maximum or minimum of zero and this number is zero."""
    if name not in ("max", "min") or other.number is None:
        return False
    return other.number <= 0 if name == "max" else other.number >= 0


@rule(*functions(lambda law: law.compares))
def _compare(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    dims = _aligned(eqn, (x, y))
    table, other = (x, y) if x.origin == "constant" else (y, x)
    counts = [a for a, d in enumerate(table.dims) if d.size > 1]
    is_free = all(not other.ndim or other.dims[a].size == 1 for a in counts)
    out = mixed((x, y), dims)
    if eqn.primitive.name == "eq" and table.index is True and other.index and is_free:
        out = out.but(one_hot=frozenset(counts))
        for axis in counts if other.index is True else ():  # new positions are for new inputs
            dims[axis].root.interface = True
    return [out.but(number=_fold(eqn.primitive.name, x.number, y.number))]


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
    number = None if which.number is None else cases[int(which.number)].number
    return [out.but(index=index, number=number)]


@rule("clamp")
def _clamp(trace: Trace, eqn: Any, low: Value, x: Value, high: Value) -> list[Value]:
    out = _nary(trace, eqn, (low, x, high), "add")
    clipped = _keeps_zero("max", low) and (high.number is None or _keeps_zero("min", high))
    return [out.but(index=x.index if clipped else False)]


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
