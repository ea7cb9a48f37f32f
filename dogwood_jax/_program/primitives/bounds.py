"""What primitives do to bounds: ``bounds_of``.

``entries`` says it for functions of one operand. Here are the functions that need their
parameters, or several operands.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from dogwood_jax._program.primitives.intervals import (
    UNKNOWN,
    Bounds,
    Comparison,
    at,
    negative,
    of_sign,
    power,
    powered,
    product,
    same,
    sum_of,
    union,
)
from dogwood_jax._program.primitives.moves import MOVES
from dogwood_jax._program.primitives.table import PRIMITIVES, functions, primitive

_COMPARISONS = frozenset(functions(lambda law: law.compares))
_ALTERNATIVES = frozenset(
    ("clamp", "select_if_vmap", *(name for name, one in PRIMITIVES.items() if one.joins))
)
# The sign of a sum, or of a product, is known if all terms have the same sign.
_SUMS = frozenset("reduce_sum psum psum_invariant cumsum reduce_window_sum".split())


def bounds_of(
    name: str, params: Mapping[str, Any], operands: Sequence[Any], bounds: Sequence[Bounds]
) -> Bounds:
    """Returns the bounds of what a primitive makes; unknown ones unless more is known.

    Args:
        name: the primitive.
        params: its parameters.
        operands: the values that it takes.
        bounds: their bounds.
    """
    if not bounds:
        return UNKNOWN
    first = bounds[0]
    record = primitive(name)
    if record.ordered or name in ("copy", "stop_gradient"):
        return kept(name, first)
    if record.bounds:
        return record.bounds(first)
    if name == "convert_element_type" or (name in MOVES and not record.joins):
        return same(first)
    if name == "integer_pow":
        return powered(first, params["y"])
    if name == "pow":
        exponent = bounds[1].number
        if exponent is None and (first.number or 0) > 0:
            ends = [power(first.low, end) for end in (bounds[1].low, bounds[1].high)]
            return Bounds(min(ends), max(ends))
        return UNKNOWN if exponent is None else powered(first, exponent)
    if name == "ne" and operands[0] is operands[1]:
        return at(0.0)  # no number differs from itself, but NaN, which nothing makes here
    if name in ("lt", "le", "gt", "ge") and bounds[1].number is not None:
        return Bounds(0, 1, Comparison(name, operands[0], bounds[1].number))
    if name in _COMPARISONS:
        return Bounds(0, 1)
    if name in ("and", "or", "xor", "not") and all(0 <= b.low and b.high <= 1 for b in bounds):
        return Bounds(-2 if name == "not" else 0, 1)  # of booleans, or of integers
    if name in ("add", "add_any"):
        return sum_of(*bounds)
    if name == "sub":
        return sum_of(first, negative(bounds[1]))
    if name == "mul":
        return powered(first, 2) if operands[0] is operands[1] else product(*bounds)
    if name == "div":
        return product(first, powered(bounds[1], -1)) if bounds[1].low >= 0 else UNKNOWN
    if name in ("argmax", "argmin"):
        return Bounds(0, prod(operands[0].dims[axis].size for axis in params["axes"]) - 1)
    if name == "max":
        a, b = bounds
        return Bounds(max(a.low, b.low), max(a.high, b.high))
    if name == "min":
        a, b = bounds
        return Bounds(min(a.low, b.low), min(a.high, b.high))
    if name == "select_n":
        if (which := first.number) is not None:
            return bounds[1 + int(which)]
        cases = bounds[1:]
        if first.compared and len(cases) == 2:
            within = first.compared.within
            cases = [within(operands[1 + i], case, i == 1) for i, case in enumerate(cases)]
        return union(cases)
    if name == "clamp":
        low, x, high = bounds
        return Bounds(max(low.low, min(x.low, high.high)), min(high.high, max(x.high, low.low)))
    if name in _ALTERNATIVES:
        return union(bounds[:2] if name == "dynamic_update_slice" else bounds)
    if name in ("reduce_prod", "cumprod"):
        return Bounds(low=0) if first.low >= 0 else UNKNOWN
    if name in _SUMS:
        return of_sign(first)
    if name == "scatter-add" and operands[0].number == 0:
        return of_sign(bounds[2])
    if name == "atan2":
        return Bounds(-np.pi, np.pi)
    if name in ("dot_general", "conv_general_dilated"):
        return of_sign(product(first, bounds[1]))
    return UNKNOWN


def kept(name: str, bounds: Bounds) -> Bounds:
    """Returns the bounds of the same entries, perhaps at other places."""
    return bounds if name in ("copy", "stop_gradient") else same(bounds)
