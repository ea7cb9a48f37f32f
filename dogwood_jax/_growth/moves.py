"""Moves entries along axes that may be divided among devices, without gathering the axis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def compacted(array: Array, axis: int, sources: tuple[int, ...]) -> Array:
    """Returns some entries of an axis in their order, moved without gathering the axis.

    Each entry moves by powers of two, the smallest first: 5 places are 1 and 4. No entry overtakes
    another, so two entries are never in the same place.
    """
    places = np.array(sources)
    steps = places - np.arange(len(sources))
    for bit in range(int(steps.max(initial=0)).bit_length()):
        moves = steps >> bit & 1
        places = places - (moves << bit)
        arrives = np.zeros(array.shape[axis], bool)
        arrives[places[moves == 1]] = True
        moved = padded(array, array.shape, axis, -(1 << bit))
        array = jnp.where(along(jnp.asarray(arrives), axis, array.ndim), moved, array)
    return padded(array, with_size(array.shape, axis, len(sources)))


def repeated(array: Array, sources: Sequence[int]) -> Array:
    """Returns the entries of the first axis, some repeated, by moves as in ``compacted``.

    Args:
        array: the old array.
        sources: the old place of each new entry, such as ``(0, 0, 1, 2)``: starts with 0; each next
            one is the same place or the next place.
    """
    if not may_be_sharded() or jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return array[jnp.asarray(sources)]
    places = np.arange(len(sources))
    steps = places - np.array(sources)
    array, moves = padded(array, (len(sources), *array.shape[1:])), list[tuple[int, np.ndarray]]()
    # Entries move by the largest step first. The moves are planned backwards from the final places;
    # two entries meet in a place only if they copy the same entry.
    for bit in range(int(steps.max(initial=0)).bit_length()):
        step = steps & 1 << bit
        arrives = np.zeros(len(sources), bool)
        arrives[places[step > 0]] = True
        moves.append((1 << bit, arrives))
        places = places - step
    for step, arrives in reversed(moves):
        moved = padded(array, array.shape, 0, step)
        array = jnp.where(along(jnp.asarray(arrives), 0, array.ndim), moved, array)
    return array


def padded(array: Array, shape: Sequence[int], axis: int = 0, start: int = 0) -> Array:
    """Returns an array cut or padded with zeros to a shape, moved along one axis."""
    low = [start if a == axis else 0 for a in range(array.ndim)]
    high = [n - m - s for s, n, m in zip(low, shape, array.shape, strict=True)]
    return _pad(array, low, high)


def _pad(array: Array, low: list[int], high: list[int]) -> Array:
    """Pads or cuts an array on both sides of each axis."""
    room = [max(n, 1) for n in array.shape]
    before = [min(max(a, 0), n) for a, n in zip(low, room, strict=True)]
    after = [min(max(b, 0), n - a) for a, b, n in zip(before, high, room, strict=True)]
    low, high = ([*map(int.__sub__, *pair)] for pair in ((low, before), (high, after)))
    zero = jnp.zeros((), array.dtype)
    if max((*low, *high), default=0) <= 0 or not may_be_sharded():
        padding = zip(map(int.__add__, low, before), map(int.__add__, high, after), strict=True)
        return lax.pad(array, zero, [(a, b, 0) for a, b in padding])
    # Pads by at most the axis length at a time: XLA would gather the array for a longer pad.
    array = lax.pad(array, zero, [(a, b, 0) for a, b in zip(before, after, strict=True)])
    array = lax.optimization_barrier(array)  # type: ignore[no-untyped-call]
    return _pad(array, low, high)


def with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def along(vector: Array, axis: int, ndim: int) -> Array:
    return vector.reshape([-1 if a == axis else 1 for a in range(ndim)])


def may_be_sharded() -> bool:
    """Whether there are several devices. Nothing more is known while a program is compiled."""
    return jax.device_count() > 1
