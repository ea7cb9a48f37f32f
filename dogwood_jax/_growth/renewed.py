"""Reinitializes units in place: ``renewed``.

A renewal is a growth whose new units take the places of old units. Roles decide which entries are
drawn and which are zero, as for new units, but all shapes stay the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.draw import seeds
from dogwood_jax._growth.draws import Draws, keys_of, words_of
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.moves import along
from dogwood_jax._widths.layout import Units, spread
from dogwood_jax._widths.widths import Leaf, Widths
from dogwood_jax.strategies import Start


def renewal(widths: Widths, names: list[str], strategy: Start) -> Growth:
    """Returns a growth that adds no units and defines the new values of renewed units."""
    sizes = {name: widths[name].size for name in names}
    changes = (Change(name, size, size, strategy) for name, size in sizes.items())
    return Growth(widths, tuple(changes))


def new_along(leaf: Leaf, masks: Mapping[str, Array]) -> list[Array]:
    """Returns booleans that mark the places of renewed units along each axis of an array.

    Args:
        leaf: the array.
        masks: booleans that mark the renewed units of widths, by name: ``[units]``.
    """
    found = [jnp.zeros(size, bool) for size in leaf.shape]
    for axis, _, is_new in _places(leaf, masks):
        found[axis] = found[axis] | is_new
    return found


def _places(leaf: Leaf, masks: Mapping[str, Array]) -> Iterator[tuple[int, Units, Array]]:
    for axis, layout in enumerate(leaf.axes):
        for units, numbers in spread(layout):
            if units.width in masks:
                taken = jnp.asarray(masks[units.width])[np.maximum(numbers, 0)]
                yield axis, units, taken & jnp.asarray(numbers >= 0)


def renewed(
    leaves: Mapping[str, Any], growth: Growth, masks: Mapping[str, Array], key: Array
) -> dict[str, Any]:
    """Returns arrays by path with some units reinitialized.

    Args:
        leaves: the arrays by path.
        growth: the new values of units, from ``renewal``.
        masks: booleans that mark the renewed units of its widths, by name: ``[units]``.
        key: the key of random entries.
    """
    arrays, known = dict(leaves), growth.widths.leaves
    words = words_of(key, len(known))
    for number, leaf in enumerate(known):
        fills = [
            (change.rank, change.fill == "free", axis, is_new)
            for axis, units, is_new in _places(leaf, masks)
            for change in [growth.change[units.width].along(units, leaf)]
        ]
        if not fills:
            continue
        array = jnp.asarray(arrays[leaf.path])
        draws = Draws(
            growth.maps[leaf.path], array.dtype, seeds(words[number]), keys_of(key, number)
        )
        drawn = draws.initialized()
        drawn = draws.draw(leaf.shape, None) if drawn is None else drawn
        # If units of several widths meet, the last of them decides, as in growth.
        for _, is_free, axis, is_new in sorted(fills, key=lambda fill: fill[:2]):
            array = jnp.where(along(is_new, axis, array.ndim), drawn if is_free else 0, array)
        arrays[leaf.path] = array
    return arrays
