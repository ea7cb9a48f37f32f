"""Random entries of a network's arrays: ``Draws``."""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax import strategies
from dogwood_jax._base.described import described
from dogwood_jax._base.draw import uniform
from dogwood_jax._base.trees import is_array
from dogwood_jax._growth.apply_map import Window
from dogwood_jax._growth.leaf_map import LeafMap
from dogwood_jax._growth.moves import with_size
from dogwood_jax.strategies import Initializer


@functools.partial(jax.jit, static_argnames="arrays")
def words_of(key: Array, arrays: int) -> Array:
    """Returns a seed for each array, in one call: JAX's generator takes long to compile."""
    return jax.random.bits(key, (arrays, 2), jnp.uint32)


def keys_of(key: Array, place: Any) -> Iterator[Array]:
    """Yields keys for the array with this index among the arrays that grow."""
    return (jax.random.fold_in(key, place * 1024 + i) for i in itertools.count())


def limit_of(leaf_map: LeafMap) -> float:
    """Returns the largest magnitude of free entries: Glorot's for the new shape."""
    fan_in, fan_out = (
        prod(leaf_map.shape[axis] for axis in axes) for axes in (leaf_map.fan_in, leaf_map.fan_out)
    )
    return sqrt(6 / (fan_in + fan_out))


def rotation_of(key: Array | None, new: int, old: int) -> Array:
    """Returns the matrix whose rows mix old units into new ones: ``float[new, old]``.

    If there are at least as many new units as old ones, the columns are orthogonal, the sum of
    squares of the new units is new / old times that of the old ones, and their mean is the same.
    If there are fewer, the rows are orthogonal.

    Args:
        key: the caller's key; None for a fixed matrix.
        new: number of new units.
        old: number of old units.
    """
    if new < old:
        return rotation_of(key, old, new).T * sqrt(new / old)
    word = words_of(jax.random.key(0) if key is None else key, 1)[0]
    drawn = uniform(word, (new, old), jnp.result_type(float), 1.0)
    # The first direction is that of equal units, which a reflection takes to the first axis.
    columns, _ = jnp.linalg.qr(drawn.at[:, 0].set(1))
    columns = columns * jnp.sign(columns[0, 0])
    mirror = jnp.full(old, -1 / sqrt(old)).at[0].add(1)
    square = 2 - 2 / sqrt(old)
    turned = columns
    if old > 1:
        turned = columns - jnp.outer(columns @ mirror, mirror) * (2 / square)
    if new == old == 2:  # their only rotations are the swap and none
        turned = jnp.eye(2)[::-1]
    return turned * sqrt(new / old)


class Draws:
    """Draws random entries of one array."""

    def __init__(
        self, leaf_map: LeafMap, dtype: Any, words: Iterator[Array], keys: Iterator[Array]
    ) -> None:
        self.map, self.dtype, self.words, self.keys = leaf_map, dtype, words, keys

    def initialized(self) -> Array | None:
        """Returns the whole new array from the strategy's initializer, or None to draw parts."""
        if self.map.init is None or self.map.kind != "random":
            return None
        return _initialized(self.map.init, next(self.keys), self.map, self.dtype)

    def draw(self, shape: tuple[int, ...], window: Window | None) -> Array:
        """Returns free entries for a part of the new array."""
        if self.map.kind != "random":
            return jnp.full(shape, 1 if self.map.kind == "ones" else 0, self.dtype)
        limit = limit_of(self.map)
        seed = next(self.words)
        if window is None:
            drawn: Array = uniform(seed, shape, self.dtype, limit)
        else:
            whole = with_size(shape, window.axis, window.size)
            drawn = uniform(seed, whole, self.dtype, limit, window.axis, window.places)
        return drawn

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Returns standard normal values."""
        return jax.random.normal(next(self.keys), shape, self.dtype)


def by_initializers(maps: Mapping[str, LeafMap]) -> dict[str, Array]:
    """Returns the arrays, by path, that initializers of the caller draw for a key.

    Initializers that raise an error are left out: growing raises it, with the shape.
    """
    found = {}
    for path, its in maps.items():
        if its.init not in (None, strategies.glorot) and "free" in its.needs:
            with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
                found[path] = _initialized(its.init, jax.random.key(0), its, jnp.float32)
    return found


def _initialized(init: Initializer, key: Array, leaf_map: LeafMap, dtype: Any) -> Array:
    """Returns a whole array from an initializer.

    Initializers take fan-in and fan-out from the last two axes of a shape. Axes of one fan, such as
    attention heads and their units, are therefore joined, and each layer of a stack is drawn alone.
    """
    shape, fans = leaf_map.shape, (leaf_map.fan_in, leaf_map.fan_out)
    window = sorted({*fans[0]} & {*fans[1]})
    into, out = ([a for a in fan if a not in window] for fan in fans)
    if not into or not out:
        # Initializers need at least two axes. A vector is drawn as a kernel with one row.
        return _drawn(init, key, shape if len(shape) > 1 else (1, *shape), dtype).reshape(shape)
    stack = [axis for axis in range(len(shape)) if axis not in (*window, *into, *out)]
    layers, inputs, outputs = (prod(shape[axis] for axis in axes) for axes in (stack, into, out))
    kernel = (*(shape[axis] for axis in window), inputs, outputs)
    keys = jax.random.split(key, layers)
    drawn = jax.vmap(lambda key: _drawn(init, key, kernel, dtype))(keys)
    order = [*stack, *window, *into, *out]
    return drawn.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _drawn(init: Initializer, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns the array that an initializer draws, after checking that it is an array."""
    drawn = init(key, shape, dtype)
    if not is_array(drawn):
        raise TypeError(
            f"grow: init= of the strategy must return an array of shape {shape}, got "
            f"{described(drawn)}; pass an initializer, such as jax.nn.initializers.he_normal(), "
            "not the function he_normal that makes it"
        )
    return drawn
