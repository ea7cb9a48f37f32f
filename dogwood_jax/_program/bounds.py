"""What primitives do to bounds, and where they are finite: ``bounds_of``, ``domains``.

``elementwise`` says both for functions of one operand. Here are the functions that need their
parameters, or several operands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.elementwise import ELEMENTWISE, functions
from dogwood_jax._program.intervals import (
    ANY_NUMBER,
    POSITIVE,
    UNKNOWN,
    Bounds,
    Compared,
    Domain,
    Moment,
    above,
    at,
    negative,
    off_zero,
    power,
    powered,
    same,
    sum_of,
    union,
)
from dogwood_jax._program.moves import KEEP_ORDER, MOVES


def _nowhere(b: Bounds) -> bool:
    return False


# Where functions are finite -----------------------------------------------------------------------

# Functions of complex numbers that are not finite at zero; others are finite almost everywhere.
_COMPLEX = frozenset(("rsqrt", "log", "log2", "div", "integer_pow", "pow"))


# Functions that are not finite, or not of finite slope, everywhere.
PARTIAL = frozenset(
    (
        *functions(lambda law: not law.total or law.smooth is not None),
        *("div", "rem", "integer_pow", "pow", "triangular_solve", "tridiagonal_solve", "cholesky"),
    )
)


def domains(name: str, params: Mapping[str, Any], bounds: Sequence[Bounds]) -> list[Domain | None]:
    """Returns, for each operand, where a function is finite; None if it is everywhere.

    Args:
        name: the function's primitive.
        params: its parameters.
        bounds: the bounds of its operands.
    """
    count = len(bounds)
    law = ELEMENTWISE.get(name)
    if law and law.finite:
        return [*law.finite]
    if name in ("div", "rem"):
        return [None, off_zero]
    if name == "integer_pow":
        return [off_zero if params["y"] < 0 else None]
    if name == "pow":
        exponent = bounds[1].number
        if exponent is not None and exponent == int(exponent if isfinite(exponent) else 0):
            return [off_zero if exponent < 0 else None, None]
        return [above(0) if bounds[1].low > 0 else POSITIVE, None]
    if name == "triangular_solve":
        return [off_zero, None]
    if name == "tridiagonal_solve":
        return [None, off_zero, None, None]
    if name == "cholesky":
        return [_nowhere]
    return [None if law is None or law.total else _nowhere] * count


def domains_of_complex(name: str, count: int) -> list[Domain | None]:
    """Returns the same for complex numbers. Their bounds only say whether they are zero."""
    if name not in _COMPLEX:
        return [None] * count
    return [None, off_zero] if name == "div" else [off_zero] + [None] * (count - 1)


def slopes(name: str, params: Mapping[str, Any], bounds: Sequence[Bounds]) -> list[Domain | None]:
    """Returns, for each operand, where a function and its slope are finite."""
    found = domains(name, params, bounds)
    if (law := ELEMENTWISE.get(name)) and law.smooth:
        return [law.smooth]
    if name == "pow" and found[0] is not None and bounds[1].low < 1:
        return [POSITIVE, None]
    return found


# Bounds of what functions make --------------------------------------------------------------------

# Operations that keep the order of entries. Behind them, two sums over the same axes still match
# entry by entry.
KEEP_SUMS = KEEP_ORDER | {"copy", "stop_gradient"}
_COMPARISONS = frozenset(functions(lambda law: law.compares))
_ALTERNATIVES = frozenset(
    ("clamp", "select_if_vmap", *(name for name, move in MOVES.items() if move.joins))
)


def _difference(a: Bounds, b: Bounds) -> Bounds:
    found = sum_of(a, negative(b))
    if _is_variance(a.moment, b.moment):
        return Bounds(0, inf, a.has_atoms)
    # ``b`` may be ``a`` itself, or the largest entry of ``a``: then zero has a probability.
    is_constant = a.number is not None or b.number is not None
    return found if is_constant or found.atoms else replace(found, atoms=True)


def _is_variance(a: Moment | None, b: Moment | None) -> bool:
    """Whether a difference is a variance, mean(x**2) - mean(x)**2, and so not negative."""
    if a is None or b is None or a.of is not b.of or a.axes != b.axes:
        return False
    kinds = (a.power, a.squared, b.power, b.squared)
    return kinds == (2, False, 1, True) and 0 < b.factor * b.size <= a.factor * (1 + 1e-6)


def _product(a: Bounds, b: Bounds) -> Bounds:
    ends = [x * y if x and y else 0.0 for x in (a.low, a.high) for y in (b.low, b.high)]
    nonzero, atoms = a.excludes_zero and b.excludes_zero, a.atoms or b.atoms
    low, high = min(ends), max(ends)
    if low == -inf and high == inf and not nonzero:
        return UNKNOWN if atoms else ANY_NUMBER
    for one, other in ((a, b), (b, a)):
        if one.number:  # then open ends stay open
            above, below = (other.above, other.below)[:: 1 if one.number > 0 else -1]
            return Bounds(
                low, high, atoms, nonzero, above=above, below=below, reached=other.reached
            )
    return Bounds(low, high, atoms, nonzero, reached=a.reached or b.reached)


# Functions of complex numbers that are not zero where no operand is zero.
_COMPLEX_NONZERO = frozenset("neg conj mul div convert_element_type copy stop_gradient".split())


def bounds_of_complex(name: str, bounds: Sequence[Bounds], is_real: bool) -> Bounds:
    """Returns the same for complex numbers, whose bounds only say whether they are zero.

    Args:
        name: the primitive.
        bounds: the bounds of its operands.
        is_real: whether what it makes is real.
    """
    if not bounds:
        return UNKNOWN
    nonzero = [b.excludes_zero for b in bounds]
    if name == "complex":  # a value has a probability only if both parts have one
        return Bounds(atoms=all(b.atoms for b in bounds), nonzero=any(nonzero))
    if name == "abs":
        return Bounds(low=0.0, nonzero=nonzero[0])
    if name in ("real", "imag"):
        return UNKNOWN
    atoms = any(b.atoms for b in bounds)
    if name in ("exp", "exp2"):
        return Bounds(atoms=atoms, nonzero=True)
    return Bounds(atoms=atoms, nonzero=name in _COMPLEX_NONZERO and not is_real and all(nonzero))


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
    if name == "convert_element_type":
        if jnp.issubdtype(params["new_dtype"], jnp.inexact):
            return first
        return Bounds(first.low, first.high)
    if name == "gather" and first.sparse:
        return replace(first, nonzero=True, sparse=False)
    if name in KEEP_SUMS:
        return kept(name, first)
    if (law := ELEMENTWISE.get(name)) and law.bounds:
        return _with_moment(name, law.bounds(first), operands[0], first)
    if (move := MOVES.get(name)) and not move.joins:
        return same(first)
    if name == "integer_pow":
        found = powered(first, params["y"])
        return _with_moment("square" if params["y"] == 2 else name, found, operands[0], first)
    if name == "pow":
        exponent = bounds[1].number
        if exponent is None and (first.number or 0) > 0:
            ends = [power(first.low, end) for end in (bounds[1].low, bounds[1].high)]
            return Bounds(min(ends), max(ends), bounds[1].atoms, reached=True)
        return Bounds(atoms=first.atoms) if exponent is None else powered(first, exponent)
    if name == "ne" and operands[0] is operands[1]:
        return at(0.0)  # no number differs from itself, but NaN, which nothing makes here
    if name in ("lt", "le", "gt", "ge") and bounds[1].number is not None:
        return Bounds(0, 1, compared=Compared(name, operands[0], bounds[1].number))
    if name in _COMPARISONS:
        return Bounds(0, 1)
    if name in ("and", "or", "xor", "not") and all(0 <= b.low and b.high <= 1 for b in bounds):
        return Bounds(-2 if name == "not" else 0, 1)  # of booleans, or of integers
    if name in ("add", "add_any"):
        return sum_of(*bounds)
    if name == "sub":
        alike = [(d.size, e.size) for d, e in zip(operands[0].dims, operands[1].dims, strict=False)]
        is_aligned = all(m == n for m, n in alike)
        return _difference(*(bounds if is_aligned else map(same, bounds)))
    if name == "mul":
        return _times(operands, bounds)
    if name == "div":
        inverse = powered(bounds[1], -1) if bounds[1].low >= 0 else ANY_NUMBER
        found = _product(first, inverse)
        if (number := bounds[1].number) and first.moment:
            return _scaled(found, first.moment, 1 / number)
        return found
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
        if UNKNOWN in cases:
            return UNKNOWN
        return replace(union(cases), atoms=True)
    if name == "clamp":
        low, x, high = bounds
        return Bounds(max(low.low, min(x.low, high.high)), min(high.high, max(x.high, low.low)))
    if name in _ALTERNATIVES:
        return union(bounds[:2] if name == "dynamic_update_slice" else bounds)
    if name in ("reduce_sum", "psum", "psum_invariant"):
        return _total(operands[0], first, {int(a) for a in params["axes"] if isinstance(a, int)})
    if name in ("reduce_prod", "cumprod"):
        return Bounds(0, inf, first.atoms, first.excludes_zero) if first.low >= 0 else UNKNOWN
    if name in ("cumsum", "reduce_window_sum"):
        return _of_one_sign(first, name == "cumsum" and first.excludes_zero)
    if name == "scatter-add" and operands[0].number == 0:
        found = _of_one_sign(bounds[2], False)
        return replace(found, atoms=True, sparse=bounds[2].excludes_zero)
    if name == "atan2":
        return Bounds(-np.pi, np.pi, first.atoms)
    if name in ("dot_general", "conv_general_dilated"):
        second = bounds[1]
        if first.low < 0 < first.high and second.low < 0 < second.high:
            signs = ANY_NUMBER if not (first.atoms or second.atoms) else UNKNOWN
        else:
            signs = _product(first, second)
        by_weights = any(value.origin == "parameter" for value in operands)
        atoms = (first.has_atoms and second.has_atoms) if by_weights else signs.atoms
        if signs.low < 0 < signs.high:
            return UNKNOWN if atoms else ANY_NUMBER
        # A convolution may have no terms at the edges: its result may be zero there.
        return _of_one_sign(replace(signs, atoms=atoms), name[0] == "d" and signs.excludes_zero)
    return UNKNOWN


def _of_one_sign(terms: Bounds, nonzero: bool) -> Bounds:
    """Returns the bounds of a sum. Its sign is known if all terms have the same sign."""
    if terms.low < 0 < terms.high:
        return UNKNOWN if terms.atoms else ANY_NUMBER
    low, high = 0 if terms.low >= 0 else -inf, 0 if terms.high <= 0 else inf
    return Bounds(low, high, terms.atoms, nonzero, reached=terms.reached)


def _times(operands: Sequence[Any], bounds: Sequence[Bounds]) -> Bounds:
    a, b = bounds
    if operands[0] is operands[1]:
        return _with_moment("square", powered(a, 2), operands[0], a)
    found = _product(a, b)
    for one, other in ((a, b), (b, a)):
        if (number := one.number) and other.moment:
            return _scaled(found, other.moment, number)
    return found


def _scaled(found: Bounds, moment: Moment, factor: float) -> Bounds:
    return replace(found, moment=replace(moment, factor=moment.factor * factor))


def kept(name: str, bounds: Bounds) -> Bounds:
    """Returns the bounds of the same entries, perhaps at other places."""
    if name in ("copy", "stop_gradient") or not (bounds.compared or bounds.sparse):
        return bounds
    return replace(bounds, compared=None, sparse=False)


def _with_moment(name: str, found: Bounds, operand: Any, before: Bounds) -> Bounds:
    """Returns the bounds that were found; those of a square note which array was squared."""
    if name == "square":
        mean = before.moment
        if mean and (mean.power, mean.squared) == (1, False) and mean.axes:
            # (c sum x)^2 is compared with c' sum x^2: c^2 n <= c' holds for c = c' = 1 / n.
            return replace(found, moment=replace(mean, squared=True, factor=mean.factor**2))
        return replace(found, moment=Moment(operand, 2))
    return found


def _total(x: Any, b: Bounds, axes: set[int]) -> Bounds:
    n = prod(x.dims[a].size for a in axes)
    low, high = (n * b.low if b.low else 0.0), (n * b.high if b.high else 0.0)
    one_sign = b.low >= 0 or b.high <= 0
    found = Bounds(low, high, b.atoms, nonzero=b.excludes_zero and one_sign) if n else at(0.0)
    order = tuple(sorted(axes))
    if b.moment and b.moment.power == 2 and not b.moment.axes and not b.moment.squared:
        return replace(found, moment=replace(b.moment, axes=order, size=n))
    return replace(found, moment=Moment(x, 1, axes=order, size=n))
