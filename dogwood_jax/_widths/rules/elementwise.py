"""The rule for functions of single entries: units stay units."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import jax.numpy as jnp

from dogwood_jax._program.dims import DEVICES, REPEATED, Dim, parts_of, unify
from dogwood_jax._program.primitives.entries import ENTRIES
from dogwood_jax._program.primitives.functions import folded
from dogwood_jax._program.primitives.table import functions
from dogwood_jax._program.shards import mesh_axes
from dogwood_jax._program.values import Trace, Value, joined
from dogwood_jax._widths.rules.registry import (
    mixed,
    origin_of,
    rule,
    together,
    unknown,
)


@rule(*ENTRIES)
def _of_entries(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    law = ENTRIES[eqn.primitive.name]
    shape = eqn.outvars[0].aval.shape
    if law.same:
        return [*values]
    index, wrapped = _indices(eqn, values)
    known: dict[str, Any] = {"number": _number(eqn, values), "index": index, "wrapped": wrapped}
    if law.takes == 1:
        x = values[0]
        if x.ndim != len(shape):  # a bitcast to smaller elements adds an axis
            return unknown(trace, eqn, *values)
        if law.pole or eqn.params.get("y", 1) < 0:
            trace.use(x, "positive")
        if not law.linear:
            along = x.along if x.origin == "parameter" else ()
            known |= {"along": along, "one_hot": (), "weighted": ()}
        return [x.but(**known)]
    dims, origin = _aligned(shape, values), origin_of(values)
    if law.powers:
        for value, power in zip(values, law.powers, strict=True):
            if power < 0:
                trace.use(value, "positive")
    if origin == "data" and not law.compares:
        for value in values:
            trace.join(value, "multiply" if law.powers else "add")
    if origin == "parameter":
        known["along"] = together(values, dims)
    if not law.compares and any(value.contracted or value.summed for value in values):
        known |= _sums(values, is_sum=not law.powers)
    return [mixed(values, dims, **known)] * len(eqn.outvars)


def _aligned(shape: Sequence[int], values: Sequence[Value]) -> tuple[Dim, ...]:
    """Unifies operands axis by axis, and returns the result's dimensions.

    An axis of size 1 beside a longer one is broadcast: it has no part in the result's axis.
    """
    dims, arrays = [], [value.dims for value in values if value.dims]
    for axis, size in enumerate(shape):
        found: Dim | None = None
        for its in arrays:
            dim = its[axis]
            if dim.size != size:
                dim.fix(REPEATED)
            elif found is None:
                found = dim
            else:
                unify(found, dim)
        dims.append(Dim(size) if found is None else found)
    return arrays[0] if arrays and dims == [*arrays[0]] else tuple(dims)


def _sums(values: Sequence[Value], *, is_sum: bool) -> dict[str, Any]:
    """Returns what a constant may belong to that scales the result, see ``Value``.

    If a sum meets other data, the constant scales both and says nothing of the sum alone, unless
    both are scores: 1 / sqrt(head_dim) also scales (q + u) @ k + (q + v) @ positions.
    """
    data = [v for v in values if v.origin == "data"]
    alone = [v for v in values if len(data) < 2 and (v.origin != "constant" or not data)]
    contracted = [value.contracted for value in alone]
    for value in data if is_sum and len(data) > 1 else ():
        its = (d for d in value.contracted if any(part.bilinear for part in parts_of(d)))
        contracted.append(tuple(its))
    return {"contracted": joined(contracted), "summed": joined(v.summed for v in alone)}


def _number(eqn: Any, values: Sequence[Value]) -> float | None:
    """Computes with known numbers, so that constants are recognised however they were made."""
    name, numbers = eqn.primitive.name, [value.number for value in values]
    if name == "select_n":
        return None if numbers[0] is None else numbers[1 + int(numbers[0])]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    if name == "convert_element_type":
        return _converted(known[0], eqn.params["new_dtype"])
    return folded(eqn, known)


def _converted(number: float, dtype: Any) -> float | None:
    """Returns what a number becomes where it is cast: integers have no fraction."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return number
    if jnp.issubdtype(dtype, bool):
        return float(number != 0)
    return float(int(number)) if isfinite(number) else None


@rule("mul")
def _mul(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    (out,) = _of_entries(trace, eqn, x, y)
    arrays = [v for v in (x, y) if v.ndim and v.origin != "constant"]
    weighted = tuple(
        axis
        for axis, dim in enumerate(out.dims)
        if len(arrays) == 2 and x is not y and x.dims[axis].size == y.dims[axis].size == dim.size
    )
    # Of a product of weights, it is enough if one factor reads units.
    weights = sorted(
        (v for v in (x, y) if v.origin == "parameter"), key=lambda v: -sum(map(bool, v.along))
    )
    each = [together([weight], out.dims) for weight in weights]
    along = tuple(next(filter(None, its), ()) for its in zip(*each, strict=True))
    return [out.but(along=along, weighted=weighted)]


@rule("name")
def _name(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    """A name says nothing, unless it says that a value has axes of a mesh in front."""
    for dim in x.dims[: mesh_axes(eqn.params["name"])]:
        dim.fix(DEVICES)
    return [x]


# Integers that name positions or units ------------------------------------------------------------


def _indices(eqn: Any, values: Sequence[Value]) -> tuple[bool | Dim, bool | Dim]:
    """Returns what the integers that are computed of others still are, see ``Value``."""
    name = eqn.primitive.name
    if not any(value.index or value.wrapped for value in values):
        return False, False
    if name == "convert_element_type":
        is_float = jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact)
        is_same = not is_float or values[0].origin == "data"
        return (values[0].index, values[0].wrapped) if is_same else (False, False)
    if name in ("add", "sub", "max", "min"):
        pairs = (values, values[::-1])
        indexed = next((a.index for a, b in pairs if b.number is not None), False)
        # max(index, 0) leaves indices within their range
        is_clipped = sum(not _keeps_zero(name, value) for value in values) == 1
        # jnp adds the length of an axis to negative indices. The results are still indices.
        return indexed if is_clipped else False, indexed if name == "add" else False
    if name == "clamp":
        low, x, high = values
        is_clipped = _keeps_zero("max", low)
        is_clipped &= high.number is None or _keeps_zero("min", high)
        return x.index if is_clipped else False, False
    if name == "select_n":
        cases = values[1:]
        known = [c.index or c.wrapped or c.number == 0 for c in cases]
        names = {index.root if isinstance(index, Dim) else None for index in known}
        is_one = all(known) and len(names) == 1
        return next((c.index for c in cases if c.index), False) if is_one else False, False
    return False, False


def _keeps_zero(name: str, other: Value) -> bool:
    """Whether the maximum or minimum of zero and this number is zero."""
    if name not in ("max", "min") or other.number is None:
        return False
    return other.number <= 0 if name == "max" else other.number >= 0


@rule(*functions(lambda law: law.compares))
def _compare(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    """Indices that are compared with positions are one-hot vectors."""
    (out,) = _of_entries(trace, eqn, x, y)
    table, other = (x, y) if x.origin == "constant" else (y, x)
    counts = tuple(a for a, d in enumerate(table.dims) if d.size > 1)
    is_free = all(not other.ndim or other.dims[a].size == 1 for a in counts)
    if eqn.primitive.name != "eq" or table.index is not True or not other.index or not is_free:
        return [out]
    for axis in counts if other.index is True else ():  # new positions are for new inputs
        out.dims[axis].root.interface = True
    return [out.but(one_hot=counts)]
