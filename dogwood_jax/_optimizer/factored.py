"""Second moments stored as their means along two axes, as in Adafactor."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the two axes that Optax factors, row and column."""
    row, column = np.argsort(shape)[-2:]
    return int(row), int(column)


def joined(parts: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Returns an array of this shape, the product of its factors if it is stored as factors.

    Args:
        parts: the arrays of a state at ``Field.places``.
        shape: the shape of the network's array.
    """
    if len(parts) == 1 or parts[0].shape == shape:
        return parts[0]
    row, column = factored_axes(shape)
    _, rows, columns = parts
    rows, columns = jnp.expand_dims(rows, column), jnp.expand_dims(columns, row)
    mean = jnp.mean(rows, row, keepdims=True)
    moment: Array = rows * columns / jnp.where(mean == 0, 1, mean)
    return moment


def parted(array: Array, shape: tuple[int, ...] | None, *, is_factored: bool) -> list[Array]:
    """Returns the arrays of a state at ``Field.places``.

    Args:
        array: the array.
        shape: the shape of the array in the state; None for its own. If it differs from the
            array's, the state stores factors.
        is_factored: whether the state may store factors.
    """
    if not is_factored:
        return [array]
    rows = columns = absent = jnp.zeros((1,), array.dtype)
    if shape not in (None, array.shape):
        row, column = factored_axes(array.shape)
        rows, columns, array = jnp.mean(array, column), jnp.mean(array, row), absent
    return [array, rows, columns]
