"""Convolutions, pooling, and the gradients of pooling."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dogwood_jax._program import dims as _dims
from dogwood_jax._program.dims import SPATIAL, Dim, unify
from dogwood_jax._program.primitives.axes import Axes, Shape
from dogwood_jax._program.primitives.axis_moves import padded
from dogwood_jax._program.primitives.new_sizes import SizeOf
from dogwood_jax._program.primitives.reading import mixed, origin_of, shapes_out
from dogwood_jax._program.primitives.record import PRIMITIVES, Primitive, describes
from dogwood_jax._program.values import Step, Trace, Value


class Window(NamedTuple):
    """A window along one axis.

    Attributes:
        inside: the dimension along which it lies.
        outside: the dimension of its positions.
        ratio: how many more positions there are for each entry more.
        spread: the number of entries from its first to its last one.
    """

    inside: Dim
    outside: Dim
    ratio: Fraction
    spread: int


@describes("conv_general_dilated")
class _Convolution(Primitive):
    contracts = True

    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        """Multiplies windows of the first operand by the second; sums over windows and features."""
        numbers = params["dimension_numbers"]
        x, kernel, out = ([frozenset[str]()] * len(result) for _ in range(3))
        x[numbers.lhs_spec[0]] = out[numbers.out_spec[0]] = frozenset({"batch"})
        kernel[numbers.rhs_spec[0]] = out[numbers.out_spec[1]] = frozenset({"features"})
        is_grouped = params["feature_group_count"] > 1
        kernel[numbers.rhs_spec[1]] = frozenset({"inputs"})
        x[numbers.lhs_spec[1]] = frozenset({"inputs", "features"} if is_grouped else {"inputs"})
        spaces = (numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:])
        for number, (a, b, c) in enumerate(zip(*spaces, strict=True)):
            x[a] = out[c] = frozenset({f"space{number}"})
            kernel[b] = frozenset({f"window{number}"})
        return Axes((tuple(x), tuple(kernel)), tuple(out))

    def read(self, trace: Trace, eqn: Any, x: Value, kernel: Value) -> list[Value]:
        numbers = eqn.params["dimension_numbers"]
        groups, batch_groups = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
        (x_batch, x_feature, *x_space), (out_k, in_k, *k_space) = numbers.lhs_spec, numbers.rhs_spec
        (shape,) = shapes_out(eqn)
        features, samples = x.dims[x_feature], x.dims[x_batch]
        per_group = kernel.dims[in_k]
        if groups > 1:
            split_in = _dims.reshape([features], [groups, features.size // groups])
            split_out = _dims.reshape(
                [kernel.dims[out_k]], [groups, kernel.dims[out_k].size // groups]
            )
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

    def evaluate(
        self,
        a: Any,
        kernel: Any,
        *,
        window_strides: Any,
        padding: Any,
        lhs_dilation: Any,
        rhs_dilation: Any,
        dimension_numbers: Any,
        feature_group_count: int,
        batch_group_count: int,
        **_: Any,
    ) -> Any:
        of_a, of_kernel, of_out = dimension_numbers
        a, kernel = a.transpose(of_a), kernel.transpose(of_kernel)
        if batch_group_count > 1:
            a = np.concatenate(np.split(a, batch_group_count), 1)
        groups = feature_group_count * batch_group_count
        config = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, lhs_dilation)]
        a = padded(a, a.dtype.type(0), [(0, 0, 0), (0, 0, 0), *config])
        rank = a.ndim - 2
        spread = [(n - 1) * d + 1 for n, d in zip(kernel.shape[2:], rhs_dilation)]
        if any(n < size for n, size in zip(a.shape[2:], spread)):
            out = np.zeros((a.shape[0], kernel.shape[0], *([0] * rank)), a.dtype)
        else:
            windows = _windows(
                a, (1, 1, *kernel.shape[2:]), (1, 1, *window_strides), (1, 1, *rhs_dilation)
            )
            places = windows.shape[2 : 2 + rank]
            windows = windows.reshape(len(a), groups, -1, *places, *kernel.shape[2:])
            rows = np.moveaxis(windows, 2, 2 + rank)  # batch, group, places, inputs, kernel
            rows = rows.reshape(len(a), groups, int(np.prod(places)), -1)
            weights = kernel.reshape(groups, kernel.shape[0] // groups, -1)
            out = np.einsum("ngpk,gok->ngop", rows, weights, optimize=True)
            out = out.reshape(len(a), kernel.shape[0], *places)
        return np.moveaxis(out, range(out.ndim), of_out)

    def windows(self, step: Step) -> Iterator[Window]:
        p = step.eqn.params
        x, kernel = step.operands
        spaces = zip(*(spec[2:] for spec in p["dimension_numbers"]), strict=True)
        for number, (a, b, c) in enumerate(spaces):
            ratio = Fraction(p["lhs_dilation"][number], p["window_strides"][number])
            spread = (kernel.dims[b].size - 1) * p["rhs_dilation"][number] + 1
            yield Window(x.dims[a], step.results[0].dims[c], ratio, spread)

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        of_a, of_kernel, _ = step.eqn.params["dimension_numbers"]
        groups, batches = (
            step.eqn.params["feature_group_count"],
            step.eqn.params["batch_group_count"],
        )
        if batches > 1:
            out = step.operands[1].dims[of_kernel[0]]
            return {"batch_group_count": size_of(out) if batches == out.size else batches}
        if groups == 1:
            return {}
        inputs, inside = operands[0].shape[of_a[1]], operands[1].shape[of_kernel[1]]
        return {"feature_group_count": inputs // max(inside, 1)}


def _windows(a: Any, sizes: Any, strides: Any, dilation: Any) -> Any:
    """Returns windows of an array: the axes of their positions, then the axes inside them."""
    spread = [(size - 1) * d + 1 for size, d in zip(sizes, dilation)]
    seen = np.lib.stride_tricks.sliding_window_view(a, tuple(spread))
    places = tuple(slice(None, None, stride) for stride in strides)
    return seen[places + tuple(slice(None, None, d) for d in dilation)]


class _OfWindows(Primitive):
    """Reduces each window to one entry.

    Args:
        function: the NumPy function; None to use JAX.
        start: returns the neutral element of the function for a dtype.
        linear: whether it is a sum.
    """

    runs = True

    def __init__(self, function: Any = None, start: Any = None, *, linear: bool = False) -> None:
        self._function, self._start, self.linear = function, start, linear
        if function is not None:
            self.evaluate = self._evaluated

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        p = eqn.params
        count = len(eqn.outvars)
        out = []
        for x, shape in zip(values[:count], shapes_out(eqn), strict=True):
            dims = []
            for axis, dim in enumerate(x.dims):
                is_read = _reads_along(p, axis)
                if is_read:
                    dim.fix(SPATIAL)
                dims.append(Dim(shape[axis], SPATIAL) if is_read else dim)
            # A mean divides by the size of the window, a number that depends on no other size.
            window = (Dim(prod(p["window_dimensions"])),) if self.linear else ()
            out.append(mixed((x,), dims, summed=window))
        return out

    def _evaluated(
        self,
        a: Any,
        *,
        window_dimensions: Any,
        window_strides: Any,
        padding: Any,
        base_dilation: Any,
        window_dilation: Any,
        **_: Any,
    ) -> Any:
        config = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base_dilation)]
        a = padded(a, self._start(a.dtype), config)
        windows = _windows(a, window_dimensions, window_strides, window_dilation)
        return self._function(windows, axis=tuple(range(a.ndim, 2 * a.ndim)))

    def windows(self, step: Step) -> Iterator[Window]:
        p = step.eqn.params
        dims = zip(step.operands[0].dims, step.results[0].dims)
        for axis, (inside, outside) in enumerate(dims):
            size = p["window_dimensions"][axis]
            is_whole = size == inside.size > 1 and outside.size == 1
            if _reads_along(p, axis) and not is_whole:
                ratio = Fraction(p["base_dilation"][axis], p["window_strides"][axis])
                spread = (size - 1) * p["window_dilation"][axis] + 1
                yield Window(inside, outside, ratio, spread)

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        return _window(step, step.operands[0].dims, size_of)


def _reads_along(params: Mapping[str, Any], axis: int) -> bool:
    """Whether windows move along an axis."""
    return not (
        params["window_dimensions"][axis] == params["window_strides"][axis] == 1
        and tuple(params["padding"][axis]) == (0, 0)
        and params["base_dilation"][axis] == 1
    )


def _window(step: Step, dims: Sequence[Dim], size_of: SizeOf) -> Mapping[str, Any]:
    """Returns the sizes of windows; only windows over a whole axis grow with it."""
    whole = [
        size_of(dim) if size == dim.size > 1 and size_of(out) == 1 else size
        for size, dim, out in zip(step.eqn.params["window_dimensions"], dims, step.results[0].dims)
    ]
    return {"window_dimensions": tuple(whole)}


def _lowest(dtype: Any) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


PRIMITIVES |= {
    "reduce_window_sum": _OfWindows(np.sum, lambda dtype: dtype.type(0), linear=True),
    "reduce_window_max": _OfWindows(np.max, _lowest),
    "reduce_window_min": _OfWindows(np.min, _highest),
    "reduce_window": _OfWindows(),
}


@describes("select_and_gather_add")
class _PoolGradient(Primitive):
    runs = True

    def read(self, trace: Trace, eqn: Any, a: Value, b: Value, *_: Value) -> list[Value]:
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

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        return _window(step, step.operands[-1].dims, size_of)


@describes("select_and_scatter_add")
class _MaxPoolGradient(_PoolGradient):
    def evaluate(
        self,
        source: Any,
        a: Any,
        *,
        select_prim: Any,
        window_dimensions: Any,
        window_strides: Any,
        padding: Any,
        **_: Any,
    ) -> Any:
        """Adds each entry of ``source`` to the first entry that its window selects."""
        is_max = select_prim.name == "ge"
        config = [(lo, hi, 0) for lo, hi in padding]
        whole = padded(a, a.dtype.type((_lowest if is_max else _highest)(a.dtype)), config)
        ones = (1,) * a.ndim
        windows = _windows(whole, window_dimensions, window_strides, ones)
        rows = windows.reshape(*source.shape, -1)
        chosen = rows.argmax(-1) if is_max else rows.argmin(-1)
        starts = [place * by for place, by in zip(np.indices(source.shape), window_strides)]
        inside = np.unravel_index(chosen, window_dimensions)
        found = np.zeros(whole.shape, source.dtype)
        np.add.at(found, tuple(map(np.add, starts, inside)), source)
        return padded(found, source.dtype.type(0), [(-lo, -hi, 0) for lo, hi in padding])
