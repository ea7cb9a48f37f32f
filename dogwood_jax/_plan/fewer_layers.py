"""A deep network with fewer layers, for a cheaper evaluation of a growth: ``FewerLayers``.

A few layers represent the others if the larger network computes the same in each of the others.
This is seen in its whole program. The program is read once, but only a few layers are evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._program.like_layers import LikeLayers, find_like_layers
from dogwood_jax._program.program import Program
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Recipe, Widths

# At most this many further layers are kept because they grow differently from the second one.
_MOST_OTHERS = 6


@dataclass(frozen=True)
class FewerLayers:
    """A few layers of a network that represent all its layers in a growth.

    Attributes:
        widths: the widths of the whole network.
        layers: all like layers of the network.
        kept: indices of the layers that represent all.
    """

    widths: Widths
    layers: LikeLayers
    kept: tuple[int, ...]

    @property
    def left_out(self) -> set[int]:
        """Indices of the layers that are left out."""
        return {*range(len(self.layers))} - {*self.kept}

    @property
    def program(self) -> Program:
        """The network's program without the other layers."""
        return self._traced.program

    @property
    def _traced(self) -> Traced:
        traced: Traced = self.widths.network.traced  # type: ignore[union-attr]
        return traced.keeping(self.layers, self.kept)

    def of(self, whole: Program) -> Program | None:
        """Returns a program of the whole network, in other sizes, without the other layers.

        Returns None if it has other like layers, or a layer that is left out is like none of these.
        """
        layers: LikeLayers | None = self.layers
        network: Program = self.widths.network.traced.program  # type: ignore[union-attr]
        if not self.layers.are_like(network, whole, self.kept):
            layers = find_like_layers(whole)
        if layers is None or layers.prefixes != self.layers.prefixes:
            return None
        few, own = layers.keeping(whole, self.kept), _paths(self.program)
        return few.in_order(own) if sorted(_paths(few)) == sorted(own) else None

    @property
    def read(self) -> Widths:
        """The widths of the kept layers, in the order of the network's own program."""
        return replace(
            self.widths,
            leaves=tuple(leaf for leaf in self.widths.leaves if leaf.path in self._traced.leaves),
            network=replace(self.widths.network, traced=self._traced, leaves_out=False),  # type: ignore[type-var]
        )

    @cached_property
    def _places(self) -> dict[str, tuple[int, Any]]:
        """The layer in which each width first occurs, and its place in that layer.

        Widths that first occur outside the layers have no entry.
        """
        found: dict[str, tuple[int, Any] | None] = {}
        for leaf in self.widths.leaves:
            place = self.layers.place_of(leaf.path)
            for axis, layout in enumerate(leaf.axes):
                for index, units in enumerate(units_of(layout)):
                    at = None if place is None else (place[0], (place[1], axis, index))
                    found.setdefault(units.width, at)
        return {name: place for name, place in found.items() if place is not None}

    @cached_property
    def like(self) -> dict[str, str | None]:
        """For each width of a layer that is left out, its counterpart in the second layer."""
        second = {place: name for name, (layer, place) in self._places.items() if layer == 1}
        gone, widths = self.left_out, self._places.items()
        return {name: second.get(place) for name, (layer, place) in widths if layer in gone}

    def of_all(self, growth: Growth, known: Mapping[str, Change]) -> Iterator[Change]:
        """Yields the changes of all layers; layers that are left out copy the second layer's.

        Args:
            growth: the growth of all layers, without recipes.
            known: the changes of the kept layers, by name of the width.
        """
        for change in growth.changes:
            its = known.get(self.like.get(change.width) or change.width, change)
            recipe = its.recipe
            if recipe is not None and its.width != change.width:
                layer, _ = self._places[change.width]
                recipe = _each(recipe, lambda entries: self._renamed(entries, layer))  # noqa: B023
            elif recipe is not None and self._is_of_all(its):
                recipe = _each(recipe, lambda entries: self._extended(entries))
            yield replace(its, width=change.width, recipe=recipe)

    def _is_of_all(self, change: Change) -> bool:
        """Whether a width or its recipe belongs to more layers than one layer and the next."""
        layer, _ = self._places.get(change.width, (None, None))
        entries = (entry for f in fields(Recipe) for entry in getattr(change.recipe, f.name))
        return layer is None or (
            not layer and any(max(self._of(e), default=0) > 1 for e in entries)
        )

    def _of(self, entry: Any) -> list[int]:
        """Returns the layers of the arrays that are named in an entry of a recipe."""
        parts = entry if isinstance(entry, tuple) else (entry,)
        found = (self.layers.layer_of(part) for part in parts if isinstance(part, str))
        return [layer for layer in found if layer is not None]

    def _extended(self, entries: Sequence[Any]) -> tuple[Any, ...]:
        """Returns entries of a recipe; those of the second layer are repeated for other layers."""
        found = list[Any]()
        for layer, own in groupby(entries, lambda entry: min(self._of(entry), default=None)):
            its = tuple(own)
            found += its
            for other in sorted(self.left_out) if layer == 1 else ():
                found += self._renamed(its, other)
        return tuple(found)

    def _renamed(self, entry: Any, layer: int) -> Any:
        """Returns an entry of a recipe, moved from the second and last kept layer to other layers.

        Paths of the second layer become paths of ``layer``. The last layer follows the second one
        where others are left out, so its paths become those of the layer after ``layer``.
        """
        if isinstance(entry, tuple):
            return tuple(self._renamed(part, layer) for part in entry)
        place = self.layers.place_of(entry) if isinstance(entry, str) else None
        if place is None or place[0] not in (1, len(self.layers) - 1):
            return entry
        family, rest = place[1]
        prefix = self.layers.prefixes[layer + (place[0] != 1)][family]
        return f"{prefix}/{rest}" if rest else prefix


def fewer_layers(widths: Widths, sizes: Mapping[str, int]) -> FewerLayers | None:
    """Returns the layers that represent all in a growth, or None if that takes too many.

    Args:
        widths: the widths of the whole network.
        sizes: new sizes by name of the width.
    """
    layers = None if widths.network is None else widths.network.layers
    kept = None if layers is None else _representing(widths, sizes, layers)
    return None if layers is None or kept is None else FewerLayers(widths, layers, kept)


def few_layers_of(widths: Widths) -> Widths:
    """Returns the widths of the layers that represent all if all layers grow in the same way."""
    layers = None if widths.network is None else widths.network.layers
    return widths if layers is None else FewerLayers(widths, layers, layers.few).read


def _each(recipe: Recipe, of: Callable[[Any], Any]) -> Recipe:
    """Returns a recipe in which ``of`` is applied to the entries of each field."""
    known = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    changed = {name: of(entries) for name, entries in known.items() if isinstance(entries, tuple)}
    return replace(recipe, **changed)


def _paths(program: Program) -> list[str]:
    return [path for path, _ in program.arguments if path is not None]


def _representing(
    widths: Widths, sizes: Mapping[str, int], layers: LikeLayers
) -> tuple[int, ...] | None:
    """Returns layers that include one for each way in which a layer grows; None if too many."""
    grown: list[list[int]] = [[] for _ in range(len(layers))]
    for leaf in widths.leaves:
        if (layer := layers.layer_of(leaf.path)) is not None:
            grown[layer] += (
                sizes.get(units.width, units.size)
                for layout in leaf.axes
                for units in units_of(layout)
            )
    kept = {*layers.few}
    known = {tuple(grown[layer]) for layer in kept - {0, len(layers) - 1}}
    for layer in range(1, len(layers) - 1):
        if tuple(grown[layer]) not in known:
            known.add(tuple(grown[layer]))
            kept.add(layer)
    return tuple(sorted(kept)) if len(kept) <= len(layers.few) + _MOST_OTHERS else None
