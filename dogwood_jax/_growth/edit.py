"""``Edit``: makes one array of the larger model from an old array, new values or both."""

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
    """The values of a new array, or of the new layers in an array.

    Attributes:
        kind: ``"constant"``: ``values``. ``"identity"``: ones where the indices along both ``axes``
            are equal, in the middle of all other axes, and zeros elsewhere. ``"free"``: any values,
            because another array silences the layer. ``"copy"``: free, with the values of an old
            array or layer. ``"mean"``: the mean of old layers.
        values: one constant, or the value of each entry of an array or of a layer, in their order.
        axes: the contracted and the produced axis of an identity; they are counted without the axis
            of layers if each layer is one entry along it.
        drawn: the kind of free values: ``"random"``, ``"zeros"`` (integers always) or ``"ones"``.
        fans: fan-in and fan-out of random values.
    """

    kind: Literal["constant", "identity", "free", "copy", "mean"]
    values: tuple[float, ...] = (0.0,)
    axes: tuple[int, int] = (0, 1)
    drawn: Kind = "random"
    fans: tuple[int, int] = (1, 1)

    @property
    def is_random(self) -> bool:
        """Whether values are drawn at random unless a larger model gives them."""
        return (self.kind, self.drawn) == ("free", "random")

    @property
    def value(self) -> float | None:
        """The constant that all entries have in common; None if there is none."""
        return self.values[0] if self.kind == "constant" and len(self.values) == 1 else None


@dataclass(frozen=True)
class Layers:
    """New places of the layers in an array that has entries for each layer.

    Attributes:
        axis: the axis of layers; all layers have the same number of entries along it.
        places: for each layer, its old index, or -1 for a new layer, such as ``(0, 1, -1)``.
        copies: for each layer, the index of the old layer that it is or copies. If empty, a new
            layer copies the old layer before it.
    """

    axis: int
    places: tuple[int, ...]
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Repetition:
    """The repetition of an old array along a new first axis.

    Attributes:
        count: the number of experts.
        anew: the share of hidden units that each expert redraws.
        units: the axis of these units.
    """

    count: int
    anew: float = 0.0
    units: int = 0


@dataclass(frozen=True)
class Edit:
    """Makes one array of the larger model from an old array, new values or both.

    Attributes:
        path: path of the array in the larger model.
        shape: its shape in the larger model.
        dtype: its dtype in the larger model; if empty, the dtype of the old array.
        source: path of the old array that it is made from, or that it copies; None if it has none.
        fill: values of the whole array if it is new, or of its new layers; None if there are none.
            The values of new units are part of ``map``.
        layers: the places of layers, if the array has entries for each layer and gets more layers.
        experts: the repetition of the old array, if its layer becomes experts.
        scales: factors on old values, applied after ``map``: one for all, or one for each layer. If
            empty, the values stay as they are.
        map: the change of the old array's units, applied before all this; None if none change.
        orders: the new orders of units in each layer, applied before ``map``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str = ""
    source: str | None = None
    fill: Fill | None = None
    layers: Layers | None = None
    experts: Repetition | None = None
    scales: tuple[float, ...] = ()
    map: LeafMap | None = None
    orders: tuple[Order, ...] = ()

    @property
    def old(self) -> str | None:
        """Path of the old array that it continues; None if the whole array is new or a copy."""
        return self.source if self.layers or self.fill is None else None

    @property
    def is_whole(self) -> bool:
        """Whether the whole array is new."""
        return self.fill is not None and self.layers is None

    @cached_property
    def changes(self) -> bool:
        """Whether it differs from an old array in more than its path."""
        return bool(self.map and self.map.changes) or not self.is_mapped

    @property
    def is_mapped(self) -> bool:
        """Whether it is made from the old array by its map alone."""
        return not (self.fill or self.experts or self.scales or self.orders)

    @property
    def takes_fresh(self) -> bool:
        """Whether values of new layers are taken from the larger model, if it gives them."""
        return self.fill is not None and self.fill.kind == "free"

    @property
    def is_random(self) -> bool:
        """Whether random values are drawn besides its map's, unless a larger model gives them."""
        return bool(self.fill and self.fill.is_random or self.experts and self.experts.anew)

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """For each entry along the axis of layers, the index of the old entry, or -1 if new."""
        if self.layers is None:
            return ()
        places = self.layers.places
        each = range(self.shape[self.layers.axis] // len(places))
        return tuple(p * len(each) + i if p >= 0 else -1 for p in places for i in each)

    @property
    def layer(self) -> tuple[int, ...]:
        """The shape of one layer's entries; of the whole array if it has no layers."""
        if self.layers is None:
            return self.shape
        shape, axis = list(self.shape), self.layers.axis
        each = shape[axis] // len(self.layers.places)
        shape[axis : axis + 1] = [each] if each > 1 else []
        return tuple(shape)

    @property
    def old_places(self) -> tuple[np.ndarray | None, ...] | None:
        """New places of old entries along each axis (None: all); None if old values change."""
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
        """Booleans that mark the entries of new layers; they broadcast to its shape."""
        if self.layers is None:
            return np.asarray(self.fill is not None)
        others = [axis for axis in range(len(self.shape)) if axis != self.layers.axis]
        return np.expand_dims(np.asarray(self.entries) < 0, others)

    @property
    def holds_weights(self) -> bool:
        """Whether it holds weights, rather than the keys or counts of a random generator."""
        is_count = not self.shape and self.dtype.startswith(("int", "uint"))
        return not (is_count or self.dtype.startswith("key<"))

    @property
    def without_names(self) -> "Edit":
        """Itself without paths, equal for arrays that are made alike."""
        return replace(self, path="", source=None if self.source is None else "")

    def adjoint(self, degree: int, fill: Rest) -> "Edit":
        """Returns the edit of an average of powers of the gradient, see ``LeafMap.adjoint``.

        The gradients of experts add up to the gradient of the array that they repeat.
        """
        return replace(
            self,
            fill=self.fill and Fill("mean" if fill == "mean" else "constant"),
            experts=self.experts and Repetition(self.experts.count),
            scales=(float(self.experts.count) ** -degree,) if self.experts else (),
            map=self.map and self.map.adjoint(degree, fill),
        )

    def of_numbers(self, *, copied: bool) -> "Edit":
        """Returns the edit of an array with a value for each unit, without ``experts``.

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
        """Returns the edit of a vector with an entry for each place along one axis."""
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
            text += f", {its.count} times" + f", {its.anew:g} of it redrawn" * bool(its.anew)
        places = self.layers.places if self.layers else ()
        new = ",".join(str(i) for i, layer in enumerate(places) if layer < 0)
        return f"{self.path}[{new}]: {text}" if new else f"{self.path}: {text}"


def silenced(edit: Edit) -> Edit:
    """Returns an edit with zeros, with which a new layer of a residual network adds nothing."""
    zeros = edit.fill and Fill("constant", drawn=edit.fill.drawn)
    return replace(edit, fill=zeros)
