"""Keeps different units in each layer of a stack over which a loop runs: ``stack_of``, ``Order``.

The order of units does not change what a layer computes. Units that stay are first moved to the
front of their layer. All layers then lose the units at the same last places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.dims import LAYERS
from dogwood_jax._widths.layout import Layout, Units, size_of, spread, units_of
from dogwood_jax._widths.widths import Leaf, Width, Widths


@dataclass(frozen=True)
class Order:
    """A new order of units along an axis of an array, for each of its layers.

    Attributes:
        layers: the axis of layers.
        axis: the axis of units.
        entries: for each layer, the old entry that moves to each place along ``axis``.
    """

    layers: int
    axis: int
    entries: tuple[tuple[int, ...], ...]

    def of(self, array: Any) -> Any:
        """Returns an array in this order."""
        shape = [1] * len(array.shape)
        shape[self.layers], shape[self.axis] = len(self.entries), len(self.entries[0])
        entries = np.asarray(self.entries)
        entries = entries if self.layers < self.axis else entries.T
        return jnp.take_along_axis(jnp.asarray(array), entries.reshape(shape), self.axis)


def stack_of(widths: Widths, width: Width) -> tuple[str, Mapping[str, int]] | None:
    """Returns the width of a stack's layers, and the axis of layers in each array of ``width``.

    Returns None if the units are not in exactly one stack.
    """
    found: dict[str, set[tuple[str, int]]] = {}
    for path in dict.fromkeys(place.path for place in width.occurrences):
        found[path] = {
            (layout.width, axis)
            for axis, layout in enumerate(widths.leaf(path).axes)
            if isinstance(layout, Units) and widths[layout.width].fixed == LAYERS
        }
    names = {name for axes in found.values() for name, _ in axes}
    if len(names) != 1 or any(len(axes) != 1 for axes in found.values()):
        return None
    return names.pop(), {path: axis for path, ((_, axis),) in found.items()}


def orders(leaf: Leaf, width: str, layers: int, kept: Sequence[Sequence[int]]) -> tuple[Order, ...]:
    """Returns the orders of an array that move the units that stay to the front.

    Args:
        leaf: the array.
        width: name of the width.
        layers: its axis of layers.
        kept: the units that stay, for each layer.
    """
    return tuple(
        Order(layers, axis, tuple(_entries(layout, width, units) for units in kept))
        for axis, layout in enumerate(leaf.axes)
        if any(units.width == width for units in units_of(layout))
    )


def _entries(layout: Layout, width: str, kept: Sequence[int]) -> tuple[int, ...]:
    """Returns the old entry that moves to each place along an axis."""
    entries = np.arange(size_of(layout))
    for units, along in spread(layout):
        if units.width == width:
            rest = [unit for unit in range(units.size) if unit not in {*kept}]
            places = [np.flatnonzero(along == unit) for unit in range(units.size)]
            for place, unit in enumerate([*kept, *rest]):
                entries[places[place]] = places[unit]
    return tuple(entries.tolist())
