"""Between which bounds a value lies, and where functions are finite: ``Bounds``, ``bounds_of``.

New units take any value that random weights can make. A function such as ``sqrt`` is finite on part
of the line only, and what it makes elsewhere, NaN or infinity, stays NaN when zero weights multiply
it. So every value has bounds. ``sqrt(h * h + 1)`` is finite for all ``h`` because its argument is
never below 1.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, prod
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(slots=True)
class Bounds:
    """What is known of the entries of an array, old and new.

    Thousands are made for a network, so they are not frozen, because frozen ones are slow to make.
    Nothing changes one.

    Attributes:
        low: no entry is less.
        high: no entry is more.
        atoms: whether random weights may make a single value, such as the zeros of a relu, with a
            probability. If not, an entry at the very edge of a domain does not happen.
        nonzero: whether no entry is zero.
        above: whether every entry is more than ``low``, as those of ``exp(x)`` are more than 0.
        below: whether every entry is less than ``high``.
        sparse: whether it is zero only where nothing was added, as it is for old units, too.
        reached: whether an end may be reached by rounding, as tanh does, which is 1 from 9 on in
            single precision.
        compared: of booleans, which array they compare with a number.
        moment: the array whose sum, or sum of squares, it is a multiple of; see ``Moment``.
    """

    low: float = -inf
    high: float = inf
    atoms: bool = True
    nonzero: bool = False
    moment: "Moment | None" = None
    above: bool = False
    below: bool = False
    compared: "Compared | None" = None
    sparse: bool = False
    reached: bool = False

    @property
    def excludes_zero(self) -> bool:
        ends = self.low > 0 or self.high < 0
        return (
            self.nonzero
            or ends
            or (self.low == 0 and self.above)
            or (self.high == 0 and self.below)
        )

    @property
    def number(self) -> float | None:
        return self.low if self.low == self.high else None


@dataclass(slots=True)
class Moment:
    """A multiple of a power of an array, or of its sum over some axes.

    Attributes:
        of: the array.
        power: 1 or 2.
        squared: whether the sum was squared.
        axes: the axes that it was summed over.
        size: how many entries were summed.
        factor: what the sum was multiplied by.
    """

    of: object
    power: int
    squared: bool = False
    axes: tuple[int, ...] = ()
    size: int = 1
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison of an array with a number.

    Attributes:
        how: ``"lt"``, ``"le"``, ``"gt"`` or ``"ge"``.
        of: the array.
        number: the number.
    """

    how: str
    of: object
    number: float

    def within(self, value: object, bounds: Bounds, holds: bool) -> Bounds:
        """Returns the bounds of a value where the comparison holds, or where it does not."""
        if value is not self.of:
            return bounds
        if (self.how in ("gt", "ge")) == holds:
            above = bounds.above
            if self.number >= bounds.low:
                above = self.how == ("gt" if holds else "le") or (
                    bounds.above and self.number == bounds.low
                )
            return replace(bounds, low=max(bounds.low, self.number), above=above)
        below = bounds.below
        if self.number <= bounds.high:
            below = self.how == ("lt" if holds else "ge") or (
                bounds.below and self.number == bounds.high
            )
        return replace(bounds, high=min(bounds.high, self.number), below=below)


UNKNOWN = Bounds()
ANY_NUMBER = Bounds(atoms=False)  # such as a random weight
NOTHING_KNOWN = (UNKNOWN,)


def constant(low: float, high: float, nonzero: bool) -> Bounds:
    """Returns the bounds of constants; a product with one sticks at a value only if it is zero."""
    return UNKNOWN if isnan(low) or isnan(high) else Bounds(low, high, not nonzero, nonzero)


def of_sign(bounds: Bounds) -> Bounds:
    """Returns what bounds say of signs alone."""
    low, high = 0.0 if bounds.low >= 0 else -inf, 0.0 if bounds.high <= 0 else inf
    return Bounds(low, high, bounds.atoms, bounds.excludes_zero)


def at(number: float) -> Bounds:
    """Returns the bounds of one number."""
    return constant(number, number, number != 0)


def union(bounds: Sequence[Bounds]) -> Bounds:
    """Returns bounds of entries that may be any of several."""
    low, high = min(b.low for b in bounds), max(b.high for b in bounds)
    return Bounds(
        low,
        high,
        any(b.atoms for b in bounds),
        all(b.excludes_zero for b in bounds),
        above=all(b.above for b in bounds if b.low == low),
        below=all(b.below for b in bounds if b.high == high),
        reached=any(b.reached for b in bounds),
    )


# Where functions are finite -----------------------------------------------------------------------

Domain = Callable[[Bounds], bool]


def _above(edge: float, *, open: bool = False) -> Domain:
    """All numbers from an edge on, or beyond it."""

    def holds(b: Bounds) -> bool:
        is_off = not open or not (b.atoms or b.reached) or b.above or (edge == 0 and b.nonzero)
        return b.low > edge or (b.low == edge and is_off)

    return holds


def _within(*, open: bool = False) -> Domain:
    """All numbers from -1 to 1, or between them."""

    def holds(b: Bounds) -> bool:
        inside = (-1 < b.low or (b.low == -1 and b.above)) and (
            b.high < 1 or (b.high == 1 and b.below)
        )
        return inside or (-1 <= b.low and b.high <= 1 and not (open and (b.atoms or b.reached)))

    return holds


def _off_zero(b: Bounds) -> bool:
    is_end = b.reached and 0 in (b.low, b.high)
    return b.excludes_zero or not (b.atoms or is_end)


# Where a function of one operand is finite.
_DOMAINS: dict[str, Domain] = {
    **dict.fromkeys(("rsqrt", "log", "log2"), _above(0, open=True)),
    **dict.fromkeys(("lgamma", "digamma"), lambda b: b.low > 0 or not b.atoms),
    "sqrt": _above(0),
    "log1p": _above(-1, open=True),
    "acosh": _above(1),
    "asin": _within(),
    "acos": _within(),
    "atanh": _within(open=True),
    "erf_inv": _within(open=True),
}
# Where its slope is not: a root is infinitely steep at zero.
_STEEP: dict[str, Domain] = {
    "sqrt": _above(0, open=True),
    "cbrt": _off_zero,
    "acosh": _above(1, open=True),
    "asin": _within(open=True),
    "acos": _within(open=True),
}
_POSITIVE = _above(0, open=True)
# The same for each operand of a function of several.
_DOMAINS_OF_SEVERAL: dict[str, tuple[Domain, ...]] = {
    **dict.fromkeys(
        ("igamma", "igammac", "igamma_grad_a", "random_gamma_grad"), (_POSITIVE, _above(0))
    ),
    "polygamma": (_above(0), _POSITIVE),
    "zeta": (_above(1, open=True), _POSITIVE),
    "regularized_incomplete_beta": (_POSITIVE, _POSITIVE, lambda b: b.low >= 0 and b.high <= 1),
}
# Functions of complex numbers that are not finite at zero; others are finite almost everywhere.
_COMPLEX = frozenset(("rsqrt", "log", "log2", "div", "integer_pow", "pow"))


# Functions that are not finite, or not of finite slope, everywhere.
PARTIAL = frozenset(
    (
        *(*_DOMAINS, *_STEEP, *_DOMAINS_OF_SEVERAL, "div", "rem", "integer_pow", "pow"),
        *("triangular_solve", "tridiagonal_solve", "cholesky"),
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
    if name in _DOMAINS_OF_SEVERAL:
        return [*_DOMAINS_OF_SEVERAL[name]]
    if name in _DOMAINS:
        return [_DOMAINS[name]] + [None] * (count - 1)
    if name in ("div", "rem"):
        return [None, _off_zero]
    if name == "integer_pow":
        return [_off_zero if params["y"] < 0 else None]
    if name == "pow":
        exponent = bounds[1].number
        if exponent is not None and exponent == int(exponent if isfinite(exponent) else 0):
            return [_off_zero if exponent < 0 else None, None]
        return [_above(0) if bounds[1].low > 0 else _POSITIVE, None]
    if name == "triangular_solve":
        return [_off_zero, None]
    if name == "tridiagonal_solve":
        return [None, _off_zero, None, None]
    if name == "cholesky":
        return [lambda b: False]
    return [None] * count


def domains_of_complex(name: str, count: int) -> list[Domain | None]:
    """Returns the same for functions of complex numbers, whose bounds say nothing but zero."""
    if name not in _COMPLEX:
        return [None] * count
    return [None, _off_zero] if name == "div" else [_off_zero] + [None] * (count - 1)


def slopes(name: str, params: Mapping[str, Any], bounds: Sequence[Bounds]) -> list[Domain | None]:
    """Returns, for each operand, where a function and its slope are finite."""
    found = domains(name, params, bounds)
    if name in _STEEP:
        return [_STEEP[name]]
    if name == "pow" and found[0] is not None and bounds[1].low < 1:
        return [_POSITIVE, None]
    return found


# Bounds of what functions make --------------------------------------------------------------------


def _monotone(
    function: Callable[[float], float], *, above: bool = False
) -> Callable[[Bounds], Bounds]:
    """Returns the bounds of what an increasing function makes.

    Args:
        function: the function.
        above: whether it stays above its limit at minus infinity. tanh and expm1 do not, because
            of rounding: in single precision expm1(-17) is -1.
    """

    @functools.cache
    def end(edge: float) -> float:
        with np.errstate(all="ignore"):
            return float(function(edge))

    def bounds(b: Bounds) -> Bounds:
        low, high = end(b.low), end(b.high)
        if isnan(low) or isnan(high):
            return Bounds(atoms=b.atoms)
        reached = b.reached or (b.high == inf > high) or (b.low == -inf < low and not above)
        open_end = above and (b.above or b.low == -inf)
        return Bounds(low, high, b.atoms, above=open_end, reached=reached)

    return bounds


def _constantly(low: float, high: float, nonzero: bool = False) -> Callable[[Bounds], Bounds]:
    return lambda b: Bounds(low, high, b.atoms, nonzero, reached=True)


def _negative(b: Bounds) -> Bounds:
    if b is UNKNOWN or b is ANY_NUMBER:
        return b
    return Bounds(
        -b.high, -b.low, b.atoms, b.nonzero, above=b.below, below=b.above, reached=b.reached
    )


def _absolute(b: Bounds) -> Bounds:
    low = 0.0 if b.low <= 0 <= b.high else min(abs(b.low), abs(b.high))
    high = max(abs(b.low), abs(b.high))
    return Bounds(low, high, b.atoms, b.excludes_zero, reached=b.reached)


def _stepped(function: Callable[[float], float]) -> Callable[[Bounds], Bounds]:
    return lambda b: Bounds(
        float(function(b.low)) if isfinite(b.low) else b.low,
        float(function(b.high)) if isfinite(b.high) else b.high,
    )


def _powered(b: Bounds, exponent: float) -> Bounds:
    if exponent == 0:
        return at(1.0)
    whole = isfinite(exponent) and exponent == int(exponent)
    if not whole and b.low < 0:
        return Bounds(atoms=b.atoms)
    if whole and exponent % 2 == 0:
        b = _absolute(b)
    if exponent < 0:
        nonzero = isfinite(b.low) and isfinite(b.high)
        if b.low >= 0:
            low, high = _power(b.high, exponent), _power(b.low, exponent)
            return Bounds(low, high, b.atoms, nonzero, reached=b.reached)
        return Bounds(-inf, inf, b.atoms, nonzero)
    low, high = _power(b.low, exponent), _power(b.high, exponent)
    return Bounds(low, high, b.atoms, b.excludes_zero, reached=b.reached)


def _power(x: float, exponent: float) -> float:
    try:
        return float(x**exponent)
    except ZeroDivisionError:
        return inf
    except OverflowError:
        return inf if x > 0 or exponent % 2 == 0 else -inf


def _same(b: Bounds) -> Bounds:
    """Returns the bounds of entries that move: nothing more is known of moved entries."""
    if b.moment or b.compared or b.sparse:
        return replace(b, moment=None, compared=None, sparse=False)
    return b


_UNARY: dict[str, Callable[[Bounds], Bounds]] = {
    "neg": _negative,
    "abs": _absolute,
    "square": lambda b: _powered(b, 2),
    "sqrt": lambda b: _powered(b, 0.5),
    "rsqrt": lambda b: _powered(b, -0.5),
    "exp": _monotone(np.exp, above=True),
    "exp2": _monotone(np.exp2, above=True),
    "expm1": _monotone(np.expm1),
    "log": _monotone(np.log),
    "log2": _monotone(np.log2),
    "log1p": _monotone(np.log1p),
    "tanh": _monotone(np.tanh),
    "sinh": _monotone(np.sinh),
    "asinh": _monotone(np.arcsinh),
    "atan": _monotone(np.arctan),
    "cbrt": _monotone(np.cbrt),
    "erf": _constantly(-1, 1),
    "erfc": _constantly(0, 2, nonzero=True),
    "sin": _constantly(-1, 1),
    "cos": _constantly(-1, 1),
    "cosh": _constantly(1, inf),
    "logistic": _constantly(0, 1, nonzero=True),
    "acos": _constantly(0, np.pi),
    "asin": _constantly(-np.pi / 2, np.pi / 2),
    "acosh": _constantly(0, inf),
    "sign": _stepped(np.sign),
    "floor": _stepped(np.floor),
    "ceil": _stepped(np.ceil),
    "round": _stepped(np.round),
    "is_finite": lambda b: Bounds(0, 1),
    "one_minus_square": lambda b: _sum(at(1.0), _negative(_powered(b, 2))),
    **dict.fromkeys(("tan", "atanh", "erf_inv", "lgamma", "digamma"), lambda b: ANY_NUMBER),
    **dict.fromkeys(
        "copy copy_p stop_gradient optimization_barrier reduce_precision real conj device_put "
        "sharding_constraint mesh_cast reshard layout_constraint name pvary pcast nonbatchable "
        "reshape transpose squeeze expand_dims broadcast_in_dim slice split rev tile unstack "
        "dynamic_slice reduce_max reduce_min sort top_k approx_top_k cummax cummin "
        "gather reduce_window_max reduce_window_min".split(),
        _same,
    ),
}
# Operations that do not part a sum's entries from those of another sum over the same axes.
KEEP_ENTRIES = frozenset("broadcast_in_dim reshape squeeze expand_dims copy stop_gradient".split())
_COMPARISONS = frozenset("eq ne lt le gt ge eq_to lt_to le_to and or xor not".split())
_ALTERNATIVES = frozenset(
    "concatenate stack pad dynamic_update_slice scatter clamp select_if_vmap".split()
)


def _sum(a: Bounds, b: Bounds) -> Bounds:
    if a is UNKNOWN or b is UNKNOWN:
        return UNKNOWN
    low, high = a.low + b.low, a.high + b.high
    nonzero = (a.nonzero or b.nonzero) and (min(a.low, b.low) >= 0 or max(a.high, b.high) <= 0)
    low, high = -inf if isnan(low) else low, inf if isnan(high) else high
    # Only near zero do small numbers count beside others: 1 + exp(-40) is 1.
    above = a.low == b.low == 0 and (a.above or b.above)
    below = a.high == b.high == 0 and (a.below or b.below)
    is_rounded = (a.above or b.above) > above or (a.below or b.below) > below
    return Bounds(
        low,
        high,
        a.atoms or b.atoms,
        nonzero,
        above=above,
        below=below,
        reached=a.reached or b.reached or is_rounded,
    )


def _difference(a: Bounds, b: Bounds) -> Bounds:
    found = _sum(a, _negative(b))
    if _is_variance(a.moment, b.moment):
        return Bounds(0, inf, a.atoms)
    # What is subtracted may be the value itself, or the largest of its entries.
    is_constant = a.number is not None or b.number is not None
    return found if is_constant or found.atoms else replace(found, atoms=True)


def _is_variance(a: Moment | None, b: Moment | None) -> bool:
    """Whether a mean of squares less the square of a mean is no less than zero."""
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


# Functions of complex numbers that are zero only where an operand, or every one, is.
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
    if name == "complex":  # which is one number only where both parts are
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
    if name in KEEP_ENTRIES:
        return kept(name, first)
    if name in _UNARY:
        found = _UNARY[name](first)
        return _with_moment(name, found, operands[0], first)
    if name == "integer_pow":
        found = _powered(first, params["y"])
        return _with_moment("square" if params["y"] == 2 else name, found, operands[0], first)
    if name == "pow":
        exponent = bounds[1].number
        if exponent is None and (first.number or 0) > 0:
            ends = [_power(first.low, end) for end in (bounds[1].low, bounds[1].high)]
            return Bounds(min(ends), max(ends), bounds[1].atoms, reached=True)
        return Bounds(atoms=first.atoms) if exponent is None else _powered(first, exponent)
    if name == "ne" and operands[0] is operands[1]:
        return at(0.0)  # no number differs from itself, but NaN, which nothing makes here
    if name in ("lt", "le", "gt", "ge") and bounds[1].number is not None:
        return Bounds(0, 1, compared=Compared(name, operands[0], bounds[1].number))
    if name in _COMPARISONS:
        return Bounds(0, 1)
    if name in ("add", "add_any"):
        return _sum(*bounds)
    if name == "sub":
        alike = [(d.size, e.size) for d, e in zip(operands[0].dims, operands[1].dims, strict=False)]
        is_aligned = all(m == n for m, n in alike)
        return _difference(*(bounds if is_aligned else map(_same, bounds)))
    if name == "mul":
        return _times(operands, bounds)
    if name == "div":
        inverse = _powered(bounds[1], -1) if bounds[1].low >= 0 else ANY_NUMBER
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
    if name in ("scatter-add", "scatter_add") and operands[0].number == 0:
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
        atoms = (first.atoms and second.atoms) if by_weights else signs.atoms
        if signs.low < 0 < signs.high:
            return UNKNOWN if atoms else ANY_NUMBER
        # A convolution's edges have no terms, perhaps.
        return _of_one_sign(replace(signs, atoms=atoms), name[0] == "d" and signs.excludes_zero)
    return UNKNOWN


def _of_one_sign(terms: Bounds, nonzero: bool) -> Bounds:
    """Returns bounds of sums, which are known as far as all terms have one sign."""
    if terms.low < 0 < terms.high:
        return UNKNOWN if terms.atoms else ANY_NUMBER
    low, high = 0 if terms.low >= 0 else -inf, 0 if terms.high <= 0 else inf
    return Bounds(low, high, terms.atoms, nonzero, reached=terms.reached)


def _times(operands: Sequence[Any], bounds: Sequence[Bounds]) -> Bounds:
    a, b = bounds
    if operands[0] is operands[1]:
        return _with_moment("square", _powered(a, 2), operands[0], a)
    found = _product(a, b)
    for one, other in ((a, b), (b, a)):
        if (number := one.number) and other.moment:
            return _scaled(found, other.moment, number)
    return found


def _scaled(found: Bounds, moment: Moment, factor: float) -> Bounds:
    return replace(found, moment=replace(moment, factor=moment.factor * factor))


def kept(name: str, bounds: Bounds) -> Bounds:
    """Returns the bounds of entries that are the same but, perhaps, for where they lie."""
    if name in ("copy", "stop_gradient") or not (bounds.compared or bounds.sparse):
        return bounds
    return replace(bounds, compared=None, sparse=False)


def _with_moment(name: str, found: Bounds, operand: Any, before: Bounds) -> Bounds:
    """Notes which array's square something is, or keeps the note where entries only move."""
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
