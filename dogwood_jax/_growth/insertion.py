"""What an array of an inserted layer, or of new experts, is filled with: ``Insertion``."""

from dataclasses import dataclass, replace
from typing import Literal

from dogwood_jax._widths.widths import Kind


@dataclass(frozen=True)
class Insertion:
    """What an array of the deeper network is filled with, where it is not an old one in its place.

    Attributes:
        path: path of the array in the deeper network.
        shape: its shape there.
        dtype: its dtype there.
        fill: what it is filled with. ``"constant"``: ``value``. ``"identity"``: ones where the
            indices along both ``axes`` are equal, in the middle of all other axes, and zeros
            elsewhere. ``"free"``: any values, because another array silences the layer.
            ``"copy"``: free, with the values of ``source``. ``"moved"``: not new, but the old
            array ``source`` under another path.
        value: the constant.
        axes: the axis of an identity that is contracted, and the one that is produced.
        source: path of the array in the old network that is copied or moved, or that holds the
            layers a stacked array starts from.
        layers: for an array with entries for each layer: the index of the old layer, or -1 for a
            new layer, as in ``(0, 1, -1)``. Only new layers are filled.
        copies: for such an array with ``"copy"``: for each layer, the index of the old layer that
            it is or copies. If empty, a new layer copies the old layer before it.
        kind: what free values are drawn as: ``"random"``, ``"zeros"`` (integers always) or
            ``"ones"``.
        fans: fan-in and fan-out of random values.
        repeats: for an array of experts that is ``"moved"``, how many times the old array is
            repeated along a new first axis; 0 for an array without such an axis.
        anew: the share of hidden units that are drawn anew in each expert.
        units: the axis of these units.
        values: the constants of the entries of an array or of a layer, in their order, if they are
            not all ``value``.
        axis: the axis along which the ``layers`` lie, each with as many entries. If it has one for
            each, ``axes`` count the other axes.
        scales: what the values of ``source`` are multiplied by: one number, or one for each of the
            ``layers``. If empty, they stay as they are.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    fill: Literal["constant", "identity", "free", "copy", "moved"]
    value: float = 0.0
    axes: tuple[int, int] = (0, 1)
    source: str | None = None
    layers: tuple[int, ...] = ()
    kind: Kind = "random"
    fans: tuple[int, int] = (1, 1)
    copies: tuple[int, ...] = ()
    repeats: int = 0
    anew: float = 0.0
    units: int = 0
    values: tuple[float, ...] = ()
    axis: int = 0
    scales: tuple[float, ...] = ()

    @property
    def old(self) -> str | None:
        """Path of the old array that lives on in it, if one does."""
        return self.source if self.layers or self.fill == "moved" else None

    @property
    def is_as_it_was(self) -> bool:
        """Whether it is an old array under another path, with nothing new in it."""
        return self.fill == "moved" and not (self.layers or self.repeats or self.scales)

    @property
    def entries(self) -> tuple[int, ...]:
        """For each entry along the axis of layers, the place of the old one, or -1 if it is new."""
        each = self.shape[self.axis] // len(self.layers) if self.layers else 0
        return tuple(
            layer * each + i if layer >= 0 else -1 for layer in self.layers for i in range(each)
        )

    @property
    def holds_weights(self) -> bool:
        """Whether it holds weights, rather than keys or counts that random numbers follow from."""
        is_count = not self.shape and self.dtype.startswith(("int", "uint"))
        return not (is_count or self.dtype.startswith("key<"))

    def __str__(self) -> str:
        fill = {
            "constant": ", ".join(f"{value:.9g}" for value in self.values or (self.value,)),
            "copy": f"copy of {self.source}",
            "moved": "" if self.path == self.source else f"moved from {self.source}",
        }.get(self.fill, self.fill)
        if self.scales:
            times = " or ".join(f"{scale:.6g}" for scale in sorted({*self.scales}))
            fill = ", ".join(filter(None, (fill, f"times {times}")))
        if self.repeats:
            fill += f", {self.repeats} times" + f", {self.anew:g} of it anew" * bool(self.anew)
        new = ",".join(str(i) for i, layer in enumerate(self.layers) if layer < 0)
        return f"{self.path}[{new}]: {fill}" if new else f"{self.path}: {fill}"


def silenced(insertion: Insertion) -> Insertion:
    """Returns an insertion of zeros, with which a new layer in a residual network does nothing."""
    if insertion.fill == "moved":
        return insertion
    return replace(insertion, fill="constant", value=0.0, values=())
