"""Primitives that read or write entries at computed positions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dogwood_jax._program.dims import DROPPED, Dim, unify
from dogwood_jax._program.primitives.new_sizes import SizeOf, moved, shape_out
from dogwood_jax._program.primitives.reading import (
    mixed,
    origin_of,
    pick,
    shapes_out,
    sliced,
    unknown,
    with_axis,
)
from dogwood_jax._program.primitives.record import PRIMITIVES, Primitive, describes
from dogwood_jax._program.values import Along, Step, Trace, Value


@describes("gather")
class _Gather(Primitive):
    linear_in_first = indexed = True

    def read(self, trace: Trace, eqn: Any, x: Value, indices: Value) -> list[Value]:
        n = eqn.params["dimension_numbers"]
        sizes = eqn.params["slice_sizes"]
        (shape,) = shapes_out(eqn)
        if (starts := _known_starts(x, indices, n.start_index_map, sizes)) is not None:
            for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
                x = sliced(x, axis, start, size)
            for axis in n.collapsed_slice_dims:
                x.dims[axis].fix(DROPPED)
            return [pick(x, [a for a in range(x.ndim) if a not in n.collapsed_slice_dims])]
        batching = list(getattr(n, "operand_batching_dims", ()))
        index_batching = list(getattr(n, "start_indices_batching_dims", ()))
        window = [a for a in range(x.ndim) if a not in {*n.collapsed_slice_dims, *batching}]
        # Along an axis that is taken whole, indices have no effect.
        indexed = [axis for axis in n.start_index_map if sizes[axis] != x.dims[axis].size]
        if len(indexed) > 1 and indices.origin == "constant":
            reason = "it is indexed together with another axis, as a diagonal is"
            trace.use(x, "contract")
            for dim in (*(x.dims[axis] for axis in n.start_index_map), *indices.dims):
                dim.fix(reason)
            taken = {*n.start_index_map, *n.collapsed_slice_dims, *batching}
            whole = [axis for axis in range(x.ndim) if axis not in taken]
            trace.produce(x, whole)
            found = [Dim(size, reason) for size in shape]
            for axis, place in zip(window, n.offset_dims, strict=True):
                if axis in whole:
                    found[place] = x.dims[axis]
            return [mixed((x, indices), found)]
        dims: list[Dim] = [Dim(size) for size in shape]
        along: list[Along] = [()] * len(shape)
        many = indices.ndim > 1 + len(index_batching)
        for axis, place in zip(window, n.offset_dims, strict=True):
            if axis in n.start_index_map and sizes[axis] == 1:
                _indexed(trace, x, axis, indices, many=many)
            elif sizes[axis] == x.dims[axis].size:
                dims[place], along[place] = x.dims[axis], x.along_axis(axis)
            else:
                x.dims[axis].fix("a slice is looked up along it")
                dims[place].fix("it is a slice that is looked up")
        for axis in n.collapsed_slice_dims:
            named = indices.index if n.start_index_map == (axis,) else False
            if isinstance(named, Dim) and named.size == x.dims[axis].size:
                trace.set_aside(x, axis)
                unify(named, x.dims[axis])
            elif x.dims[axis].size > 1 or axis in n.start_index_map:
                _indexed(trace, x, axis, indices, many=many)
        places = [a for a in range(len(shape)) if a not in n.offset_dims]
        for axis, place in enumerate(places):
            dims[place] = indices.dims[axis]
        for axis, index_axis in zip(batching, index_batching, strict=True):
            unify(x.dims[axis], indices.dims[index_axis])
            place = places[index_axis]
            along[place] = x.along_axis(axis)
        data = origin_of((x, indices)) == "data"
        if x.origin == "parameter" and data:
            looked_up = [
                a for a in window if a in n.start_index_map and sizes[a] == 1
            ]  # under vmap
            whole = [a for a in window if a not in looked_up]
            for use in trace.use(x, "index"):
                use.count_fans(x, [*n.collapsed_slice_dims, *looked_up], whole)
            trace.produce(x, window)
        out = mixed((x, indices), dims, along=tuple(along), index=x.index)
        return [out.but(leaves=x.leaves)]

    def evaluate(
        self,
        operand: Any,
        indices: Any,
        *,
        dimension_numbers: Any,
        slice_sizes: Sequence[int],
        mode: Any,
        fill_value: Any,
        **_: Any,
    ) -> Any:
        numbers = dimension_numbers
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        where, is_inside = _places(
            operand.shape,
            indices,
            slice_sizes,
            gone,
            numbers.start_index_map,
            dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims)),
        )
        found = operand[where]
        is_open = "PROMISE" in str(mode).upper() and operand.dtype.kind in "fc"  # undefined outside
        if is_open or "FILL" in str(mode).upper():
            found = np.where(
                is_inside, found, _fill(operand.dtype) if fill_value is None else fill_value
            )
        others = [axis for axis in range(found.ndim) if axis not in numbers.offset_dims]
        return np.moveaxis(found, range(found.ndim), [*others, *numbers.offset_dims])

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        dims = step.operands[0].dims
        numbers, sizes = step.eqn.params["dimension_numbers"], [*step.eqn.params["slice_sizes"]]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        offset = iter(numbers.offset_dims)
        for axis, dim in enumerate(dims):
            if axis not in gone:
                part = step.results[0].dims[next(offset)]
                sizes[axis] = size_of(dim) if sizes[axis] == dim.size else size_of(part)
        return {"slice_sizes": tuple(sizes)}


def _indexed(trace: Trace, x: Value, axis: int, indices: Value, *, many: bool = True) -> None:
    """Records that positions along an axis are looked up, many of them or a single one."""
    trace.set_aside(x, axis)
    if indices.origin == "constant" and indices.number is None:
        if max((dim.size for dim in indices.dims), default=0) > x.dims[axis].size:
            x.dims[axis].fix("positions beyond its end are looked up along it")
            return
    if indices.index is True or (
        indices.number is not None and indices.number < x.dims[axis].size - 1
    ):
        # Old indices stay in range: only new inputs reach the new rows of a larger table. A
        # constant index of the last row is excluded, because it may count from the end.
        x.dims[axis].root.interface = True
        if many and indices.origin != "constant":
            x.dims[axis].named("vocab")
    else:
        x.dims[axis].fix("it is indexed by positions computed inside the network")


def _known_starts(
    x: Value, indices: Value, axes: Sequence[int], sizes: Sequence[int]
) -> list[int] | None:
    """Returns the start of a slice on every axis; None for several slices or an unknown start."""
    if indices.ndim != 1 or indices.number is None:
        return None
    starts = [int(indices.number) if axis in axes else 0 for axis in range(x.ndim)]
    fits = [0 <= s <= d.size - n for s, d, n in zip(starts, x.dims, sizes, strict=True)]
    return starts if all(fits) else None


def _places(
    shape: Sequence[int],
    indices: Any,
    sizes: Sequence[int],
    gone: Any,
    index_map: Sequence[int],
    batching: Any,
) -> tuple[tuple[Any, ...], Any]:
    """Returns the positions of windows of an array, and which windows lie inside of it.

    Args:
        shape: the shape of the array.
        indices: the starts of windows, ``[..., axes]``.
        sizes: the size of windows along each axis.
        gone: axes that windows lack.
        index_map: the array's axes, in the order of the last axis of ``indices``.
        batching: for each batch axis of the array, the axis of ``indices``.
    """
    batch = indices.shape[:-1]
    window = [axis for axis in range(len(shape)) if axis not in gone]
    where: list[Any] = []
    is_inside = np.ones((*batch, *(1,) * len(window)), bool)
    for axis, size in enumerate(sizes):
        along = [1] * (len(batch) + len(window))
        if axis in batching:
            along[batching[axis]] = -1
            start = np.arange(shape[axis]).reshape(along)
        elif axis in index_map:
            start = indices[..., index_map.index(axis)].astype(np.int64)
            start = np.reshape(start, (*batch, *(1,) * len(window)))
            is_inside = is_inside & (start >= 0) & (start <= shape[axis] - size)
            start = np.clip(start, 0, shape[axis] - size)
        else:
            start = np.zeros(along, np.int64)
        if axis in window:
            along = [1] * (len(batch) + len(window))
            along[len(batch) + window.index(axis)] = -1
            start = start + np.arange(size).reshape(along)
        where.append(start)
    whole = (*batch, *(sizes[axis] for axis in window))
    return tuple(np.broadcast_to(start, whole) for start in where), is_inside


def _fill(dtype: Any) -> Any:
    """Returns the value that JAX reads at an index out of range."""
    if dtype.kind in "fc":
        return np.nan
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


class _Scatter(Primitive):
    """Writes windows into an array.

    Args:
        combine: the NumPy function that combines an old entry and a new one; None to replace.
        **facts: attributes of ``Primitive``.
    """

    def __init__(self, combine: Any, **facts: Any) -> None:
        self._combine = combine
        vars(self).update(facts)

    def read(self, trace: Trace, eqn: Any, x: Value, indices: Value, updates: Value) -> list[Value]:
        n = eqn.params["dimension_numbers"]
        batching = list(getattr(n, "operand_batching_dims", ()))
        index_batching = list(getattr(n, "scatter_indices_batching_dims", ()))
        window = [a for a in range(x.ndim) if a not in {*n.inserted_window_dims, *batching}]
        along = dict(zip(window, n.update_window_dims, strict=True))
        for axis, place in along.items():
            if x.dims[axis].size == updates.dims[place].size:
                unify(x.dims[axis], updates.dims[place])
            else:
                x.dims[axis].fix("a slice is written along it")
                updates.dims[place].fix("it is a slice that is written")
        for axis in n.inserted_window_dims:
            _indexed(trace, x, axis, indices)
        places = [a for a in range(updates.ndim) if a not in n.update_window_dims]
        for axis, place in enumerate(places):
            unify(indices.dims[axis], updates.dims[place])
        for axis, index_axis in zip(batching, index_batching, strict=True):
            unify(x.dims[axis], indices.dims[index_axis])
        if origin_of((x, indices, updates)) == "data":
            trace.join(x, "add")
            trace.join(updates, "add")
        return [mixed((x, indices, updates), x.dims)]

    def evaluate(
        self,
        operand: Any,
        indices: Any,
        updates: Any,
        *,
        dimension_numbers: Any,
        mode: Any,
        **_: Any,
    ) -> Any:
        numbers = dimension_numbers
        gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        windows = iter(numbers.update_window_dims)
        sizes = [
            1 if axis in gone else updates.shape[next(windows)] for axis in range(operand.ndim)
        ]
        where, is_inside = _places(
            operand.shape,
            indices,
            sizes,
            gone,
            numbers.scatter_dims_to_operand_dims,
            dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims)),
        )
        others = [axis for axis in range(updates.ndim) if axis not in numbers.update_window_dims]
        updates = updates.transpose(*others, *numbers.update_window_dims)
        if "CLIP" not in str(mode).upper():
            chosen = np.broadcast_to(is_inside, updates.shape)
            where, updates = tuple(places[chosen] for places in where), updates[chosen]
        found = operand.copy()
        if self._combine is None:
            found[where] = updates
        else:
            self._combine.at(found, where, updates)
        return found


_INTO = slice(0, 3, 2)
PRIMITIVES |= {
    "scatter": _Scatter(None, terms=_INTO, joins=True),
    "scatter-add": _Scatter(np.add, terms=_INTO),
    "scatter-sub": _Scatter(np.subtract, terms=_INTO),
    "scatter-mul": _Scatter(np.multiply),
    "scatter-min": _Scatter(np.minimum),
    "scatter-max": _Scatter(np.maximum),
}


@describes("dynamic_slice")
class _DynamicSlice(Primitive):
    linear_in_first = indexed = stays = True

    def read(self, trace: Trace, eqn: Any, x: Value, *starts: Value) -> list[Value]:
        sizes = eqn.params["slice_sizes"]
        if (places := _in_range(x, sizes, starts)) is not None:
            for axis, (place, size) in enumerate(zip(places, sizes, strict=True)):
                x = sliced(x, axis, place, size)
            return [x.but(number=None)]
        out = x
        for axis, (size, start) in enumerate(zip(eqn.params["slice_sizes"], starts, strict=True)):
            if size == 1 != x.dims[axis].size:
                _indexed(trace, x, axis, start, many=False)
                out = with_axis(out, axis, Dim(1))
            elif size != x.dims[axis].size:
                x.dims[axis].fix("a slice at a computed position is read along it")
                trace.set_aside(x, axis)
                out = with_axis(out, axis, Dim(size, "it is a slice at a computed position"))
        if origin_of(starts) == "data":
            trace.join(x, "index")
        origin = origin_of((x, *starts))
        return [out.but(origin=origin, number=None)]

    def evaluate(self, a: Any, *starts: Any, slice_sizes: Any, **_: Any) -> Any:
        return a[_window(a, slice_sizes, starts)]

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        for place, dim in enumerate(step.operands[0].dims):
            start = operands[place + 1]
            if not hasattr(start, "aval") and np.ndim(start) == 0 and size_of(dim) != dim.size:
                begin = moved(dim, int(start), size_of)
                if begin is not None:
                    operands[place + 1] = np.asarray(begin, np.asarray(start).dtype)
        return {"slice_sizes": shape_out(step, size_of)}


def _in_range(x: Value, sizes: Sequence[int], starts: Sequence[Value]) -> list[int] | None:
    """Returns the start of a slice along each axis; None if unknown or out of range."""
    places = [0 if n == d.size else s.number for n, d, s in zip(sizes, x.dims, starts, strict=True)]
    known = [int(place) for place in places if place is not None]
    if len(known) < len(places):
        return None
    fits = (0 <= p <= d.size - n for p, n, d in zip(known, sizes, x.dims, strict=True))
    return known if all(fits) else None


def _window(a: Any, sizes: Sequence[int], starts: Sequence[Any]) -> tuple[slice, ...]:
    first = [min(max(int(k), 0), n - size) for k, n, size in zip(starts, a.shape, sizes)]
    return tuple(slice(k, k + size) for k, size in zip(first, sizes))


@describes("dynamic_update_slice")
class _DynamicUpdateSlice(Primitive):
    terms = slice(0, 2)
    joins = stays = True

    def read(self, trace: Trace, eqn: Any, x: Value, update: Value, *starts: Value) -> list[Value]:
        for dim, new in zip(x.dims, update.dims, strict=True):
            if dim.size == new.size:
                unify(dim, new)
            else:
                dim.fix("a slice at a computed position is written along it")
                new.fix("it is a slice at a computed position")
        if origin_of((x, update, *starts)) == "data":
            trace.join(x, "add")
            trace.join(update, "add")
        return [mixed((x, update, *starts), x.dims)]

    def evaluate(self, a: Any, part: Any, *starts: Any, **_: Any) -> Any:
        a = a.copy()
        a[_window(a, part.shape, starts)] = part
        return a


@describes("maybe_set")
class _MaybeSet(Primitive):
    def read(
        self, trace: Trace, eqn: Any, which: Value, stack: Value, item: Value, *index: Value
    ) -> list[Value]:
        """Reads a write of one step of Equinox's loops into their stacked results."""
        shapes = [tuple(d.size for d in value.dims) for value in (stack, item)]
        if eqn.params["i_treedef"].num_nodes > 1 or shapes[0][1:] != shapes[1] or len(index) != 1:
            return unknown(trace, eqn, which, stack, item, *index)
        for dim, new in zip(stack.dims[1:], item.dims, strict=True):
            unify(dim, new)
        trace.join(stack, "add")
        trace.join(item, "add")
        return [mixed((which, stack, item, *index), stack.dims)]
