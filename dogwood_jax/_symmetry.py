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
        tolerance: weights a and b agree if ``|a - b| <= tolerance * (1 + |a|)`` holds; units whose
            weights are not finite agree with none.

    Returns:
        The groups of two or more units, each in ascending order, in the order of their first unit.

    Raises:
        ValueError: if an array of the width is missing or has another size there.

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
    rows = _rows(variables, width)
    # Equal units have equal sums of weights, so only units that are close after sorting by a
    # random weighted sum need comparing. Any fixed direction will do.
    direction = np.random.default_rng(0).standard_normal(rows.shape[1])
    slack = tolerance * (1 + np.abs(rows)) @ np.abs(direction)
    position = rows @ direction
    order = np.argsort(position)
    groups: list[list[int]] = []
    open_groups: list[list[int]] = []
    for unit in order:
        reach = position[unit] - 2 * slack[unit]
        open_groups = [g for g in open_groups if position[g[0]] + 2 * slack[g[0]] >= reach]
        for group in open_groups:
            first = rows[group[0]]
            if np.all(np.abs(rows[unit] - first) <= tolerance * (1 + np.abs(first))):
                group.append(int(unit))
                break
        else:
            groups.append([int(unit)])
            open_groups.append(groups[-1])
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))


def _rows(variables: PyTree, width: Width) -> np.ndarray:
    """Returns all weights of each unit as a row of a matrix ``[units, weights]``, in float64."""
    leaves = leaves_by_path(variables)
    columns, problems = [], []
    for place in width.occurrences:
        array = leaves.get(place.path)
        if array is None:
            problems.append(f"{place.path}: missing")
        elif (found := np.shape(array)[place.axis]) != (expected := size_of(place.layout)):
            problems.append(f"{place.path}: axis {place.axis} is {found}, expected {expected}")
        elif not problems:
            columns += _columns(np.asarray(array, np.float64), place.axis, place.layout, width.name)
    if problems:
        raise ValueError(
            f"these are not the variables in which {width.name} was found:\n"
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
