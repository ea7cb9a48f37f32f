"""Carries out the edit of one array: ``edited``.

First the map of its units (``apply_map``), then new layers and experts.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._base.draw import dtype_named, random_keys, seeds, uniform
from dogwood_jax._growth.apply_map import apply_map
from dogwood_jax._growth.draws import Draws, keys_of, rotation_of, words_of
from dogwood_jax._growth.edit import Edit, Fill
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.leaf_map import LeafMap
from dogwood_jax._growth.moves import repeated
from dogwood_jax._growth.new_entries import drawn_anew


class Random(NamedTuple):
    """The sources of an array's random values.

    Attributes:
        key: the caller's key.
        place: the index of the old array among the arrays whose units change.
        word: the seed of new entries of these units, ``uint32[2]``; None if nothing is drawn.
        layers: the seed of a new array, or of new layers, ``uint32[2]``.
    """

    key: Array | None = None
    place: Any = 0
    word: Array | None = None
    layers: Array | None = None


class Randomness:
    """The sources of all arrays' random values.

    Args:
        growth: the growth of the arrays.
        key: the caller's key, or None.

    Attributes:
        words: seeds of the arrays whose units change, and seeds of ``growth.inserted``, each
            ``uint32[arrays, 2]``, or None if there is no key or no such array.
    """

    def __init__(self, growth: Growth, key: Array | None) -> None:
        changing = (path for path, leaf_map in growth.maps.items() if leaf_map.changes)
        self._places = {path: place for place, path in enumerate(changing)}
        self._rows = {edit.path: row for row, edit in enumerate(growth.inserted)}
        self.words = tuple(
            words_of(key, len(known)) if key is not None and known else None
            for known in (self._places, self._rows)
        )

    def place(self, edit: Edit) -> tuple[int, int]:
        """Returns the rows of an array in the two parts of ``words``."""
        return self._places.get(edit.source or "", 0), self._rows.get(edit.path, 0)


NOTHING_DRAWN = Random()


def edited(
    edit: Edit,
    old: Array | None,
    random: Random = NOTHING_DRAWN,
    *,
    fresh: Array | None = None,
    units: Array | None = None,
    scale: Array | None = None,
) -> Array:
    """Returns one array of the larger model.

    Args:
        edit: how it is made.
        old: the old array at ``edit.source``; None if there is none.
        random: the sources of its random values.
        fresh: the larger model's own array, from which free values of new layers are taken.
        units: the larger model's values in the place of the old array, from which free entries of
            its new units are taken.
        scale: an array that weights old entries in means, see ``apply_map``.
    """
    for order in edit.orders:
        old = order.of(old)
    if old is not None and edit.map is not None and edit.map.changes:
        old = _grown(old, edit.map, random, units, scale)
    if edit.experts is not None:
        assert old is not None
        return _experts(edit, _scaled(edit, old), random.layers)
    if edit.fill is None or (edit.is_whole and edit.fill.kind == "copy"):
        assert old is not None
        return _scaled(edit, old)
    if edit.layers is None:
        return _new(edit, old, random.layers, fresh)
    assert old is not None
    return _scaled(edit, _stacked(edit, old, random.layers, fresh))


def _grown(
    old: Array,
    leaf_map: LeafMap,
    random: Random,
    fresh: Array | None = None,
    scale: Array | None = None,
) -> Array:
    """Returns one array with its units grown; see ``edited`` for the arguments."""
    draw = noise = None
    fresh = None if fresh is None else fresh.astype(old.dtype)
    if random.key is not None and random.word is not None:
        draws = Draws(leaf_map, old.dtype, seeds(random.word), keys_of(random.key, random.place))
        fresh = draws.initialized() if fresh is None else fresh
        draw, noise = draws.draw, draws.normal
    rotation = functools.partial(rotation_of, random.key) if "rotated" in leaf_map.needs else None
    return apply_map(
        leaf_map, old, fresh=fresh, draw=draw, noise=noise, rotation=rotation, scale=scale
    )


def rows_of(edit: Edit, fresh: Any) -> Any:
    """Returns the larger model's own values in the place of old layers, or its first expert."""
    if edit.experts is not None:
        return fresh[0]
    if edit.layers is None:
        return fresh
    return jnp.take(fresh, np.flatnonzero(np.asarray(edit.entries) >= 0), edit.layers.axis)


def _scaled(edit: Edit, array: Array) -> Array:
    """Returns an array of old values times the scales of an edit."""
    if not edit.scales:
        return array
    wide = jnp.promote_types(array.dtype, jnp.float32)
    scales: Array = jnp.asarray(edit.scales, wide)
    if edit.layers is None:
        scales = scales[0]
    else:
        axis = edit.layers.axis
        scales = jnp.repeat(scales, edit.shape[axis] // len(edit.scales))
        scales = jnp.expand_dims(scales, [a for a in range(array.ndim) if a != axis])
    product: Array = (array.astype(wide) * scales).astype(array.dtype)
    return product


def _experts(edit: Edit, old: Array, word: Array | None) -> Array:
    """Returns an array repeated for each expert, with some hidden units redrawn in each."""
    assert edit.experts is not None
    new = jnp.broadcast_to(old, edit.shape)
    if not edit.experts.anew or word is None:
        return new
    wide = old.astype(jnp.promote_types(old.dtype, jnp.float32))
    drawn = uniform(next(seeds(word)), edit.shape, wide.dtype, math.sqrt(3))
    drawn = jnp.mean(wide) + jnp.std(wide) * drawn
    return jnp.where(drawn_anew(edit.experts, edit.shape), drawn.astype(old.dtype), new)


def _new(edit: Edit, old: Array | None, word: Array | None, fresh: Array | None) -> Array:
    """Returns the values of a new array, or of new layers in a shape that fits the whole array."""
    assert edit.fill is not None
    dtype = dtype_named(edit.dtype) if edit.dtype or old is None else old.dtype
    if edit.fill.kind == "mean":
        assert old is not None and edit.layers is not None
        mean = jnp.mean(old, edit.layers.axis, keepdims=True) if old.size else jnp.zeros(())
        return mean.astype(dtype)
    if fresh is not None and edit.fill.kind == "free":
        return lax.convert_element_type(fresh, dtype)
    if edit.layers is None:
        return _values(edit.fill, edit.shape, edit.shape, dtype, word)
    every = len(edit.layers.places), *edit.layer
    new = _values(edit.fill, every, edit.layer, dtype, word)
    return jnp.moveaxis(new, 0, edit.layers.axis).reshape(edit.shape)


def _values(
    fill: Fill, shape: tuple[int, ...], layer: tuple[int, ...], dtype: Any, word: Array | None
) -> Array:
    """Returns new values of one layer, or of several layers along a new first axis."""
    if fill.kind == "identity":
        return jnp.broadcast_to(identity(layer, fill.axes).astype(dtype), shape)
    if fill.is_random and word is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return random_keys(word, shape, dtype)
        drawn: Array = uniform(next(seeds(word)), shape, dtype, math.sqrt(6 / sum(fill.fans)))
        return drawn
    if fill.kind == "constant" and fill.value is None:
        return jnp.broadcast_to(jnp.asarray(fill.values, dtype).reshape(layer), shape)
    value = float(fill.drawn == "ones") if fill.value is None else fill.value
    return jnp.full(shape, value, dtype)


def identity(shape: tuple[int, ...], axes: tuple[int, int]) -> Array:
    """Returns booleans that mark the ones of a kernel that computes the identity."""
    contracted, produced = axes
    places = [lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(len(shape))]
    # In a grouped convolution each group counts its input channels from 0.
    mask = places[contracted] == places[produced] % shape[contracted]
    for axis, place in enumerate(places):
        if axis not in axes:
            mask &= place == (shape[axis] - 1) // 2
    return mask


def _stacked(edit: Edit, old: Array, word: Array | None, fresh: Array | None) -> Array:
    """Returns old layers with new layers between or after them."""
    assert edit.fill is not None and edit.layers is not None
    axis, copies = edit.layers.axis, edit.fill.kind == "copy"
    if not old.shape[axis]:  # the network had no layers
        return jnp.broadcast_to(_new(edit, old, word, fresh), edit.shape).astype(old.dtype)
    if copies and edit.layers.copies:
        return jnp.take(old, jnp.asarray(edit.layers.copies), axis)
    # A new layer (-1) takes the place of the old layer before it: the largest index so far.
    rows = list(itertools.accumulate(edit.layers.places, max, initial=0))[1:]
    shape, each = list(old.shape), edit.shape[axis] // len(rows)
    each_apart = old
    if each > 1:
        each_apart = old.reshape(*shape[:axis], shape[axis] // each, each, *shape[axis + 1 :])
    stack = jnp.moveaxis(repeated(jnp.moveaxis(each_apart, axis, 0), rows), 0, axis)
    stack = stack.reshape(edit.shape) if each > 1 else stack
    if copies:
        return stack
    return jnp.where(edit.new, _new(edit, old, word, fresh).astype(stack.dtype), stack)
