"""Weights on one side of some units of a width, as rows: ``Rows`` and ``blocks_of``.

All weights of a unit are a row of one matrix, ``[units, weights]``, even if they are in several
arrays or on axes of several widths.

A unit of a width can stand for several units of the network: a head for all its dimensions, a unit
of stacked layers for one in every layer. ``slots_of`` finds these *slots*.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._growth.growth import Growth
from dogwood_jax._widths.layout import Layout, Role, Units, spread, units_along, units_of
from dogwood_jax._widths.widths import Kind, Leaf


@dataclass(frozen=True, eq=False)
class Block:
    """Weights of some units in one array.

    Attributes:
        leaf: the array.
        axis: the axis of the units.
        positions: the positions along every axis; along ``axis``, first all positions of the first
            unit, then all positions of the next, and so on.
        units: number of units.
    """

    leaf: Leaf
    axis: int
    positions: tuple[np.ndarray, ...]
    units: int

    @property
    def _shape(self) -> list[int]:
        """The shape of the block, with the axis of the units first."""
        lengths = [len(p) for p in self.positions]
        return [lengths.pop(self.axis), *lengths]

    @property
    def weights(self) -> int:
        """Number of weights of a unit in the block."""
        return prod(self._shape) // max(self.units, 1)

    def read(self, array: Array, dtype: Any) -> Array:
        """Returns the rows of these weights."""
        block = jnp.moveaxis(array[np.ix_(*self.positions)], self.axis, 0)
        return block.reshape(self.units, -1).astype(dtype)

    def write(self, array: Array, rows: Array) -> Array:
        """Returns the array with these weights replaced by rows."""
        block = jnp.moveaxis(rows.reshape(self._shape), 0, self.axis)
        if not jnp.issubdtype(array.dtype, jnp.complexfloating):
            block = block.real  # the other side of the units may be complex
        return array.at[np.ix_(*self.positions)].set(block.astype(array.dtype))

    def slots(self, widths: Mapping[str, int]) -> np.ndarray:
        """Returns an index for each weight of a unit: its units of other widths, as one number.

        The index is -1 for weights without one of the widths.
        """
        shape = [len(p) for p in self.positions]
        shape[self.axis] //= self.units
        slot = np.zeros(shape, int)
        for width, size in widths.items():
            unit = np.full(shape, -1)
            for axis, layout in enumerate(self.leaf.axes):
                along = units_along(layout, width, ("incoming", "outgoing", "both"))
                along = along[self.positions[axis][: shape[axis]]]
                rest = [a for a in range(len(shape)) if a != axis]
                unit = np.maximum(unit, np.expand_dims(along, rest))
            slot = np.where((unit < 0) | (slot < 0), -1, slot * size + unit)
        return np.moveaxis(slot, self.axis, 0).ravel()


def blocks_of(
    growth: Growth,
    width: str,
    roles: Iterable[Role],
    kinds: Iterable[Kind] = ("random", "zeros", "ones"),
    *,
    old: bool = False,
) -> list[Block]:
    """Returns blocks of a width's new (or old) units, in these roles and kinds of arrays."""
    change = growth.change[width]
    first, last = (0, change.old) if old else (change.old, change.new)
    blocks = []
    for leaf in growth.after.leaves:
        for axis, layout in enumerate(leaf.axes):
            for units, along in spread(layout):
                if units.width == width and units.role in roles and leaf.kind in kinds:
                    positions = [_not_claimed(other, units, growth) for other in leaf.axes]
                    mine = (along >= first) & (along < last) & positions[axis]
                    order = np.argsort(along, kind="stable")
                    places = [np.flatnonzero(p) for p in positions]
                    places[axis] = order[mine[order]]
                    blocks.append(Block(leaf, axis, tuple(places), last - first))
    return blocks


def _not_claimed(layout: Layout, owner: Units, growth: Growth) -> np.ndarray:
    """Returns booleans that mark positions without new units of widths with a higher rank."""
    free = None
    for units, along in spread(layout):
        change = growth.change.get(units.width)
        claimed = along >= (change.old if change else np.inf)
        if units.rank <= owner.rank:
            claimed = np.zeros(along.shape, bool)
        free = ~claimed if free is None else free & ~claimed
    assert free is not None
    return free


class Rows:
    """All weights on one side of some units of a width: ``[units, weights]``."""

    def __init__(self, blocks: list[Block], dtype: Any) -> None:
        self.blocks, self.dtype = blocks, dtype
        sizes = [block.weights for block in blocks]
        self.block = np.repeat(np.arange(len(blocks)), sizes)
        self.starts = [0, *np.cumsum(sizes).tolist()]

    def read(self, leaves: Mapping[str, Any]) -> Array:
        rows = [block.read(leaves[block.leaf.path], self.dtype) for block in self.blocks]
        return jnp.concatenate(rows, axis=1)

    def write(self, leaves: Mapping[str, Any], rows: Array) -> dict[str, Any]:
        written = dict(leaves)
        for i, block in enumerate(self.blocks):
            part = rows[:, self.starts[i] : self.starts[i + 1]]
            written[block.leaf.path] = block.write(written[block.leaf.path], part)
        return written

    def slots(self, widths: Mapping[str, int]) -> np.ndarray:
        """Returns the slot of each weight of a unit, or -1, see ``Block.slots``."""
        parts = [block.slots(widths) for block in self.blocks]
        return np.concatenate(parts) if parts else np.zeros(0, int)


def slots_of(
    growth: Growth, width: str, writers: list[Block], readers: list[Block]
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the widths, with their sizes, that split the units of a width into slots.

    These widths occur in all arrays that read the units, and in some that write them, and are not
    summed over in between. The first result holds widths of layers or experts: their slots share
    neither inputs nor outputs. The second holds widths that are outgoing together with this one,
    such as the dimensions of a head.
    """

    def found(name: str, block: Block) -> Iterator[Units]:
        return (u for layout in block.leaf.axes for u in units_of(layout) if u.width == name)

    apart, along = {}, {}
    for name, size in growth.after.sizes.items():
        if name == width or size < 2:
            continue
        written = any(u.role == "incoming" for b in writers for u in found(name, b))
        if written and all((b.slots({name: size}) >= 0).all() for b in readers):
            if all(u.rank == 0 for b in readers for u in found(name, b)):
                apart[name] = size
            elif all(u.role == "outgoing" for b in readers for u in found(name, b)):
                along[name] = size
    return apart, along
