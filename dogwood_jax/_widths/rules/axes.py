"""Rules for operations that move, cut and join axes."""

from collections.abc import Sequence
from typing import Any

from dogwood_jax._program import dims as _dims
from dogwood_jax._program.dims import DROPPED, REPEATED, Dim, unify
from dogwood_jax._program.values import Trace, Value, joined
from dogwood_jax._widths.rules.registry import (
    mixed,
    origin_of,
    pick,
    rule,
    shapes_out,
    sliced,
    spread,
    with_axis,
)


@rule("transpose")
def _transpose(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    return [pick(x, eqn.params["permutation"])]


@rule("squeeze")
def _squeeze(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    gone = {a % x.ndim for a in eqn.params["dimensions"]}
    for axis in gone:
        x.dims[axis].fix(DROPPED)
    return [pick(x, [a for a in range(x.ndim) if a not in gone])]


@rule("broadcast_in_dim")
def _broadcast_in_dim(trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
    return [spread(x, shapes_out(eqn)[0], eqn.params["broadcast_dimensions"])]


@rule("reshape")
def _reshape(trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
    (shape,) = shapes_out(eqn)
    if (order := eqn.params.get("dimensions")) is not None:  # a transpose first
        x = pick(x, order)
    if x.ndim and not shape:
        for dim in x.dims:
            dim.fix(DROPPED)
    dims = tuple(_dims.reshape(x.dims, shape))
    if x.origin == "data":
        trace.split_off += _dims.ones_split_off(x.dims, dims)
    along = []
    for new in dims:
        own = {f.root for f in _dims.factors(new)}
        old = [
            a
            for a, d in enumerate(x.dims)
            if d.is_same(new) or (new.size > 1 and own & {f.root for f in _dims.factors(d)})
        ]
        along.append(joined(map(x.along_axis, old)))
    return [
        x.but(
            dims=dims,
            along=tuple(along),
            one_hot=(),
            weighted=(),
        )
    ]


@rule("rev")
def _rev(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    for axis in eqn.params["dimensions"]:
        x.dims[axis].fix("it is reversed, so appended units would come first")
    return [x.but()]  # a new value, because its entries are not those of x


@rule("concatenate")
def _concatenate(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    axis = eqn.params["dimension"]
    values = tuple(v for v in values if v.dims[axis].size) or values[:1]
    return [_joined(trace, values, axis, _dims.concat(v.dims[axis] for v in values))]


def _joined(trace: Trace, values: Sequence[Value], axis: int, along: Dim) -> Value:
    """Returns values one after another along an axis, their other axes unified."""
    origin = origin_of(values)
    dims = list(values[0].dims)
    dims[axis] = along
    for value in values[1:]:
        for a, dim in enumerate(value.dims):
            if a != axis:
                unify(dims[a], dim)
    for value in values:
        if origin == "data":
            trace.join(value, "add")
    numbers = {v.number for v in values}
    return mixed(
        values,
        dims,
        along=tuple(joined(v.along_axis(a) for v in values) for a in range(len(dims)))
        if origin == "parameter"
        else (),
        number=numbers.pop() if len(numbers) == 1 else None,
        index=any(v.index is True for v in values)
        and all(v.index is True or v.origin == "constant" for v in values),
    )


@rule("stack")
def _stack(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    axis = eqn.params["axis"]
    (shape,) = shapes_out(eqn)
    places = [a for a in range(len(shape)) if a != axis % len(shape)]
    one = [*shape]
    one[axis] = 1
    layers = [spread(v, one, places) for v in values]
    along = Dim(shape[axis], "it counts arrays that are stacked one by one")
    return [_joined(trace, layers, axis % len(shape), along)]


@rule("unstack")
def _unstack(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    axis = eqn.params["axis"] % x.ndim
    units = _dims.cut(x.dims[axis], [1] * len(eqn.outvars))
    trace.set_aside(x, axis)
    kept = [a for a in range(x.ndim) if a != axis]
    for unit in units:
        unit.fix(DROPPED)
    return [pick(with_axis(x, axis, unit), kept) for unit in units]


@rule("split")
def _split(trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
    axis = eqn.params["axis"]
    sizes = eqn.params["sizes"]
    parts = _dims.cut(x.dims[axis], sizes)
    return [with_axis(x, axis, part) for part in parts]


@rule("slice")
def _slice(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * x.ndim
    for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True)):
        dim = x.dims[axis]
        n = dim.size
        if stride == 1:
            x = sliced(x, axis, start, limit - start)
        elif n % stride == 0 and start < stride and limit > n - stride + start:
            rows, within = _dims.reshape([dim], [n // stride, stride])
            within.fix("every so many units are taken from it by a strided slice")
            x = with_axis(x, axis, rows)
        else:
            dim.fix("a strided slice takes units from it")
            x = with_axis(x, axis, Dim(shapes_out(eqn)[0][axis], "a strided slice made it"))
    return [x]


@rule("pad")
def _pad(trace: Trace, eqn: Any, x: Value, filler: Value) -> list[Value]:
    for axis, (low, high, interior) in enumerate(eqn.params["padding_config"]):
        dim = x.dims[axis]
        if low == high == interior == 0:
            continue
        if interior == 0 and low >= 0 and high >= 0:
            along = _dims.concat((Dim(low), dim, Dim(high)))
        else:
            dim.fix("it is cropped or dilated by a pad")
            along = Dim(shapes_out(eqn)[0][axis], "a pad with cropping or dilation made it")
        x = with_axis(x, axis, along)
    return [x.but(number=None, index=False)]


@rule("tile")
def _tile(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    dims = []
    for dim, reps in zip(x.dims, eqn.params["reps"], strict=True):
        if dim.size == 1 and reps > 1:
            dim.fix(REPEATED)
        dims.append(dim if reps == 1 else _dims.product((Dim(reps), dim)))
    return [x.but(dims=tuple(dims))]
