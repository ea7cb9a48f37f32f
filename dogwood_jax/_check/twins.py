"""New units that stay copies of other units in training: ``copied_widths``.

Units are copies if all weights that make them are equal. Optimizers such as Adam follow the signs
of gradients, so copies whose gradients differ only by a factor stay copies.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dogwood_jax._check.claim import Case
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._widths.layout import Role, units_along

Arrays = Mapping[str, Any]

# The length of a step along the signs of gradients, and the number of steps.
_STEP, _STEPS = 0.01, 4
# At most this many samples are tried: a relu may be zero for all inputs of one, and if it is zero
# for all but one, half of all copies move alike.
_SAMPLES = 10
# Numbers that are nearer than this are equal, and gradients smaller than this share are zero.
_NEAR, _SMALL = 1e-9, 1e-9


def copied_widths(
    case: Case,
    gradients: Callable[[Arrays, Sequence[Any]], Arrays],
    samples: Iterable[tuple[Arrays, Sequence[Any]]],
) -> list[str]:
    """Returns the widths of which some new units are copies and stay copies.

    Args:
        case: the claim.
        gradients: the gradient of the larger network by path, from its variables and inputs.
        samples: variables and inputs of the larger network.
    """
    widths = case.growth.widths
    changes = [
        change
        for change in case.growth.changes
        if change.new > change.old and not widths[change.width].interface
        if (change.strategy.incoming, change.strategy.outgoing) != ("zero", "zero")
    ]
    alike = {change.width: np.zeros((change.new, 0), int) for change in changes}
    for variables, inputs in itertools.islice(samples, _SAMPLES):
        for step in range(_STEPS + 1):
            if step:
                variables = _stepped(variables, gradients(variables, inputs))
            labels = {c.width: _labels(_made(case.growth, c, variables)) for c in changes}
            changes = [c for c in changes if _has_copies(c, labels[c.width][:, None])]
            if not changes:
                return []
        alike = {c.width: np.column_stack((alike[c.width], labels[c.width])) for c in changes}
        changes = [change for change in changes if _has_copies(change, alike[change.width])]
    return [change.width for change in changes]


def _has_copies(change: Change, labels: np.ndarray) -> bool:
    """Whether a new unit has the same labels as another unit: ``labels[unit, sample]``."""
    _, groups, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    return bool(np.any(counts[np.ravel(groups)[change.old :]] > 1))


def _labels(units: np.ndarray) -> np.ndarray:
    """Returns the same number for equal units: ``[unit]``, from ``units[unit, entry]``."""
    order = np.argsort(units @ np.random.default_rng(0).normal(size=units.shape[1]), kind="stable")
    ordered = units[order]
    apart = np.abs(np.diff(ordered, axis=0)) > _NEAR * (1 + np.abs(ordered[1:]))
    labels = np.zeros(len(units), int)
    labels[order[1:]] = np.cumsum(apart.any(1))
    return labels


def _made(growth: Growth, change: Change, variables: Arrays) -> np.ndarray:
    """Returns the weights that make each unit: ``[unit, entry]``.

    If no weights make the units, these are the weights that read them.
    """
    making, every = [
        [*_entries(growth, change, variables, roles)]
        for roles in (("incoming", "both"), ("incoming", "outgoing", "both"))
    ]
    found = making or every
    return np.concatenate(found, 1) if found else np.arange(float(change.new))[:, None]


def _entries(
    growth: Growth, change: Change, variables: Arrays, roles: tuple[Role, ...]
) -> Iterator[np.ndarray]:
    """Yields the entries of each unit in each array: ``[unit, entry]``."""
    shapes = growth.shapes
    for leaf in growth.after.leaves:
        path = growth.held[leaf.path].path
        array = variables.get(path)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fc":
            continue
        if shapes.get(path, leaf.shape) != leaf.shape:
            continue
        for axis, layout in enumerate(leaf.axes):
            units = units_along(layout, change.width, roles)
            counts = np.bincount(units[units >= 0], minlength=change.new)
            if counts.any() and (counts == counts[0]).all():
                order = np.argsort(units, kind="stable")[np.sum(units < 0) :]
                rows = np.take(np.moveaxis(array, axis, 0), order, 0)
                rows = rows.reshape(change.new, -1)
                yield np.concatenate((rows.real, rows.imag), 1) if rows.dtype.kind == "c" else rows


def _stepped(variables: Arrays, gradients: Arrays) -> Arrays:
    """Returns variables after a step along the signs of gradients."""
    largest = max((np.max(np.abs(grad), initial=0.0) for grad in gradients.values()), default=0.0)

    def step(grad: Any) -> Any:
        return _STEP * np.where(np.abs(grad) > _SMALL * largest, np.sign(grad), 0)

    return {
        path: array - step(gradients[path]) if path in gradients else array
        for path, array in variables.items()
    }
