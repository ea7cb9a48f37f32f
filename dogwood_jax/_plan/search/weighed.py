"""Arrays that scale the units written by other arrays, one by one: ``weighed_pairs``."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dogwood_jax._check.check import finite, samples_of
from dogwood_jax._check.claim import Case
from dogwood_jax._check.run import run
from dogwood_jax._check.samples import SampleFamily
from dogwood_jax._plan.search.problem import LargeEpsilons
from dogwood_jax._plan.search.starts import is_vector
from dogwood_jax._widths.layout import Units
from dogwood_jax._widths.widths import Leaf

_FAMILY = SampleFamily("fan", 1.0, 1.0, biases=True)
_SEED = 77
_STEP = 1e-6
_NEAR = 1e-3


def weighed_pairs(case: Case, name: str) -> Iterator[tuple[str, str]]:
    """Yields arrays that write units of a width, each with the array that scales these units.

    If a scale is multiplied by a number for each unit, and the scaled arrays are divided by it, the
    network computes the same. Therefore the slopes of outputs along both are the same.

    Args:
        case: the claim; only its smaller network is used.
        name: name of the width.
    """
    samples = samples_of(case)
    found = (finite(case, replace(samples, seed=_SEED + n), _FAMILY) for n in range(4))
    drawn = [one for one in found if one is not None]
    bases = [run(case.old, one[1], one[2], LargeEpsilons()) for one in drawn]
    by = np.random.default_rng(5).normal(size=case.growth.change[name].old)
    outputs = [output.old for output in case.outputs]

    def slope(leaf: Leaf, axis: int) -> np.ndarray:
        along = by.reshape([-1 if a == axis else 1 for a in range(len(leaf.shape))])
        rows = []
        for (_, variables, inputs, _), base in zip(drawn, bases):
            moved = {**variables, leaf.path: variables[leaf.path] * (1 + _STEP * along)}
            after = run(case.old, moved, inputs, LargeEpsilons())
            kinds = [n for n in outputs if base[n].dtype.kind in "fc"]
            rows += [(np.real(after[n]) - np.real(base[n])).ravel() / _STEP for n in kinds]
        return np.concatenate(rows) if rows else np.zeros(0)

    slopes = {
        leaf.path: slope(leaf, axes[0])
        for leaf in case.growth.widths.leaves
        if len(axes := [*_written(leaf, name)]) == 1
    }
    # Scales are no writers: slopes along writers and their scales depend on each other.
    writers = {one.path: one for one in case.growth.widths.leaves if one.kind != "ones"}
    for leaf in case.growth.widths.leaves:
        is_last = [*_written(leaf, name)] == [len(leaf.shape) - 1]
        if leaf.path in slopes and is_vector(leaf) and is_last:
            layers = leaf.shape[:-1]  # the axes of stacked layers
            alike = (p for p in slopes.keys() & writers.keys() - {leaf.path} if np.any(slopes[p]))
            others = [p for p in sorted(alike) if writers[p].shape[: len(layers)] == layers]
            for path in _sum_of(slopes[leaf.path], [slopes[p] for p in others], others):
                yield path, leaf.path


def _written(leaf: Leaf, name: str) -> Iterator[int]:
    for axis, layout in enumerate(leaf.axes):
        if isinstance(layout, Units) and (layout.width, layout.role) == (name, "incoming"):
            yield axis


def _sum_of(slope: np.ndarray, others: Sequence[np.ndarray], paths: Sequence[str]) -> list[str]:
    """Returns the paths whose slopes add up to a slope; an empty list if none do."""
    if not others or not np.any(slope):
        return []
    matrix, size = np.stack(others, 1), _NEAR * float(np.linalg.norm(slope))
    weights, *_ = np.linalg.lstsq(matrix, slope, rcond=1e-9)
    chosen = [n for n, weight in enumerate(weights) if abs(weight) > 0.5]
    left = np.linalg.norm(matrix[:, chosen].sum(1) - slope)
    return [paths[n] for n in chosen] if left < size else []
