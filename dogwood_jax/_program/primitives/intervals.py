"""The bounds of values: ``Bounds``, and how to compute with them.

Indices that are never negative name units from the front, and a maximum of numbers that are never
negative is not changed by zeros. So every value has bounds.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import NamedTuple

import numpy as np


class Bounds(NamedTuple):
    """What is known of the entries of an array, old and new.

    Attributes:
        low: no entry is less.
        high: no entry is more.
        compared: for booleans, the comparison of an array with a number that made them.
    """

    low: float = -inf
    high: float = inf
    compared: "Comparison | None" = None

    @property
    def number(self) -> float | None:
        return self.low if self.low == self.high else None


@dataclass(frozen=True, slots=True)
class Comparison:
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
            return Bounds(max(bounds.low, self.number), bounds.high)
        return Bounds(bounds.low, min(bounds.high, self.number))


UNKNOWN = Bounds()


def between(low: float, high: float) -> Bounds:
    """Returns the bounds of constants."""
    return UNKNOWN if isnan(low) or isnan(high) else Bounds(low, high)


def at(number: float) -> Bounds:
    """Returns the bounds of one number."""
    return between(number, number)


def of_sign(bounds: Bounds) -> Bounds:
    """Returns bounds that keep only what is known of the sign."""
    return Bounds(0.0 if bounds.low >= 0 else -inf, 0.0 if bounds.high <= 0 else inf)


def union(bounds: Sequence[Bounds]) -> Bounds:
    """Returns the bounds of entries that each come from any one of several values."""
    return Bounds(min(b.low for b in bounds), max(b.high for b in bounds))


def monotone(function: Callable[[float], float]) -> Callable[[Bounds], Bounds]:
    """Returns the bounds of what an increasing function makes."""

    @functools.cache
    def end(edge: float) -> float:
        with np.errstate(all="ignore"):
            return float(function(edge))

    return lambda b: between(end(b.low), end(b.high))


def constantly(low: float, high: float) -> Callable[[Bounds], Bounds]:
    return lambda b: Bounds(low, high)


def negative(b: Bounds) -> Bounds:
    return Bounds(-b.high, -b.low)


def absolute(b: Bounds) -> Bounds:
    low = 0.0 if b.low <= 0 <= b.high else min(abs(b.low), abs(b.high))
    return Bounds(low, max(abs(b.low), abs(b.high)))


def powered(b: Bounds, exponent: float) -> Bounds:
    if exponent == 0:
        return at(1.0)
    is_whole = isfinite(exponent) and exponent == int(exponent)
    if not is_whole and b.low < 0:
        return UNKNOWN
    if is_whole and exponent % 2 == 0:
        b = absolute(b)
    if exponent < 0:
        return Bounds(power(b.high, exponent), power(b.low, exponent)) if b.low >= 0 else UNKNOWN
    return Bounds(power(b.low, exponent), power(b.high, exponent))


def power(x: float, exponent: float) -> float:
    try:
        return float(x**exponent)
    except ZeroDivisionError:
        return inf
    except OverflowError:
        return inf if x > 0 or exponent % 2 == 0 else -inf


def same(b: Bounds) -> Bounds:
    """Returns the bounds of entries after a move, which no longer are those that were compared."""
    return b if b.compared is None else Bounds(b.low, b.high)


def sum_of(a: Bounds, b: Bounds) -> Bounds:
    low, high = a.low + b.low, a.high + b.high
    return Bounds(-inf if isnan(low) else low, inf if isnan(high) else high)


def product(a: Bounds, b: Bounds) -> Bounds:
    ends = [x * y if x and y else 0.0 for x in (a.low, a.high) for y in (b.low, b.high)]
    return Bounds(min(ends), max(ends))
