"""Find units that can go without a change: ``find_dead``."""

from dataclasses import replace

import numpy as np

from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._front.symmetry import expect_width, weights_of
from dogwood_jax._widths.widths import Width


def find_dead(variables: PyTree, width: Width, *, tolerance: float = 0.0) -> tuple[int, ...]:
    """Finds units that ``narrow`` can remove without changing what the network computes.

    A unit is dead in two cases. If all its outgoing weights are zero, nothing reads it. If all its
    incoming weights except biases are zero, it is constant; then the layer that reads it needs a
    bias that takes over its effect. Weights to dead units count like others. So a unit that only
    dead units read is not found before these are removed.

    Args:
        variables: pytree of the network's arrays.
        width: the width whose units are looked at, from ``trace`` or ``chain``.
        tolerance: the largest magnitude that counts as zero.

    Returns:
        The units, in ascending order.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: if an array of the width is missing or has another size there, or the tolerance
            is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> params = {
        ...     "up": {"kernel": jnp.array([[1.0, 0.0, 2.0]]), "bias": jnp.ones(3)},
        ...     "down": {"kernel": jnp.array([[3.0], [4.0], [0.0]])},
        ... }
        >>> dw.find_dead(params, dw.chain(params, ("up", "down"))["up"])
        (1, 2)
    """
    expect_width("find_dead", variables, width, tolerance)
    dead = np.zeros(width.size, bool)
    for rows in (
        weights_of(variables, width, ("outgoing", "both")),
        _incoming_weights(variables, width),
    ):
        # Without a single such weight, as for an input or output, nothing is known.
        dead |= (np.abs(rows) <= tolerance).all(axis=1) & (rows.shape[1] > 0)
    return tuple(np.flatnonzero(dead).tolist())


def _incoming_weights(variables: PyTree, width: Width) -> np.ndarray:
    """Returns what feeds each unit but for biases, a matrix ``[units, weights]``."""
    leaves = leaves_by_path(variables)
    fed = tuple(
        place
        for place in width.occurrences
        if place.role == "incoming" and len(np.shape(leaves[place.path])) > 1
    )
    return weights_of(variables, replace(width, occurrences=fed), ("incoming",))
