"""The bounds of values: ``Bounds``, and how to compute with them.

New units may have any value that random weights can make. A function such as ``sqrt`` is finite for
some numbers only. Elsewhere it makes NaN or infinity. Zero weights do not help: zero times infinity
is NaN. So every value has bounds. ``sqrt(h * h + 1)`` is finite for all ``h`` because its argument
is never below 1.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan

import numpy as np


@dataclass(slots=True)
class Bounds:
    """What is known of the entries of an array, old and new.

    A network needs thousands of them, and frozen dataclasses are slow to make, so this one is not
    frozen. But do not change one: several values may share it.

    Attributes:
        low: no entry is less.
        high: no entry is more.
        atoms: whether a single number may have a probability when weights are random, as zero has
            behind a relu. If not, no entry lies exactly at the edge of a domain.
        nonzero: whether no entry is zero.
        above: whether every entry is more than ``low``, as those of ``exp(x)`` are more than 0.
        below: whether every entry is less than ``high``.
        sparse: whether entries are zero only where a scatter added nothing. Old units have such
            zeros, too.
        reached: whether rounding may make an entry equal to an end: tanh(10) is 1 in single
            precision.
        compared: for booleans, the comparison of an array with a number that made them.
        moment: the sum, or the sum of squares, that the array is a multiple of; see ``Moment``.
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

    @property
    def has_atoms(self) -> bool:
        """Whether a single number may have a probability, as one that all entries are has."""
        return self.atoms or self.low == self.high

    @property
    def is_met(self) -> bool:
        """Whether an entry may lie exactly at an edge that it does not pass."""
        return self.has_atoms or self.reached


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
    """Returns the bounds of constants. Products with them have atoms only where one is zero."""
    return UNKNOWN if isnan(low) or isnan(high) else Bounds(low, high, not nonzero, nonzero)


def of_sign(bounds: Bounds) -> Bounds:
    """Returns bounds that keep only what is known of the sign."""
    low, high = 0.0 if bounds.low >= 0 else -inf, 0.0 if bounds.high <= 0 else inf
    return Bounds(low, high, bounds.atoms, bounds.excludes_zero)


def at(number: float) -> Bounds:
    """Returns the bounds of one number."""
    return constant(number, number, number != 0)


def union(bounds: Sequence[Bounds]) -> Bounds:
    """Returns the bounds of entries that each come from any one of several values."""
    low, high = min(b.low for b in bounds), max(b.high for b in bounds)
    return Bounds(
        low,
        high,
        any(b.has_atoms for b in bounds),
        all(b.excludes_zero for b in bounds),
        above=all(b.above for b in bounds if b.low == low),
        below=all(b.below for b in bounds if b.high == high),
        reached=any(b.reached for b in bounds),
    )


# Where functions are finite -----------------------------------------------------------------------

Domain = Callable[[Bounds], bool]


def above(edge: float, *, open: bool = False) -> Domain:
    """All numbers not less than an edge; if ``open``, only larger numbers."""

    def holds(b: Bounds) -> bool:
        is_off = not open or not b.is_met or b.above or (edge == 0 and b.nonzero)
        return b.low > edge or (b.low == edge and is_off)

    return holds


POSITIVE = above(0, open=True)


def within(*, open: bool = False) -> Domain:
    """All numbers from -1 to 1; if ``open``, without -1 and 1."""

    def holds(b: Bounds) -> bool:
        inside = (-1 < b.low or (b.low == -1 and b.above)) and (
            b.high < 1 or (b.high == 1 and b.below)
        )
        return inside or (-1 <= b.low and b.high <= 1 and not (open and b.is_met))

    return holds


def off_zero(b: Bounds) -> bool:
    is_end = b.reached and 0 in (b.low, b.high)
    return b.excludes_zero or not (b.has_atoms or is_end)


# Bounds of what functions make --------------------------------------------------------------------

# Masks are such numbers. Only they come near this end, which counts as minus infinity.
_FARTHEST = -1e8


def monotone(
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
        is_far = b.low <= _FARTHEST and low == end(-inf)
        open_end = above and (b.above or is_far)
        return Bounds(low, high, b.atoms, above=open_end, reached=reached)

    return bounds


def constantly(low: float, high: float, nonzero: bool = False) -> Callable[[Bounds], Bounds]:
    return lambda b: Bounds(low, high, b.atoms, nonzero, reached=True)


def negative(b: Bounds) -> Bounds:
    if b is UNKNOWN or b is ANY_NUMBER:
        return b
    return Bounds(
        -b.high, -b.low, b.atoms, b.nonzero, above=b.below, below=b.above, reached=b.reached
    )


def absolute(b: Bounds) -> Bounds:
    low = 0.0 if b.low <= 0 <= b.high else min(abs(b.low), abs(b.high))
    high = max(abs(b.low), abs(b.high))
    return Bounds(low, high, b.atoms, b.excludes_zero, reached=b.reached)


def stepped(function: Callable[[float], float]) -> Callable[[Bounds], Bounds]:
    return lambda b: Bounds(float(function(b.low)), float(function(b.high)))


def powered(b: Bounds, exponent: float) -> Bounds:
    if exponent == 0:
        return at(1.0)
    whole = isfinite(exponent) and exponent == int(exponent)
    if not whole and b.low < 0:
        return Bounds(atoms=b.atoms)
    if whole and exponent % 2 == 0:
        b = absolute(b)
    if exponent < 0:
        nonzero = isfinite(b.low) and isfinite(b.high)
        if b.low >= 0:
            low, high = power(b.high, exponent), power(b.low, exponent)
            return Bounds(low, high, b.atoms, nonzero, reached=b.reached)
        return Bounds(-inf, inf, b.atoms, nonzero)
    low, high = power(b.low, exponent), power(b.high, exponent)
    return Bounds(low, high, b.atoms, b.excludes_zero, reached=b.reached)


def power(x: float, exponent: float) -> float:
    try:
        return float(x**exponent)
    except ZeroDivisionError:
        return inf
    except OverflowError:
        return inf if x > 0 or exponent % 2 == 0 else -inf


def same(b: Bounds) -> Bounds:
    """Returns the bounds of entries after a move, without the facts that a move makes wrong."""
    if b.moment or b.compared or b.sparse:
        return replace(b, moment=None, compared=None, sparse=False)
    return b


def sum_of(a: Bounds, b: Bounds) -> Bounds:
    if a is UNKNOWN or b is UNKNOWN:
        return UNKNOWN
    low, high = a.low + b.low, a.high + b.high
    nonzero = (a.nonzero or b.nonzero) and (min(a.low, b.low) >= 0 or max(a.high, b.high) <= 0)
    low, high = -inf if isnan(low) else low, inf if isnan(high) else high
    # Rounding loses a small number beside a large one, but not beside zero: 1 + exp(-40) is 1.
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
