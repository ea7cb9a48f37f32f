"""Finds the operation that makes two networks differ: ``first_not_finite``, ``first_to_differ``."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dogwood_jax._check.claim import Side
from dogwood_jax._check.evaluate import is_finite
from dogwood_jax._check.hidden import EvaluatedStep, Steps, differ, names
from dogwood_jax._check.run import Drawn, Watch, run
from dogwood_jax._check.seen import Operation


class _NotFinite(Watch):
    """Records operations whose results are not finite although their operands are.

    Attributes:
        found: their names, in the order of evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def results(
        self, eqn: Any, operands: Sequence[Any], results: Sequence[Any], callers: Sequence[Any]
    ) -> None:
        if all(map(is_finite, operands)) and not all(map(is_finite, results)):
            self.found[str(Operation(eqn, (*callers,)))] = None


def first_not_finite(old: Side, new: Side, sample: Drawn) -> str:
    """Returns the operation that makes the larger network not finite, as text; empty if unknown.

    Operations that the network lacks, or whose results are finite in the network, come first.

    Args:
        old: the network.
        new: the larger network.
        sample: a sample for which the larger network's output is not finite.
    """
    ours, its = _NotFinite(), _NotFinite()
    run(old, sample.variables, sample.inputs, ours)
    run(new, sample.wide, sample.larger, its)
    found = min(its.found, key=lambda name: name in ours.found, default=None)
    return "" if found is None else f"because {found} is not finite"


def first_to_differ(ours: Steps, its: Steps) -> str:
    """Returns the operation that makes two networks differ, as text; empty if unknown.

    Args:
        ours: the network's evaluation.
        its: the larger network's evaluation of the same sample.
    """
    if names(ours) != names(its):
        return ""
    pairs = zip(ours.found, its.found, strict=True)
    return next((_said(a, b) for a, b in pairs if _begins_to_differ(a, b)), "")


def _begins_to_differ(old: EvaluatedStep, new: EvaluatedStep) -> bool:
    """Whether results differ although operands are equal, apart from scalars.

    Old entries are assumed to come first along every axis. So results of different shapes are
    compared only if they have the shape of an operand.
    """
    operands = [*zip(old.operands, new.operands, strict=True)]
    places = {np.shape(b) for _, b in operands}
    results = [
        (a, b)
        for a, b in zip(old.results, new.results, strict=True)
        if np.shape(a) == np.shape(b) or np.shape(b) in places
    ]
    numbers = {place for place, _, _ in _numbers(old, new)}
    others = [pair for place, pair in enumerate(operands) if place not in numbers]
    return any(map(_differ, results)) and not any(map(_differ, others))


def _differ(pair: tuple[Any, Any]) -> bool:
    old, new = pair
    if np.shape(old) != np.shape(new) and np.ndim(old) == np.ndim(new):
        new = new[tuple(map(slice, np.shape(old)))]
    return np.shape(old) != np.shape(new) or differ(old, new)


def number(one: complex) -> str:
    """Returns a number as text for an error."""
    return f"{one:.6g}" if one.imag else f"{one.real:.6g}"


def _numbers(old: EvaluatedStep, new: EvaluatedStep) -> Iterator[tuple[int, complex, complex]]:
    """Yields the scalar operands that differ: place, old value, new value."""
    for place, (a, b) in enumerate(zip(old.operands, new.operands, strict=True)):
        if not np.ndim(a) and not np.ndim(b) and differ(a, b):
            yield place, complex(a), complex(b)


def _said(old: EvaluatedStep, new: EvaluatedStep) -> str:
    for _, a, b in _numbers(old, new):
        return f"because {Operation(new.eqn, new.callers)} has {number(b)} instead of {number(a)}"
    return f"because {Operation(new.eqn, new.callers)} is the first to compute something else"
