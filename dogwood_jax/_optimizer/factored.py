"""Second moments that are kept as their means along two axes, as Adafactor keeps them."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._optimizer.fields import Field


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the axes that means are kept along, and over: rows and columns, as Optax does."""
    row, column = np.argsort(shape)[-2:]
    return int(row), int(column)


def read(field: Field, arrays: Mapping[str, Array]) -> Array:
    """Returns an array of the state, put together from its factors if it has been taken apart."""
    array, shape = arrays[field.place], field.leaf.shape
    if not field.factored or array.shape == shape:
        return array
    row, column = factored_axes(shape)
    path = field.leaf.path
    rows = jnp.expand_dims(arrays[field.at(path, "v_row")], column)
    columns = jnp.expand_dims(arrays[field.at(path, "v_col")], row)
    mean = jnp.mean(rows, row, keepdims=True)
    moment: Array = rows * columns / jnp.where(mean == 0, 1, mean)
    return moment


def written(
    field: Field, path: str, array: Array, shape: tuple[int, ...] | None
) -> dict[str, Array]:
    """Returns an array of the state by place, taken apart unless that shape is expected of it."""
    place = field.at(path)
    if not field.factored:
        return {place: array}
    rows = columns = absent = jnp.zeros((1,), array.dtype)
    if shape not in (None, array.shape):
        row, column = factored_axes(array.shape)
        rows, columns, array = jnp.mean(array, column), jnp.mean(array, row), absent
    return {place: array, field.at(path, "v_row"): rows, field.at(path, "v_col"): columns}
