"""Examples of elementwise primitives, each in the same few networks: ``UNARY``, ``BINARY``, ..."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from primitive_examples import EXAMPLES, TOTAL, Example, Shapes, gated, mlp

from dogwood_jax._program.primitives.table import PRIMITIVES

Function = Callable[..., Any]

# Functions of one array, and the range of the numbers that they are given; new units leave it.
UNARY: dict[str, tuple[Function, float, float]] = {
    # Linear
    "neg": (lax.neg, -3, 3),
    "real": (lambda x: lax.real(lax.complex(x, 2 * x)), -3, 3),
    "imag": (lambda x: lax.imag(lax.complex(x, 2 * x)), -3, 3),
    "complex": (lambda x: lax.complex(x, 2 * x), -3, 3),
    "conj": (lambda x: lax.conj(lax.complex(x, 2 * x)), -3, 3),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), -3, 3),
    "copy": (jnp.copy, -3, 3),
    "convert_element_type": (lambda x: x.astype(np.float32).astype(float), -3, 3),
    "stop_gradient": (lax.stop_gradient, -3, 3),
    # Homogeneous
    "abs": (lax.abs, -3, 3),
    "sign": (lax.sign, -3, 3),
    "sqrt": (lax.sqrt, 0.1, 3),
    "rsqrt": (lax.rsqrt, 0.1, 3),
    "cbrt": (lax.cbrt, -3, 3),
    "square": (lax.square, -3, 3),
    "integer_pow": (lambda x: lax.integer_pow(x, 3), -3, 3),
    # Others that keep zeros
    "tanh": (lax.tanh, -3, 3),
    "sin": (lax.sin, -3, 3),
    "sinh": (lax.sinh, -3, 3),
    "tan": (lax.tan, -1.5, 1.5),
    "asin": (lax.asin, -0.9, 0.9),
    "atan": (lax.atan, -3, 3),
    "asinh": (lax.asinh, -3, 3),
    "atanh": (lax.atanh, -0.9, 0.9),
    "expm1": (lax.expm1, -3, 3),
    "log1p": (lax.log1p, -0.9, 3),
    "erf": (lax.erf, -3, 3),
    "erf_inv": (lax.erf_inv, -0.9, 0.9),
    "floor": (lax.floor, -3, 3),
    "ceil": (lax.ceil, -3, 3),
    "round": (lax.round, -3, 3),
    # Others
    "exp": (lax.exp, -3, 3),
    "exp2": (lax.exp2, -3, 3),
    "log": (lax.log, 0.1, 3),
    "log2": (jnp.log2, 0.1, 3),
    "cos": (lax.cos, -3, 3),
    "cosh": (lax.cosh, -3, 3),
    "acos": (lax.acos, -0.9, 0.9),
    "acosh": (lax.acosh, 1.1, 3),
    "logistic": (lax.logistic, -3, 3),
    "erfc": (lax.erfc, -3, 3),
    "lgamma": (lax.lgamma, 0.1, 3),
    "digamma": (lax.digamma, 0.1, 3),
    "bessel_i0e": (lax.bessel_i0e, -3, 3),
    "bessel_i1e": (lax.bessel_i1e, -3, 3),
    "is_finite": (lambda x: lax.is_finite(x).astype(float), -3, 3),
    "one_minus_square": (getattr(lax, "one_minus_square", lambda x: 1 - x * x), -3, 3),
    "bitcast_convert_type": (
        lambda x: lax.bitcast_convert_type(
            lax.bitcast_convert_type(x, np.int64) & ~np.int64(1), np.float64
        ),
        -3,
        3,
    ),
    # Of integers
    "not": (lambda x: (~_integers(x)).astype(float), -3, 3),
    "population_count": (lambda x: lax.population_count(_integers(x)).astype(float), -3, 3),
    "clz": (lambda x: lax.clz(_integers(x)).astype(float), -3, 3),
    "convert_element_type_to_int": (lambda x: _integers(x).astype(float), -3, 3),
    "convert_element_type_to_bool": (lambda x: (x > 0).astype(bool).astype(float), -3, 3),
    "convert_element_type_from_bool": (lambda x: x.astype(bool).astype(float), -3, 3),
    # Powers
    "integer_pow_reciprocal": (lambda x: lax.integer_pow(x, -1), 0.1, 3),
    "integer_pow_reciprocal_square": (lambda x: lax.integer_pow(x, -2), 0.1, 3),
    "pow_root": (lambda x: lax.pow(x, _number(0.5, x)), 0.1, 3),
    "pow_reciprocal_root": (lambda x: lax.pow(x, _number(-0.5, x)), 0.1, 3),
    "pow_of_exponents": (lambda x: lax.pow(_number(2, x), x), -3, 3),
    "pow_of_negative_base": (lambda x: lax.pow(jnp.full_like(x, -2.0), jnp.round(x)), -3, 3),
    # Of several numbers, one of which is the array
    "add": (lambda x: x + 1.5, -3, 3),
    "sub": (lambda x: 1.5 - x, -3, 3),
    "mul": (lambda x: x * 1.5, -3, 3),
    "div": (lambda x: x / 1.5, -3, 3),
    "div_reciprocal": (lambda x: 1.5 / x, 0.1, 3),
    "rem": (lambda x: lax.rem(x, _number(0.7, x)), -3, 3),
    "rem_divisor": (lambda x: lax.rem(_number(2, x), x), 0.1, 3),
    "rem_of_integers": (lambda x: lax.rem(9, _integers(x)).astype(float), 0.6, 3),
    "max": (lambda x: lax.max(x, _number(0.5, x)), -3, 3),
    "max_with_zero": (lambda x: lax.max(x, _number(0, x)), -3, 3),
    "min": (lambda x: lax.min(x, _number(0.5, x)), -3, 3),
    "clamp": (lambda x: lax.clamp(_number(-1, x), x, _number(1, x)), -3, 3),
    "clamp_above_zero": (lambda x: lax.clamp(_number(0.5, x), x, _number(1, x)), -3, 3),
    "select_n": (lambda x: lax.select(x > 0.5, x, 0.1 * x), -3, 3),
    "select_n_other": (lambda x: lax.select(x > -0.5, x, jnp.ones_like(x)), -3, 3),
    "gt": (lambda x: (x > 0.5).astype(float), -3, 3),
    "lt": (lambda x: (x < 0.5).astype(float), -3, 3),
    "ge": (lambda x: (x >= 0).astype(float), -3, 3),
    "le": (lambda x: (x <= 0).astype(float), -3, 3),
    "eq": (lambda x: (x == 0).astype(float), -3, 3),
    "ne": (lambda x: (x != 0).astype(float), -3, 3),
    # Whole functions, whose domains follow from more than one primitive
    "log_of_a_shifted": (lambda x: jnp.log(0.5 + x), 0.1, 3),
    "acosh_of_a_shifted": (lambda x: jnp.arccosh(1 + x), 0.1, 3),
    "rsqrt_of_tanh": (lambda x: lax.rsqrt(jnp.tanh(x)), 0.1, 3),
    "sqrt_of_a_square_plus_one": (lambda x: jnp.sqrt(x * x + 1), -3, 3),
    "div_by_abs_plus_one": (lambda x: x / (1 + abs(x)), -3, 3),
    "silu": (lambda x: x * lax.logistic(x), -3, 3),
    "gelu": (jax.nn.gelu, -3, 3),
    "softplus": (jax.nn.softplus, -3, 3),
    "logit": (lambda x: jnp.log(x / (1 - x)), 0.1, 0.9),
    "mul_by_own_sign": (lambda x: x * lax.sign(x), -3, 3),
    "div_by_itself": (lambda x: x / x, 0.1, 3),
    "sinc": (lambda x: jnp.sin(x) / x, 0.1, 3),
}


def _number(number: float, x: Any) -> Any:
    return np.asarray(number, x.dtype)


def _integers(x: Any) -> Any:
    return lax.round(2 * x).astype(np.int64)


# Functions of two arrays, and the range of the second's numbers; those of the first are positive.
BINARY: dict[str, tuple[Function, float, float]] = {
    "add": (lax.add, -3, 3),
    "sub": (lax.sub, -3, 3),
    "mul": (lax.mul, -3, 3),
    "div": (lax.div, 0.1, 3),
    "rem": (lax.rem, 0.1, 3),
    "max": (lax.max, -3, 3),
    "min": (lax.min, -3, 3),
    "pow": (lax.pow, -2, 2),
    "complex": (lax.complex, -3, 3),
    "atan2": (lax.atan2, -3, 3),
    "nextafter": (lax.nextafter, -3, 3),
    "igamma": (lax.igamma, 0.1, 3),
    "igammac": (lax.igammac, 0.1, 3),
    "igamma_grad_a": (lax.igamma_grad_a, 0.1, 3),
    "polygamma": (lambda x, y: lax.polygamma(lax.floor(abs(x)), y), 0.1, 3),
    "zeta": (lambda x, y: lax.zeta(x + 1, y), 0.1, 3),
    "regularized_incomplete_beta": (
        lambda x, y: lax.betainc(x, y, jnp.full_like(x, 0.3)),
        0.1,
        3,
    ),
    "and": (lambda x, y: (_integers(x) & _integers(y)).astype(float), -3, 3),
    "or": (lambda x, y: (_integers(x) | _integers(y)).astype(float), -3, 3),
    "xor": (lambda x, y: (_integers(x) ^ _integers(y)).astype(float), -3, 3),
    "shift_left": (lambda x, y: lax.shift_left(_integers(x), _integers(y)).astype(float), 0.1, 3),
    "shift_right_logical": (
        lambda x, y: lax.shift_right_logical(_integers(x), _integers(y)).astype(float),
        0.1,
        3,
    ),
    "shift_right_arithmetic": (
        lambda x, y: lax.shift_right_arithmetic(_integers(x), _integers(y)).astype(float),
        0.1,
        3,
    ),
    "eq": (lambda x, y: (lax.round(x) == lax.round(y)).astype(float), -3, 3),
    "ne": (lambda x, y: (lax.round(x) != lax.round(y)).astype(float), -3, 3),
    "lt": (lambda x, y: (x < y).astype(float), -3, 3),
    "le": (lambda x, y: (x <= y).astype(float), -3, 3),
    "gt": (lambda x, y: (x > y).astype(float), -3, 3),
    "ge": (lambda x, y: (x >= y).astype(float), -3, 3),
    "eq_to": (lambda x, y: primitives.eq_to_p.bind(x, y).astype(float), -3, 3),
    "lt_to": (lambda x, y: primitives.lt_to_p.bind(x, y).astype(float), -3, 3),
    "le_to": (lambda x, y: primitives.le_to_p.bind(x, y).astype(float), -3, 3),
    "select_n": (lambda x, y: lax.select(x > y, x, y), -3, 3),
    "select_n_of_half": (lambda x, y: lax.select(y > 1, x, jnp.zeros_like(x)), -3, 3),
    "clamp": (lambda x, y: lax.clamp(y - 1, x, y + 1), -3, 3),
    "polynomial": (
        lambda x, y: lax.polynomial(x, [y, y]) if hasattr(lax, "polynomial") else x * y + y,
        -3,
        3,
    ),
    "add_any": (lambda x, y: primitives.add_jaxvals_p.bind(x, y), -3, 3),
    # Whole functions
    "glu": (lambda x, y: x * lax.logistic(y), -3, 3),
    "hypot": (jnp.hypot, -3, 3),
    "logaddexp": (jnp.logaddexp, -3, 3),
    "div_by_abs_plus_one": (lambda x, y: x / (1 + abs(y)), -3, 3),
}

# Functions of more than one primitive, and one of them.
WHOLE = {
    "log_of_a_shifted": "log",
    "acosh_of_a_shifted": "acosh",
    "rsqrt_of_tanh": "rsqrt",
    "sqrt_of_a_square_plus_one": "sqrt",
    "div_by_abs_plus_one": "div",
    "silu": "mul",
    "gelu": "tanh",
    "softplus": "log1p",
    "logit": "log",
    "mul_by_own_sign": "mul",
    "div_by_itself": "div",
    "sinc": "div",
    "glu": "mul",
    "hypot": "sqrt",
    "logaddexp": "log1p",
}
SOMEWHERE = ("log2", "one_minus_square", "polynomial")


def primitive_of(name: str) -> str:
    """The primitive that an entry is about: the longest with which its name begins."""
    if name in WHOLE:
        return WHOLE[name]
    return max((known for known in PRIMITIVES if f"{name}_".startswith(f"{known}_")), key=len)


# Networks around a function of one array ----------------------------------------------------------


def _between(f: Function) -> Function:
    """Behind a Dense layer, whose new units are free, and before another."""
    return lambda p, x: f(x @ p["i"]) @ p["o"]


def _of_outgoing(f: Function) -> Function:
    return lambda p, x: (x @ p["i"]) @ f(p["o"])


def _of_incoming(f: Function) -> Function:
    return lambda p, x: jnp.sin(x @ f(p["i"] * TOTAL) / TOTAL) @ p["o"]


def _summed(f: Function) -> Function:
    """Behind weights that can be zero, and before a sum without weights."""
    return lambda p, x: f((x @ p["i"]) * p["g"][None]).sum(1)


def _in_heads(f: Function) -> Function:
    def apply(p: Any, x: Any) -> Any:
        y = (x @ p["i"])[:, :, None] * p["u"][None]
        return (f(y) * p["g"][None, :, None]).sum(1) @ p["o"]

    return apply


def _gate(n: int = 4) -> Shapes:
    return {"i": (5, n), "g": (n,)}


def _heads(h: int = 3, d: int = 4) -> Shapes:
    return {"i": (5, h), "u": (h, d), "g": (h,), "o": (d, 2)}


def _twice(f: Function) -> Function:
    """Weights that are read as they are in one place, and through the function in another."""

    def apply(p: Any, x: Any) -> Any:
        y = jnp.sin(x @ p["i"])
        return y @ p["o"] + (y * f(p["o"][:, 0])[None]).sum(1)[:, None]

    return apply


def _behind_a_norm(f: Function) -> Function:
    return lambda p, x: f(0.4 * _normed(x @ p["i"])) @ p["o"]


def _before_a_norm(f: Function) -> Function:
    return lambda p, x: _normed(f(x @ p["i"])) @ p["o"]


def _normed(y: Any) -> Any:
    return y / jnp.sqrt((y * y).mean(1, keepdims=True))


def _in_bfloat16(f: Function) -> Function:
    def apply(p: Any, x: Any) -> Any:
        y = f(x.astype(p["i"].dtype) @ p["i"])
        return y.astype(p["o"].dtype) @ p["o"]

    return apply


ROUNDING = {"convert_element_type": 1e-6, "reduce_precision": 0.02}
# A norm leaves nothing above 1.1, and nothing is left of it where all results are zero.
INFINITE = ("acosh_behind_a_norm", "le_before_a_norm", "eq_before_a_norm")
# With numbers of their own, which are other ones in bfloat16.
IN_BFLOAT16 = (
    "sqrt log tanh integer_pow pow_root pow_of_exponents add sub mul div div_reciprocal rem max "
    "min clamp select_n gt log_of_a_shifted sqrt_of_a_square_plus_one silu gelu softplus"
).split()

for name, (f, low, high) in UNARY.items():
    # What each array holds is multiplied by inputs that add up to TOTAL, except for outgoing ones.
    small = (low / TOTAL, high / TOTAL)
    known: dict[str, Any] = {
        "reaches": (primitive_of(name),),
        "somewhere": name in SOMEWHERE,
        "rounding": ROUNDING.get(name, 1e-12),
    }
    for place, shapes, ranges in (
        (_between, mlp, {"i": small}),
        (_of_outgoing, mlp, {"o": (low, high)}),
        (_of_incoming, mlp, {"i": small}),
        (_summed, _gate, {"i": small, "g": (0.9, 1)}),
        (_in_heads, _heads, {"i": small, "u": (0.9, 1)}),
        (_twice, mlp, {"o": (low, high)}),
        (_behind_a_norm, mlp, {"i": small}),
        (_before_a_norm, mlp, {"i": small}),
    ):
        if name + place.__name__ not in INFINITE:
            EXAMPLES[name + place.__name__] = Example(
                place(f), shapes=shapes, ranges=ranges, **known
            )
    if name in IN_BFLOAT16:
        EXAMPLES[f"{name}_in_bfloat16"] = Example(
            _in_bfloat16(f),
            shapes=mlp,
            ranges={"i": small},
            dtype=jnp.bfloat16,
            **known | {"rounding": 0.05},
        )


# Networks around a function of two arrays ---------------------------------------------------------


def _of_two_layers(f: Function) -> Function:
    return lambda p, x: f(x @ p["i"], x @ p["j"]) @ p["o"]


def _with_weights(f: Function) -> Function:
    def apply(p: Any, x: Any) -> Any:
        y = x @ p["i"]
        return f(y, jnp.broadcast_to(p["g"], y.shape)) @ p["o"]

    return apply


def _with_itself(f: Function) -> Function:
    def apply(p: Any, x: Any) -> Any:
        y = x @ p["i"]
        return f(y, jnp.tanh(y)) @ p["o"]

    return apply


def _of_weights(f: Function) -> Function:
    return lambda p, x: (x @ p["i"]) @ f(p["v"], p["w"])


def _of_weights_with_themselves(f: Function) -> Function:
    return lambda p, x: (x @ p["i"]) @ (f(p["v"], jnp.tanh(p["v"])))


def _summed_with_weights(f: Function) -> Function:
    def apply(p: Any, x: Any) -> Any:
        y = x @ p["i"]
        return f(y, jnp.broadcast_to(p["g"], y.shape)).sum(1)

    return apply


def _crosswise(f: Function) -> Function:
    """Two widths, one in each array, that meet in a sum over both."""

    def apply(p: Any, x: Any) -> Any:
        y, z = x @ p["i"], x @ p["j"]
        pairs = f(*jnp.broadcast_arrays(y[:, :, None], z[:, None, :]))
        return jnp.einsum("bnm,nm->b", pairs, p["c"])

    return apply


def _two_layers(n: int = 4) -> Shapes:
    return {"i": (5, n), "j": (5, n), "o": (n, 2)}


def _own_weights(n: int = 4) -> Shapes:
    return {"i": (5, n), "v": (n, 2)}


def _two_weights(n: int = 4) -> Shapes:
    return {"i": (5, n), "v": (n, 2), "w": (n, 2)}


def _two_widths(n: int = 4, m: int = 3) -> Shapes:
    return {"i": (5, n), "j": (5, m), "c": (n, m)}


for name, (f, low, high) in BINARY.items():
    first, second = (0.5, 3), (low, high)
    small = {"i": (0.5 / TOTAL, 3 / TOTAL), "j": (low / TOTAL, high / TOTAL)}
    for place, shapes, ranges in (
        (_of_two_layers, _two_layers, small),
        (_with_weights, gated, small | {"g": second}),
        (_with_itself, mlp, small),
        (_of_weights, _two_weights, {"v": first, "w": second}),
        (_of_weights_with_themselves, _own_weights, {"v": first}),
        (_summed_with_weights, _gate, small | {"g": second}),
        (_crosswise, _two_widths, small),
    ):
        EXAMPLES[f"{name}{place.__name__}"] = Example(
            place(f),
            reaches=(primitive_of(name),),
            shapes=shapes,
            ranges=ranges,
            somewhere=name in SOMEWHERE,
        )
