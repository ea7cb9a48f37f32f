"""How the units of one or more widths lie along one array axis.

An axis need not be a single width. After flattening (H, W, C) it is the *product* h*w*c, and a
fused query-key-value projection is a *concatenation* q|k|v, each part itself a product
heads*head_dim. A layout is that expression: a tree with ``Units`` at its leaves. Products are
row-major: the last part varies fastest.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Literal

import numpy as np

Role = Literal["incoming", "outgoing", "both"]


@dataclass(frozen=True)
class Units:
    """The consecutive units of one width.

    Attributes:
        width: name of the width.
        size: number of its units.
        role: ``"incoming"`` if the rest of the array feeds the unit, ``"outgoing"`` if the unit
            feeds the units of the other axes, ``"both"`` for arrays used in both ways.
        produced: whether the rest of the array really makes an incoming unit. It does not if the
            axis counts layers or rows of a table, for example. Such an axis does not decide how
            entries are filled that are also new along another axis.
    """

    width: str
    size: int
    role: Role
    produced: bool = True

    @property
    def rank(self) -> int:
        """The rank of these units: where entries are new along several axes, the highest decides.

        A weight from a new unit to another new unit belongs to the second unit: it is filled like
        all incoming weights of that unit.
        """
        return 1 if self.role != "incoming" else 2 if self.produced else 0

    def __str__(self) -> str:
        return self.width


@dataclass(frozen=True)
class Product:
    """A row-major product of layouts, as a reshape makes it."""

    parts: tuple["Layout", ...]

    def __str__(self) -> str:
        return " * ".join(f"({p})" if isinstance(p, Concat) else str(p) for p in self.parts)


@dataclass(frozen=True)
class Concat:
    """Layouts one after another, as a concatenation makes it."""

    parts: tuple["Layout", ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


Layout = Units | Product | Concat


def units_of(layout: Layout) -> Iterator[Units]:
    """Yields every ``Units`` of a layout, from left to right."""
    if isinstance(layout, Units):
        yield layout
    else:
        for part in layout.parts:
            yield from units_of(part)


def spread(layout: Layout) -> Iterator[tuple[Units, np.ndarray]]:
    """Yields every ``Units`` of a layout with its unit at each position of the axis, or -1."""
    if isinstance(layout, Units):
        yield layout, np.arange(layout.size)
        return
    sizes = [size_of(part) for part in layout.parts]
    for i, part in enumerate(layout.parts):
        before, after = sizes[:i], sizes[i + 1 :]
        for units, along in spread(part):
            if isinstance(layout, Concat):
                yield units, np.pad(along, (sum(before), sum(after)), constant_values=-1)
            else:
                yield units, np.tile(np.repeat(along, prod(after)), prod(before))


def units_along(layout: Layout, width: str, roles: Collection[str]) -> np.ndarray:
    """Returns the unit of a width to which each position of an axis belongs, or -1.

    Args:
        layout: how the axis is laid out.
        width: name of the width.
        roles: units in other roles are ignored.
    """
    found = np.full(size_of(layout), -1)
    for units, along in spread(layout):
        if units.width == width and units.role in roles:
            found = np.maximum(found, along)
    return found


def resized(layout: Layout, sizes: Mapping[str, int]) -> Layout:
    """Returns the layout with new sizes for some of its widths."""
    if isinstance(layout, Units):
        return replace(layout, size=sizes.get(layout.width, layout.size))
    return replace(layout, parts=tuple(resized(part, sizes) for part in layout.parts))


def size_of(layout: Layout, sizes: Mapping[str, int] = MappingProxyType({})) -> int:
    """Returns the length of an axis with this layout, with new sizes for some of its widths."""
    if isinstance(layout, Units):
        return sizes.get(layout.width, layout.size)
    parts = [size_of(part, sizes) for part in layout.parts]
    return prod(parts) if isinstance(layout, Product) else sum(parts)
