"""Grow an array some places at a time, without holding all of it: ``parts_of``, ``grow_window``.

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.draw import seeds
from dogwood_jax._base.trees import struct
from dogwood_jax._growth.apply_map import Window, appended, apply_map
from dogwood_jax._growth.draws import Draws
from dogwood_jax._growth.leaf_map import AlongAxis, AxisMap, LeafMap


@dataclass(frozen=True)
class Slab:
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


def parts_of(leaf_map: LeafMap, order: Sequence[int]) -> tuple[Slab, ...]:
    """Returns the parts of an array, each of which can be made piece by piece.

    Args:
        leaf_map: what becomes of the array.
        order: its axes as they lie in the file, the one that changes most slowly first.

    Returns:
        The parts in the order of the file. There are none if the array must be made as a whole: if
        entries depend on all others along an axis (means, noise, merged or resampled units), if an
        initializer of the caller's own draws them, or if XLA rounds a product and a sum at once
        (perturbation).
    """
    cut = order[0]
    factors = [_factors(axis) for axis in leaf_map.axes]
    rest = [None if axis == cut else f for axis, f in enumerate(factors)]
    pieces = list(_pieces(leaf_map.axes[cut]))
    if leaf_map.init is not None or leaf_map.perturb:
        return ()
    parts, old, new, draws = list[Slab](), 0, 0, 0
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
        part = Slab(replace(leaf_map, axes=tuple(axes)), part_order, old, new, draws)
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
    if axis.noise or axis.averages or axis.resampled is not None:
        return False
    return not cut or not (axis.sums or axis.pairs)


def _draws(part: Slab) -> int:
    """Returns how many times entries of a part are drawn."""
    count = 0

    def draw(shape: tuple[int, ...], window: Window | None) -> Array:
        nonlocal count
        count += 1
        return jnp.zeros(shape, jnp.float32)

    old = struct([axis.old for axis in part.map.axes], jnp.float32)
    jax.eval_shape(lambda array: apply_map(part.map, array, draw=draw), old)
    return count


def windows_of(part: Slab, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the places along the first axis that are made at a time, and where they come from.

    Places that come from old ones and new places are never in one window, if the part is only
    appended to. A window has fewer than ``count`` places only where there are no more.
    """
    sources = part.sources()
    cuts = [part.old_shape[0]] if _only_appends(part) else []
    for first, stop in itertools.pairwise([0, *cuts, sources.size]):
        for start in range(first, stop, count):
            places = np.arange(start, min(start + count, stop))
            yield places, sources[places]


def is_zero(sources: np.ndarray, leaf_map: LeafMap, part: Slab) -> bool:
    """Whether all entries of a window are zeros; see ``grow_window`` for the arguments."""
    if sources[0] >= 0 or not _only_appends(part):
        return False
    axes = appended([a for a in part.map.axes if isinstance(a, AxisMap)])
    first = [axis for axis, _ in axes].index(part.order[0])
    # New along the first axis are all of them. What is appended along later axes comes on top.
    return leaf_map.kind == "zeros" or all(m.fill == "zero" for _, m in axes[first:])


def grow_window(
    old: np.ndarray,
    places: np.ndarray,
    sources: np.ndarray,
    words: np.ndarray | None,
    leaf_map: LeafMap,
    part: Slab,
    count: int,
    window: np.ndarray,
) -> bool:
    """Makes a window of a part, bit for bit as ``grow`` makes the whole array.

    Args:
        old: the old places that it comes from, in the order of the file: ``[window, ...]``.
        places: the places along the first axis that are made: ``[window]``.
        sources: which ones ``old`` holds, ``[window]``. What it holds for -1 does not count.
        words: the array's seed, ``uint32[2]``; None if nothing is drawn.
        leaf_map: what becomes of the whole array.
        part: the part.
        count: the most places that a window has.
        window: where the result is written, in the order of the file: ``[window, ...]``.

    Returns:
        Whether all of ``old`` is finite.
    """
    # The same program makes all windows, so a short one is filled up.
    more = count - places.size
    filled = np.pad(places, (0, more), mode="edge")
    rest = np.zeros((more, *old.shape[1:]), old.dtype)
    rows, from_ = np.concatenate([old, rest]) if more else old, np.pad(sources, (0, more))
    made, finite = _made(rows, from_, filled, words, leaf_map=leaf_map, part=part)
    _bits(window)[...] = _bits(np.asarray(made))[: places.size]
    return bool(sources.max() < 0 or finite)


def _bits(array: np.ndarray) -> np.ndarray:
    """Returns an array as integers, which NumPy copies at once; bfloat16 it copies one by one."""
    size = array.dtype.itemsize
    return array.view(f"u{size}") if size in (1, 2, 4, 8) and array.ndim else array


def _only_appends(part: Slab) -> bool:
    """Whether old entries stay where they are, and as they are but for a factor."""
    axes = [axis for axis in part.map.axes if isinstance(axis, AxisMap)]
    one_factor = all(axis.factor == 1 for axis in part.map.maps())
    appends = all(axis.appends and not axis.pairs for axis in axes)
    return one_factor and not part.map.offset and appends


def _draws_of(words: Array, leaf_map: LeafMap, part: Slab, dtype: Any) -> Draws:
    later = itertools.islice(seeds(words), part.draws, None)
    return Draws(leaf_map, dtype, later, iter(()))


@functools.partial(jax.jit, static_argnames=("leaf_map", "part"))
def _made(
    old: Array, sources: Array, places: Array, words: Array | None, leaf_map: LeafMap, part: Slab
) -> tuple[Array, Array]:
    """Returns a window by the map itself; see ``grow_window`` for the arguments."""
    draw = None if words is None else _draws_of(words, leaf_map, part, old.dtype).draw
    array = old.transpose(np.argsort(part.order))
    cut = part.order[0]
    made = apply_map(part.map, array, draw=draw, axis=cut, places=(sources, places))
    return made.transpose(part.order), jnp.isfinite(old).all()
