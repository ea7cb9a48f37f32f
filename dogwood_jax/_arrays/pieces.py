"""Grow an array some places at a time, without holding all of it: ``parts_of``, ``grow_piece``.

The entries of an array lie one after another in a file, so a piece of the file is a range of places
along the axis that changes most slowly there. An axis of several widths is taken apart first. In
row-major products the first width changes most slowly. The parts of a concatenation lie one after
another, and each is cut on its own.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._arrays.apply_map import Window, apply_map
from dogwood_jax._arrays.draws import Draws
from dogwood_jax._base.draw import seeds
from dogwood_jax._base.trees import struct
from dogwood_jax._growth.leaf_map import AlongAxis, AxisMap, LeafMap


@dataclass(frozen=True)
class Part:
    """A part of an array that is made piece by piece.

    Attributes:
        map: what becomes of it; each axis is a single width's.
        order: the axes as they lie in the file, the one that changes most slowly first. Pieces are
            ranges of places along the first.
        old: where the part begins in the old file, in entries.
        new: where it begins in the new one.
        draws: how many times entries are drawn for the parts before it.
    """

    map: LeafMap
    order: tuple[int, ...]
    old: int = 0
    new: int = 0
    draws: int = 0

    @property
    def old_shape(self) -> tuple[int, ...]:
        """The shape of the old part in the file."""
        return tuple(self.map.axes[axis].old for axis in self.order)

    @property
    def new_shape(self) -> tuple[int, ...]:
        """The shape of the new part in the file."""
        return tuple(self.map.axes[axis].new for axis in self.order)

    def sources(self) -> np.ndarray:
        """Returns the old place that each new place comes from, -1 for none: ``[new places]``."""
        axis = self.map.axes[self.order[0]]
        assert isinstance(axis, AxisMap)
        known = np.arange(axis.old) if axis.appends else np.array(axis.sources, int)
        return np.append(known, np.full(axis.new - known.size, -1))


def parts_of(leaf_map: LeafMap, order: Sequence[int]) -> tuple[Part, ...]:
    """Returns the parts of an array, each of which can be made piece by piece.

    Args:
        leaf_map: what becomes of the array.
        order: its axes as they lie in the file, the one that changes most slowly first.

    Returns:
        The parts in the order of the file. There are none if the array must be made as a whole: if
        entries depend on all others along an axis (means, noise, merged units), if an initializer
        of the caller's own draws them, or if XLA rounds a product and a sum at once (perturbation).
    """
    cut = order[0]
    factors = [_factors(axis) for axis in leaf_map.axes]
    rest = [None if axis == cut else f for axis, f in enumerate(factors)]
    pieces = list(_pieces(leaf_map.axes[cut]))
    if leaf_map.init is not None or leaf_map.perturb:
        return ()
    parts, old, new, draws = list[Part](), 0, 0, 0
    for piece in pieces:
        places, axes = list[list[int]](), list[AlongAxis]()
        for axis, other in enumerate(rest):
            here = piece if axis == cut else other
            if here is None or not all(isinstance(factor, AxisMap) for factor in here):
                return ()
            places.append([*range(len(axes), len(axes) + len(here))])
            axes += here
        part_order = tuple(itertools.chain.from_iterable(places[axis] for axis in order))
        if not all(_separable(axis, number == part_order[0]) for number, axis in enumerate(axes)):
            return ()
        part = Part(replace(leaf_map, axes=tuple(axes)), part_order, old, new, draws)
        parts.append(part)
        old, new = old + prod(part.old_shape), new + prod(part.new_shape)
        draws += _draws(part) if len(pieces) > 1 else 0
    return tuple(parts)


def _factors(axis: AlongAxis) -> list[AlongAxis]:
    """Returns the widths whose product an axis is; a concatenation is one of them."""
    if isinstance(axis, AxisMap) or axis.kind == "concat":
        return [axis]
    return [factor for part in axis.parts for factor in _factors(part)]


def _pieces(axis: AlongAxis) -> Iterator[list[AlongAxis]]:
    """Yields the parts that follow each other along an axis, each as its factors."""
    first, *rest = _factors(axis)
    if isinstance(first, AxisMap):
        yield [first, *rest]
    else:
        for part in first.parts:
            yield from ([*piece, *rest] for piece in _pieces(part))


def _separable(axis: AlongAxis, cut: bool) -> bool:
    """Whether entries can be made without all others along an axis."""
    assert isinstance(axis, AxisMap)
    if axis.noise or (axis.fill == "mean" and axis.rest):
        return False
    return not cut or not (axis.sums or axis.pairs)


def _draws(part: Part) -> int:
    """Returns how many times entries of a part are drawn."""
    count = 0

    def draw(shape: tuple[int, ...], window: Window | None) -> Array:
        nonlocal count
        count += 1
        return jnp.zeros(shape, jnp.float32)

    old = struct([axis.old for axis in part.map.axes], jnp.float32)
    jax.eval_shape(lambda array: apply_map(part.map, array, draw=draw), old)
    return count


@functools.partial(jax.jit, static_argnames=("leaf_map", "part"))
def grow_piece(
    old: Array, sources: Array, places: Array, words: Array | None, leaf_map: LeafMap, part: Part
) -> tuple[Array, Array]:
    """Returns some places of a part, bit for bit what ``grow`` makes of the whole array.

    Args:
        old: the old places that they come from, in the order of the file: ``[count, ...]``.
        sources: which ones these are, ``[count]``. What ``old`` holds for -1 does not count.
        places: the new places, ``[count]``.
        words: the array's seed, ``uint32[2]``; None if nothing is drawn.
        leaf_map: what becomes of the whole array.
        part: the part.

    Returns:
        The new places in the order of the file, and whether all of ``old`` is finite.
    """
    draw = None
    if words is not None:
        later = itertools.islice(seeds(words), part.draws, None)
        draw = Draws(leaf_map, old.dtype, later, iter(())).draw
    array = old.transpose(np.argsort(part.order))
    cut = part.order[0]
    made = apply_map(part.map, array, draw=draw, axis=cut, places=(sources, places))
    return made.transpose(part.order), jnp.isfinite(old).all()
