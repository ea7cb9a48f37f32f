"""What an array of an inserted layer is filled with: ``Insertion``."""

from dataclasses import dataclass
from typing import Literal

from dogwood_jax._widths.widths import Kind


@dataclass(frozen=True)
class Insertion:
    """What an array of the deeper network is filled with, where it is not an old one in its place.

    Attributes:
        path: path of the array in the deeper network.
        shape: its shape there.
        dtype: its dtype there.
        fill: ``"constant"``; ``"identity"``: ones where the two ``axes`` agree, in the middle of
            any others, and zeros; ``"free"``: any value, because another array silences the layer;
            ``"copy"``: free, and the values of ``source``; ``"moved"``: not new, but the old
            ``source`` under another path.
        value: the constant.
        axes: the axis of an identity that is contracted, and the one that is produced.
        source: path of the array in the old network that is copied or moved, or that holds the
            layers a stacked array starts from.
        layers: for an array with one entry for each layer along its first axis: the old layer that
            each is, or -1 for a new one. Only the new ones are filled.
        copies: of such an array that is filled by copies, the old layer that each layer is or
            copies; if empty, new ones copy the old layer before them.
        kind: what free values are drawn as: ``"random"``, ``"zeros"`` (integers always) or
            ``"ones"``.
        fans: fan-in and fan-out of random values.
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

    @property
    def old(self) -> str | None:
        """Path of the old array that lives on in it, if one does."""
        return self.source if self.layers or self.fill == "moved" else None

    def __str__(self) -> str:
        fill = {
            "constant": f"{self.value:.9g}",
            "copy": f"copy of {self.source}",
            "moved": f"moved from {self.source}",
        }.get(self.fill, self.fill)
        new = ",".join(str(i) for i, layer in enumerate(self.layers) if layer < 0)
        return f"{self.path}[{new}]: {fill}" if new else f"{self.path}: {fill}"
