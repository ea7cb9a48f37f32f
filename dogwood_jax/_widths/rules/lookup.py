"""Rules for looking up and for making values."""

from collections.abc import Sequence
from typing import Any

from dogwood_jax._program.dims import DROPPED, Dim, unify
from dogwood_jax._program.values import Along, Trace, Value
from dogwood_jax._widths.rules.registry import (
    DRAWN,
    mixed,
    origin_of,
    pick,
    rule,
    shapes_out,
    sliced,
    unknown,
    with_axis,
)


def _indexed(trace: Trace, x: Value, axis: int, indices: Value, *, many: bool = True) -> None:
    """Notes that positions along an axis are looked up, many of them or a single one."""
    trace.set_aside(x, axis)
    if indices.origin == "constant" and indices.number is None:
        if max((dim.size for dim in indices.dims), default=0) > x.dims[axis].size:
            x.dims[axis].fix("positions beyond its end are looked up along it")
            return
    if indices.index is True or (
        indices.number is not None and indices.number < x.dims[axis].size - 1
    ):
        # Old indices stay in range: in a larger table, new rows are for new inputs. A constant
        # index of the last row is left out: it may count from the end.
        x.dims[axis].root.interface = True
        if many and indices.origin != "constant":
            x.dims[axis].named("vocab")
    else:
        x.dims[axis].fix("it is indexed by positions computed inside the network")


@rule("gather")
def _gather(trace: Trace, eqn: Any, x: Value, indices: Value) -> list[Value]:
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
    # Along an axis that is taken whole, indices say nothing.
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
        looked_up = [a for a in window if a in n.start_index_map and sizes[a] == 1]  # under vmap
        whole = [a for a in window if a not in looked_up]
        for use in trace.use(x, "index"):
            use.count_fans(x, [*n.collapsed_slice_dims, *looked_up], whole)
        trace.produce(x, window)
    out = mixed((x, indices), dims, along=tuple(along), index=x.index)
    return [out.but(leaves=x.leaves)]


def _known_starts(
    x: Value, indices: Value, axes: Sequence[int], sizes: Sequence[int]
) -> list[int] | None:
    """Returns where a slice begins on every axis, if there is only one and its place is known."""
    if indices.ndim != 1 or indices.number is None:
        return None
    starts = [int(indices.number) if axis in axes else 0 for axis in range(x.ndim)]
    fits = [0 <= s <= d.size - n for s, d, n in zip(starts, x.dims, sizes, strict=True)]
    return starts if all(fits) else None


@rule("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub")
def _scatter(trace: Trace, eqn: Any, x: Value, indices: Value, updates: Value) -> list[Value]:
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


@rule("dynamic_slice")
def _dynamic_slice(trace: Trace, eqn: Any, x: Value, *starts: Value) -> list[Value]:
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


def _in_range(x: Value, sizes: Sequence[int], starts: Sequence[Value]) -> list[int] | None:
    """Returns where a slice begins along each axis, if that is known and it fits."""
    places = [0 if n == d.size else s.number for n, d, s in zip(sizes, x.dims, starts, strict=True)]
    known = [int(place) for place in places if place is not None]
    if len(known) < len(places):
        return None
    fits = (0 <= p <= d.size - n for p, n, d in zip(known, sizes, x.dims, strict=True))
    return known if all(fits) else None


@rule("dynamic_update_slice")
def _dynamic_update_slice(
    trace: Trace, eqn: Any, x: Value, update: Value, *starts: Value
) -> list[Value]:
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


@rule("maybe_set")
def _maybe_set(
    trace: Trace, eqn: Any, which: Value, stack: Value, item: Value, *index: Value
) -> list[Value]:
    """Equinox's loops write into what they return, step by step."""
    shapes = [tuple(d.size for d in value.dims) for value in (stack, item)]
    if eqn.params["i_treedef"].num_nodes > 1 or shapes[0][1:] != shapes[1] or len(index) != 1:
        return unknown(trace, eqn, which, stack, item, *index)
    for dim, new in zip(stack.dims[1:], item.dims, strict=True):
        unify(dim, new)
    trace.join(stack, "add")
    trace.join(item, "add")
    return [mixed((which, stack, item, *index), stack.dims)]


# Making values -----------------------------------------------------------------------------------


@rule("iota")
def _iota(trace: Trace, eqn: Any, *_: Value) -> list[Value]:
    (shape,) = shapes_out(eqn)
    return [Value(tuple(map(Dim, shape)), "constant", index=True)]


@rule("random_gamma")
def _random_gamma(trace: Trace, eqn: Any, key: Value, shape: Value) -> list[Value]:
    for dim in shape.dims:
        dim.note(DRAWN)
    return [mixed((key, shape), shape.dims)]


@rule("random_bits", "rng_uniform", "rng_bit_generator")
def _random_bits(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    results = _opaque(trace, eqn, *values)
    for dim in (dim for value in results for dim in value.dims):
        dim.note(DRAWN)
    return results


@rule("random_wrap", "random_unwrap", "random_split", "random_fold_in", "random_seed")
@rule("random_clone", "empty", "empty2", "create_token", "axis_index")
def _opaque(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    shapes = [tuple(map(Dim, shape)) for shape in shapes_out(eqn)]
    if origin_of(values) == "constant":
        return [mixed(values, dims) for dims in shapes]
    return [Value(dims) for dims in shapes]
