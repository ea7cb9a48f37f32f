"""What one array of the larger model is made of: ``Edit``."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from dogwood_jax._growth.by_layer import Order
from dogwood_jax._growth.leaf_map import AxisMap, LeafMap, old_places
from dogwood_jax._growth.leaf_map import Fill as Rest
from dogwood_jax._widths.widths import Kind


@dataclass(frozen=True)
class Fill:
    """What a new array holds, or the new layers in an array.

    Attributes:
        kind: ``"constant"``: ``values``. ``"identity"``: ones where the indices along both ``axes``
            are equal, in the middle of all other axes, and zeros elsewhere. ``"free"``: any values,
            because another array silences the layer. ``"copy"``: free, with the values of an old
            array or layer. ``"mean"``: the mean of old layers.
        values: the constant, or those of the entries of an array or of a layer, in their order.
        axes: the axis of an identity that is contracted, and the one that is produced; of an array
            with one entry for each layer, among the other axes.
        drawn: what free values are drawn as: ``"random"``, ``"zeros"`` (integers always) or
            ``"ones"``.
        fans: fan-in and fan-out of random values.
    """

    kind: Literal["constant", "identity", "free", "copy", "mean"]
    values: tuple[float, ...] = (0.0,)
    axes: tuple[int, int] = (0, 1)
    drawn: Kind = "random"
    fans: tuple[int, int] = (1, 1)

    @property
    def is_random(self) -> bool:
        """Whether values are drawn, where no larger model gives them."""
        return (self.kind, self.drawn) == ("free", "random")

    @property
    def value(self) -> float | None:
        """The constant that all entries are; None if they are not one."""
        return self.values[0] if self.kind == "constant" and len(self.values) == 1 else None


@dataclass(frozen=True)
class Layers:
    """Where the layers of an array go that has entries for each layer.

    Attributes:
        axis: the axis along which they lie, each with as many entries.
        places: for each layer, the index of the old one, or -1 for a new one, as in ``(0, 1, -1)``.
        copies: for each layer, the index of the old one that it is or copies. If empty, a new layer
            copies the old one before it.
    """

    axis: int
    places: tuple[int, ...]
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Experts:
    """How an old array is repeated along a new first axis.

    Attributes:
        count: how many times.
        anew: the share of hidden units that are drawn anew in each expert.
        units: the axis of these units.
    """

    count: int
    anew: float = 0.0
    units: int = 0


@dataclass(frozen=True)
class Edit:
    """What one array of the larger model is made of: of an old array, of new values, or of both.

    Attributes:
        path: path of the array in the larger model.
        shape: its shape there.
        dtype: its dtype there; that of the old array if empty.
        source: path of the old array that it is made of, or that it copies; None for none.
        fill: what is new in it beside new units: all of it, or some of its layers; None if nothing.
        layers: where the layers go of an array with entries for each layer, if it gets more.
        experts: how the old array is repeated, if it becomes one of experts.
        scales: what the values of the old array are multiplied by in the end: one number, or one
            for each layer. If empty, they stay as they are.
        map: what becomes of the old array's units before all this; None if nothing does.
        orders: the orders in which units are put in each layer before that.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str = ""
    source: str | None = None
    fill: Fill | None = None
    layers: Layers | None = None
    experts: Experts | None = None
    scales: tuple[float, ...] = ()
    map: LeafMap | None = None
    orders: tuple[Order, ...] = ()

    @property
    def old(self) -> str | None:
        """Path of the old array that lives on in it, if one does."""
        return self.source if self.layers or self.fill is None else None

    @property
    def is_whole(self) -> bool:
        """Whether all of it is new."""
        return self.fill is not None and self.layers is None

    @cached_property
    def changes(self) -> bool:
        """Whether it is something else than an old array, perhaps under another path."""
        return bool(self.map and self.map.changes) or not self.is_mapped

    @property
    def is_mapped(self) -> bool:
        """Whether its map alone decides what becomes of the old array."""
        return not (self.fill or self.experts or self.scales or self.orders)

    @property
    def takes_fresh(self) -> bool:
        """Whether values of new layers are those of the larger model, where it gives them."""
        return self.fill is not None and self.fill.kind == "free"

    @property
    def is_random(self) -> bool:
        """Whether numbers are drawn beside those of its map, unless a larger model gives them."""
        return bool(self.fill and self.fill.is_random or self.experts and self.experts.anew)

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """For each entry along the axis of layers, the place of the old one, or -1 if it is new."""
        if self.layers is None:
            return ()
        places = self.layers.places
        each = range(self.shape[self.layers.axis] // len(places))
        return tuple(p * len(each) + i if p >= 0 else -1 for p in places for i in each)

    @property
    def layer(self) -> tuple[int, ...]:
        """The shape of what it has for one layer; its own if it has no layers."""
        if self.layers is None:
            return self.shape
        shape, axis = list(self.shape), self.layers.axis
        each = shape[axis] // len(self.layers.places)
        shape[axis : axis + 1] = [each] if each > 1 else []
        return tuple(shape)

    @property
    def old_places(self) -> tuple[np.ndarray | None, ...] | None:
        """Where old entries are along each axis, or None for all; None if they are others now."""
        leaf_map = self.map
        if self.experts or self.scales or self.orders:
            return None
        if leaf_map and (leaf_map.rescales or not all(axis.appends for axis in leaf_map.maps())):
            return None
        axes = leaf_map.axes if leaf_map else (AxisMap(n, n) for n in self.shape)
        places = [old_places(along) if along.changes else None for along in axes]
        if self.layers is not None:
            places[self.layers.axis] = np.flatnonzero(np.asarray(self.entries) >= 0)
        return tuple(places)

    @property
    def new(self) -> np.ndarray:
        """Which entries are of new layers, as booleans that broadcast to its shape."""
        if self.layers is None:
            return np.asarray(self.fill is not None)
        others = [axis for axis in range(len(self.shape)) if axis != self.layers.axis]
        return np.expand_dims(np.asarray(self.entries) < 0, others)

    @property
    def holds_weights(self) -> bool:
        """Whether it holds weights, rather than keys or counts that random numbers follow from."""
        is_count = not self.shape and self.dtype.startswith(("int", "uint"))
        return not (is_count or self.dtype.startswith("key<"))

    @property
    def without_names(self) -> "Edit":
        """What arrays have in common that are made alike."""
        return replace(self, path="", source=None if self.source is None else "")

    def adjoint(self, degree: int, fill: Rest) -> "Edit":
        """Returns what becomes of an average of powers of the gradient, see ``LeafMap.adjoint``.

        Together, experts get the gradient of the array that they repeat.
        """
        return replace(
            self,
            fill=self.fill and Fill("mean" if fill == "mean" else "constant"),
            experts=self.experts and Experts(self.experts.count),
            scales=(float(self.experts.count) ** -degree,) if self.experts else (),
            map=self.map and self.map.adjoint(degree, fill),
        )

    def of_numbers(self, *, copied: bool) -> "Edit":
        """Returns what becomes of an array that holds a number of each unit, before it is repeated.

        New layers have zero. See ``LeafMap.of_numbers`` for the argument.
        """
        return Edit(
            self.path,
            self.shape[1:] if self.experts else self.shape,
            source=self.source,
            fill=self.fill and Fill("constant"),
            layers=self.layers,
            map=self.map and self.map.of_numbers(copied=copied),
        )

    def along(self, axis: int) -> "Edit":
        """Returns what becomes of a vector with an entry for each place along one axis."""
        its = self.layers if self.layers and self.layers.axis == axis else None
        return replace(
            self,
            shape=self.shape[axis : axis + 1],
            layers=its and replace(its, axis=0),
            fill=self.fill if its or self.is_whole else None,
            map=self.map and self.map.along(axis),
        )

    def __str__(self) -> str:
        fill = self.fill
        if fill is None:
            text = "" if self.path == self.source else f"moved from {self.source}"
        elif fill.kind == "constant":
            text = ", ".join(f"{value:.9g}" for value in fill.values)
        else:
            text = f"copy of {self.source}" if fill.kind == "copy" else fill.kind
        if self.scales:
            times = " or ".join(f"{scale:.6g}" for scale in sorted({*self.scales}))
            text = ", ".join(filter(None, (text, f"times {times}")))
        if its := self.experts:
            text += f", {its.count} times" + f", {its.anew:g} of it anew" * bool(its.anew)
        places = self.layers.places if self.layers else ()
        new = ",".join(str(i) for i, layer in enumerate(places) if layer < 0)
        return f"{self.path}[{new}]: {text}" if new else f"{self.path}: {text}"


def silenced(edit: Edit) -> Edit:
    """Returns an edit with zeros, with which a new layer in a residual network does nothing."""
    zeros = edit.fill and Fill("constant", drawn=edit.fill.drawn)
    return replace(edit, fill=zeros)
