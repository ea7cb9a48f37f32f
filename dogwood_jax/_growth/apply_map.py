"""Applies the affine map of one array: ``apply_map``.

Every axis is split into its widths (a product is reshaped, a concatenation is cut), each width is
mapped along its own axis (``AxisMap``), and the axis is put back together. On one device, plain
growth is a pad and an update of new entries, the minimum of work. But XLA gathers an array to
update it along an axis that is divided among devices. With several devices, arrays are therefore
only padded, which moves entries from device to device, and a select fills in new entries. The
values are the same in both cases, bit for bit.

Large arrays can be made some places along one axis at a time (``Window``), from only the old
entries that these places need. The values are again the same.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._growth.leaf_map import AlongAxis, AxisMap, Compound, LeafMap
from dogwood_jax._growth.moves import along, compacted, may_be_sharded, padded, with_size
from dogwood_jax.strategies import Method


@functools.cache
def matrix_of(method: Method, old: int, new: int) -> np.ndarray:
    """Returns the matrix that resizes entries along an axis: ``float64[new, old]``.

    Args:
        method: see ``resample`` and ``resample_patch``.
        old: number of old entries.
        new: number of new entries.
    """
    if method == "bilinear":  # the first and the last entry stay
        return _linear(np.abs(np.linspace(0, old - 1, new)[:, None] - np.arange(old)))
    if method == "bicubic":
        return _resized(old, new, _cubic, antialias=True)
    is_cubic = method == "patch bicubic"
    resized = _resized(old, new, _cubic if is_cubic else _linear, antialias=is_cubic)
    return np.asarray(np.linalg.pinv(resized.T))


def _resized(
    old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], *, antialias: bool
) -> np.ndarray:
    """Returns the matrix that resizes one axis of an image, with pixel centres at half-integers.

    Args:
        old: number of old pixels.
        new: number of new pixels.
        kernel: the weight of a pixel by its distance.
        antialias: whether the kernel is widened to the new pixel size when an image shrinks.
    """
    places = (np.arange(new) + 0.5) * old / new - 0.5
    wide = max(old / new, 1.0) if antialias else 1.0
    weights = kernel(np.abs(places[:, None] - np.arange(old)) / wide)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.where(distance < 1, 1 - distance, 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Returns the weights of the cubic kernel of Keys, 1981, with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


@dataclass(frozen=True)
class Window:
    """Some places along an axis, if only these are made.

    Attributes:
        axis: the axis.
        size: number of all places along it.
        places: the places that are made, ``[count]``.
    """

    axis: int
    size: int
    places: Array


# Makes free entries of a shape. With a window, the shape has only the places of the window.
Draw = Callable[[tuple[int, ...], Window | None], Array]


def apply_map(
    leaf_map: LeafMap,
    array: Array,
    *,
    fresh: Array | None = None,
    draw: Draw | None = None,
    noise: Callable[[tuple[int, ...]], Array] | None = None,
    rotation: Callable[[int, int], Array] | None = None,
    scale: Array | None = None,
    axis: int = 0,
    places: tuple[Array, Array] | None = None,
) -> Array:
    """Returns an array with every width of its axes mapped.

    Args:
        leaf_map: its map.
        array: the old array.
        fresh: an array of the new shape from which free entries are taken.
        draw: makes free entries of a given shape if there is no ``fresh``. By default they are ones
            for ``kind="ones"``, and zeros otherwise.
        noise: draws standard normal values of a given shape.
        rotation: returns the matrix whose rows mix old units into new ones, from the numbers of
            new and of old units.
        scale: the old array that weights entries in means, if ``leaf_map.is_weighed``: a value for
            each unit, or for each unit of each layer if the first axes are axes of layers.
        axis: a single width's axis, along which only some places are made.
        places: the old places that ``array`` holds, and the new places made from them, each
            ``[count]``. If a new place has no old place, its entries in ``array`` are ignored.
            ``parts_of`` checks which maps allow this.
    """
    if (factor := leaf_map.factor * leaf_map.shrink) != 1:
        array = _times(array, factor, (leaf_map.factor - 1) * leaf_map.offset)

    def default(shape: tuple[int, ...], window: Window | None) -> Array:
        return jnp.full(shape, 1 if leaf_map.kind == "ones" else 0, array.dtype)

    windows = None
    if places is not None:
        whole = leaf_map.axes[axis]
        after = Window(axis, whole.new, places[1])
        appends = isinstance(whole, AxisMap) and whole.appends
        windows = (after if appends else Window(axis, whole.old, places[0])), after
    application = _Application(draw or default, noise, rotation, windows, scale)
    made = application.extend(array, leaf_map.axes, fresh)
    if leaf_map.perturb:
        added = application.draw(made.shape) if fresh is None else fresh
        made = made + jnp.asarray(leaf_map.perturb, made.dtype) * added.astype(made.dtype)
    return made


def _times(array: Array, factor: float, offset: float = 0.0) -> Array:
    """Returns ``factor * array + offset``, computed in at least single precision."""
    wide = jnp.promote_types(array.dtype, jnp.float32)
    scaled = array * jnp.asarray(factor, wide)
    if offset:
        scaled = scaled + jnp.asarray(offset, wide)
    return scaled.astype(array.dtype)


def _resampled(array: Array, axes: Sequence[AxisMap]) -> Array:
    """Returns an array with entries interpolated along axes, in at least single precision."""
    wide = jnp.promote_types(array.dtype, jnp.float32)
    made = array.astype(wide)
    for axis, part in enumerate(axes):
        if part.resampled is not None:
            matrix = jnp.asarray(matrix_of(part.resampled, part.old, part.new), wide)
            product = jnp.tensordot(matrix, made, (1, axis), precision=lax.Precision.HIGHEST)
            made = jnp.moveaxis(product, 0, axis)
    return made.astype(array.dtype)


def appended(axes: Sequence[AxisMap]) -> list[tuple[int, AxisMap]]:
    """Returns the axes along which entries are appended, in the order of appending.

    If entries are new along several axes, the last of these axes decides how they are filled.
    """
    changed = ((axis, m) for axis, m in enumerate(axes) if m.changes)
    found = [(axis, m) for axis, m in changed if m.appends and not m.averages]
    return sorted(found, key=lambda item: (item[1].rank, item[1].fill == "free"))


class _Application:
    """Extends all parts of one array with the same draws, noise, windows and scale."""

    def __init__(
        self,
        draw: Draw,
        noise: Callable[[tuple[int, ...]], Array] | None,
        rotation: Callable[[int, int], Array] | None,
        windows: tuple[Window, Window] | None,
        scale: Array | None,
    ) -> None:
        self._draw, self.noise, self._scale = draw, noise, scale
        self._rotation = rotation
        # The window before and after the places along its axis become the new places.
        self.window: Window | None
        self.new_window: Window | None
        self.window, self.new_window = windows or (None, None)
        self.sharded = may_be_sharded()
        self.selects = self.sharded or windows is not None

    def draw(self, shape: tuple[int, ...]) -> Array:
        """Returns free entries."""
        return self._draw(shape, self.window)

    def places(self, array: Array, axis: int) -> Array:
        """Returns the places along an axis, with size 1 along the other axes."""
        if self.window is not None and axis == self.window.axis:
            return along(self.window.places, axis, array.ndim)
        return _places(array, axis)

    def extend(self, old: Array, axes: tuple[AlongAxis, ...], fresh: Array | None) -> Array:
        for axis, part in enumerate(axes):
            if isinstance(part, Compound) and part.kind == "concat":
                return self._extend_parts(old, axes, axis, part, fresh)
        if any(isinstance(part, Compound) for part in axes):
            return self._extend_factors(old, axes, fresh)
        return self._extend_units(old, [a for a in axes if isinstance(a, AxisMap)], fresh)

    def _extend_parts(
        self,
        old: Array,
        axes: tuple[AlongAxis, ...],
        axis: int,
        whole: Compound,
        fresh: Array | None,
    ) -> Array:
        """Returns an array with each part of a concatenated axis extended."""
        starts = [0, *accumulate(part.old for part in whole.parts)]
        new_starts = [0, *accumulate(part.new for part in whole.parts)]
        parts = []
        for i, part in enumerate(whole.parts):
            old_part = lax.slice_in_dim(old, starts[i], starts[i + 1], axis=axis)
            new_part = None
            if fresh is not None:
                new_part = lax.slice_in_dim(fresh, new_starts[i], new_starts[i + 1], axis=axis)
            parts.append(self.extend(old_part, (*axes[:axis], part, *axes[axis + 1 :]), new_part))
        return self._joined(parts, axis)

    def _extend_factors(
        self, old: Array, axes: tuple[AlongAxis, ...], fresh: Array | None
    ) -> Array:
        """Returns an array with the factors of product axes extended, each on its own axis."""
        factors: list[AlongAxis] = []
        for part in axes:
            factors += part.parts if isinstance(part, Compound) else [part]
        old = old.reshape([factor.old for factor in factors])
        if fresh is not None:
            fresh = fresh.reshape([factor.new for factor in factors])
        new = self.extend(old, tuple(factors), fresh)
        return new.reshape([part.new for part in axes])

    def _extend_units(self, old: Array, axes: list[AxisMap], fresh: Array | None) -> Array:
        """Returns an array extended along axes that are a single width each."""
        if any(part.resampled is not None for part in axes):
            old = _resampled(old, axes)
            axes = [AxisMap(p.new, p.new) if p.resampled is not None else p for p in axes]
        maps = {axis: part for axis, part in enumerate(axes) if part.changes}
        if (factor := prod(part.factor for part in axes)) != 1:
            old = _times(old, factor)
        array = self._append(old, appended(axes), fresh)
        for axis, axis_map in maps.items():
            if not axis_map.appends or axis_map.averages:
                array = self._rearrange(array, axis, axis_map, fresh)
            if axis_map.pairs:
                array = _paired(array, axis, axis_map)
        return array

    def _append(
        self, old: Array, appended: list[tuple[int, AxisMap]], fresh: Array | None
    ) -> Array:
        """Appends entries along axes one after another: zeros, fresh or drawn entries."""
        if fresh is not None and not self.sharded:
            return _append_from(fresh, old, appended)
        new = list(old.shape)
        for axis, axis_map in appended:
            if self.window is None or axis != self.window.axis:
                new[axis] = axis_map.new
            else:
                old = jnp.where(self.places(old, axis) < axis_map.old, old, 0)
        array = padded(old, new)
        if all(axis_map.fill == "zero" for _, axis_map in appended):
            return array
        fresh = self.draw(tuple(new)) if fresh is None else lax.slice(fresh, [0] * old.ndim, new)
        if self.selects:
            # If an entry is new along several axes, the last of them decides how it is filled.
            free = jnp.zeros((1,) * old.ndim, bool)
            for axis, axis_map in appended:
                is_new = self.places(array, axis) >= axis_map.old
                free = jnp.where(is_new, axis_map.fill == "free", free)
            return jnp.where(free, fresh, array)
        extent = list(old.shape)
        for axis, axis_map in appended:
            start = [axis_map.old if a == axis else 0 for a in range(old.ndim)]
            extent[axis] = axis_map.new
            if axis_map.fill == "free":
                block = lax.slice(fresh, start, extent)
                array = lax.dynamic_update_slice(array, block, start)
        return array

    def _joined(self, parts: list[Array], axis: int) -> Array:
        """Concatenates parts along an axis."""
        if not self.sharded:
            return lax.concatenate(parts, axis)
        stops = [*accumulate(part.shape[axis] for part in parts)]
        joined = padded(parts[0], with_size(parts[0].shape, axis, stops[-1]))
        for start, part in zip(stops, parts[1:], strict=False):
            moved = padded(part, joined.shape, axis, start)
            joined = jnp.where(_places(joined, axis) >= start, moved, joined)
        return joined

    def _rearrange(self, array: Array, axis: int, axis_map: AxisMap, fresh: Array | None) -> Array:
        """Copies, drops or merges entries along an axis, and fills in the rest."""
        if axis_map.sums:
            return _merged(array, axis, axis_map)
        shape = with_size(array.shape, axis, axis_map.new)
        if self.window is not None and axis == self.window.axis:
            self.window, shape = self.new_window, array.shape
        copied = array if axis_map.sources is None else self._copied(array, axis, axis_map)
        if not axis_map.rest:
            return copied
        start = axis_map.new - axis_map.rest
        if axis_map.fill == "rotated" and axis_map.old:
            rest = padded(self._rotated(array, axis, axis_map), shape, axis, start)
        elif axis_map.averages and axis_map.old:
            rest = jnp.broadcast_to(self._mean(array, axis, axis_map), shape)
        elif axis_map.fill != "free":
            rest = jnp.zeros(shape, array.dtype)
        elif fresh is None:
            rest = self.draw(shape)
        else:
            rest = lax.slice(fresh, [0] * array.ndim, shape)
        if self.selects:
            is_new = self.places(rest, axis) >= start
            return jnp.where(is_new, rest, padded(copied, shape))
        rest = lax.slice_in_dim(rest, start, axis_map.new, axis=axis)
        return lax.concatenate([copied, rest], axis)

    def _mean(self, array: Array, axis: int, axis_map: AxisMap) -> Array:
        """Returns the mean of old entries along an axis, which new entries are filled with."""
        # In at least single precision, because bfloat16 would round the sum.
        wide = jnp.promote_types(array.dtype, jnp.float32)
        entries = array
        if axis_map.fill == "weighed":
            assert self._scale is not None
            entries = array.astype(wide) * _weights(self._scale, array.shape, axis)
        elif axis_map.fill == "size":
            entries = jnp.abs(array)
        return jnp.mean(entries, axis, wide, keepdims=True).astype(array.dtype)

    def _rotated(self, array: Array, axis: int, axis_map: AxisMap) -> Array:
        """Returns the entries of new units that mix old units."""
        assert self._rotation is not None
        wide = jnp.promote_types(array.dtype, jnp.float32)
        matrix = self._rotation(axis_map.rest, axis_map.old).astype(wide)
        highest = lax.Precision.HIGHEST
        mixed = jnp.tensordot(matrix, array.astype(wide), (1, axis), precision=highest)
        return jnp.moveaxis(mixed, 0, axis).astype(array.dtype)

    def _copied(self, array: Array, axis: int, axis_map: AxisMap) -> Array:
        assert axis_map.sources is not None
        window = self.window if self.window is not None and axis == self.window.axis else None
        copied = self._taken(array, axis, axis_map.sources) if window is None else array
        if axis_map.shares is not None and (axis_map.is_rooted or axis_map.weighs):
            # In at least single precision: thirds rounded to bfloat16 would not add up to one.
            wide = jnp.promote_types(array.dtype, jnp.float32)
            shares = jnp.asarray(axis_map.shares, wide)
            shares = shares if window is None else jnp.take(shares, window.places, mode="clip")
            copied = (copied * along(shares, axis, array.ndim)).astype(array.dtype)
        if axis_map.noise and self.noise is not None:
            new = _places(copied, axis) >= axis_map.old
            # A constant keeps the growth affine in the old array; gradients follow the adjoint.
            scale = lax.stop_gradient(axis_map.noise * jnp.std(array)).astype(array.dtype)
            copied = copied + jnp.where(new, scale * self.noise(copied.shape), 0)
        return copied

    def _taken(self, array: Array, axis: int, sources: tuple[int, ...]) -> Array:
        """Returns the copied entries of an axis."""
        if not sources:
            return lax.slice_in_dim(array, 0, 0, axis=axis)
        runs = _runs(sources)
        if self.sharded and len(runs) > 2 and all(map(int.__lt__, sources, sources[1:])):
            return compacted(array, axis, sources)
        if len(runs) > _MOST_RUNS:
            return jnp.take(array, jnp.asarray(sources, int), axis=axis)
        if not self.sharded:
            stops = [*(place for place, _ in runs[1:]), len(sources)]
            parts = [
                lax.slice_in_dim(array, source, source + stop - place, axis=axis)
                for (place, source), stop in zip(runs, stops, strict=True)
            ]
            return lax.concatenate(parts, axis)
        shape = with_size(array.shape, axis, len(sources))
        taken = padded(array, shape, axis, runs[0][0] - runs[0][1])
        for start, source in runs[1:]:
            moved = padded(array, shape, axis, start - source)
            taken = jnp.where(_places(taken, axis) >= start, moved, taken)
        return taken


# An axis with more runs of copied entries is gathered by index, which takes longer.
_MOST_RUNS = 16


def _runs(sources: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns the first place and the first source of each run of successive sources."""
    return [
        (place, source)
        for place, source in enumerate(sources)
        if not place or source != sources[place - 1] + 1
    ]


def _places(array: Array, axis: int) -> Array:
    """Returns the places along an axis, with size 1 along the other axes."""
    return lax.broadcasted_iota(
        jnp.int32, with_size((1,) * array.ndim, axis, array.shape[axis]), axis
    )


def _weights(scale: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Returns the weights of old units in the mean of an array whose units are scaled.

    A new unit's scale is the mean of the old absolute scales; the weights are relative to it. After
    scaling, a new unit is therefore the mean of the scaled old units; before scaling, it is no
    larger than the old units. If all scales are zero, a new unit is zero after scaling.

    Args:
        scale: the scales of old units, see ``apply_map``.
        shape: shape of the array.
        axis: the axis of the units.
    """
    layers = next(n for n in range(axis + 1) if prod(shape[:n]) * shape[axis] == scale.size)
    ones = (1,) * len(shape)
    along_axes = (*shape[:layers], *with_size(ones, axis, shape[axis])[layers:])
    scale = scale.astype(jnp.promote_types(scale.dtype, jnp.float32)).reshape(along_axes)
    size = jnp.mean(jnp.abs(scale), axis, keepdims=True)
    is_zero = size == 0
    return jnp.where(is_zero, 1, scale / jnp.where(is_zero, 1, size))


def _append_from(fresh: Array, old: Array, appended: list[tuple[int, AxisMap]]) -> Array:
    """Appends entries along axes one after another: zeros, or entries of a fresh array."""
    array = old
    for fill, group in itertools.groupby(appended, key=lambda item: item[1].fill):
        extent = list(array.shape)
        for axis, axis_map in group:
            extent[axis] = axis_map.new
        if fill == "free":
            whole = lax.slice(fresh, [0] * old.ndim, extent)
            array = lax.dynamic_update_slice(whole, array, [0] * old.ndim)
        else:
            array = padded(array, extent)
    return array


def _paired(array: Array, axis: int, axis_map: AxisMap) -> Array:
    """Copies entries of the first half of new units to the second half, perhaps negated."""
    half, places = (axis_map.new - axis_map.old) // 2, _places(array, axis)
    first = axis_map.pairs * padded(array, array.shape, axis, half)
    second = (places >= axis_map.old + half) & (places < axis_map.old + 2 * half)
    array = jnp.where(second, first, array)
    if axis_map.pairs < 0:  # with an odd number, the last unit has no partner that cancels it
        array = jnp.where(places < axis_map.old + 2 * half, array, 0)
    return array


def _merged(array: Array, axis: int, axis_map: AxisMap) -> Array:
    """Adds up entries of merged units along an axis; powers are added up as their roots."""
    rows = jnp.moveaxis(array, axis, 0)
    rows = rows ** (1 / axis_map.power) if axis_map.power != 1 else rows
    into = jnp.asarray(axis_map.into, int)
    merged = jax.ops.segment_sum(rows, into, num_segments=axis_map.new)
    merged = merged**axis_map.power if axis_map.power != 1 else merged
    return jnp.moveaxis(merged, 0, axis)
