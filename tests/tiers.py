"""Which cases of a test are of the long tier: a mark on a parameter, written short."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def long(*values: Any) -> Any:
    """Returns a case of the long tier."""
    return pytest.param(*values, marks=pytest.mark.long)


def some(cases: Iterable[Any], step: int, *, long: Container[Any] = ()) -> list[Any]:
    """Returns cases of one value each, of which one in ``step`` is of the short tier.

    Args:
        cases: the values.
        step: how many there are for each of the short tier.
        long: values of the long tier, which do not count.
    """
    every = [*cases]
    return in_tiers(every, short=[case for case in every if case not in long][::step])


def in_tiers(
    cases: Iterable[Any], *, short: Container[Any] | None = None, long: Container[Any] = ()
) -> list[Any]:
    """Returns cases of one value each. Those that are not short, or that are long, are marked."""
    return [
        pytest.param(case, marks=[pytest.mark.long] * is_long)
        for case in cases
        for is_long in [case in long if short is None else case not in short]
    ]
