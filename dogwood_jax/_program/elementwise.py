"""Properties of functions of single entries: ``Law`` and the table ``ELEMENTWISE``.

``trace`` asks here whether a function keeps zeros. Recipes ask what becomes
of a factor: ``sqrt(4 * x)`` is ``2 * sqrt(x)``. ``deepen`` computes numbers with it. To add such a
primitive, add its row. A property that the row does not state counts as not true. That may refuse a
growth, but never makes one wrong.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.intervals import (
    Bounds,
    absolute,
    at,
    constantly,
    monotone,
    negative,
    powered,
    same,
    sum_of,
)


@dataclass(frozen=True)
class Law:
    """What a function does to each entry of its operands.

    Attributes:
        takes: how many operands it has; None for any number of them.
        same: whether it returns its operands as they are.
        linear: whether ``f(a + b) = f(a) + f(b)``; of a cast, see ``is_linear``.
        zero: whether ``f(0) = 0``.
        degree: the number for which ``f(c x) = c**degree f(x)`` with every positive c; None if
            there is no such number.
        pole: whether it is not finite at zero.
        compares: whether it tells which operand is larger, or whether they are equal.
        fold: computes it with numbers.
        bounds: computes the bounds of its values.
    """

    takes: int | None = 1
    same: bool = False
    linear: bool = False
    zero: bool = False
    degree: float | None = None
    pole: bool = False
    compares: bool = False
    fold: Callable[..., Any] | None = None
    bounds: Callable[[Bounds], Bounds] | None = None


def _linear(**known: Any) -> Law:
    return Law(linear=True, zero=True, **known)


def _same() -> Law:
    return Law(takes=None, same=True, linear=True, zero=True, bounds=same)


def _pow(x: float, y: float) -> float:
    """Computes a power as JAX does: infinity or NaN where Python raises an error."""
    sign = -1 if y % 2 == 1 and math.copysign(1, x) < 0 else 1
    try:
        return sign * inf if x == 0 and y < 0 else math.pow(x, y)
    except OverflowError:
        return sign * inf
    except ValueError:
        return math.nan


def _unless_nan(choose: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: choose(x, y) if x == x and y == y else math.nan


ELEMENTWISE: dict[str, Law] = {
    # What passes its operands on.
    "copy": _same(),
    "device_put": _same(),
    "layout_constraint": _same(),
    "mesh_cast": _same(),
    "name": _same(),
    "nonbatchable": _same(),
    "optimization_barrier": _same(),
    "pvary": _same(),
    "reshard": _same(),
    "sharding_constraint": _same(),
    "stop_gradient": _same(),
    # Linear functions.
    "conj": _linear(degree=1.0, bounds=same),
    "convert_element_type": _linear(),
    "imag": _linear(degree=1.0),
    "neg": _linear(degree=1.0, fold=operator.neg, bounds=negative),
    "real": _linear(degree=1.0, bounds=same),
    "reduce_precision": _linear(bounds=same),
    # Functions that pass on a factor, as a power of it.
    "abs": Law(zero=True, degree=1.0, fold=abs, bounds=absolute),
    "cbrt": Law(zero=True, degree=1 / 3, bounds=monotone(np.cbrt)),
    "rsqrt": Law(
        pole=True,
        degree=-0.5,
        fold=lambda x: 1 / np.sqrt(x),
        bounds=lambda b: powered(b, -0.5),
    ),
    "sign": Law(zero=True, degree=0.0, bounds=monotone(np.sign)),
    "sqrt": Law(
        zero=True,
        degree=0.5,
        fold=np.sqrt,
        bounds=lambda b: powered(b, 0.5),
    ),
    "square": Law(zero=True, degree=2.0, fold=np.square, bounds=lambda b: powered(b, 2)),
    # A power by its exponent, which is a parameter.
    "integer_pow": Law(zero=True),
    # Functions that are zero at zero.
    "asin": Law(zero=True, bounds=constantly(-np.pi / 2, np.pi / 2)),
    "asinh": Law(zero=True, fold=np.arcsinh, bounds=monotone(np.arcsinh)),
    "atan": Law(zero=True, fold=np.arctan, bounds=monotone(np.arctan)),
    "atanh": Law(zero=True),
    "ceil": Law(zero=True, bounds=monotone(np.ceil)),
    "erf": Law(zero=True, fold=math.erf, bounds=constantly(-1, 1)),
    "erf_inv": Law(zero=True),
    "expm1": Law(zero=True, fold=np.expm1, bounds=monotone(np.expm1)),
    "floor": Law(zero=True, bounds=monotone(np.floor)),
    "log1p": Law(zero=True, fold=np.log1p, bounds=monotone(np.log1p)),
    "round": Law(zero=True, bounds=monotone(np.round)),
    "sin": Law(zero=True, fold=np.sin, bounds=constantly(-1, 1)),
    "sinh": Law(zero=True, fold=np.sinh, bounds=monotone(np.sinh)),
    "tan": Law(zero=True, fold=np.tan),
    "tanh": Law(zero=True, fold=np.tanh, bounds=monotone(np.tanh)),
    # Other functions of one operand.
    "acos": Law(bounds=constantly(0, np.pi)),
    "acosh": Law(bounds=constantly(0, inf)),
    "bessel_i0e": Law(),
    "bessel_i1e": Law(),
    "bitcast_convert_type": Law(),
    "clz": Law(),
    "cos": Law(bounds=constantly(-1, 1)),
    "cosh": Law(bounds=constantly(1, inf)),
    "digamma": Law(pole=True),
    "erfc": Law(bounds=constantly(0, 2)),
    "exp": Law(fold=np.exp, bounds=monotone(np.exp)),
    "exp2": Law(fold=np.exp2, bounds=monotone(np.exp2)),
    "is_finite": Law(bounds=lambda b: Bounds(0, 1)),
    "lgamma": Law(pole=True),
    "log": Law(pole=True, fold=np.log, bounds=monotone(np.log)),
    "log2": Law(pole=True, fold=np.log2, bounds=monotone(np.log2)),
    "logistic": Law(fold=lambda x: 1 / (1 + np.exp(-x)), bounds=constantly(0, 1)),
    "not": Law(),
    "one_minus_square": Law(bounds=lambda b: sum_of(at(1.0), negative(powered(b, 2)))),
    "population_count": Law(),
    # Comparisons.
    "eq": Law(takes=2, compares=True, fold=operator.eq),
    "eq_to": Law(takes=2, compares=True),
    "ge": Law(takes=2, compares=True, fold=operator.ge),
    "gt": Law(takes=2, compares=True, fold=operator.gt),
    "le": Law(takes=2, compares=True, fold=operator.le),
    "le_to": Law(takes=2, compares=True),
    "lt": Law(takes=2, compares=True, fold=operator.lt),
    "lt_to": Law(takes=2, compares=True),
    "ne": Law(takes=2, compares=True, fold=operator.ne),
    # Sums, maxima, products and the like. Rules of their own say what a row cannot say.
    "add": Law(takes=2, fold=operator.add),
    "add_any": Law(takes=2),
    "complex": Law(takes=2),
    "max": Law(takes=2, fold=_unless_nan(max)),
    "min": Law(takes=2, fold=_unless_nan(min)),
    "sub": Law(takes=2, fold=operator.sub),
    "clamp": Law(takes=3),
    "div": Law(takes=2, fold=np.true_divide),
    "mul": Law(takes=2, fold=operator.mul),
    "pow": Law(takes=2, fold=_pow),
    "select_n": Law(takes=None),
    # Other functions of several operands.
    "and": Law(takes=2),
    "atan2": Law(takes=2),
    "igamma": Law(takes=2),
    "igamma_grad_a": Law(takes=2),
    "igammac": Law(takes=2),
    "nextafter": Law(takes=2),
    "or": Law(takes=2),
    "polygamma": Law(takes=2),
    "polynomial": Law(takes=None),
    "regularized_incomplete_beta": Law(takes=3),
    "rem": Law(takes=2),
    "select_if_vmap": Law(takes=None),
    "shift_left": Law(takes=2),
    "shift_right_arithmetic": Law(takes=2),
    "shift_right_logical": Law(takes=2),
    "threefry2x32": Law(takes=None),
    "xor": Law(takes=2),
    "zeta": Law(takes=2),
}


def is_linear(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a function with these parameters is linear. A cast to integers or booleans is not."""
    law, dtype = ELEMENTWISE.get(name), params.get("new_dtype", float)
    return law is not None and law.linear and bool(jnp.issubdtype(dtype, jnp.inexact))


def keeps_numbers(dtype: Any) -> bool:
    """Whether a cast to a dtype keeps numbers, but for a rounding that networks compute with.

    Integers do not, nor do floats of 8 bits, which overflow where factors change.
    """
    return bool(jnp.issubdtype(dtype, jnp.inexact)) and jnp.dtype(dtype).itemsize > 1


def functions(holds: Callable[[Law], bool]) -> list[str]:
    """Returns the names of the functions for whose law ``holds`` is true."""
    return [name for name, law in ELEMENTWISE.items() if holds(law)]


def folded(name: str, *numbers: Any) -> Any:
    """Returns what a function makes of numbers, as JAX does; None where that is not known."""
    law = ELEMENTWISE.get(name)
    if law is None or law.fold is None or any(number is None for number in numbers):
        return None
    with np.errstate(all="ignore"):
        try:
            return law.fold(*numbers)
        except (ArithmeticError, TypeError, ValueError):  # such as of complex numbers
            return None
