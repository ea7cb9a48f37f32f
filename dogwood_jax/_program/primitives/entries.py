"""Functions of single entries: the table ``ENTRIES``."""

import math
import operator
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from dogwood_jax._program.primitives.axes import of_entries
from dogwood_jax._program.primitives.record import Primitive


def _of(takes: int | None = 1, **known: Any) -> Primitive:
    return Primitive(takes, is_of_entries=True, axes=of_entries, **known)


def _linear(**known: Any) -> Primitive:
    return _of(linear=True, **known)


def _same() -> Primitive:
    return _of(None, same=True, linear=True)


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


ENTRIES: dict[str, Primitive] = {
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
    "conj": _linear(),
    "convert_element_type": _linear(),
    "imag": _linear(),
    "neg": _linear(fold=operator.neg),
    "real": _linear(),
    "reduce_precision": _linear(),
    # Other functions of one operand.
    "abs": _of(fold=abs),
    "acos": _of(),
    "acosh": _of(),
    "asin": _of(),
    "asinh": _of(fold=np.arcsinh),
    "atan": _of(fold=np.arctan),
    "atanh": _of(),
    "bessel_i0e": _of(),
    "bessel_i1e": _of(),
    "bitcast_convert_type": _of(),
    "cbrt": _of(),
    "ceil": _of(),
    "clz": _of(),
    "cos": _of(),
    "cosh": _of(),
    "digamma": _of(pole=True),
    "erf": _of(fold=math.erf),
    "erf_inv": _of(),
    "erfc": _of(),
    "exp": _of(fold=np.exp),
    "exp2": _of(fold=np.exp2),
    "expm1": _of(fold=np.expm1),
    "floor": _of(),
    "integer_pow": _of(),
    "is_finite": _of(),
    "lgamma": _of(pole=True),
    "log": _of(pole=True, fold=np.log),
    "log1p": _of(fold=np.log1p),
    "log2": _of(pole=True, fold=np.log2),
    "logistic": _of(fold=lambda x: 1 / (1 + np.exp(-x))),
    "not": _of(),
    "one_minus_square": _of(),
    "population_count": _of(),
    "round": _of(),
    "rsqrt": _of(pole=True, fold=lambda x: 1 / np.sqrt(x)),
    "sign": _of(),
    "sin": _of(fold=np.sin),
    "sinh": _of(fold=np.sinh),
    "sqrt": _of(fold=np.sqrt),
    "square": _of(fold=np.square),
    "tan": _of(fold=np.tan),
    "tanh": _of(fold=np.tanh),
    # Comparisons.
    "eq": _of(2, compares=True, fold=operator.eq),
    "eq_to": _of(2, compares=True),
    "ge": _of(2, compares=True, fold=operator.ge),
    "gt": _of(2, compares=True, fold=operator.gt),
    "le": _of(2, compares=True, fold=operator.le),
    "le_to": _of(2, compares=True),
    "lt": _of(2, compares=True, fold=operator.lt),
    "lt_to": _of(2, compares=True),
    "ne": _of(2, compares=True, fold=operator.ne),
    # Sums, maxima, products and the like. Rules of their own say what a row cannot say.
    "add": _of(2, terms=slice(None), fold=operator.add),
    "add_any": _of(2, terms=slice(None)),
    "complex": _of(2, terms=slice(None)),
    "max": _of(2, fold=_unless_nan(max)),
    "min": _of(2, fold=_unless_nan(min)),
    "sub": _of(2, terms=slice(None), fold=operator.sub),
    "clamp": _of(3),
    "div": _of(2, powers=(1, -1), linear_in_first=True, fold=np.true_divide),
    "mul": _of(2, powers=(1, 1), fold=operator.mul),
    "pow": _of(2, fold=_pow),
    "select_n": _of(None, terms=slice(1, None)),
    # Other functions of several operands.
    "and": _of(2),
    "atan2": _of(2),
    "igamma": _of(2),
    "igamma_grad_a": _of(2),
    "igammac": _of(2),
    "nextafter": _of(2),
    "or": _of(2),
    "polygamma": _of(2),
    "polynomial": _of(None),
    "regularized_incomplete_beta": _of(3),
    "rem": _of(2),
    "select_if_vmap": _of(None),
    "shift_left": _of(2),
    "shift_right_arithmetic": _of(2),
    "shift_right_logical": _of(2),
    "threefry2x32": _of(None, draws=True),
    "xor": _of(2),
    "zeta": _of(2),
}
