"""The widths of a deep network, by those of the same network with fewer layers: ``all_layers``.

A network of 126 like layers is read with three and with five of them. What the second layer adds
to the widths, each layer between the first one and the last one adds, too: the same arrays and
widths with other numbers in their names. This is not taken for granted: three layers that are made
to be five in this way must have the same widths as five layers that were read. If not, the network
is read whole.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from itertools import chain, groupby
from typing import Any, TypeVar

from dogwood_jax._program.like_layers import LikeLayers
from dogwood_jax._widths.naming import inside_of
from dogwood_jax._widths.reasons import Reason
from dogwood_jax._widths.widths import Facts, Recipe, Widths

T = TypeVar("T")

# The places of the layers that are read. What belongs to the second one may name those beside it.
_ITSELF, _AFTER = 1, 2


class NotAlike(Exception):
    """It is open what the layers between the first one and the last one add to the widths."""


def all_layers(read: Callable[[tuple[int, ...]], Widths], layers: LikeLayers) -> Widths | None:
    """Returns the widths of a network with all its layers, or None if these are not alike.

    Args:
        read: reads the network with these layers only; returns its widths.
        layers: the like layers.
    """
    analogy = Analogy(layers)
    if analogy.is_ambiguous:
        return None
    by_reading = read(layers.more)
    widths = read(layers.few)
    try:
        if analogy.extended(widths, layers.more) != by_reading:
            return None
        return analogy.extended(widths, range(len(layers)))
    except NotAlike:
        return None


class Analogy:
    """Names of some layers' arrays and widths, in place of those of other layers.

    Args:
        layers: the like layers, of which few were read.
    """

    def __init__(self, layers: LikeLayers) -> None:
        self._names = [
            [*prefixes, *(inside_of(prefix) for prefix in prefixes)] for prefixes in layers.prefixes
        ]
        self._places = {
            name: (family, place)
            for place, layer in enumerate(dict.fromkeys((*layers.few, *layers.more)))
            for family, name in enumerate(self._names[layer])
        }
        choices = "|".join(map(re.escape, sorted(self._places, key=len, reverse=True)))
        self._pattern = re.compile(rf"(?<![\w/.-])(?:{choices})(?![\w.-])")
        self._read: dict[str, _Text] = {}

    @property
    def is_ambiguous(self) -> bool:
        """Whether a layer's name is a mere number, which may also be something else in a text."""
        return any(name.isdigit() for names in self._names for name in names)

    def mentioned(self, value: Any) -> frozenset[int]:
        """Returns the places of the layers that are mentioned."""
        if isinstance(value, str):
            return self._text(value).mentioned
        found = (self.mentioned(part) for part in _parts(value))
        return frozenset().union(*found)

    def extended(self, widths: Widths, layers: Sequence[int]) -> Widths:
        """Returns the widths of the network with these layers.

        Args:
            widths: those of the network with the layers that were read.
            layers: the numbers of the layers, the ones that were read among them.

        Raises:
            NotAlike: if it is open what more layers add.
        """
        leaves = self.sequence(widths.leaves, layers, lambda leaf: leaf.path)

        def whole(name: str, known: Facts) -> Facts:
            if self.is_of_one_layer(name, known):
                return known
            if _ITSELF in self.mentioned((known.fixed,)):
                raise NotAlike
            return replace(known, notes=self.sequence(known.notes, layers))

        shared = tuple((name, whole(name, known)) for name, known in widths.facts)
        facts = self.sequence(shared, layers, lambda item: item[0])
        return Widths(leaves, facts)

    def is_of_one_layer(self, name: str, known: Any) -> bool:
        """Whether a width is of one layer. One that is named after the first may be of all.

        Args:
            name: its name.
            known: what is known of it.
        """
        owner = self._owner(name)
        is_first = owner is not None and _AFTER not in self.mentioned(known)
        return is_first or owner in (_ITSELF, _AFTER)

    def recipe(self, recipe: Recipe, layers: Sequence[int]) -> Recipe:
        """Returns a recipe in which every layer that it does not name has what the second one has.

        Args:
            recipe: the recipe of the layers that were read.
            layers: the numbers of all layers.

        Raises:
            NotAlike: if it is open what more layers add.
        """
        found = dict[str, Any]()
        for field in fields(recipe):
            if isinstance(known := getattr(recipe, field.name), tuple):
                paths = {_path(item) for item in known}
                every = dict.fromkeys(self.sequence(known, layers))
                own = (item for item in every if item in known or _path(item) not in paths)
                found[field.name] = tuple(own)
        return replace(recipe, **found)

    def sequence(
        self,
        items: Sequence[T],
        layers: Sequence[int],
        name_of: Callable[[T], Any] = lambda item: item,
    ) -> tuple[T, ...]:
        """Returns a sequence in which every layer has what the second one has.

        Args:
            items: the sequence, as it was read.
            layers: the numbers of all layers.
            name_of: what tells to which layer an item belongs.
        """
        found: list[T] = []
        for owner, group in groupby(items, lambda item: self._owner(name_of(item))):
            if owner == _ITSELF:
                segment = list(group)
                for beside in zip(layers, layers[1:], layers[2:], strict=False):
                    found += (self._renamed(item, beside) for item in segment)
            elif owner == _AFTER:
                last = (layers[0], layers[-2], layers[-1])
                found += (self._renamed(item, last) for item in group)
            else:
                found += group
        return tuple(found)

    def _owner(self, name: Any) -> int | None:
        """Returns the first layer that is mentioned; what it hands on is read by the next."""
        return min(self.mentioned(name), default=None)

    def _renamed(self, value: T, beside: Sequence[int]) -> T:
        """Returns the same with the names of other layers.

        Args:
            value: what mentions the first three layers that were read.
            beside: the numbers of the layers that take their places.
        """
        if isinstance(value, str):
            known = self._text(value)
            if max(known.mentioned, default=0) > _AFTER:
                raise NotAlike
            if not known.names:
                return value
            names = (self._names[beside[place]][family] for family, place in known.names)
            text = "".join(chain.from_iterable(zip(known.between, (*names, ""), strict=True)))
            return type(value)(text, value.kind) if isinstance(value, Reason) else text  # type: ignore[return-value]
        if isinstance(value, tuple):
            return tuple(self._renamed(part, beside) for part in value)  # type: ignore[return-value]
        kind: Any = type(value)
        changed = {
            name: new
            for name in _attributes(kind)
            if (new := self._renamed(old := getattr(value, name), beside)) is not old
        }
        return replace(value, **changed) if changed else value  # type: ignore[type-var]

    def _text(self, text: str) -> "_Text":
        """Returns where a text mentions layers. The same texts come again for each layer."""
        if text not in self._read:
            found = [*self._pattern.finditer(text)]
            stops = zip((0, *(m.end() for m in found)), (*(m.start() for m in found), len(text)))
            names = tuple(self._places[m[0]] for m in found)
            mentioned = frozenset(place for _, place in names)
            between = tuple(str(text[start:stop]) for start, stop in stops)
            self._read[text] = _Text(between, names, mentioned)
        return self._read[text]


@dataclass(frozen=True)
class _Text:
    """A text that mentions layers.

    Attributes:
        between: what is before, between and behind the names of layers.
        names: for each name, which one of the layer's names it is, and the place of the layer.
        mentioned: the places.
    """

    between: tuple[str, ...]
    names: tuple[tuple[int, int], ...]
    mentioned: frozenset[int]


def _path(item: Any) -> str:
    """Returns the path in an entry of a recipe."""
    path: str = item[0] if isinstance(item, tuple) else item
    return path


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        yield from value
    else:
        yield from (getattr(value, name) for name in _attributes(value.__class__))


@cache
def _attributes(kind: Any) -> tuple[str, ...]:
    """Returns the names of the attributes of a dataclass, none for another type."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()
