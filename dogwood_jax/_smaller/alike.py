"""Widths that layers have alike: ``alike``."""

from collections.abc import Iterable
from typing import Any

from dogwood_jax._depth.removed import layers_of
from dogwood_jax._widths.widths import Width, Widths


def alike(widths: Widths, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns names of widths in groups: those that numbered layers have alike are together.

    Such are the hidden units of ``layers_0``, ``layers_1`` and so on. They lie in one layer each,
    in the same places, and have the same size.

    Args:
        widths: the widths.
        names: names of some of them.
    """
    every = [*layers_of(widths).values()]
    found: dict[Any, list[str]] = {}

    def place_in(path: str) -> tuple[str, int] | None:
        """Returns the path of an array in its layer, and the layer; None if it is in none."""
        for layers in every:
            if (layer := layers.layer_of(path)) is not None:
                return layers.renamed(path, 0), layer
        return None

    def kind(width: Width) -> Any:
        places = [(place_in(o.path), o.axis, o.role) for o in width.occurrences]
        inside = [(*place, axis, role) for place, axis, role in places if place is not None]
        if len({layer for _, layer, _, _ in inside}) != 1 or len(inside) < len(places):
            return width.name
        return width.size, tuple((path, axis, role) for path, _, axis, role in inside)

    for name in names:
        found.setdefault(kind(widths[name]), []).append(name)
    return [tuple(group) for group in found.values()]
