"""Functions of single entries: the table ``ENTRIES``."""

from typing import Any

from dogwood_jax._program.primitives.axes import of_entries
from dogwood_jax._program.primitives.record import Primitive


def _of(takes: int | None = 1, **known: Any) -> Primitive:
    return Primitive(takes, is_of_entries=True, axes=of_entries, **known)


def _linear(**known: Any) -> Primitive:
    return _of(linear=True, **known)


def _same() -> Primitive:
    return _of(None, same=True, linear=True)


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
    "neg": _linear(),
    "real": _linear(),
    "reduce_precision": _linear(),
    # Other functions of one operand.
    "abs": _of(),
    "acos": _of(),
    "acosh": _of(),
    "asin": _of(),
    "asinh": _of(),
    "atan": _of(),
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
    "erf": _of(),
    "erf_inv": _of(),
    "erfc": _of(),
    "exp": _of(),
    "exp2": _of(),
    "expm1": _of(),
    "floor": _of(),
    "integer_pow": _of(),
    "is_finite": _of(),
    "lgamma": _of(pole=True),
    "log": _of(pole=True),
    "log1p": _of(),
    "log2": _of(pole=True),
    "logistic": _of(),
    "not": _of(),
    "one_minus_square": _of(),
    "population_count": _of(),
    "round": _of(),
    "rsqrt": _of(pole=True),
    "sign": _of(),
    "sin": _of(),
    "sinh": _of(),
    "sqrt": _of(),
    "square": _of(),
    "tan": _of(),
    "tanh": _of(),
    # Comparisons.
    "eq": _of(2, compares=True),
    "eq_to": _of(2, compares=True),
    "ge": _of(2, compares=True),
    "gt": _of(2, compares=True),
    "le": _of(2, compares=True),
    "le_to": _of(2, compares=True),
    "lt": _of(2, compares=True),
    "lt_to": _of(2, compares=True),
    "ne": _of(2, compares=True),
    # Sums, maxima, products and the like. Rules of their own say what a row cannot say.
    "add": _of(2, terms=slice(None)),
    "add_any": _of(2, terms=slice(None)),
    "complex": _of(2, terms=slice(None)),
    "max": _of(2),
    "min": _of(2),
    "sub": _of(2, terms=slice(None)),
    "clamp": _of(3),
    "div": _of(2, powers=(1, -1), linear_in_first=True),
    "mul": _of(2, powers=(1, 1)),
    "pow": _of(2),
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
