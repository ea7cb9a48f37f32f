"""Find units that compute the same function: ``find_symmetric``."""

from math import prod

import numpy as np

from dogwood_jax._layout import Layout, Product, Units, size_of
from dogwood_jax._tree import PyTree, leaves_by_path
from dogwood_jax._widths import Width


def find_symmetric(
    variables: PyTree, width: Width, *, tolerance: float = 1e-6
) -> tuple[tuple[int, ...], ...]:
    """Finds groups of units that no training step can tell apart.

    Units are symmetric if all their weights agree: incoming weights, biases *and* outgoing
    weights. They compute the same function and receive the same gradient, so a deterministic
    optimizer keeps them equal for ever: a layer has as many *different* units as
    ``width.size - sum(len(group) - 1 for group in groups)``.

    Args:
        variables: pytree of the network's arrays.
        width: the width whose units are compared, from ``trace`` or ``chain``.
        tolerance: a unit joins a group if ``|b - a| <= tolerance * (1 + |a|)`` holds for each of
            its weights b and the weights a of the group's first unit. Weights that are not finite
            agree with none.

    Returns:
        The groups of two or more units, each in ascending order, in the order of their first unit.

    Raises:
        ValueError: if an array of the width is missing or has another size there, or the tolerance
            is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> params = {
        ...     "up": {"kernel": jnp.array([[1.0, 2.0, 1.0]]), "bias": jnp.zeros(3)},
        ...     "down": {"kernel": jnp.array([[3.0], [4.0], [3.0]])},
        ... }
        >>> dw.find_symmetric(params, dw.chain(params, ("up", "down"))["up"])
        ((0, 2),)
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be zero or positive, got {tolerance!r}")
    groups: dict[int, list[int]] = {}
    for unit, first in enumerate(_firsts(_rows(variables, width), tolerance)):
        groups.setdefault(int(first), []).append(unit)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _firsts(rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns for each row the first row that it agrees with, itself if there is none.

    Only rows with close sketches are compared in full. A sketch sums up a row block by block, so
    those of rows that agree differ by no more than a bound.
    """
    units, weights = rows.shape
    firsts = np.arange(units)
    if not rows.size:
        return np.zeros_like(firsts)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not np.isfinite(largest).all():
        finite = np.flatnonzero(np.isfinite(largest))
        firsts[finite] = finite[_firsts(rows[finite], tolerance)]
        return firsts
    # Any fixed blocks and factors will do; random ones keep differences from cancelling.
    rng = np.random.default_rng(0)
    blocks = np.zeros((weights, 32))
    blocks[np.arange(weights), rng.permutation(weights) % 32] = rng.uniform(1, 2, weights)
    sketch = rows @ blocks
    rounding = weights * np.finfo(rows.dtype).eps
    bound = (tolerance + rounding) * np.outer(1 + largest, blocks.sum(axis=0) + 1)

    # Sorted by the sum that tells units apart best, those within reach of a unit are neighbours.
    best = np.argmax(np.ptp(sketch, axis=0) / bound.max(axis=0))
    sums, reach = sketch[:, best], bound[:, best].max()
    order = np.argsort(sums)
    low = np.searchsorted(sums[order], sums - reach, "left")
    high = np.searchsorted(sums[order], sums + reach, "right")
    is_first = np.zeros(units, bool)
    for unit in range(units):
        near = order[low[unit] : high[unit]]
        near = near[is_first[near]]
        near = near[np.all(np.abs(sketch[near] - sketch[unit]) <= bound[near], axis=1)]
        for first in np.sort(near):
            if np.all(np.abs(rows[unit] - rows[first]) <= tolerance * (1 + np.abs(rows[first]))):
                firsts[unit] = first
                break
        else:
            is_first[unit] = True
    return firsts


def _rows(variables: PyTree, width: Width) -> np.ndarray:
    """Returns all weights of each unit as a row of a matrix ``[units, weights]``, in float64."""
    leaves = leaves_by_path(variables)
    columns, problems = [], []
    for place in width.occurrences:
        array = leaves.get(place.path)
        if array is None:
            problems.append(f"{place.path}: missing")
        elif np.shape(array)[place.axis : place.axis + 1] != (size_of(place.layout),):
            problems.append(
                f"{place.path}: has shape {np.shape(array)}, expected {size_of(place.layout)} "
                f"along axis {place.axis}"
            )
        elif not problems:
            array = np.asarray(array)
            if np.iscomplexobj(array):
                array = np.stack([array.real, array.imag], axis=-1)
            columns += _columns(array.astype(np.float64), place.axis, place.layout, width.name)
    if problems:
        raise ValueError(
            f"these are not the variables in which {width.name} was found; trace again:\n"
            + "\n".join(f"- {p}" for p in problems)
        )
    return np.concatenate(columns, axis=1)


def _columns(array: np.ndarray, axis: int, layout: Layout, width: str) -> list[np.ndarray]:
    """Returns the entries of each unit along an axis as matrices ``[units, entries]``."""
    if isinstance(layout, Units):
        units = np.moveaxis(array, axis, 0)
        return [units.reshape(len(units), prod(units.shape[1:]))] if layout.width == width else []
    sizes = [size_of(part) for part in layout.parts]
    if isinstance(layout, Product):
        shape = (*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
        parts = [(array.reshape(shape), axis + i) for i in range(len(sizes))]
    else:
        parts = [(part, axis) for part in np.split(array, np.cumsum(sizes)[:-1], axis)]
    return [
        column
        for (part, place), inner in zip(parts, layout.parts, strict=True)
        for column in _columns(part, place, inner, width)
    ]
