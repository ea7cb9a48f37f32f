"""Grows an array some places at a time, without holding all of it: ``parts_of``, ``grow_window``.

In a file, a contiguous piece of an array is a range of places along its slowest axis. An axis of
several widths is split into its widths first. In row-major products the first width is the slowest.
The parts of a concatenation are contiguous, and each is made on its own.
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
        map: the map of the part; each axis is a single width's.
        order: the axes in the order of the file, the slowest first. Pieces are ranges of places
            along the first.
        old: offset of the part in the old array's data, in entries.
        new: its offset in the new array's data, in entries.
        draws: the number of draws for the parts before it.
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
        """Returns the old place for each new place, or -1 for none: ``[new places]``."""
        axis = self.map.axes[self.order[0]]
        assert isinstance(axis, AxisMap)
        known = np.arange(axis.old) if axis.appends else np.array(axis.sources, int)
        return np.append(known, np.full(axis.new - known.size, -1))


def parts_of(leaf_map: LeafMap, order: Sequence[int]) -> tuple[Slab, ...]:
    """Returns the parts of an array that can be made piece by piece.

    Args:
        leaf_map: the map of the array.
        order: its axes in the order of the file, the slowest first.

    Returns:
        The parts in the order of the file. There are none if the array must be made as a whole: if
        entries depend on others along an axis (means, noise, pairs, merged or resampled units), if
        a custom initializer draws them, or if XLA may fuse the rounding of a product and a sum
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
    """Returns the factors of an axis; a concatenation is a single factor."""
    if isinstance(axis, AxisMap) or axis.kind == "concat":
        return [axis]
    return [factor for part in axis.parts for factor in _factors(part)]


def _pieces(axis: AlongAxis) -> Iterator[list[AlongAxis]]:
    """Yields the contiguous parts of an axis, each as its factors."""
    first, *rest = _factors(axis)
    if isinstance(first, AxisMap):
        yield [first, *rest]
    else:
        for part in first.parts:
            yield from ([*piece, *rest] for piece in _pieces(part))


def _separable(axis: AlongAxis, cut: bool) -> bool:
    """Whether entries can be made without the other entries along an axis."""
    assert isinstance(axis, AxisMap)
    if axis.noise or axis.averages or axis.resampled is not None:
        return False
    return not cut or not (axis.sums or axis.pairs)


def _draws(part: Slab) -> int:
    """Returns the number of draws that a part needs."""
    count = 0

    def draw(shape: tuple[int, ...], window: Window | None) -> Array:
        nonlocal count
        count += 1
        return jnp.zeros(shape, jnp.float32)

    old = struct([axis.old for axis in part.map.axes], jnp.float32)
    jax.eval_shape(lambda array: apply_map(part.map, array, draw=draw), old)
    return count


def windows_of(part: Slab, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields windows: places along the first axis that are made together, and their old places.

    If the part is only appended to, no window has both old and new places. A window has fewer than
    ``count`` places only at the end of these ranges.
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
    # All places are new along the first axis, but later appended axes overwrite its fill.
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
    """Makes a window of a part, bit for bit the same as ``grow`` makes it.

    Args:
        old: old entries at ``sources``, in the order of the file: ``[window, ...]``.
        places: the places along the first axis that are made: ``[window]``.
        sources: the old place of each, ``[window]``; -1 for none, then its entries are ignored.
        words: the array's seed, ``uint32[2]``; None if nothing is drawn.
        leaf_map: the map of the whole array.
        part: the part.
        count: the largest number of places in a window.
        window: receives the result, in the order of the file: ``[window, ...]``.

    Returns:
        Whether all of ``old`` is finite; true if there are no sources.
    """
    # All windows run the same compiled program, so a short window is padded.
    more = count - places.size
    filled = np.pad(places, (0, more), mode="edge")
    rest = np.zeros((more, *old.shape[1:]), old.dtype)
    rows, from_ = np.concatenate([old, rest]) if more else old, np.pad(sources, (0, more))
    made, finite = _made(rows, from_, filled, words, leaf_map=leaf_map, part=part)
    _bits(window)[...] = _bits(np.asarray(made))[: places.size]
    return bool(sources.max() < 0 or finite)


def _bits(array: np.ndarray) -> np.ndarray:
    """Returns an array viewed as integers: NumPy copies bfloat16 entries one by one."""
    size = array.dtype.itemsize
    return array.view(f"u{size}") if size in (1, 2, 4, 8) and array.ndim else array


def _only_appends(part: Slab) -> bool:
    """Whether old entries keep their places, and their values except for one common factor."""
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
    """Returns a window by ``apply_map``, and whether ``old`` is finite; see ``grow_window``."""
    draw = None if words is None else _draws_of(words, leaf_map, part, old.dtype).draw
    array = old.transpose(np.argsort(part.order))
    cut = part.order[0]
    made = apply_map(part.map, array, draw=draw, axis=cut, places=(sources, places))
    return made.transpose(part.order), jnp.isfinite(old).all()
