"""What becomes of one array, without names: ``LeafMap``, an affine map ``new = A(old) + fill``.

A map holds no names, so arrays that grow alike have equal maps, as those of repeated layers. A map
is derived once from a growth (``Growth.maps``). ``grow`` applies it to the network's arrays, and
``grow_opt_state`` applies its adjoint to what an optimizer keeps of their gradients. Where another
array weighs entries in means, ``Growth.weighed`` says which.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from dogwood_jax._widths.widths import Kind
from dogwood_jax.strategies import Initializer, Method

Fill = Literal["free", "zero", "mean", "weighed", "size"]


@dataclass(frozen=True)
class AxisMap:
    """What becomes of the units of one width along an axis.

    Attributes:
        old: how many there were.
        new: how many there are afterwards.
        sources: the old unit that each of the first units copies; None for all old units in their
            places.
        shares: for each copy, its share of its unit, such as 0.5; None if all have the whole.
        into: for each old unit, the new unit into which it is merged; None if none are merged.
        weighs: whether entries add up over the units, as outgoing weights do. Then ``shares``
            multiply them, and entries of units that are merged are added up. Otherwise entries are
            copied as they are.
        power: which power of a quantity entries are, 2 for squares. Quantities are added up.
        fill: how entries without a source are filled: free, zero, with the mean of the old ones,
            with their mean weighed by another array (``"weighed"``), or with the mean of their
            absolute values (``"size"``).
        rank: where entries are new along several axes, the axis of the highest rank decides.
        noise: standard deviation of noise on new copies, relative to the array's.
        pairs: for new units in pairs, the sign of the second one's entries; 0 for no pairs.
        forgets: whether an optimizer keeps nothing of old units for their copies.
        factor: what old entries are multiplied by here, besides the array's own factor.
        resampled: how all entries are interpolated between old ones; None if they are not.
    """

    old: int
    new: int
    sources: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    into: tuple[int, ...] | None = None
    weighs: bool = False
    power: int = 1
    fill: Fill = "zero"
    rank: int = 0
    noise: float = 0.0
    pairs: Literal[-1, 0, 1] = 0
    forgets: bool = False
    factor: float = 1.0
    resampled: Method | None = None

    @property
    def changes(self) -> bool:
        return self.old != self.new or not self.appends

    @property
    def sums(self) -> bool:
        """Whether old entries are added up."""
        return self.into is not None and self.weighs

    @property
    def appends(self) -> bool:
        """Whether old entries keep their places and values."""
        return self.sources is None and not self.sums and self.resampled is None

    @property
    def averages(self) -> bool:
        """Whether new entries depend on all old ones along the axis."""
        return self.rest > 0 and self.fill in ("mean", "weighed", "size")

    @property
    def rest(self) -> int:
        """How many entries come from no single old one."""
        if self.sums or self.resampled is not None:
            return 0
        return self.new - (self.old if self.sources is None else len(self.sources))

    def adjoint(self, degree: int, fill: Fill) -> "AxisMap":
        """Returns the map of an average of powers of the gradient.

        If each of two copies has half of the outgoing weights, the gradients of their incoming
        weights are half as large. If outgoing weights are added up, so are these gradients.

        Args:
            degree: the power of the gradient: 1 for first moments, 2 for second moments, 0 for what
                does not scale with it.
            fill: how new entries are filled.
        """
        if self.resampled is not None:  # entries that come from several old ones are new
            return AxisMap(self.old, self.new, (), fill=fill)
        if self.forgets:
            return self._without_copies().adjoint(degree, fill)
        shares = None
        if self.shares is not None and not self.weighs:
            shares = tuple(share**degree for share in self.shares)
        return AxisMap(
            self.old,
            self.new,
            self.sources,
            shares,
            self.into,
            weighs=not self.weighs and degree > 0,
            power=max(degree, 1),
            fill=fill,
            factor=self.factor**-degree,
        )

    def of_numbers(self, *, copied: bool) -> "AxisMap":
        """Returns the map of a number of each unit, see ``LeafMap.of_numbers``."""
        if self.resampled is not None:
            return AxisMap(self.old, self.new, ())
        if self.forgets:
            return self._without_copies().of_numbers(copied=copied)
        weighs, factor = self.weighs and not copied, 1.0 if copied else self.factor
        return replace(self, weighs=weighs, fill="zero", noise=0.0, pairs=0, factor=factor)

    def _without_copies(self) -> "AxisMap":
        """Returns the map in which new units copy none."""
        sources = None if self.sources is None else self.sources[: self.old]
        shares = None if self.shares is None else self.shares[: self.old]
        return replace(self, sources=sources, shares=shares, forgets=False)


@dataclass(frozen=True)
class Compound:
    """The maps of several widths that lie along one axis: a row-major product, or a sequence."""

    kind: Literal["product", "concat"]
    parts: tuple["AlongAxis", ...]

    @property
    def old(self) -> int:
        return self._size([part.old for part in self.parts])

    @property
    def new(self) -> int:
        return self._size([part.new for part in self.parts])

    @property
    def changes(self) -> bool:
        return any(part.changes for part in self.parts)

    def _size(self, sizes: list[int]) -> int:
        return prod(sizes) if self.kind == "product" else sum(sizes)


AlongAxis = AxisMap | Compound


@dataclass(frozen=True)
class LeafMap:
    """What becomes of one array.

    Attributes:
        axes: what becomes of each axis.
        factor: what old entries are multiplied by.
        kind: what free entries are: ``"random"``, ``"ones"`` or ``"zeros"``.
        fan_in: axes whose new sizes multiply to the fan-in of random entries.
        fan_out: axes whose new sizes multiply to their fan-out.
        init: initializer of random entries; None for the one by default.
        shrink: what old entries are multiplied by, without what an optimizer keeps of them.
        perturb: how many times an array as in a new network is added in the end.
        offset: a number that the array is added to wherever it is read. ``factor`` multiplies the
            sum, as 1 + scale.
    """

    axes: tuple[AlongAxis, ...]
    factor: float = 1.0
    kind: Kind = "random"
    fan_in: tuple[int, ...] = ()
    fan_out: tuple[int, ...] = ()
    init: Initializer | None = None
    shrink: float = 1.0
    perturb: float = 0.0
    offset: float = 0.0

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the new array."""
        return tuple(axis.new for axis in self.axes)

    @cached_property
    def changes(self) -> bool:
        """Whether anything becomes of the array."""
        return self.factor != 1 or any(axis.changes for axis in self.axes)

    @property
    def rescales(self) -> bool:
        """Whether old entries are multiplied by numbers that make up for others."""
        return self.factor != 1 or any(axis.factor != 1 for axis in self.maps())

    @property
    def grows(self) -> bool:
        """Whether it gets new entries, or others' values, rather than only losing some."""
        return self.factor != 1 or any(
            axis.new > axis.old or axis.resampled is not None for axis in self.maps()
        )

    @property
    def needs(self) -> frozenset[str]:
        """Which random numbers it needs: ``"free"`` entries, ``"noise"``."""
        found = {"noise" for axis in self.maps() if axis.noise}
        if self.perturb:
            found.add("free")
        if self.kind == "random":
            found |= {"free" for axis in self.maps() if axis.fill == "free" and axis.rest}
        return frozenset(found)

    @property
    def is_weighed(self) -> bool:
        """Whether another array weighs old entries in the means of them."""
        return any(axis.averages and axis.fill == "weighed" for axis in self.maps())

    @property
    def keeps_integers(self) -> bool:
        """Whether all entries of an array of integers stay integers."""
        is_scaled = self.rescales or (self.shrink, self.perturb) != (1, 0)
        return (
            not is_scaled
            and self.kind != "random"
            and not any(
                axis.shares or axis.sums or axis.averages or axis.noise or axis.resampled
                for axis in self.maps()
            )
        )

    def maps(self) -> Iterator[AxisMap]:
        """Yields the map of each width, from left to right."""
        return (axis for whole in self.axes for axis in _maps(whole))

    def adjoint(self, degree: int, fill: Fill) -> "LeafMap":
        """Returns the map of an average of powers of the gradient, see ``AxisMap.adjoint``."""
        axes = tuple(_each(axis, lambda one: one.adjoint(degree, fill)) for axis in self.axes)
        return LeafMap(axes, self.factor**-degree, "zeros")

    def along(self, axis: int) -> "LeafMap":
        """Returns the map of a vector with an entry for each place along one axis."""
        return replace(self, axes=self.axes[axis : axis + 1], fan_in=(), fan_out=())

    def of_numbers(self, *, copied: bool) -> "LeafMap":
        """Returns the map of an array that holds a number of each unit; new units have zero.

        Args:
            copied: whether each unit keeps the number of its old unit (the first of several).
                Otherwise numbers change as weights do: a copy with half of the weights has half.
        """
        axes = (_each(axis, lambda one: one.of_numbers(copied=copied)) for axis in self.axes)
        return LeafMap(tuple(axes), 1.0, "zeros")


def old_places(axis: AlongAxis) -> np.ndarray:
    """Returns where the old entries along an axis are among the new ones: ``[old size]``.

    It is assumed that all old units keep their places in their width.
    """
    if isinstance(axis, AxisMap):
        return np.arange(axis.old)
    parts = [(old_places(part), part.new) for part in axis.parts]
    if axis.kind == "concat":
        starts = np.cumsum([0, *(size for _, size in parts)])
        return np.concatenate([start + part for start, (part, _) in zip(starts, parts)])
    places = np.zeros(1, int)
    for part, size in parts:
        places = np.add.outer(places * size, part).ravel()
    return places


def _maps(axis: AlongAxis) -> Iterator[AxisMap]:
    if isinstance(axis, AxisMap):
        yield axis
    else:
        for part in axis.parts:
            yield from _maps(part)


def _each(axis: AlongAxis, change: Callable[[AxisMap], AxisMap]) -> AlongAxis:
    if isinstance(axis, AxisMap):
        return change(axis)
    return replace(axis, parts=tuple(_each(part, change) for part in axis.parts))
