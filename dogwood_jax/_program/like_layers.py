"""Programs of many like layers, and the same programs with fewer of them: ``find_like_layers``.

A deep network that is not written as a loop has the same equations once for each layer. They differ
in the arrays that they read: those of ``layers/7`` instead of those of ``layers/6``. One layer
begins with what the layer before it made. So layers can be left out of the program: then the layer
after them begins with what the layer before them made.

What repeats is called a layer here. In a network in which two kinds of layers alternate, it is two
layers.
"""

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.extend.core as jex
import numpy as np

from dogwood_jax._program.program import Program
from dogwood_jax._program.sameness import Sameness

# How many equations the like layers must have, so that it is worth while.
WORTH = 1000

# How many layers there must be.
FEWEST = 6

# How many distances between equal equations are tried as the length of a layer.
_TRIED = 8
# How many equal equations a layer may have between two that are a layer apart. Gemma 3 repeats six
# of its layers, five of which are alike.
_BETWEEN = 8


@dataclass(frozen=True)
class LikeLayers:
    """Layers of a program that are like each other.

    Attributes:
        start: index of the first equation of the first of these layers.
        length: how many equations a layer has.
        prefixes: what the paths of the arrays of each layer begin with, such as ``"layers/7"``.
            Where a layer's arrays are in several places, there are several, in the same order for
            every layer.
    """

    start: int
    length: int
    prefixes: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.prefixes)

    @property
    def few(self) -> tuple[int, ...]:
        """The layers that stand for all: the second one does for those after it but the last."""
        return (0, 1, len(self) - 1)

    def layer_of(self, path: str) -> int | None:
        """Returns which layer an array is in, or None."""
        place = self.place_of(path)
        return None if place is None else place[0]

    def place_of(self, path: str) -> tuple[int, tuple[int, str]] | None:
        """Returns which layer an array is in, and where in it; or None."""
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            if (found := self._layers.get("/".join(parts[:end]))) is not None:
                layer, family = found
                return layer, (family, "/".join(parts[end:]))
        return None

    @property
    def has_names_twice(self) -> bool:
        """Whether a beginning of paths is that of several layers."""
        return len(self._layers) < sum(map(len, self.prefixes))

    @cached_property
    def _layers(self) -> dict[str, tuple[int, int]]:
        return {
            prefix: (layer, family)
            for layer, prefixes in enumerate(self.prefixes)
            for family, prefix in enumerate(prefixes)
        }

    def keeping(self, program: Program, layers: Sequence[int]) -> Program:
        """Returns a program without all of these layers but some.

        Args:
            program: the program in which they were found.
            layers: those that stay, in their order, the first one and the last one among them.
        """
        jaxpr, kept = program.jaxpr.jaxpr, {*layers}
        end = self.start + len(self) * self.length
        eqns = [*jaxpr.eqns[: self.start]]
        for before, layer in zip([None, *layers[:-1]], layers, strict=True):
            first = self.start + layer * self.length
            instead: dict[Any, Any] = {}
            if before is not None and before < layer - 1:
                stays = self.start + before * self.length
                for offset in range(self.length):
                    made, its = (jaxpr.eqns[n + offset] for n in (first - self.length, stays))
                    instead.update(zip(made.outvars, its.outvars, strict=True))
            for eqn in jaxpr.eqns[first : first + self.length]:
                invars = [
                    atom if isinstance(atom, jex.Literal) else instead.get(atom, atom)
                    for atom in eqn.invars
                ]
                is_same = all(a is b for a, b in zip(invars, eqn.invars, strict=True))
                eqns.append(eqn if is_same else eqn.replace(invars=invars))
        eqns += jaxpr.eqns[end:]

        layer_of = {var: self.layer_of(path) for var, path in program.paths.items()}
        invars = [var for var in jaxpr.invars if layer_of.get(var) in {None, *kept}]
        return program.taking(invars, eqns)


def find_like_layers(program: Program) -> LikeLayers | None:
    """Returns the like layers of a program, if it has so many that leaving them out is worth it.

    If a program has several kinds of layers, one after another, those with most equations are
    found.
    """
    eqns = program.jaxpr.jaxpr.eqns
    if len(eqns) < WORTH:
        return None
    same = Sameness()
    numbers = np.asarray([same.equation(eqn) for eqn in eqns])
    reading = _LayerReading(program)
    runs = [
        (length, *_longest(numbers[:-length] == numbers[length:])) for length in _lengths(numbers)
    ]
    for length, first, count in sorted(runs, key=lambda run: (-run[2], run[0])):
        if count < WORTH:
            continue
        layers = reading.layers(first, count, length)
        if layers is not None:
            return layers
    return None


def _lengths(numbers: np.ndarray) -> list[int]:
    """Returns the distances between equal equations that occur most often."""
    last: dict[int, deque[int]] = {}
    distances: Counter[int] = Counter()
    for index, number in enumerate(numbers.tolist()):
        before = last.setdefault(number, deque(maxlen=_BETWEEN))
        distances.update(index - other for other in before)
        before.append(index)
    return [distance for distance, _ in distances.most_common(_TRIED)]


class _LayerReading:
    """What the variables of a program are, as far as layers are told by them."""

    def __init__(self, program: Program) -> None:
        self._jaxpr, self._arguments = program.jaxpr.jaxpr, program.arguments
        self._paths = program.paths
        # Numbers instead of pairs and lists, because Python's collector follows each of those.
        self._made: dict[Any, int] = {
            var: index for index, eqn in enumerate(self._jaxpr.eqns) for var in eqn.outvars
        }
        self._places: dict[Any, int] = {
            var: place for eqn in self._jaxpr.eqns for place, var in enumerate(eqn.outvars)
        }
        self._reading_arrays = {
            index
            for index in range(len(self._jaxpr.eqns))
            if any(atom in self._paths for atom in self._reads(index))
        }

    def _reads(self, index: int) -> list[Any]:
        """Returns the variables that an equation reads."""
        return [a for a in self._jaxpr.eqns[index].invars if not isinstance(a, jex.Literal)]

    def layers(self, begin: int, count: int, length: int) -> LikeLayers | None:
        """Returns the layers that have this many equations each.

        Args:
            begin: index of the first equation that is equal to the one this much later.
            count: how many such equations there are.
            length: how many equations a layer has.
        """
        repeats = [self._repeats(index, length) for index in range(begin, begin + count)]
        first, count = _longest(np.asarray(repeats))
        first += begin
        for start in self._beginnings(first, length) if count >= length else ():
            layers = (first + count + length - start) // length
            if layers >= FEWEST:
                prefixes = self._prefixes(start, length, layers)
                if prefixes is not None:
                    found = LikeLayers(start, length, self._with_collections(prefixes))
                    if self._is_closed(found):
                        return found
        return None

    def _repeats(self, index: int, length: int) -> bool:
        """Whether an equation reads what the same equation of the next layer reads, one later."""
        return all(
            a is b or self._is_next(a, b, length)
            for a, b in zip(self._reads(index), self._reads(index + length), strict=True)
        )

    def _is_next(self, one: Any, other: Any, length: int) -> bool:
        index, its = self._made.get(one), self._made.get(other)
        if index is not None and its is not None:
            return index + length == its and self._places[one] == self._places[other]
        return one in self._paths and other in self._paths

    def _beginnings(self, first: int, length: int) -> list[int]:
        """Returns where layers may begin: after an equation that reads arrays of a layer."""
        ends = (
            index for index in range(first, first + length) if self._layered(index, index + length)
        )
        return [first, *(index + 1 for index in ends)]

    def _layered(self, index: int, its: int) -> list[tuple[str, str]]:
        """Returns the paths of arrays that two equations read, where these are different ones."""
        if index not in self._reading_arrays:
            return []
        return [
            (self._paths[a], self._paths[b])
            for a, b in zip(self._reads(index), self._reads(its), strict=True)
            if a is not b and a in self._paths
        ]

    def _prefixes(self, start: int, length: int, layers: int) -> tuple[tuple[str, ...], ...] | None:
        """Returns what the paths of each layer's arrays begin with, or None if they do not tell."""
        found: list[dict[str, str]] = [{} for _ in range(layers)]
        reading = self._reading_arrays.intersection(range(start, start + length))
        for layer in range(1, layers):
            for index in reading:
                for path, its in self._layered(index, index + layer * length):
                    pair = _differing(path, its)
                    if pair is None or found[layer].setdefault(pair[0], pair[1]) != pair[1]:
                        return None
                    found[0][pair[0]] = pair[0]
        families = [*found[0]]
        if not families or any([*prefixes] != families for prefixes in found[1:]):
            return None
        return tuple(tuple(prefixes[family] for family in families) for prefixes in found)

    def _with_collections(
        self, prefixes: tuple[tuple[str, ...], ...]
    ) -> tuple[tuple[str, ...], ...]:
        """Returns the same, and where the layers' arrays are in collections beside ``params``.

        Those may be unread, so that the program does not show them.
        """
        paths = list(self._paths.values())
        others = dict.fromkeys(path.partition("/")[0] for path in paths if "/" in path)
        found = [[*of_layer] for of_layer in prefixes]
        for family in zip(*prefixes, strict=True):
            inside = [prefix.removeprefix("params/") for prefix in family]
            for other in others if inside != [*family] else ():
                theirs = [f"{other}/{prefix}" for prefix in inside]
                starts = tuple(f"{prefix}/" for prefix in theirs)
                if theirs[0] not in found[0] and any(path.startswith(starts) for path in paths):
                    for of_layer, prefix in zip(found, theirs, strict=True):
                        of_layer.append(prefix)
        return tuple(map(tuple, found))

    def _is_closed(self, layers: LikeLayers) -> bool:
        """Whether each layer reads its own arrays and the layer before, and nothing else does."""
        if layers.has_names_twice:
            return False
        start, length = layers.start, layers.length
        end = start + len(layers) * length
        first, last = range(start, start + length), range(end - length, end)
        for index in range(len(self._jaxpr.eqns)):
            layer = (index - start) // length if start <= index < end else None
            for atom in self._reads(index):
                path = self._paths.get(atom)
                if path is not None and layers.layer_of(path) not in (None, layer):
                    return False
                made = self._made.get(atom, -1)
                if layer is None:
                    is_near = made in last
                else:
                    is_near = made in first or made >= start + (layer - 1) * length
                if start <= made < end and not is_near:
                    return False
        results = [var for var in self._jaxpr.outvars if not isinstance(var, jex.Literal)]
        made_last = all(
            self._made[var] in last or not start <= self._made[var] < end
            for var in results
            if var in self._made
        )
        returned = (self._paths[var] for var in results if var in self._paths)
        has_own = any(layers.layer_of(path) is not None for path in returned)
        return made_last and not has_own and self._have_the_same_arrays(layers)

    def _have_the_same_arrays(self, layers: LikeLayers) -> bool:
        """Whether every layer has the same arrays, read or unread."""
        found: list[set[Any]] = [set() for _ in range(len(layers))]
        for path, struct in self._arguments:
            place = None if path is None else layers.place_of(path)
            if place is not None:
                layer, inside = place
                found[layer].add((inside, struct.shape, struct.dtype))
        return all(arrays == found[0] for arrays in found)


def _longest(where: np.ndarray) -> tuple[int, int]:
    """Returns the index of the longest run of true values, and how many these are."""
    ends = np.flatnonzero(~np.append(where, False))
    counts = np.diff(ends, prepend=-1) - 1
    longest = int(counts.argmax())
    return int(ends[longest] - counts[longest]), int(counts[longest])


def _differing(path: str, other: str) -> tuple[str, str] | None:
    """Returns the beginnings of two paths up to the one part in which they differ."""
    parts, others = path.split("/"), other.split("/")
    places = [i for i, pair in enumerate(zip(parts, others, strict=False)) if pair[0] != pair[1]]
    if len(parts) != len(others) or len(places) != 1:
        return None
    if _without_numbers(parts[places[0]]) != _without_numbers(others[places[0]]):
        return None
    end = places[0] + 1
    return "/".join(parts[:end]), "/".join(others[:end])


def _without_numbers(part: str) -> str:
    return re.sub(r"\d+", "#", part)
