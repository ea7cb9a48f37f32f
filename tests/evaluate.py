"""Evaluates JAX functions with NumPy, for tests of many small programs: nothing is compiled.

Compiling a program takes a thousand times longer than running it on a few numbers. ``evaluate``
makes a function's jaxpr and computes it equation by equation; primitives that NumPy does not have
are left to JAX.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# A loop that runs more often does not end, as one that halves an infinity until it is small.
_MOST_ROUNDS = 10_000


def evaluate(function: Callable[..., Any], *args: Any) -> Any:
    """Returns ``function(*args)``, with arrays of NumPy."""
    return program(function, *args)(*args)


def program(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Returns a function that is traced once, for arguments of these shapes."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    structure = jax.tree.structure(shapes)

    def run(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            results = _run(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(structure, results)

    return run


def _array(value: Any) -> Any:
    """Returns an array of NumPy, where NumPy has this dtype."""
    if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    return np.asarray(value)


def _run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, map(_array, consts)))
    values |= zip(jaxpr.invars, map(_array, args))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = _one(equation, operands)
        for var, result in zip(equation.outvars, results):
            if isinstance(result, np.ndarray | np.generic):
                result = np.asarray(result, var.aval.dtype)
                assert result.shape == var.aval.shape, (equation, result.shape)
            values[var] = result
    return [read(atom) for atom in jaxpr.outvars]


def _closed(jaxpr: Any, *args: Any) -> list[Any]:
    if isinstance(jaxpr, ClosedJaxpr):
        return _run(jaxpr.jaxpr, jaxpr.consts, args)
    return _run(jaxpr, (), args)


def _one(equation: Any, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if name in (
        "jit",
        "pjit",
        "closed_call",
        "remat2",
        "remat",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
    ):
        if inner is not None:
            return _closed(inner, *operands)
    if name == "cond":
        branches = params["branches"]
        chosen = min(max(int(operands[0]), 0), len(branches) - 1)
        return _closed(branches[chosen], *operands[1:])
    if name == "while":
        c, b = params["cond_nconsts"], params["body_nconsts"]
        state = operands[c + b :]
        for _ in range(_MOST_ROUNDS):
            if not _closed(params["cond_jaxpr"], *operands[:c], *state)[0]:
                return state
            state = _closed(params["body_jaxpr"], *operands[c : c + b], *state)
        raise OverflowError(f"a loop that runs more than {_MOST_ROUNDS} times")
    if name == "scan" and "num_consts" in params:
        return _scan(inner, operands, **params)
    if name in _FUNCTIONS and not any(_is_extended(value) for value in operands):
        result = _FUNCTIONS[name](*operands, **params)
        return result if isinstance(result, list) else [result]
    results = equation.primitive.bind(*operands, **params)
    results = results if equation.primitive.multiple_results else [results]
    return [_array(result) for result in results]


def _is_extended(value: Any) -> bool:
    return not isinstance(value, np.ndarray | np.generic) or value.dtype.kind == "V"


def _scan(inner: Any, operands: list[Any], **params: Any) -> list[Any]:
    c, n, length = params["num_consts"], params["num_carry"], params["length"]
    consts, carry, stacked = operands[:c], operands[c : c + n], operands[c + n :]
    rows: list[Any] = [None] * length
    for k in range(length)[:: -1 if params["reverse"] else 1]:
        out = _closed(inner, *consts, *carry, *(xs[k] for xs in stacked))
        carry, rows[k] = out[:n], out[n:]
    avals = (inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner).outvars[n:]
    ys = [
        np.stack([row[j] for row in rows]) if length else np.zeros((0, *v.aval.shape), v.aval.dtype)
        for j, v in enumerate(avals)
    ]
    return [*carry, *ys]


def _dot(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    (over_a, over_b), (batch_a, batch_b) = dimension_numbers
    names_a = [*range(a.ndim)]
    names_b = [*range(a.ndim, a.ndim + b.ndim)]
    for i, j in [*zip(over_a, over_b), *zip(batch_a, batch_b)]:
        names_b[j] = names_a[i]
    out = [names_a[i] for i in batch_a]
    out += [n for i, n in enumerate(names_a) if i not in (*batch_a, *over_a)]
    out += [n for j, n in enumerate(names_b) if j not in (*batch_b, *over_b)]
    return np.einsum(a, names_a, b, names_b, out)


def _broadcast(a: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
    whole = [1] * len(shape)
    for axis, place in enumerate(broadcast_dimensions):
        whole[place] = a.shape[axis]
    return np.broadcast_to(a.reshape(whole), shape)


def _iota(*_: Any, dtype: Any, shape: Any, dimension: int, **__: Any) -> Any:
    whole = [1] * len(shape)
    whole[dimension] = -1
    return np.broadcast_to(np.arange(shape[dimension]).reshape(whole), shape).astype(dtype)


def _convert(a: Any, *, new_dtype: Any, **_: Any) -> Any:
    if np.iscomplexobj(a) and not np.issubdtype(new_dtype, np.complexfloating):
        a = a.real
    return a.astype(new_dtype)


def _reduced(function: Any) -> Any:
    return lambda a, *, axes, **_: function(a, axis=axes)


def _summed(function: Any) -> Any:
    def run(a: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
        return np.flip(function(np.flip(a, axis), axis), axis) if reverse else function(a, axis)

    return run


def _plain(function: Any) -> Any:
    return lambda *operands, **_: function(*operands)


def _slice(a: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    strides = strides or [1] * a.ndim
    return a[tuple(map(slice, start_indices, limit_indices, strides))]


def _pad(a: Any, value: Any, *, padding_config: Any, **_: Any) -> Any:
    for axis, (low, high, inner) in enumerate(padding_config):
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


def _clamp(low: Any, a: Any, high: Any) -> Any:
    return np.minimum(np.maximum(a, low), high)


def _divide(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(a / b).astype(a.dtype)
    return a / b


def _select(which: Any, *cases: Any) -> Any:
    return np.choose(np.broadcast_to(which, cases[0].shape).astype(int), cases)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
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
        "logistic": lambda a: 1 / (1 + np.exp(-a)),
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
        "shift_right_logical": lambda a, b: (a.view(f"u{a.itemsize}") >> b).view(a.dtype),
        "shift_left": np.left_shift,
        "is_finite": np.isfinite,
        "rem": np.fmod,
        "clamp": _clamp,
        "select_n": _select,
        "stop_gradient": lambda a: a,
        "copy": lambda a: a,
        "copy_p": lambda a: a,
        "real": np.real,
        "imag": np.imag,
        "conj": np.conj,
        "complex": lambda a, b: a + 1j * b,
        "optimization_barrier": lambda *operands: [*operands],
    }.items()
}
_FUNCTIONS |= {
    "integer_pow": lambda a, *, y, **_: np.power(a, y) if y >= 0 else 1 / np.power(a, -y),
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda a, *, new_sizes, dimensions=None, **_: (
        a if dimensions is None else a.transpose(dimensions)
    ).reshape(new_sizes),
    "transpose": lambda a, *, permutation, **_: a.transpose(permutation),
    "squeeze": lambda a, *, dimensions, **_: np.squeeze(a, tuple(dimensions)),
    "expand_dims": lambda a, *, dimensions, **_: np.expand_dims(a, tuple(dimensions)),
    "convert_element_type": _convert,
    "iota": _iota,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "bitcast_convert_type": lambda a, *, new_dtype: a.view(new_dtype),
    "concatenate": lambda *operands, dimension, **_: np.concatenate(operands, dimension),
    "rev": lambda a, *, dimensions, **_: np.flip(a, dimensions),
    "slice": _slice,
    "reduce_sum": _reduced(np.sum),
    "reduce_prod": _reduced(np.prod),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "argmax": lambda a, *, axes, **_: np.argmax(a, axes[0]),
    "argmin": lambda a, *, axes, **_: np.argmin(a, axes[0]),
    "cumsum": _summed(np.cumsum),
    "cumprod": _summed(np.cumprod),
    "cummax": _summed(functools.partial(np.maximum.accumulate)),
}
