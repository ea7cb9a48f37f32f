"""The change of one array, without names: ``LeafMap``, an affine map ``new = A(old) + fill``.

A map holds no names, so arrays that grow alike, such as arrays of repeated layers, have equal maps.
A map is derived once from a growth (``Growth.maps``). ``grow`` applies it to the network's arrays,
and ``grow_opt_state`` applies its adjoint to an optimizer's averages of their gradients. If another
array weights entries in means, ``Growth.weighed`` has its path.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from dogwood_jax._widths.widths import Kind
from dogwood_jax.strategies import Initializer, Method

Fill = Literal["free", "zero", "mean", "weighed", "size", "rotated"]


@dataclass(frozen=True)
class AxisMap:
    """The change of the units of one width along an axis.

    Attributes:
        old: number of units before.
        new: number of units after.
        sources: the old unit that each of the first units copies; None if all old units keep their
            places.
        shares: for each copy, its share of its unit, such as 0.5; None if all have the whole.
        into: for each old unit, the new unit into which it is merged; None if none are merged.
        weighs: whether entries add up over the units, as outgoing weights do. Then ``shares``
            multiply them, and entries of merged units are added up. Otherwise entries are copied
            unchanged.
        is_rooted: whether ``shares`` also multiply entries that do not add up. Then they are square
            roots of shares.
        power: the power of a quantity that entries are, such as 2 for squares. Merging adds up the
            quantities, not their powers.
        fill: how entries without a source are filled: free, zero, with the mean of old entries,
            with their mean weighted by another array (``"weighed"``), with the mean of their
            absolute values (``"size"``), or with mixtures of them (``"rotated"``).
        rank: if entries are new along several axes, the axis of the highest rank decides.
        noise: standard deviation of noise on new copies, relative to the array's.
        pairs: for new units in pairs, the sign of the second unit's entries; 0 for no pairs.
        forgets: whether an optimizer's state treats copies as new units.
        factor: the factor on old entries along this axis, besides the array's own factor.
        resampled: the method that interpolates all entries between old ones; None if there is none.
    """

    old: int
    new: int
    sources: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    into: tuple[int, ...] | None = None
    weighs: bool = False
    is_rooted: bool = False
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
        """Whether entries of merged units are added up."""
        return self.into is not None and self.weighs

    @property
    def appends(self) -> bool:
        """Whether old entries keep their places and values."""
        return self.sources is None and not self.sums and self.resampled is None

    @property
    def averages(self) -> bool:
        """Whether new entries depend on all old entries along the axis."""
        return self.rest > 0 and self.fill in ("mean", "weighed", "size", "rotated")

    @property
    def rest(self) -> int:
        """The number of entries without a source."""
        if self.sums or self.resampled is not None:
            return 0
        return self.new - (self.old if self.sources is None else len(self.sources))

    def adjoint(self, degree: int, fill: Fill) -> "AxisMap":
        """Returns the map of an average of powers of the gradient.

        If each of two copies has half of the outgoing weights, the gradients of their incoming
        weights are half as large. If outgoing weights are added up, so are these gradients.

        Args:
            degree: the power of the gradient: 1 for first moments, 2 for second moments, 0 for
                values that do not scale with it.
            fill: how new entries are filled.
        """
        if self.resampled is not None:  # entries made from several old entries are new
            return AxisMap(self.old, self.new, (), fill=fill)
        if self.forgets:
            return self._without_copies().adjoint(degree, fill)
        shares = None
        if self.shares is not None and (self.is_rooted or not self.weighs):
            shares = tuple(share**degree for share in self.shares)
        return AxisMap(
            self.old,
            self.new,
            self.sources,
            shares,
            self.into,
            weighs=not self.weighs and degree > 0,
            is_rooted=self.is_rooted,
            power=max(degree, 1),
            fill=fill,
            factor=self.factor**-degree,
        )

    def of_numbers(self, *, copied: bool) -> "AxisMap":
        """Returns the map of an array with a value for each unit, see ``LeafMap.of_numbers``."""
        if self.resampled is not None:
            return AxisMap(self.old, self.new, ())
        if self.forgets:
            return self._without_copies().of_numbers(copied=copied)
        weighs, factor = self.weighs and not copied, 1.0 if copied else self.factor
        return replace(self, weighs=weighs, fill="zero", noise=0.0, pairs=0, factor=factor)

    def _without_copies(self) -> "AxisMap":
        """Returns the map in which new units have no sources."""
        sources = None if self.sources is None else self.sources[: self.old]
        shares = None if self.shares is None else self.shares[: self.old]
        return replace(self, sources=sources, shares=shares, forgets=False)


@dataclass(frozen=True)
class Compound:
    """The maps of several widths along one axis: a row-major product, or a concatenation."""

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
    """The change of one array.

    Attributes:
        axes: the change along each axis.
        factor: the factor on old entries.
        kind: the kind of free entries: ``"random"``, ``"ones"`` or ``"zeros"``.
        fan_in: axes whose new sizes multiply to the fan-in of random entries.
        fan_out: axes whose new sizes multiply to their fan-out.
        init: initializer of random entries; None for the default.
        shrink: a further factor on old entries, which an optimizer's state does not follow.
        perturb: the factor of a newly initialized array that is added at the end.
        offset: a constant that the network adds to the array when it reads it, such as 1 in
            ``1 + scale``. ``factor`` multiplies the sum.
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
        """Whether the array changes; ``shrink`` and ``perturb`` alone do not count."""
        return self.factor != 1 or any(axis.changes for axis in self.axes)

    @property
    def rescales(self) -> bool:
        """Whether old entries are multiplied by factors that compensate for others."""
        return self.factor != 1 or any(axis.factor != 1 for axis in self.maps())

    @property
    def grows(self) -> bool:
        """Whether it gets new entries or new values, rather than only losing entries."""
        return self.factor != 1 or any(
            axis.new > axis.old or axis.resampled is not None for axis in self.maps()
        )

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of random values that it needs: ``"free"``, ``"noise"`` and ``"rotated"``."""
        found = {"noise" for axis in self.maps() if axis.noise}
        found |= {"rotated" for axis in self.maps() if axis.fill == "rotated" and axis.rest}
        if self.perturb:
            found.add("free")
        if self.kind == "random":
            found |= {"free" for axis in self.maps() if axis.fill == "free" and axis.rest}
        return frozenset(found)

    @property
    def is_weighed(self) -> bool:
        """Whether another array weights old entries in their means."""
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
        """Returns the map of an array with a value for each unit; new units have zero.

        Args:
            copied: whether each unit keeps the value of its old unit (the first of several).
                Otherwise values change like weights: a copy with half of the weights gets half.
        """
        axes = (_each(axis, lambda one: one.of_numbers(copied=copied)) for axis in self.axes)
        return LeafMap(tuple(axes), 1.0, "zeros")


def old_places(axis: AlongAxis) -> np.ndarray:
    """Returns the new places of the old entries along an axis: ``[old size]``.

    Assumes that all old units keep their places in their width.
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
