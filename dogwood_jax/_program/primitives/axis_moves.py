"""Primitives that move, cut and join axes."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program import dims as _dims
from dogwood_jax._program.dims import DROPPED, REPEATED, Dim, unify
from dogwood_jax._program.primitives.axes import Axes, Shape, named
from dogwood_jax._program.primitives.new_sizes import (
    CannotResize,
    SizeOf,
    moved,
    new_shape,
    shape_out,
)
from dogwood_jax._program.primitives.reading import (
    mixed,
    origin_of,
    pick,
    shapes_out,
    sliced,
    spread,
    with_axis,
)
from dogwood_jax._program.primitives.record import Primitive, describes
from dogwood_jax._program.values import Step, Trace, Value, joined


@describes("transpose")
class _Transpose(Primitive):
    keeps = linear = True

    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        names = [f"{axis}" for axis in range(len(result))]
        return Axes((named(names),), named([names[axis] for axis in params["permutation"]]))

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        return [pick(x, eqn.params["permutation"])]

    def evaluate(self, a: Any, *, permutation: Any, **_: Any) -> Any:
        return a.transpose(permutation)


class _Reshaped(Primitive):
    keeps = linear = True

    def axes(
        self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape
    ) -> Axes | None:
        """Axes of size 1 may be added or dropped. Returns None if axes are merged or split."""
        order = params.get("dimensions")
        if order is None or len(order) != len(operands[0]) or "new_sizes" not in params:
            order = range(len(operands[0]))  # for ``squeeze``, the axes to drop
        long = [axis for axis in order if operands[0][axis] != 1]
        if [operands[0][axis] for axis in long] != [size for size in result if size != 1]:
            return None
        left = iter(long)
        names = [f"{next(left)}" if n != 1 else f"new {axis}" for axis, n in enumerate(result)]
        return Axes((named([f"{axis}" for axis in range(len(operands[0]))]),), named(names))


@describes("squeeze")
class _Squeeze(_Reshaped):
    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        gone = {a % x.ndim for a in eqn.params["dimensions"]}
        for axis in gone:
            x.dims[axis].fix(DROPPED)
        return [pick(x, [a for a in range(x.ndim) if a not in gone])]

    def evaluate(self, a: Any, *, dimensions: Any, **_: Any) -> Any:
        return np.squeeze(a, tuple(dimensions))


@describes("reshape")
class _Reshape(_Reshaped):
    def read(self, trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
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

    def evaluate(self, a: Any, *_: Any, new_sizes: Any, dimensions: Any = None, **__: Any) -> Any:
        return np.reshape(a if dimensions is None else a.transpose(dimensions), new_sizes)

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        new = shape_out(step, size_of)
        if prod(new) != prod(operands[0].shape):  # JAX does not check it
            raise CannotResize(f"reshape of {operands[0].shape} to {new}")
        return {"new_sizes": new}


@describes("broadcast_in_dim")
class _Broadcast(Primitive):
    keeps = linear = True

    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        """An axis of size 1 that becomes longer gets a new name."""
        places = params["broadcast_dimensions"]
        new = [f"new {axis}" for axis in range(len(result))]
        for axis, (place, size) in enumerate(zip(places, operands[0])):
            if size == result[place]:
                new[place] = f"{axis}"
        return Axes((named([f"{axis}" for axis in range(len(operands[0]))]),), named(new))

    def read(self, trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
        return [spread(x, shapes_out(eqn)[0], eqn.params["broadcast_dimensions"])]

    def evaluate(self, a: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
        whole = [1] * len(shape)
        for axis, place in enumerate(broadcast_dimensions):
            whole[place] = a.shape[axis]
        return np.broadcast_to(a.reshape(whole), shape)

    resized = staticmethod(new_shape)


@describes("rev")
class _Reverse(Primitive):
    linear = True

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        for axis in eqn.params["dimensions"]:
            x.dims[axis].fix("it is reversed, so appended units would come first")
        return [x.but()]  # a new value, because its entries are in another order

    def evaluate(self, a: Any, *, dimensions: Any, **_: Any) -> Any:
        return np.flip(a, dimensions)


@describes("tile")
class _Tile(Primitive):
    linear = True

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        dims = []
        for dim, reps in zip(x.dims, eqn.params["reps"], strict=True):
            if dim.size == 1 and reps > 1:
                dim.fix(REPEATED)
            dims.append(dim if reps == 1 else _dims.product((Dim(reps), dim)))
        return [x.but(dims=tuple(dims))]

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        pairs = zip(shape_out(step, size_of), operands[0].shape, strict=True)
        return {"reps": tuple(new // max(old, 1) for new, old in pairs)}


@describes("slice")
class _Slice(Primitive):
    linear = stays = True

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
        strides = eqn.params["strides"] or (1,) * x.ndim
        for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True)):
            dim = x.dims[axis]
            n = dim.size
            if stride == 1:
                x = sliced(x, axis, start, limit - start)
            elif n % stride == 0 and start < stride and limit > n - stride + start:
                rows, within = _dims.reshape([dim], [n // stride, stride])
                within.fix("a strided slice takes only one of its units")
                x = with_axis(x, axis, rows)
            else:
                dim.fix("a strided slice takes units from it")
                x = with_axis(x, axis, Dim(shapes_out(eqn)[0][axis], "a strided slice made it"))
        return [x]

    def evaluate(
        self, a: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any
    ) -> Any:
        strides = strides or [1] * a.ndim
        return a[tuple(map(slice, start_indices, limit_indices, strides))]

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        p = step.eqn.params
        strides = p["strides"] or [1] * len(p["start_indices"])
        starts, limits = [], []
        rows = zip(
            step.operands[0].dims,
            step.results[0].dims,
            p["start_indices"],
            p["limit_indices"],
            strides,
            strict=True,
        )
        for dim, part, start, limit, stride in rows:
            begin = moved(dim, start, size_of)
            begin = start if begin is None else begin
            end = moved(dim, limit, size_of) if stride == 1 else None
            size = size_of(part)
            if end is None or end - begin != size:
                end = (
                    limit if size == part.size else begin + max(size - 1, 0) * stride + min(size, 1)
                )
            starts.append(begin)
            limits.append(end)
        return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}


@describes("split")
class _Split(Primitive):
    linear = stays = True

    def read(self, trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
        axis = eqn.params["axis"]
        sizes = eqn.params["sizes"]
        parts = _dims.cut(x.dims[axis], sizes)
        return [with_axis(x, axis, part) for part in parts]

    def evaluate(self, a: Any, *, sizes: Sequence[int], axis: int, **_: Any) -> list[Any]:
        return list(np.split(a, np.cumsum(sizes)[:-1], axis))

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        axis = step.eqn.params["axis"]
        return {"sizes": tuple(size_of(value.dims[axis]) for value in step.results)}


@describes("unstack")
class _Unstack(Primitive):
    linear = True

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        axis = eqn.params["axis"] % x.ndim
        units = _dims.cut(x.dims[axis], [1] * len(eqn.outvars))
        trace.set_aside(x, axis)
        kept = [a for a in range(x.ndim) if a != axis]
        for unit in units:
            unit.fix(DROPPED)
        return [pick(with_axis(x, axis, unit), kept) for unit in units]


@describes("concatenate")
class _Concatenate(Primitive):
    terms = slice(None)
    joins = stays = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        axis = eqn.params["dimension"]
        values = tuple(v for v in values if v.dims[axis].size) or values[:1]
        return [_joined(trace, values, axis, _dims.concat(v.dims[axis] for v in values))]

    def evaluate(self, *operands: Any, dimension: int, **_: Any) -> Any:
        return np.concatenate(operands, dimension)


@describes("stack")
class _Stack(Primitive):
    terms = slice(None)
    joins = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        axis = eqn.params["axis"]
        (shape,) = shapes_out(eqn)
        places = [a for a in range(len(shape)) if a != axis % len(shape)]
        one = [*shape]
        one[axis] = 1
        layers = [spread(v, one, places) for v in values]
        along = Dim(shape[axis], "it counts arrays that are stacked one by one")
        return [_joined(trace, layers, axis % len(shape), along)]


def _joined(trace: Trace, values: Sequence[Value], axis: int, along: Dim) -> Value:
    """Concatenates values along an axis, and unifies their other axes."""
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


@describes("pad")
class _Pad(Primitive):
    terms = slice(None)
    joins = stays = True

    def read(self, trace: Trace, eqn: Any, x: Value, filler: Value) -> list[Value]:
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

    def evaluate(self, a: Any, value: Any, *, padding_config: Any, **_: Any) -> Any:
        return padded(a, value, padding_config)

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        config = []
        rows = zip(step.operands[0].dims, step.results[0].dims, step.eqn.params["padding_config"])
        for old, new, (low, high, inner) in rows:
            size = size_of(old)
            whole = low + size + max(size - 1, 0) * inner + high
            more = size_of(new) - whole
            if more:
                parts = [part.root.size for part in new.root.parts]
                if new.root.kind == "concat" and len(parts) >= 2 and not inner:
                    begin = moved(new, max(low, 0), size_of)
                    low = low if begin is None or low <= 0 else begin
                high = size_of(new) - low - size - max(size - 1, 0) * inner
            config.append((low, high, inner))
        return {"padding_config": tuple(config)}


def padded(a: Any, value: Any, padding_config: Any) -> Any:
    """Pads an array before, between and after its entries along each axis, or crops it."""
    for axis, (low, high, inner) in enumerate(padding_config):
        if low == high == inner == 0:
            continue
        a = np.moveaxis(a, axis, 0)
        old = len(a)
        whole = np.full((old + max(old - 1, 0) * inner, *a.shape[1:]), value, a.dtype)
        whole[:: inner + 1] = a
        before, after = (np.full((max(n, 0), *a.shape[1:]), value, a.dtype) for n in (low, high))
        a = np.concatenate([before, whole, after])[max(-low, 0) :]
        a = np.moveaxis(a[: len(a) - max(-high, 0)], 0, axis)
    return a


@describes("iota")
class _Iota(Primitive):
    def read(self, trace: Trace, eqn: Any, *_: Value) -> list[Value]:
        (shape,) = shapes_out(eqn)
        return [Value(tuple(map(Dim, shape)), "constant", index=True)]

    def evaluate(self, *_: Any, dtype: Any, shape: Any, dimension: int, **__: Any) -> Any:
        whole = [1] * len(shape)
        whole[dimension] = -1
        kind = np.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype
        return np.broadcast_to(np.arange(shape[dimension]).reshape(whole), shape).astype(kind)

    resized = staticmethod(new_shape)
