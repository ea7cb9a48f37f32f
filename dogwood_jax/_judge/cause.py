"""Which operation makes two networks differ: ``cause_of``."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dogwood_jax._judge.claim import Side
from dogwood_jax._judge.hidden import EvaluatedStep, Steps, differ, names
from dogwood_jax._judge.run import Drawn, run
from dogwood_jax._judge.seen import Operation
from dogwood_jax._judge.watch import Watch


def cause_of(old: Side, new: Side, sample: Drawn, *, is_finite: bool) -> str:
    """Says which operation makes the larger network differ; nothing if that is not known.

    Args:
        old: the network.
        new: the larger network.
        sample: a sample in which both differ.
        is_finite: whether the larger network's output is finite.
    """
    ours, its = Steps(), Steps()
    run(old, sample.variables, sample.inputs, Watch(steps=ours))
    run(new, sample.wide, sample.larger, Watch(steps=its))
    if not is_finite:
        known = {*map(_name, filter(_overflows, ours.found))}
        found = [*map(_name, filter(_overflows, its.found))]
        return (
            f"because {min(found, key=lambda name: name in known)} is not finite" if found else ""
        )
    if names(ours) != names(its):
        return ""
    pairs = zip(ours.found, its.found, strict=True)
    return next((_said(a, b) for a, b in pairs if _begins_to_differ(a, b)), "")


def _name(step: EvaluatedStep) -> str:
    return str(Operation(step.eqn, step.callers))


def _overflows(step: EvaluatedStep) -> bool:
    """Whether results are not finite although operands are."""
    return all(map(_are_finite, step.operands)) and not all(map(_are_finite, step.results))


def _are_finite(array: Any) -> bool:
    is_number = isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "fc"
    return not is_number or bool(np.isfinite(array).all())


def _begins_to_differ(old: EvaluatedStep, new: EvaluatedStep) -> bool:
    """Whether results differ although operands do not, or not but for a number.

    Old entries are taken to be the first ones along every axis. So results of another shape are
    compared only where an operation leaves entries at their places.
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


def _numbers(old: EvaluatedStep, new: EvaluatedStep) -> Iterator[tuple[int, float, float]]:
    """Yields the numbers among operands that differ, with their places."""
    for place, (a, b) in enumerate(zip(old.operands, new.operands, strict=True)):
        if not np.ndim(a) and not np.ndim(b) and differ(a, b):
            yield place, float(a), float(b)


def _said(old: EvaluatedStep, new: EvaluatedStep) -> str:
    for _, a, b in _numbers(old, new):
        return f"because {_name(new)} has {b:.6g} instead of {a:.6g}"
    return f"because {_name(new)} is the first to compute something else"
