"""What primitives compute, with NumPy: ``FUNCTIONS``, ``folded``.

What is not here, JAX computes on the host (``evaluate``). So an entry is a matter of speed, except
for the entries that must differ from JAX. Casts stay in float64. Random bits follow from places.
What cannot be computed here, such as a kernel, gives numbers that follow from its operands alone.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A loop that goes on longer than this shows nothing.
MOST_ROUNDS = 200


class OfEquation(NamedTuple):
    """A function that also takes the equation, because it needs shapes or dtypes of operands."""

    run: Callable[..., Any]


# Elementwise --------------------------------------------------------------------------------------


def _divide(a: Any, b: Any) -> Any:
    if a.dtype.kind in "iu":
        whole = np.where(b == 0, 1, b)
        return np.where(b == 0, -1, np.trunc(a / whole)).astype(a.dtype)
    return a / b


def _remainder(a: Any, b: Any) -> Any:
    """Returns remainders as XLA does: that of an integer divided by zero is the integer."""
    if a.dtype.kind in "iu":
        return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b)))
    return np.fmod(a, b)


def _logistic(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def _integer_pow(a: Any, *, y: int, **_: Any) -> Any:
    return a**y if y >= 0 else 1 / a**-y


def _round(a: Any, *, rounding_method: Any, **_: Any) -> Any:
    if int(rounding_method) == 1:
        return np.round(a)
    return np.sign(a) * np.floor(np.abs(a) + 0.5)


def _convert(eqn: Any, a: Any) -> Any:
    dtype = eqn.params["new_dtype"]
    if jnp.issubdtype(dtype, jnp.floating):
        return np.real(a).astype(np.float64)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return a.astype(np.complex128)
    if dtype == np.bool_:
        return a != 0
    kind = np.int8 if dtype in (jnp.int4, jnp.uint4) else dtype
    if a.dtype.kind in "fc":
        info = jnp.iinfo(dtype)  # type: ignore[no-untyped-call]
        a = np.nan_to_num(np.real(a), nan=0.0, posinf=float(info.max), neginf=float(info.min))
        return np.clip(a, float(info.min), np.nextafter(float(info.max), 0)).astype(kind)
    return a.astype(kind)


def _bits(eqn: Any, a: Any) -> Any:
    """The bits of numbers in the program's own dtype, as the generators of JAX look at them."""
    dtype, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    found = np.asarray(a, dtype).view(new)
    return found.astype(np.float64) if jnp.issubdtype(new, jnp.floating) else found


def _select(which: Any, *cases: Any) -> Any:
    if len(cases) == 2 and which.dtype == np.bool_:
        return np.where(which, cases[1], cases[0])
    return np.choose(np.broadcast_to(which, cases[0].shape).astype(int), cases)


def _shift_right_logical(a: Any, b: Any) -> Any:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return (a.view(unsigned) >> b.astype(unsigned)).view(a.dtype)


def _special(name: str) -> Callable[..., Any]:
    """A function of SciPy, which JAX depends on, imported when it is first needed."""

    def run(*operands: Any, **_: Any) -> Any:
        import scipy.special  # type: ignore[import-untyped]

        return getattr(scipy.special, name)(*operands)

    return run


# Axes ---------------------------------------------------------------------------------------------


def _broadcast(a: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
    whole = [1] * len(shape)
    for axis, place in enumerate(broadcast_dimensions):
        whole[place] = a.shape[axis]
    return np.broadcast_to(a.reshape(whole), shape)


def _reshape(a: Any, *_: Any, new_sizes: Any, dimensions: Any = None, **__: Any) -> Any:
    return np.reshape(a if dimensions is None else a.transpose(dimensions), new_sizes)


def _iota(*_: Any, dtype: Any, shape: Any, dimension: int, **__: Any) -> Any:
    whole = [1] * len(shape)
    whole[dimension] = -1
    kind = np.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype
    return np.broadcast_to(np.arange(shape[dimension]).reshape(whole), shape).astype(kind)


def _slice(a: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    strides = strides or [1] * a.ndim
    return a[tuple(map(slice, start_indices, limit_indices, strides))]


def _split(a: Any, *, sizes: Sequence[int], axis: int, **_: Any) -> list[Any]:
    return list(np.split(a, np.cumsum(sizes)[:-1], axis))


def _pad(a: Any, value: Any, *, padding_config: Any, **_: Any) -> Any:
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


def _window(a: Any, sizes: Sequence[int], starts: Sequence[Any]) -> tuple[slice, ...]:
    first = [min(max(int(k), 0), n - size) for k, n, size in zip(starts, a.shape, sizes)]
    return tuple(slice(k, k + size) for k, size in zip(first, sizes))


def _dynamic_slice(a: Any, *starts: Any, slice_sizes: Any, **_: Any) -> Any:
    return a[_window(a, slice_sizes, starts)]


def _dynamic_update_slice(a: Any, part: Any, *starts: Any, **_: Any) -> Any:
    a = a.copy()
    a[_window(a, part.shape, starts)] = part
    return a


def _gather(
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
    is_open = "PROMISE" in str(mode).upper() and operand.dtype.kind in "fc"  # anything may come
    if is_open or "FILL" in str(mode).upper():
        found = np.where(
            is_inside, found, _fill(operand.dtype) if fill_value is None else fill_value
        )
    others = [axis for axis in range(found.ndim) if axis not in numbers.offset_dims]
    return np.moveaxis(found, range(found.ndim), [*others, *numbers.offset_dims])


def _places(
    shape: Sequence[int],
    indices: Any,
    sizes: Sequence[int],
    gone: Any,
    index_map: Sequence[int],
    batching: Any,
) -> tuple[tuple[Any, ...], Any]:
    """Returns the places of windows of an array, and which windows lie inside of it.

    Args:
        shape: the shape of the array.
        indices: where windows begin, ``[..., axes]``.
        sizes: their size along each axis.
        gone: axes that windows do not have.
        index_map: the axes that ``indices`` count.
        batching: axes that are those of ``indices``.
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


def _scatter(combine: Any) -> Any:
    def run(
        operand: Any, indices: Any, updates: Any, *, dimension_numbers: Any, mode: Any, **_: Any
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
        if combine is None:
            found[where] = updates
        else:
            combine.at(found, where, updates)
        return found

    return run


def _fill(dtype: Any) -> Any:
    """What JAX gives for an index that is out of range."""
    if dtype.kind in "fc":
        return np.nan
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


# Sums ---------------------------------------------------------------------------------------------


def _dot(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    (over_a, over_b), (batch_a, batch_b) = dimension_numbers
    if a.dtype.kind != b.dtype.kind:
        kind = np.result_type(a, b)
        a, b = a.astype(kind), b.astype(kind)
    free_a = [axis for axis in range(a.ndim) if axis not in (*over_a, *batch_a)]
    free_b = [axis for axis in range(b.ndim) if axis not in (*over_b, *batch_b)]
    batch = [a.shape[axis] for axis in batch_a]
    shape = [*batch, *(a.shape[axis] for axis in free_a), *(b.shape[axis] for axis in free_b)]
    summed = int(np.prod([a.shape[axis] for axis in over_a]))
    rows = int(np.prod([a.shape[axis] for axis in free_a]))
    columns = int(np.prod([b.shape[axis] for axis in free_b]))
    a = a.transpose(*batch_a, *free_a, *over_a).reshape(*batch, rows, summed)
    b = b.transpose(*batch_b, *over_b, *free_b).reshape(*batch, summed, columns)
    return (a @ b).reshape(shape)


def _reduced(function: Any) -> Any:
    return lambda a, *, axes, **_: function(a, axis=tuple(axes))


def _sum(a: Any, *, axes: Any, **_: Any) -> Any:
    return np.sum(a, axis=tuple(axes), dtype=a.dtype)


def _accumulated(function: Any) -> Any:
    def run(a: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
        if reverse:
            return np.flip(function(np.flip(a, axis), axis=axis), axis)
        return function(a, axis=axis)

    return run


def _cumsum(a: Any, axis: int) -> Any:
    return np.cumsum(a, axis=axis, dtype=a.dtype)


def _cumprod(a: Any, axis: int) -> Any:
    return np.cumprod(a, axis=axis, dtype=a.dtype)


def _arg(function: Any) -> Any:
    def run(a: Any, *, axes: Any, index_dtype: Any, **_: Any) -> Any:
        return function(a, axis=axes[0]).astype(index_dtype)

    return run


def _sort(*operands: Any, dimension: int, num_keys: int, **_: Any) -> list[Any]:
    order = np.lexsort(operands[:num_keys][::-1], axis=dimension)
    return [np.take_along_axis(a, order, dimension) for a in operands]


def _top_k(a: Any, *, k: int, axis: int = -1, **_: Any) -> list[Any]:
    key = -a if a.dtype.kind == "f" else -a.astype(np.int64)
    order = np.argsort(key, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    return [np.take_along_axis(a, order, axis), order.astype(np.int32)]


def _windows(a: Any, sizes: Any, strides: Any, dilation: Any) -> Any:
    """Returns windows of an array: all axes of their places, then all axes inside them."""
    spread = [(size - 1) * d + 1 for size, d in zip(sizes, dilation)]
    seen = np.lib.stride_tricks.sliding_window_view(a, tuple(spread))
    places = tuple(slice(None, None, stride) for stride in strides)
    return seen[places + tuple(slice(None, None, d) for d in dilation)]


def _reduce_window(function: Any, start: Any) -> Any:
    def run(
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
        a = _pad(a, start(a.dtype), padding_config=config)
        windows = _windows(a, window_dimensions, window_strides, window_dilation)
        return function(windows, axis=tuple(range(a.ndim, 2 * a.ndim)))

    return run


def _lowest(dtype: Any) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


def _conv(
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
    a = _pad(a, a.dtype.type(0), padding_config=[(0, 0, 0), (0, 0, 0), *config])
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


# Random numbers, and what is unknown --------------------------------------------------------------


def _mixed(numbers: Any) -> Any:
    """Returns numbers of 64 bits that look random, one for each."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _random_bits(key: Any, *, bit_width: int, shape: Sequence[int], **_: Any) -> np.ndarray:
    words = np.asarray(jax.random.key_data(key)).astype(np.uint64)
    seeds = words.reshape((*key.shape, -1))
    mixed = np.full(key.shape, 1, np.uint64)
    for word in range(seeds.shape[-1]):
        mixed = _mixed(mixed * np.uint64(0x9E3779B97F4A7C15) + seeds[..., word])
    bits = mixed.reshape((*key.shape, *(1,) * len(shape)))
    for axis, size in enumerate(shape):
        along = [1] * bits.ndim
        along[len(key.shape) + axis] = size
        places = np.arange(1, size + 1, dtype=np.uint64).reshape(along)
        bits = _mixed(bits * np.uint64(0x9E3779B97F4A7C15) + places)
    return np.asarray((bits >> np.uint64(64 - bit_width)).astype(f"uint{bit_width}"))


def random_bits_alike(key: Any, *, bit_width: int, shape: Sequence[int], **_: Any) -> Any:
    """Returns random bits that are the same for all entries, so that copies have the same."""
    bits = _random_bits(key, bit_width=bit_width, shape=(1,) * len(shape))
    return np.broadcast_to(bits, (*key.shape, *shape))


def unknown(eqn: Any, *operands: Any) -> list[Any]:
    """Returns numbers that follow from the operands smoothly, and that nothing else is known of."""
    numbers = [np.real(a).astype(float).ravel() for a in operands if isinstance(a, np.ndarray)]
    joined = np.concatenate([np.zeros(0), *numbers])
    rng = np.random.default_rng(zlib.crc32(eqn.primitive.name.encode()))
    level = np.sin(rng.normal(size=joined.size) @ joined) if joined.size else 0.0
    results = []
    for var in eqn.outvars:
        phases = rng.uniform(0, 6, size=var.aval.shape)
        result = np.sin(phases + level)
        if not jnp.issubdtype(var.aval.dtype, jnp.inexact):
            result = (result > 0).astype(var.aval.dtype)
        results.append(result)
    return results


def _psum(eqn: Any, *operands: Any) -> list[Any]:
    """A sum over axes, or over devices, which is unknown on a single one."""
    axes = eqn.params.get("axes", ())
    if axes and all(isinstance(axis, int) for axis in axes):
        return [np.sum(a, axis=tuple(axes), dtype=a.dtype) for a in operands]
    return unknown(eqn, *operands)


def _callback(eqn: Any, *operands: Any) -> list[Any]:
    """Equinox's ``error_if`` hands on what it takes, or raises; any other callback is unknown."""
    function = getattr(eqn.params.get("callback"), "callback_func", None)
    shapes = [tuple(var.aval.shape) for var in eqn.outvars]
    if getattr(function, "__module__", "") == "equinox._errors":
        fitting = [np.asarray(a) for a in operands if np.shape(a) in shapes]
        if [a.shape for a in fitting[-len(shapes) :]] == shapes:
            return fitting[-len(shapes) :]
        return [np.full(shape, np.nan) for shape in shapes]
    return unknown(eqn, *operands)


def _plain(function: Any) -> Any:
    return lambda *operands, **_: function(*operands)


def _same(*operands: Any, **_: Any) -> list[Any]:
    return [*operands]


FUNCTIONS: dict[str, Callable[..., Any] | OfEquation] = {
    name: _plain(function)
    for name, function in {
        "add": np.add,
        "add_any": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": _divide,
        "max": np.maximum,
        "min": np.minimum,
        "pow": np.power,
        "neg": np.negative,
        "abs": np.abs,
        "sign": np.sign,
        "floor": np.floor,
        "ceil": np.ceil,
        "square": np.square,
        "sqrt": np.sqrt,
        "cbrt": np.cbrt,
        "rsqrt": lambda a: 1 / np.sqrt(a),
        "exp": np.exp,
        "exp2": np.exp2,
        "log": np.log,
        "log2": np.log2,
        "expm1": np.expm1,
        "log1p": np.log1p,
        "sin": np.sin,
        "cos": np.cos,
        "tan": np.tan,
        "tanh": np.tanh,
        "sinh": np.sinh,
        "cosh": np.cosh,
        "asin": np.arcsin,
        "acos": np.arccos,
        "atan": np.arctan,
        "asinh": np.arcsinh,
        "acosh": np.arccosh,
        "atanh": np.arctanh,
        "atan2": np.arctan2,
        "logistic": _logistic,
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "not": np.invert,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "shift_right_logical": _shift_right_logical,
        "shift_left": np.left_shift,
        "shift_right_arithmetic": np.right_shift,
        "is_finite": np.isfinite,
        "nextafter": np.nextafter,
        "rem": _remainder,
        "clamp": lambda low, a, high: np.minimum(np.maximum(a, low), high),
        "select_n": _select,
        "real": np.real,
        "imag": np.imag,
        "conj": np.conj,
        "complex": lambda a, b: a + 1j * b,
    }.items()
}
FUNCTIONS |= {
    name: _special(function)
    for name, function in {
        "erf": "erf",
        "erfc": "erfc",
        "erf_inv": "erfinv",
        "lgamma": "gammaln",
        "digamma": "digamma",
        "bessel_i0e": "i0e",
        "bessel_i1e": "i1e",
        "igamma": "gammainc",
        "igammac": "gammaincc",
        "zeta": "zeta",
        "regularized_incomplete_beta": "betainc",
    }.items()
}
FUNCTIONS |= dict.fromkeys(
    (
        "stop_gradient",
        "copy",
        "copy_p",
        "name",
        "optimization_barrier",
        "sharding_constraint",
        "layout_constraint",
        "mesh_cast",
        "reshard",
        "pvary",
        "pcast",
    ),
    _same,
)
FUNCTIONS |= dict.fromkeys(("debug_callback", "debug_print"), lambda *_, **__: [])
FUNCTIONS |= dict.fromkeys(
    (
        *("io_callback", "pallas_call", "ffi_call", "custom_call", "cudnn_dot_product_attention"),
        *("psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_to_all", "axis_index"),
    ),
    OfEquation(unknown),
)
FUNCTIONS |= {
    "psum": OfEquation(_psum),
    "pure_callback": OfEquation(_callback),
    "integer_pow": _integer_pow,
    "round": _round,
    "convert_element_type": OfEquation(_convert),
    "bitcast_convert_type": OfEquation(_bits),
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": lambda a, *, permutation, **_: a.transpose(permutation),
    "squeeze": lambda a, *, dimensions, **_: np.squeeze(a, tuple(dimensions)),
    "expand_dims": lambda a, *, dimensions, **_: np.expand_dims(a, tuple(dimensions)),
    "iota": _iota,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter(None),
    "scatter-add": _scatter(np.add),
    "scatter_add": _scatter(np.add),
    "scatter-sub": _scatter(np.subtract),
    "scatter-mul": _scatter(np.multiply),
    "scatter_mul": _scatter(np.multiply),
    "scatter-min": _scatter(np.minimum),
    "scatter_min": _scatter(np.minimum),
    "scatter-max": _scatter(np.maximum),
    "scatter_max": _scatter(np.maximum),
    "concatenate": lambda *operands, dimension, **_: np.concatenate(operands, dimension),
    "rev": lambda a, *, dimensions, **_: np.flip(a, dimensions),
    "reduce_sum": _sum,
    "reduce_prod": _reduced(np.prod),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _accumulated(_cumsum),
    "cumprod": _accumulated(_cumprod),
    "cummax": _accumulated(np.maximum.accumulate),
    "cummin": _accumulated(np.minimum.accumulate),
    "cumlogsumexp": _accumulated(np.logaddexp.accumulate),
    "reduce_window_sum": _reduce_window(np.sum, lambda dtype: dtype.type(0)),
    "reduce_window_max": _reduce_window(np.max, _lowest),
    "reduce_window_min": _reduce_window(np.min, _highest),
    "sort": _sort,
    "top_k": _top_k,
    "random_bits": _random_bits,
}


def folded(eqn: Any, numbers: Sequence[float]) -> float | None:
    """Returns the number that a function of single entries makes of numbers.

    It is None where that is not known, or is no real number.
    """
    function = FUNCTIONS.get(eqn.primitive.name)
    if function is None or isinstance(function, OfEquation):
        return None
    dtypes = [atom.aval.dtype for atom in eqn.invars]
    with np.errstate(all="ignore"):
        try:
            operands = (
                np.asarray(number, float if jnp.issubdtype(dtype, jnp.floating) else dtype)
                for number, dtype in zip(numbers, dtypes, strict=True)
            )
            found = function(*operands, **eqn.params)
        except (ArithmeticError, TypeError, ValueError):  # as of small integers
            return None
    return None if np.iscomplexobj(found) else float(found)


__all__ = ["FUNCTIONS", "MOST_ROUNDS", "OfEquation", "folded", "random_bits_alike", "unknown"]
