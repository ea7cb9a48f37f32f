"""Rules for contractions and reductions."""

from collections.abc import Sequence
from math import prod
from typing import Any

from dogwood_jax._program import dims as _dims
from dogwood_jax._program.dims import PICKED, PICKS, SPATIAL, Dim, unify
from dogwood_jax._program.values import Trace, Value, joined, marks
from dogwood_jax._widths.rules.registry import (
    mixed,
    origin_of,
    pick,
    rule,
    shapes_out,
    unknown,
)

_WINDOW_SUM = "reduce_window_sum"


@rule("dot_general")
def _dot_general(trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
    (contract_x, contract_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    return [_contraction(trace, x, y, contract_x, contract_y, batch_x, batch_y)]


def _contraction(
    trace: Trace,
    x: Value,
    y: Value,
    contract_x: Sequence[int],
    contract_y: Sequence[int],
    batch_x: Sequence[int],
    batch_y: Sequence[int],
) -> Value:
    """The sum of products over some axes; the result has the batch axes, then the free ones."""
    free_x = [a for a in range(x.ndim) if a not in {*contract_x, *batch_x}]
    free_y = [a for a in range(y.ndim) if a not in {*contract_y, *batch_y}]
    data = origin_of((x, y)) == "data"
    both_data = x.origin == y.origin == "data"
    for a, b in zip(batch_x, batch_y, strict=True):
        unify(x.dims[a], y.dims[b])
    for a, b in zip(contract_x, contract_y, strict=True):
        unify(x.dims[a], y.dims[b])
        if both_data:
            x.dims[a].root.bilinear |= not (x.leaves or y.leaves)
    for value, contract, free, batch in (
        (x, contract_x, free_x, batch_x),
        (y, contract_y, free_y, batch_y),
    ):
        other, along = (y, contract_y) if value is x else (x, contract_x)
        for axis, its in zip(contract, along, strict=True):
            is_reader = value is y or y.origin != "parameter"
            if value.origin == "data":  # weights that were looked up, as those of experts are
                is_reader = other.origin == "data" and not other.along_axis(its)
            if is_reader and its not in other.one_hot:
                trace.contract(value, axis)
        if value.origin != "parameter":
            continue
        for use in trace.use(value, "contract"):
            use.count_fans(value, contract, free)
        if data:
            trace.produce(value, free)
            for axis in batch:
                trace.set_aside(value, axis)
    axes = [
        *(
            (x.dims[a], joined((x.along_axis(a), y.along_axis(b))))
            for a, b in zip(batch_x, batch_y)
        ),
        *((v.dims[a], v.along_axis(a)) for v, free in ((x, free_x), (y, free_y)) for a in free),
    ]
    dims, along = zip(*axes) if axes else ((), ())
    contracted = tuple(x.dims[a] for a in contract_x)
    return mixed((x, y), dims, along=() if data else along, contracted=contracted)


@rule("ragged_dot_general")
def _ragged_dot_general(
    trace: Trace, eqn: Any, x: Value, y: Value, group_sizes: Value, *_: Value
) -> list[Value]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contract_x, contract_y), (batch_x, batch_y) = numbers.dot_dimension_numbers
    groups = list(numbers.rhs_group_dimensions)
    ragged = list(numbers.lhs_ragged_dimensions)
    if len(groups) != 1 or {*ragged} & {*contract_x, *batch_x}:
        return unknown(trace, eqn, x, y, group_sizes)
    unify(y.dims[groups[0]], group_sizes.dims[-1])
    y.dims[groups[0]].fix("it counts groups whose rows are sorted one after another")
    trace.set_aside(y, groups[0])
    kept = [a for a in range(y.ndim) if a not in groups]
    place = {a: i for i, a in enumerate(kept)}
    within = pick(y, kept)
    return [
        _contraction(
            trace,
            x,
            within,
            contract_x,
            [place[a] for a in contract_y],
            batch_x,
            [place[a] for a in batch_y],
        )
    ]


@rule("conv_general_dilated")
def _conv(trace: Trace, eqn: Any, x: Value, kernel: Value) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    groups, batch_groups = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
    (x_batch, x_feature, *x_space), (out_k, in_k, *k_space) = numbers.lhs_spec, numbers.rhs_spec
    (shape,) = shapes_out(eqn)
    features, samples = x.dims[x_feature], x.dims[x_batch]
    per_group = kernel.dims[in_k]
    if groups > 1:
        split_in = _dims.reshape([features], [groups, features.size // groups])
        split_out = _dims.reshape([kernel.dims[out_k]], [groups, kernel.dims[out_k].size // groups])
        unify(split_in[0], split_out[0])
        if per_group.size > 1:
            split_in[0].named("groups")
        else:
            per_group.fix("a depthwise convolution reads one channel a group")
        features = split_in[1]
    if batch_groups > 1:
        split_in = _dims.reshape([samples], [batch_groups, samples.size // batch_groups])
        split_out = _dims.reshape(
            [kernel.dims[out_k]], [batch_groups, kernel.dims[out_k].size // batch_groups]
        )
        unify(split_in[0], split_out[0])
        samples = split_in[1]
    if features.size == 1 and per_group.size == 1 and groups > 1:
        features = per_group
    unify(features, per_group)
    if not (groups > 1 and per_group.size == 1):
        trace.contract(kernel, in_k)
    for value, space in ((x, x_space), (kernel, k_space)):
        for axis in space:
            value.dims[axis].fix(SPATIAL)
    for value, contract, free, space in (
        (x, [x_feature], [x_batch], x_space),
        (kernel, [in_k], [out_k], k_space),
    ):
        for use in trace.use(value, "contract"):
            use.count_fans(value, [*contract, *space], [*free, *space])
        if value.origin == "parameter" and origin_of((x, kernel)) == "data":
            trace.produce(value, free)
            for axis in space:
                trace.set_aside(value, axis)
    batch, feature, *space = numbers.out_spec
    dims = [Dim(n, SPATIAL) for n in shape]
    dims[batch], dims[feature] = samples, kernel.dims[out_k]
    return [mixed((x, kernel), dims, contracted=(per_group,))]


# Reductions --------------------------------------------------------------------------------------


@rule("reduce_sum")
def _reduce_sum(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    return [_summed(trace, x, {int(a) for a in eqn.params["axes"]})]


@rule("psum", "psum_invariant")
def _psum(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    """A sum over devices, which does not touch local axes, or over an axis that vmap named."""
    axes = {axis for axis in eqn.params["axes"] if isinstance(axis, int)}
    return [_summed(trace, x, axes) for x in values]


def _summed(trace: Trace, x: Value, axes: set[int]) -> Value:
    for axis in axes if x.origin == "data" else ():
        if axis in x.weighted:
            trace.read += marks(x, axis)
        else:
            x.dims[axis].root.summed = True
    kept = pick(x, [a for a in range(x.ndim) if a not in axes])
    summed = tuple(x.dims[a] for a in sorted(axes))
    contracted = tuple(x.dims[a] for a in sorted(axes & {*x.weighted}))
    number = None if x.number is None else x.number * prod(d.size for d in summed)
    return kept.but(number=number, index=False, contracted=contracted, summed=summed)


@rule("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor")
@rule("argmax", "argmin")
def _reduce(trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
    axes = {int(a) for a in eqn.params["axes"]}
    kept = pick(x, [a for a in range(x.ndim) if a not in axes])
    number = x.number if eqn.primitive.name in ("reduce_max", "reduce_min") else None
    names_units = eqn.primitive.name in ("argmax", "argmin") and x.origin == "data"
    index = x.dims[eqn.params["axes"][0]] if names_units else False
    return [kept.but(number=number, index=index)]


@rule("reduce")
def _general_reduce(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    count = len(values) // 2
    axes = {int(a) for a in eqn.params["dimensions"]}
    out = []
    for x in values[:count]:
        kept = pick(x, [a for a in range(x.ndim) if a not in axes])
        out.append(kept.but(number=None, index=False))
    return out


@rule("unvmap_any", "unvmap_all", "unvmap_max")
def _reduce_all(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    return [mixed((x,), ())]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    return [x.but(number=None, index=False)]


@rule("sort")
def _sort(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    first = values[0]
    for value in values:
        for a, b in zip(first.dims, value.dims, strict=True):
            unify(a, b)
    return [v.but(number=None, index=False) for v in values]


@rule("top_k", "approx_top_k")
def _top_k(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1)) % x.ndim
    x.dims[axis].note(PICKED)
    (shape, _) = shapes_out(eqn)
    dims = [*x.dims]
    dims[axis] = Dim(shape[axis], PICKS)
    return [mixed((x,), dims), mixed((x,), dims, index=x.dims[axis])]


@rule(_WINDOW_SUM, "reduce_window_max", "reduce_window_min", "reduce_window")
def _reduce_window(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    p = eqn.params
    count = len(eqn.outvars)
    out = []
    for x, shape in zip(values[:count], shapes_out(eqn), strict=True):
        dims = []
        for axis, dim in enumerate(x.dims):
            untouched = (
                p["window_dimensions"][axis] == p["window_strides"][axis] == 1
                and tuple(p["padding"][axis]) == (0, 0)
                and p["base_dilation"][axis] == 1
            )
            if not untouched:
                dim.fix(SPATIAL)
            dims.append(dim if untouched else Dim(shape[axis], SPATIAL))
        # A mean divides by the size of the window. Other sizes do not explain that number.
        window = (Dim(prod(p["window_dimensions"])),) if eqn.primitive.name == _WINDOW_SUM else ()
        out.append(mixed((x,), dims, summed=window))
    return out


@rule("select_and_scatter_add", "select_and_gather_add")
def _pool_gradient(trace: Trace, eqn: Any, a: Value, b: Value, *_: Value) -> list[Value]:
    (shape,) = shapes_out(eqn)
    window = eqn.params["window_dimensions"]
    like = a if tuple(d.size for d in a.dims) == shape else b
    for axis, (x, y) in enumerate(zip(a.dims, b.dims, strict=True)):
        if window[axis] == 1 and x.size == y.size:
            unify(x, y)
        else:
            x.fix(SPATIAL)
            y.fix(SPATIAL)
    return [mixed((a, b), like.dims)]


@rule("fft")
def _fft(trace: Trace, eqn: Any, x: Value) -> list[Value]:
    (shape,) = shapes_out(eqn)
    count = len(eqn.params["fft_lengths"])
    reason = "a Fourier transform runs along it"
    dims = [*x.dims]
    for axis in range(x.ndim - count, x.ndim):
        dims[axis].fix(reason)
        dims[axis] = dims[axis] if dims[axis].size == shape[axis] else Dim(shape[axis], reason)
    return [mixed((x,), dims)]


@rule("cholesky", "triangular_solve", "lu", "qr", "eigh", "eig", "svd", "householder_product")
@rule("tridiagonal_solve", "schur", "hessenberg", "tridiagonal", "lu_pivots_to_permutation")
def _linear_algebra(trace: Trace, eqn: Any, *values: Value) -> list[Value]:
    reason = f"the matrix operation {eqn.primitive.name} runs over it"
    rank = 1 if eqn.primitive.name == "lu_pivots_to_permutation" else 2
    batch = values[0].dims[: values[0].ndim - rank]
    for value in values:
        trace.use(value, "contract")
        for dim in value.dims[len(batch) :]:
            dim.fix(reason)
        for a, b in zip(batch, value.dims, strict=False):
            unify(a, b)
    return [
        mixed(values, (*batch, *(Dim(n, reason) for n in shape[len(batch) :])))
        for shape in shapes_out(eqn)
    ]
