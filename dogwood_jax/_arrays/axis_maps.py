"""The affine map of a growth, ``new = A(old) + fill``, for one array.

Every axis of an array is taken apart into the widths it is made of (a product is reshaped, a
concatenation split), each width is mapped along an axis of its own (``AxisMap``), and the axis is
put back together. Plain growth is a pad and an update of new entries, the least that one device can
do. But to update an array along an axis that is divided among devices, XLA gathers it. So where
there are several devices, arrays are only padded, which moves entries from device to device, and
new entries are selected in their places. Either way the values are the same, bit for bit.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from dogwood_jax._arrays.moves import along, compacted, may_be_sharded, padded, with_size
from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.layout import Concat, Layout, Product, Units, size_of, units_of
from dogwood_jax._widths.widths import Leaf

Fill = Literal["free", "zero", "mean"]


@dataclass(frozen=True)
class AxisMap:
    """What becomes of the entries of one width along an axis.

    Attributes:
        old: how many there were.
        new: how many there are afterwards.
        sources: the old entry that each of the first entries copies; None for all old ones in
            their places.
        factors: what the copies are multiplied by; None for one.
        into: for each old entry, the new one it is added to; None if none are.
        power: entries are powers of what adds up: 2 for squares.
        fill: what the entries are that copy none: free, zero, or the mean of the old ones.
        rank: where entries are new along several axes, the axis of the highest rank decides.
        noise: standard deviation of noise on new copies, relative to the array's.
    """

    old: int
    new: int
    sources: tuple[int, ...] | None = None
    factors: tuple[float, ...] | None = None
    into: tuple[int, ...] | None = None
    power: int = 1
    fill: Fill = "zero"
    rank: int = 0
    noise: float = 0.0

    @property
    def appends(self) -> bool:
        """Whether old entries keep their places and values."""
        return self.sources is None and self.into is None

    @property
    def rest(self) -> int:
        """How many entries come from no single old one."""
        if self.into is not None:
            return 0
        return self.new - (self.old if self.sources is None else len(self.sources))


def map_of_variable(change: Change, units: Units, leaf: Leaf) -> AxisMap:
    """How an array of the network changes along one of its widths."""
    strategy, (old, new) = change.strategy, (change.old, change.new)
    fate = strategy.incoming if units.role == "incoming" else strategy.outgoing
    if units.role == "both" and strategy.incoming == "zero":
        fate = "zero"
    # Arrays that scale or shift units which are silent already.
    blank: Fill = "zero" if leaf.kind == "zeros" else "free"
    is_blank = change.recipe is not None and leaf.path in change.recipe.blank
    if fate == "sum":
        return AxisMap(old, new, into=change.into)
    if fate == "share":
        return AxisMap(old, new, change.sources, change.shares, fill="free")
    if fate == "copy":
        noise = strategy.noise if units.role == "incoming" else 0.0
        return AxisMap(old, new, change.sources, fill=blank if is_blank else "mean", noise=noise)
    # A unit that is new along two widths is silent by the incoming weights of one of them, or by
    # the outgoing ones of the other: the same width must decide in all arrays.
    rank = 2 * units.rank + (strategy.incoming == "zero")
    return AxisMap(old, new, fill=blank if is_blank else fate, rank=rank)


def map_of_moment(change: Change, units: Units, degree: int, fill: Fill) -> AxisMap:
    """How an average of powers of the gradient changes along one of the array's widths.

    Gradients transform by the adjoint of the growth: where weights are divided among copies,
    those that feed the copies get as much less gradient, and the other way round.

    Args:
        change: how the width changes.
        units: the units along the axis.
        degree: the power of the gradient: 1 for first moments, 2 for second moments, 0 for what
            does not scale with it.
        fill: what new entries are.
    """
    old, new = change.old, change.new
    incoming = units.role == "incoming"
    if change.into is not None:
        if incoming and degree:
            return AxisMap(old, new, into=change.into, power=degree)
        return AxisMap(old, new, change.sources)
    factors = None
    if incoming and change.strategy.outgoing == "share":
        factors = tuple(share**degree for share in change.shares)
    return AxisMap(old, new, change.sources, factors, fill=fill)


def transform(
    array: Array,
    axes: tuple[Layout, ...],
    sizes: Mapping[str, int],
    map_of: Callable[[Units], AxisMap],
    fresh: Array | None = None,
    draw: Callable[[tuple[int, ...]], Array] | None = None,
    noise: Callable[[tuple[int, ...]], Array] | None = None,
) -> Array:
    """Returns an array with every width of its axes mapped.

    Args:
        array: the old array.
        axes: the layout of each of its axes.
        sizes: new sizes of the widths that change.
        map_of: gives the map of units of such a width.
        fresh: an array of the new shape from which free entries are taken.
        draw: gives random entries of a shape where there is no ``fresh``.
        noise: gives standard normal numbers of a shape.
    """
    changes = _Changes(sizes, map_of, draw, noise)
    return changes.extend(array, axes, fresh)


class _Changes:
    """The maps of all widths, and what every part of an array needs to be extended."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        map_of: Callable[[Units], AxisMap],
        draw: Callable[[tuple[int, ...]], Array] | None,
        noise: Callable[[tuple[int, ...]], Array] | None,
    ) -> None:
        self.sizes, self.map_of, self.draw, self.noise = sizes, map_of, draw, noise
        self.sharded = may_be_sharded()

    def extend(self, old: Array, axes: tuple[Layout, ...], fresh: Array | None) -> Array:
        for axis, layout in enumerate(axes):
            if isinstance(layout, Concat) and self._changes(layout):
                return self._extend_parts(old, axes, axis, layout, fresh)
        if any(isinstance(layout, Product) and self._changes(layout) for layout in axes):
            return self._extend_factors(old, axes, fresh)
        return self._extend_units(old, axes, fresh)

    def _changes(self, layout: Layout) -> bool:
        return any(units.width in self.sizes for units in units_of(layout))

    def _extend_parts(
        self,
        old: Array,
        axes: tuple[Layout, ...],
        axis: int,
        layout: Concat,
        fresh: Array | None,
    ) -> Array:
        """Extends the parts of a concatenated axis one by one."""
        starts = [0, *accumulate(size_of(part) for part in layout.parts)]
        new_starts = [0, *accumulate(size_of(part, self.sizes) for part in layout.parts)]
        parts = []
        for i, part in enumerate(layout.parts):
            old_part = lax.slice_in_dim(old, starts[i], starts[i + 1], axis=axis)
            new_part = None
            if fresh is not None:
                new_part = lax.slice_in_dim(fresh, new_starts[i], new_starts[i + 1], axis=axis)
            layouts = (*axes[:axis], part, *axes[axis + 1 :])
            parts.append(self.extend(old_part, layouts, new_part))
        return self._joined(parts, axis)

    def _extend_factors(self, old: Array, axes: tuple[Layout, ...], fresh: Array | None) -> Array:
        """Extends the factors of product axes, each on an axis of its own."""
        factors: list[Layout] = []
        for layout in axes:
            exposed = isinstance(layout, Product) and self._changes(layout)
            factors += layout.parts if exposed else [layout]  # type: ignore[union-attr]
        old = old.reshape([size_of(f) for f in factors])
        if fresh is not None:
            fresh = fresh.reshape([size_of(f, self.sizes) for f in factors])
        new = self.extend(old, tuple(factors), fresh)
        return new.reshape([size_of(layout, self.sizes) for layout in axes])

    def _extend_units(self, old: Array, axes: tuple[Layout, ...], fresh: Array | None) -> Array:
        """Extends axes that are a single width each."""
        maps = {
            axis: self.map_of(layout)
            for axis, layout in enumerate(axes)
            if isinstance(layout, Units) and layout.width in self.sizes
        }
        appended = sorted(
            ((axis, m) for axis, m in maps.items() if m.appends and m.fill != "mean"),
            key=lambda item: (item[1].rank, item[1].fill == "free"),
        )
        array = self._append(old, appended, fresh)
        for axis, axis_map in maps.items():
            if not axis_map.appends or axis_map.fill == "mean":
                array = self._rearrange(array, axis, axis_map, fresh)
        return array

    def _append(
        self, old: Array, appended: list[tuple[int, AxisMap]], fresh: Array | None
    ) -> Array:
        """Appends entries along axes one after another: zeros, fresh ones or drawn ones."""
        if fresh is not None and not self.sharded:
            return _append_from(fresh, old, appended)
        new = list(old.shape)
        for axis, axis_map in appended:
            new[axis] = axis_map.new
        array = padded(old, new)
        if all(axis_map.fill == "zero" for _, axis_map in appended):
            return array
        fresh = self._drawn(tuple(new)) if fresh is None else lax.slice(fresh, [0] * old.ndim, new)
        if self.sharded:
            # Along which axis an entry is new, and so what it is, the last axis decides.
            free = jnp.zeros((1,) * old.ndim, bool)
            for axis, axis_map in appended:
                is_new = _places(array, axis) >= axis_map.old
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

    def _drawn(self, shape: tuple[int, ...]) -> Array:
        assert self.draw is not None, "grow has checked that it can draw"
        return self.draw(shape)

    def _joined(self, parts: list[Array], axis: int) -> Array:
        """Puts parts one after another along an axis."""
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
        if axis_map.into is not None:
            return _merged(array, axis, axis_map)
        copied = array if axis_map.sources is None else self._copied(array, axis, axis_map)
        if not axis_map.rest:
            return copied
        shape, start = with_size(array.shape, axis, axis_map.new), axis_map.new - axis_map.rest
        if axis_map.fill == "mean" and axis_map.old:
            # In single precision at least, for bfloat16 would round the sum.
            wide = jnp.promote_types(array.dtype, jnp.float32)
            mean = jnp.mean(array, axis, wide, keepdims=True).astype(array.dtype)
            rest = jnp.broadcast_to(mean, shape)
        elif axis_map.fill != "free":
            rest = jnp.zeros(shape, array.dtype)
        elif fresh is None:
            rest = self._drawn(shape)
        else:
            rest = lax.slice(fresh, [0] * array.ndim, shape)
        if self.sharded:
            is_new = _places(rest, axis) >= start
            return jnp.where(is_new, rest, padded(copied, shape))
        rest = lax.slice_in_dim(rest, start, axis_map.new, axis=axis)
        return lax.concatenate([copied, rest], axis)

    def _copied(self, array: Array, axis: int, axis_map: AxisMap) -> Array:
        assert axis_map.sources is not None
        copied = self._taken(array, axis, axis_map.sources)
        if axis_map.factors is not None:
            # In single precision at least: rounded to bfloat16 first, thirds would not add up.
            wide = jnp.promote_types(array.dtype, jnp.float32)
            factors = along(jnp.asarray(axis_map.factors, wide), axis, array.ndim)
            copied = (copied * factors).astype(array.dtype)
        if axis_map.noise and self.noise is not None:
            new = _places(copied, axis) >= axis_map.old
            # A constant: growth is affine in the old array, so that gradients follow the adjoint.
            scale = lax.stop_gradient(axis_map.noise * jnp.std(array)).astype(array.dtype)
            copied = copied + jnp.where(new, scale * self.noise(copied.shape), 0)
        return copied

    def _taken(self, array: Array, axis: int, sources: tuple[int, ...]) -> Array:
        """Returns the entries of an axis that are copied."""
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


# An axis of which more pieces are copied is gathered, which takes longer.
_MOST_RUNS = 16


def _runs(sources: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns where runs of successive entries begin, and the entries that they begin with."""
    return [
        (place, source)
        for place, source in enumerate(sources)
        if not place or source != sources[place - 1] + 1
    ]


def _places(array: Array, axis: int) -> Array:
    """Returns the places along an axis, of size 1 along the others."""
    return lax.broadcasted_iota(
        jnp.int32, with_size((1,) * array.ndim, axis, array.shape[axis]), axis
    )


def _append_from(fresh: Array, old: Array, appended: list[tuple[int, AxisMap]]) -> Array:
    """Appends entries along axes one after another, zeros or those of a fresh array."""
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


def _merged(array: Array, axis: int, axis_map: AxisMap) -> Array:
    """Adds up entries along an axis, or the roots of powers."""
    rows = jnp.moveaxis(array, axis, 0)
    rows = rows ** (1 / axis_map.power) if axis_map.power != 1 else rows
    into = jnp.asarray(axis_map.into, int)
    merged = jax.ops.segment_sum(rows, into, num_segments=axis_map.new)
    merged = merged**axis_map.power if axis_map.power != 1 else merged
    return jnp.moveaxis(merged, 0, axis)
