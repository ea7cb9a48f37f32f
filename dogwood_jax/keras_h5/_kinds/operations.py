"""Functions of the arrays of a Functional model: ``x * 2 + y``, ``ops.mean(x, axis=1)``.

Keras turns them into layers, in different forms: operations in Keras 3 (called ``ops.Add`` here,
because there is also a layer Add), calls of TensorFlow's functions since Keras 2.4, and nodes of
TensorFlow's graphs before that.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.activations import ACTIVATIONS
from dogwood_jax.keras_h5._kinds.images import depth_to_space, resize, space_to_depth
from dogwood_jax.keras_h5._kinds.kind import CHANNELS, KINDS, Config, Function, Kind, Params, Shape
from dogwood_jax.keras_h5._kinds.masking import forgotten


def sizes(value: Any) -> Any:
    """Returns an axis or size as it is, and a list of them as a tuple."""
    return tuple(map(operator.index, value)) if isinstance(value, list | tuple) else value


# Order, cumulative sums, and segments.


def roll(x: Any, shift: Any, axis: Any = None) -> Any:
    return jnp.roll(x, sizes(shift), sizes(axis))


def flip(x: Any, axis: Any = None) -> Any:
    return jnp.flip(x, sizes(axis))


def cumsum(x: Any, axis: Any = None) -> Any:
    return jnp.cumsum(x, axis)


def cumprod(x: Any, axis: Any = None) -> Any:
    return jnp.cumprod(x, axis)


def argsort(x: Any, axis: Any = -1) -> Any:
    return jnp.argsort(x, axis).astype(jnp.int32)


def top_k(x: Any, k: Any = 1, ordered: Any = True) -> Any:
    return jax.lax.top_k(x, operator.index(k))


def unstack(x: Any, num: Any = None, axis: Any = 0) -> Any:
    return [jnp.squeeze(one, axis) for one in jnp.split(x, x.shape[axis], axis)]


def take_along_axis(x: Any, indices: Any, axis: Any = None) -> Any:
    return jnp.take_along_axis(x, jnp.asarray(indices), axis)


def segments(reduce: Function) -> Function:
    """Returns a function that reduces the rows of each segment to one; needs ``num_segments``."""

    def reduced(x: Any, ids: Any, num_segments: Any) -> Any:
        if num_segments is None:
            raise ValueError("num_segments is not given; the shape of the result depends on it")
        return reduce(x, jnp.asarray(ids), operator.index(num_segments))

    return reduced


# Sums of products.


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    y = jnp.asarray(y)
    return jnp.tensordot(x, y, [sizes(a) for a in axes] if isinstance(axes, list | tuple) else axes)


def average(x: Any, axis: Any = None, weights: Any = None) -> Any:
    return jnp.average(x, sizes(axis), weights)


def fft(transform: Function) -> Function:
    """Returns a transform of complex numbers, which are pairs of real arrays."""

    def transformed(pair: Sequence[Any]) -> Any:
        real, imaginary = pair
        result = transform(jax.lax.complex(real, imaginary))
        return jnp.real(result), jnp.imag(result)

    return transformed


# Activations and norms.


def elu(x: Any, alpha: Any = 1.0) -> Any:
    return jax.nn.elu(x, alpha)


def squareplus(x: Any, b: Any = 4) -> Any:
    return (x + jnp.sqrt(x * x + b)) / 2


def soft_shrink(x: Any, threshold: Any = 0.5) -> Any:
    return jnp.sign(x) * jax.nn.relu(jnp.abs(x) - threshold)


def hard_shrink(x: Any, threshold: Any = 0.5) -> Any:
    return jnp.where(jnp.abs(x) > threshold, x, 0)


def _divide_no_nan(x: Any, y: Any) -> Any:
    """Divides; the result is zero where the divisor is zero."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


# Functions without options, by their names in Keras 3, in TensorFlow since 2.4, and before that.
_ELEMENTWISE: Mapping[tuple[str, str, str], Function] = {
    ("Add", "__operators__.add math.add", "AddV2 Add"): jnp.add,
    ("Subtract", "math.subtract", "Sub"): jnp.subtract,
    ("Multiply", "math.multiply", "Mul"): jnp.multiply,
    ("Divide TrueDivide", "math.divide math.truediv", "RealDiv"): jnp.divide,
    ("Power", "math.pow", "Pow"): jnp.power,
    ("Maximum", "math.maximum", "Maximum"): jnp.maximum,
    ("Minimum", "math.minimum", "Minimum"): jnp.minimum,
    ("Negative", "math.negative", "Neg"): jnp.negative,
    ("Absolute Abs", "math.abs", "Abs"): jnp.abs,
    ("Square", "math.square", "Square"): jnp.square,
    ("Sqrt", "math.sqrt", "Sqrt"): jnp.sqrt,
    ("Rsqrt", "math.rsqrt", "Rsqrt"): jax.lax.rsqrt,
    ("Reciprocal", "math.reciprocal", "Reciprocal"): jnp.reciprocal,
    ("", "math.squared_difference", "SquaredDifference"): lambda x, y: jnp.square(x - y),
    ("DivideNoNan", "math.divide_no_nan", "DivNoNan"): _divide_no_nan,
    ("FloorDivide", "math.floordiv floor_div", "FloorDiv"): jnp.floor_divide,
    ("Mod", "math.floormod math.mod", "FloorMod"): jnp.mod,
    ("Exp", "math.exp", "Exp"): jnp.exp,
    ("Exp2", "", ""): jnp.exp2,
    ("Expm1", "math.expm1", "Expm1"): jnp.expm1,
    ("Log", "math.log", "Log"): jnp.log,
    ("Log2", "", ""): jnp.log2,
    ("Log10", "", ""): jnp.log10,
    ("Log1p", "math.log1p", "Log1p"): jnp.log1p,
    ("Logaddexp", "", ""): jnp.logaddexp,
    ("Sin", "math.sin", "Sin"): jnp.sin,
    ("Cos", "math.cos", "Cos"): jnp.cos,
    ("Tan", "math.tan", "Tan"): jnp.tan,
    ("Sinh", "math.sinh", "Sinh"): jnp.sinh,
    ("Cosh", "math.cosh", "Cosh"): jnp.cosh,
    ("Arcsin", "math.asin", "Asin"): jnp.arcsin,
    ("Arccos", "math.acos", "Acos"): jnp.arccos,
    ("Arctan", "math.atan", "Atan"): jnp.arctan,
    ("Arctan2", "", "Atan2"): jnp.arctan2,
    ("Arcsinh", "math.asinh", "Asinh"): jnp.arcsinh,
    ("Arctanh", "math.atanh", "Atanh"): jnp.arctanh,
    ("Erf", "math.erf", "Erf"): jax.scipy.special.erf,
    ("Erfc", "math.erfc", "Erfc"): jax.scipy.special.erfc,
    ("Floor", "math.floor", "Floor"): jnp.floor,
    ("Ceil", "math.ceil", "Ceil"): jnp.ceil,
    ("Trunc", "", ""): jnp.trunc,
    ("", "math.round", "Round"): jnp.round,
    ("Isnan", "math.is_nan", "IsNan"): jnp.isnan,
    ("Isinf", "math.is_inf", "IsInf"): jnp.isinf,
    ("Isfinite", "math.is_finite", "IsFinite"): jnp.isfinite,
    ("Sign", "math.sign", "Sign"): jnp.sign,
    ("Relu", "nn.relu", "Relu"): ACTIVATIONS["relu"],
    ("Relu6", "nn.relu6", "Relu6"): ACTIVATIONS["relu6"],
    ("Selu", "nn.selu", "Selu"): jax.nn.selu,
    ("Sigmoid", "math.sigmoid", "Sigmoid"): jax.nn.sigmoid,
    ("Silu", "nn.silu", ""): jax.nn.silu,
    ("Softplus", "math.softplus", "Softplus"): jax.nn.softplus,
    ("Softsign", "nn.softsign", "Softsign"): jax.nn.soft_sign,
    ("Tanh", "math.tanh", "Tanh"): jnp.tanh,
    ("LogSigmoid", "math.log_sigmoid", ""): jax.nn.log_sigmoid,
    ("HardSigmoid", "", ""): ACTIVATIONS["hard_sigmoid"],
    ("HardSilu", "", ""): ACTIVATIONS["hard_silu"],
    ("HardTanh", "", ""): ACTIVATIONS["hard_tanh"],
    ("TanhShrink", "", ""): ACTIVATIONS["tanh_shrink"],
    ("SparsePlus", "", ""): ACTIVATIONS["sparse_plus"],
    ("SparseSigmoid", "", ""): ACTIVATIONS["sparse_sigmoid"],
    ("Equal", "math.equal", "Equal"): jnp.equal,
    ("NotEqual", "math.not_equal", "NotEqual"): jnp.not_equal,
    ("Greater", "math.greater", "Greater"): jnp.greater,
    ("GreaterEqual", "math.greater_equal", "GreaterEqual"): jnp.greater_equal,
    ("Less", "math.less", "Less"): jnp.less,
    ("LessEqual", "math.less_equal", "LessEqual"): jnp.less_equal,
    ("LogicalAnd", "math.logical_and", "LogicalAnd"): jnp.logical_and,
    ("LogicalOr", "math.logical_or", "LogicalOr"): jnp.logical_or,
    ("LogicalXor", "math.logical_xor", ""): jnp.logical_xor,
    ("LogicalNot", "math.logical_not", "LogicalNot"): jnp.logical_not,
    ("Where", "where", "SelectV2"): jnp.where,
    ("", "identity", "Identity"): lambda x: x,
    ("StopGradient", "stop_gradient", "StopGradient"): jax.lax.stop_gradient,
}


def _broadcasting(function: Function) -> Function:
    """Returns the function for arrays of any ranks, even where JAX refuses rank promotion."""

    def call(*arrays: Any) -> Any:
        rank = max(map(jnp.ndim, arrays))
        return function(
            *(
                a if n in (0, rank) else jnp.expand_dims(a, range(rank - n))
                for a, n in zip(arrays, map(jnp.ndim, arrays))
            )
        )

    return call


_KERAS_3, _FUNCTIONS, _NODES = (
    {
        name: _broadcasting(function)
        for names, function in _ELEMENTWISE.items()
        for name in names[version].split()
    }
    for version in range(3)
)


# Functions with options.


def _reduction(reduce: Function) -> Function:
    def reduced(x: Any, axis: Any = None, keepdims: Any = False) -> Any:
        return reduce(x, axis=sizes(axis), keepdims=bool(keepdims))

    return reduced


def _matmul(x: Any, y: Any, transpose_x: Any = False, transpose_y: Any = False) -> Any:
    x = jnp.swapaxes(x, -1, -2) if transpose_x else x
    return jnp.matmul(x, jnp.swapaxes(y, -1, -2) if transpose_y else y)


def _reshape(x: Any, shape: Any) -> Any:
    return jnp.reshape(x, sizes(shape))


def _transpose(x: Any, axes: Any = None) -> Any:
    return jnp.transpose(x, sizes(axes))


def _concatenate(xs: Sequence[Any], axis: Any = 0) -> Any:
    return jnp.concatenate(list(xs), axis=operator.index(axis))


def _stack(xs: Sequence[Any], axis: Any = 0) -> Any:
    return jnp.stack(list(xs), axis=operator.index(axis))


def _expand_dims(x: Any, axis: Any) -> Any:
    return jnp.expand_dims(x, sizes(axis))


def _squeeze(x: Any, axis: Any = None) -> Any:
    return jnp.squeeze(x, sizes(axis) or None if isinstance(axis, list | tuple) else axis)


def _split(x: Any, sections: Any, axis: Any = 0) -> Any:
    """Splits into equal parts, or at the given places."""
    return jnp.split(x, sizes(sections), axis=operator.index(axis))


def _split_sizes(x: Any, sizes: Any, axis: Any = 0) -> Any:
    """Splits into equal parts, or into parts of the given sizes."""
    if isinstance(sizes, list | tuple):
        sizes = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return _split(x, sizes, axis)


def _pad(x: Any, widths: Any, mode: Any = "constant", constant_values: Any = None) -> Any:
    mode = str(mode).lower()
    if mode not in ("constant", "reflect", "symmetric"):
        raise ValueError(f"the padding mode {mode!r} is not supported")
    options = {"constant_values": constant_values or 0} if mode == "constant" else {}
    pairs = [sizes(pair) for pair in widths] if isinstance(widths, list | tuple) else widths
    return jnp.pad(x, pairs, mode=mode, **options)


def _cast(x: Any, dtype: Any) -> Any:
    return jnp.asarray(x).astype(jnp.dtype(str(dtype)))


def _convert(x: Any, dtype: Any = None, **others: Any) -> Any:
    return jnp.asarray(x) if dtype is None else _cast(x, dtype)


def _tile(x: Any, repeats: Any) -> Any:
    return jnp.tile(x, sizes(repeats))


def _take(x: Any, indices: Any, axis: Any = 0) -> Any:
    return jnp.take(x, jnp.asarray(indices), axis=axis)


def _softmax(x: Any, axis: Any = -1) -> Any:
    return jax.nn.softmax(x, axis=-1 if axis is None else sizes(axis))


def _log_softmax(x: Any, axis: Any = -1) -> Any:
    return jax.nn.log_softmax(x, axis=-1 if axis is None else sizes(axis))


def _gelu(x: Any, approximate: Any = False) -> Any:
    return jax.nn.gelu(x, approximate=bool(approximate))


def _leaky_relu(x: Any, slope: Any = 0.2) -> Any:
    return jnp.where(x >= 0, x, slope * x)


def _l2_normalize(x: Any, axis: Any = None, epsilon: Any = 1e-12) -> Any:
    total = jnp.sum(x * x, axis=sizes(axis), keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(total, epsilon))


def _normalize(x: Any, axis: Any, order: Any, epsilon: Any) -> Any:
    if order != 2:
        raise ValueError(f"the order {order!r} is not supported")
    total = jnp.sum(x * x, axis=sizes(axis), keepdims=True)
    return x * jnp.minimum(jax.lax.rsqrt(total), 1 / (1e-7 if epsilon is None else epsilon))


def _broadcast_to(x: Any, shape: Any) -> Any:
    return jnp.broadcast_to(x, sizes(shape))


def _repeat(x: Any, repeats: Any, axis: Any = None) -> Any:
    repeats = jnp.asarray(repeats) if isinstance(repeats, list | tuple) else repeats
    return jnp.repeat(x, repeats, axis=axis)


def _moveaxis(x: Any, source: Any, destination: Any) -> Any:
    return jnp.moveaxis(x, sizes(source), sizes(destination))


def _argmax(x: Any, axis: Any = None, keepdims: Any = False) -> Any:
    return jnp.argmax(x, axis=axis, keepdims=bool(keepdims)).astype(jnp.int32)


def _argmin(x: Any, axis: Any = None, keepdims: Any = False) -> Any:
    return jnp.argmin(x, axis=axis, keepdims=bool(keepdims)).astype(jnp.int32)


def _norm(x: Any, order: Any = None, axis: Any = None, keepdims: Any = False) -> Any:
    axis = sizes(axis)
    axis = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
    order = None if order == "euclidean" else order
    return jnp.linalg.norm(x, order, axis, bool(keepdims))


def _one_hot(config: Config) -> Function:
    if config.get("sparse"):
        raise ValueError("a sparse result is not supported")
    count, axis = operator.index(config["num_classes"]), operator.index(config.get("axis", -1))
    dtype = jnp.dtype(str(config.get("dtype") or "float32"))
    return lambda x: jax.nn.one_hot(x.astype(jnp.int32), count, axis=axis, dtype=dtype)


# Operations with a count in their config: if the last axis of the result has this size, the count
# follows the layers that read the result.


def _is_last(axis: Any, rank: int) -> bool:
    return isinstance(axis, int) and axis in (-1, rank - 1)


def _counts(class_name: str, config: Config, shape: Shape, channels: int) -> dict[str, Any]:
    """Returns the options with which a counting operation has this many output channels."""
    if class_name == "OneHot":
        return {"num_classes": channels} if _is_last(config["axis"], len(shape) + 1) else {}
    one = bool(shape) and shape[-1] == 1  # it is repeated; more channels grow by themselves
    if class_name == "BroadcastTo":
        return {"shape": [*config["shape"][:-1], channels if one else shape[-1]]}
    if class_name == "Tile" and one and isinstance(config["repeats"], list | tuple):
        return {"repeats": [*config["repeats"][:-1], channels]}
    if class_name == "Repeat" and one and _is_last(config["axis"], len(shape)):
        return {"repeats": channels}
    if class_name == "Reshape":
        return {"newshape": [*config["newshape"][:-1], channels]}
    return {}


def _counting(class_name: str, option: str) -> Kind:
    make = _OPERATIONS[f"ops.{class_name}"]

    def function(config: Config) -> Function:
        channels = config.get(CHANNELS)
        if channels is None:
            return make(config)
        return lambda x, **others: make(
            {**config, **_counts(class_name, config, jnp.shape(x), channels)}
        )(x, **others)

    def sizes(config: Config, params: Params, shape: Shape, channels: int | None) -> dict[str, Any]:
        return {} if channels is None else _counts(class_name, config, shape, channels)

    def counted(config: Config) -> tuple[int, int | None]:
        value = config.get(option)
        last = value[-1] if isinstance(value, list | tuple) and value else value
        return -1, last if isinstance(last, int) and last > 0 else None

    return Kind(
        function=function,
        keywords=None,
        on_mask=forgotten,
        sizes_by_input=sizes,
        counted=counted,
    )


def _einsum(equation: Any) -> Function:
    return lambda *arrays: jnp.einsum(equation, *arrays)


# Each function with its name in Keras 3 and the options in its config, in the function's order; its
# name in TensorFlow and the arguments after the first; and its node and the attributes that follow
# the arrays. Axes and shapes are arrays in nodes, and constants in their configs.
_REDUCTIONS = tuple(
    (_reduction(reduce), f"{name}: axis keepdims", f"{called}: axis keepdims", node)
    for reduce, name, called, node in (
        (jnp.mean, "Mean", "math.reduce_mean", "Mean: keep_dims"),
        (jnp.sum, "Sum", "math.reduce_sum", "Sum: keep_dims"),
        (jnp.max, "Max", "math.reduce_max", "Max: keep_dims"),
        (jnp.max, "Amax", "", ""),
        (jnp.min, "Min", "math.reduce_min", "Min: keep_dims"),
        (jnp.min, "Amin", "", ""),
        (jnp.prod, "Prod", "math.reduce_prod", "Prod: keep_dims"),
        (jnp.var, "Var", "math.reduce_variance", ""),
        (jnp.std, "Std", "math.reduce_std", ""),
        (jnp.median, "Median", "", ""),
        (jax.nn.logsumexp, "Logsumexp", "math.reduce_logsumexp", ""),
        (jnp.any, "Any", "math.reduce_any", ""),
        (jnp.all, "All", "math.reduce_all", ""),
    )
)
_WITH_OPTIONS: Sequence[tuple[Function, str, str, str]] = (
    *_REDUCTIONS,
    (
        _matmul,
        "Matmul",
        "linalg.matmul: b transpose_a transpose_b",
        "MatMul: transpose_a transpose_b",
    ),
    (_reshape, "Reshape: newshape", "reshape: shape", "Reshape"),
    (_transpose, "Transpose: axes", "transpose: perm", "Transpose"),
    (jnp.swapaxes, "Swapaxes: axis1 axis2", "", ""),
    (_concatenate, "Concatenate: axis", "concat: axis", ""),
    (_stack, "Stack: axis", "stack: axis", ""),
    (_expand_dims, "ExpandDims: axis", "expand_dims: axis", "ExpandDims"),
    (_squeeze, "Squeeze: axis", "squeeze: axis", "Squeeze: squeeze_dims"),
    (_split, "Split: indices_or_sections axis", "", ""),
    (_pad, "Pad: pad_width mode", "pad: paddings mode constant_values", "Pad"),
    (_cast, "Cast: dtype", "cast: dtype", "Cast: DstT"),
    (_convert, "ConvertToTensor: dtype", "", ""),
    (jnp.clip, "Clip: x_min x_max", "clip_by_value: clip_value_min clip_value_max", ""),
    (_tile, "Tile: repeats", "tile: multiples", "Tile"),
    (_take, "Take: axis", "gather: indices axis", "GatherV2"),
    (_broadcast_to, "BroadcastTo: shape", "broadcast_to: shape", "BroadcastTo"),
    (_repeat, "Repeat: repeats axis", "repeat: repeats axis", ""),
    (_moveaxis, "Moveaxis: source destination", "", ""),
    (_argmax, "Argmax: axis keepdims", "", ""),
    (_argmin, "Argmin: axis keepdims", "", ""),
    # TensorFlow uses the first axis if none is given.
    (lambda x, axis=0: _argmax(x, axis or 0), "", "math.argmax: axis", ""),
    (lambda x, axis=0: _argmin(x, axis or 0), "", "math.argmin: axis", ""),
    (lambda x, depth: jax.nn.one_hot(x.astype(jnp.int32), depth), "", "one_hot: depth", ""),
    (
        lambda x, size: depth_to_space({"block_size": size})(x),
        "",
        "nn.depth_to_space: block_size",
        "",
    ),
    (
        lambda x, size: space_to_depth({"block_size": size})(x),
        "",
        "nn.space_to_depth: block_size",
        "",
    ),
    (
        lambda x, size, method="bilinear": resize({"size": size, "interpolation": method})(x),
        "",
        "image.resize: size method",
        "",
    ),
    (roll, "Roll: shift axis", "roll: shift axis", ""),
    (flip, "Flip: axis", "reverse: axis", "ReverseV2"),
    (cumsum, "Cumsum: axis", "math.cumsum: axis", ""),
    (cumprod, "Cumprod: axis", "math.cumprod: axis", ""),
    (jnp.diff, "Diff: n axis", "", ""),
    (jnp.sort, "Sort: axis", "sort: axis", ""),
    (argsort, "Argsort: axis", "argsort: axis", ""),
    (top_k, "TopK: k sorted", "math.top_k: k sorted", ""),
    (jnp.round, "Round: decimals", "", ""),
    (jnp.ravel, "Ravel", "", ""),
    (lambda xs: jnp.hstack(list(xs)), "Hstack", "", ""),
    (lambda xs: jnp.vstack(list(xs)), "Vstack", "", ""),
    (unstack, "Unstack: num axis", "", ""),
    (lambda x, axis=0: unstack(x, axis=axis), "", "unstack: axis", ""),
    (jnp.tril, "Tril: k", "", ""),
    (jnp.triu, "Triu: k", "", ""),
    (jnp.diagonal, "Diagonal: offset axis1 axis2", "", ""),
    (jnp.dot, "Dot", "", ""),
    (jnp.inner, "Inner", "", ""),
    (jnp.outer, "Outer", "", ""),
    (tensordot, "Tensordot: axes", "tensordot: b axes", ""),
    (average, "Average: axis", "", ""),
    (take_along_axis, "TakeAlongAxis: axis", "", ""),
    (segments(jax.ops.segment_sum), "SegmentSum: num_segments", "", ""),
    (segments(jax.ops.segment_max), "SegmentMax: num_segments", "", ""),
    (fft(jnp.fft.fft), "FFT", "", ""),
    (fft(jnp.fft.fft2), "FFT2", "", ""),
    (fft(jnp.fft.ifft2), "IFFT2", "", ""),
    (elu, "Elu: alpha", "nn.elu", "Elu"),
    (jax.nn.celu, "Celu: alpha", "", ""),
    (jax.nn.glu, "Glu: axis", "", ""),
    (squareplus, "Squareplus: b", "", ""),
    (soft_shrink, "SoftShrink: threshold", "", ""),
    (hard_shrink, "HardShrink: threshold", "", ""),
    (_norm, "Norm: ord axis keepdims", "norm: ord axis keepdims", ""),
    (jnp.ones_like, "OnesLike: dtype", "", ""),
    (jnp.zeros_like, "ZerosLike: dtype", "", ""),
    (_softmax, "Softmax: axis", "nn.softmax: axis", "Softmax"),
    (_log_softmax, "LogSoftmax: axis", "nn.log_softmax: axis", ""),
    (_gelu, "Gelu: approximate", "nn.gelu: approximate", ""),
    (_leaky_relu, "LeakyRelu: negative_slope", "nn.leaky_relu: alpha", "LeakyRelu: alpha"),
    (_normalize, "Normalize: axis order epsilon", "", ""),
    (_split_sizes, "", "split: num_or_size_splits axis", ""),
    (_l2_normalize, "", "math.l2_normalize: axis epsilon", ""),
    (_matmul, "", "", "BatchMatMul: adj_x adj_y"),
    (_matmul, "", "", "BatchMatMulV2: adj_x adj_y"),
    (lambda *xs: _concatenate(xs[:-1], xs[-1]), "", "", "ConcatV2"),
    (lambda *xs: _stack(xs[:-1], xs[-1]), "", "", "Pack: axis"),
    (lambda axis, x, parts: _split(x, parts, axis), "", "", "Split: num_split"),
)
_OPTIONS_3, _OPTIONS_2, _OPTIONS_1 = (
    {
        name: (function, tuple(options.split()))
        for function, *calls in _WITH_OPTIONS
        for name, _, options in [calls[version].partition(":")]
        if name
    }
    for version in range(3)
)


def _operation(name: str) -> Callable[[Config], Function]:
    """Returns the maker of an operation of Keras 3, which takes its config."""
    if name in _KERAS_3:
        return lambda config: _KERAS_3[name]
    function, options = _OPTIONS_3[name]

    def make(config: Config) -> Function:
        values = [config[option] for option in options]
        return lambda *arrays, **others: function(*arrays, *values, **others)

    return make


def _call_of_function(config: Config) -> Function:
    """Returns the function for a call of one of TensorFlow's functions."""
    name = str(config["function"]).removeprefix("compat.v1.")
    if name in _FUNCTIONS:
        return lambda x, **others: _FUNCTIONS[name](x, *(_array(y, x) for y in others.values()))
    if name not in _OPTIONS_2:
        raise ValueError(f"the operation {config['function']!r} is not supported")
    function, options = _OPTIONS_2[name]

    def call(x: Any, **given: Any) -> Any:
        others = {k: v for k, v in given.items() if k not in options and v not in (False, 0)}
        if others:
            raise ValueError(f"{name}: the options {others} are not supported")
        values = [given[option] for option in options if option in given]
        if list(options[: len(values)]) != [option for option in options if option in given]:
            raise ValueError(f"{name}: expected the options {options} in their order")
        return function(x, *values)

    return call


def _array(value: Any, like: Any) -> Any:
    """Returns a list of numbers in a config as an array, with the dtype of ``like`` for floats."""
    if not isinstance(value, list | tuple):
        return value
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(array)
    dtype = jnp.result_type(like)
    return jnp.asarray(array, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)


def _node(config: Config) -> Function:
    """Returns the function of a node; the config has its constant inputs, by position."""
    node = config["node_def"]
    name = node["op"]
    constants = {int(position): value for position, value in config["constants"].items()}
    values: list[Any] = []
    if name == "StridedSlice":
        function: Function = _strided_slice(node["attr"])
    elif name in _OPTIONS_1:
        function, options = _OPTIONS_1[name]
        values = [_attribute(node["attr"][option]) for option in options]
    elif name in _NODES:
        function = _NODES[name]
    else:
        raise ValueError(f"the operation {name!r} is not supported")

    def call(x: Any) -> Any:
        arrays = list(x) if isinstance(x, list) else [x]
        like = arrays[0]
        for position in sorted(constants):
            value = constants[position]
            arrays.insert(position, _array(value, like) if name in _NODES else value)
        return function(*arrays, *values)

    return call


_TYPES = {"DT_FLOAT": "float32", "DT_INT32": "int32", "DT_BOOL": "bool", "DT_HALF": "float16"}


def _attribute(value: Mapping[str, Any]) -> Any:
    """Returns the value of a node's attribute in TensorFlow's JSON."""
    ((kind, content),) = value.items()
    if kind == "list":
        return [int(number) for number in content["i"]]
    if kind == "i":
        return int(content)
    return _TYPES[content] if kind == "type" else content


def _strided_slice(attributes: Mapping[str, Any]) -> Function:
    """Returns an indexing function; for each axis, bits of masks choose what is used."""
    masks = {name: int(attributes[name]["i"]) for name in attributes if name.endswith("_mask")}

    def index(x: Any, begin: Any, end: Any, strides: Any) -> Any:
        items: list[Any] = []
        for axis, (first, last, step) in enumerate(zip(begin, end, strides)):
            bits = {name: mask >> axis & 1 for name, mask in masks.items()}
            start = None if bits["begin_mask"] else first
            stop = None if bits["end_mask"] else last
            if bits["ellipsis_mask"]:
                items.append(...)
            elif bits["new_axis_mask"]:
                items.append(None)
            else:
                items.append(first if bits["shrink_axis_mask"] else slice(start, stop, step))
        return x[tuple(items)]

    return index


def _slicing(x: Any, slice_spec: Any) -> Any:
    """Indexes an array with slices in the form of Keras 3 or of TensorFlow."""
    items = slice_spec if isinstance(slice_spec, list) else [slice_spec]
    return x[tuple(map(_index, items))]


def _index(item: Any) -> Any:
    if isinstance(item, Mapping) and item.keys() == {"start", "stop", "step"}:
        return slice(item["start"], item["stop"], item["step"])
    if isinstance(item, Mapping) and item.get("class_name") == "__ellipsis__":
        return ...
    if item is None or isinstance(item, int | slice):
        return item
    raise ValueError(f"the index {item!r} is not supported")


_OPERATIONS: dict[str, Callable[[Config], Function]] = {
    **{f"ops.{name}": _operation(name) for name in (*_KERAS_3, *_OPTIONS_3)},
    "ops.Einsum": lambda config: _einsum(config["subscripts"]),
    "ops.GetItem": lambda config: _slicing,
    "ops.OneHot": _one_hot,
    "TFOpLambda": _call_of_function,
    "SlicingOpLambda": lambda config: _slicing,
    "TensorFlowOpLayer": _node,
}


def _reduced_to(config: Config, axis: int) -> int | None:
    """Returns the place of the last axis after a reduction along others, ``None`` if unknown.

    A positive axis may be the last axis. If it is, and all axes between it and the batch are
    reduced as well, only the batch is left, and no layer reads its channels.
    """
    axes = sizes(config["axis"])
    axes = (axes,) if isinstance(axes, int) else axes or (-1,)
    first = sorted(a for a in axes if a >= 0)
    stays = -1 not in axes and first == [*range(1, len(first) + 1)]
    return -1 if axis == -1 and stays and not (first and config.get("keepdims")) else None


# Operations whose results have the channels of their inputs.
_SAME = (*_KERAS_3, "Cast", "Clip", "Softmax", "LogSoftmax", "Gelu", "LeakyRelu", "Normalize")

for _class, _make in _OPERATIONS.items():
    _passes = _class.removeprefix("ops.") in _SAME
    KINDS[_class] = Kind(function=_make, keywords=None, on_mask=forgotten, passes_channels=_passes)
for _reduces in _REDUCTIONS:
    _class = f"ops.{_reduces[1].partition(':')[0]}"
    KINDS[_class] = replace(KINDS[_class], moved_to=_reduced_to)
for _class, _option in (
    ("OneHot", "num_classes"),
    ("BroadcastTo", "shape"),
    ("Tile", "repeats"),
    ("Repeat", "repeats"),
    ("Reshape", "newshape"),
):
    KINDS[f"ops.{_class}"] = _counting(_class, _option)
