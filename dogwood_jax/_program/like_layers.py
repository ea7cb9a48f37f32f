"""Programs of many like layers, and the same programs with fewer of them: ``find_like_layers``.

A deep network that is not written as a loop has the same equations once for each layer. They differ
in the arrays that they read: those of ``layers/7`` instead of those of ``layers/6``. One layer
begins with what the layer before it made. So layers can be left out of the program: then the layer
after them begins with what the layer before them made.

What repeats is called a layer here. In a network in which two kinds of layers alternate, it is two
layers.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.extend.core as jex
import numpy as np

from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._program.program import Program
from dogwood_jax._program.sameness import Sameness

# How many equations the like layers must have, so that it is worth while.
WORTH = 300

# How many layers there must be.
FEWEST = 4

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
    order = np.argsort(numbers, kind="stable")
    distances = list[np.ndarray]()
    for nth in range(1, _BETWEEN + 1):
        one, other = order[:-nth], order[nth:]
        distances.append((other - one)[numbers[one] == numbers[other]])
    found, counts = np.unique(np.concatenate(distances), return_counts=True)
    return [int(found[index]) for index in np.argsort(-counts, kind="stable")[:_TRIED]]


class _LayerReading:
    """What the equations of a program read, as far as layers are told by it.

    Variables are numbers, because NumPy compares those of all layers at once.
    """

    def __init__(self, program: Program) -> None:
        jaxpr, paths = program.jaxpr.jaxpr, program.paths
        self._arguments = program.arguments
        outside = [*jaxpr.constvars, *jaxpr.invars]
        results = [len(eqn.outvars) for eqn in jaxpr.eqns]
        every = itertools.chain(outside, *(eqn.outvars for eqn in jaxpr.eqns))
        numbers = {var: number for number, var in enumerate(every)}
        reads = [
            (numbers[atom], index)
            for index, eqn in enumerate(jaxpr.eqns)
            for atom in eqn.invars
            if not isinstance(atom, jex.Literal)
        ]
        returned = (numbers[var] for var in jaxpr.outvars if not isinstance(var, jex.Literal))
        # The variables that are read, with the equations that read them; those that are returned.
        self._read, self._reader = np.asarray(reads).T
        self._returned = np.asarray([*returned], int)
        # By variable: the equation that makes it, or -1; which of its results; its array's path.
        self._made = np.repeat([-1, *range(len(results))], [len(outside), *results])
        first = np.cumsum([0, len(outside), *results])[self._made + 1]
        self._place = np.arange(len(numbers)) - first
        self._paths = [paths.get(var) for var in numbers]
        self._is_array = np.asarray([path is not None for path in self._paths])

    def _reads(self, first: int, end: int) -> np.ndarray:
        """Returns the variables that equations read, one after another."""
        begin, end = np.searchsorted(self._reader, [first, end])
        found: np.ndarray = self._read[begin:end]
        return found

    def layers(self, begin: int, count: int, length: int) -> LikeLayers | None:
        """Returns the layers that have this many equations each.

        Args:
            begin: index of the first equation that is equal to the one this much later.
            count: how many such equations there are.
            length: how many equations a layer has.
        """
        first, count = _longest(self._repeat(begin, count, length))
        first += begin
        for start in self._beginnings(first, length) if count >= length else ():
            layers = (first + count + length - start) // length
            if layers >= FEWEST and self._is_chain(start, length, layers):
                prefixes = self._prefixes(start, length, layers)
                if prefixes is not None:
                    found = LikeLayers(start, length, self._with_collections(prefixes))
                    if self._have_their_own(found):
                        return found
        return None

    def _repeat(self, begin: int, count: int, length: int) -> np.ndarray:
        """Whether equations read what the same ones of the next layer read, one layer later."""
        its = self._reads(begin, begin + count)
        later = self._reads(begin + length, begin + length + count)
        made, made_later = self._made[its], self._made[later]
        is_next = (made >= 0) & (made + length == made_later)
        is_next &= self._place[its] == self._place[later]
        are_arrays = self._is_array[its] & self._is_array[later]
        differ = np.flatnonzero(~((its == later) | is_next | are_arrays))
        repeat = np.ones(count, bool)
        repeat[self._reader[differ + np.searchsorted(self._reader, begin)] - begin] = False
        return repeat

    def _layered(self, start: int, length: int, layer: int) -> Iterator[tuple[int, int, int]]:
        """Yields the arrays that equations of the first layer and of another read instead.

        Yields:
            The equation of the first layer, its array, and that of the other layer.
        """
        its = self._reads(start, start + length)
        other = self._reads(start + layer * length, start + (layer + 1) * length)
        begin = np.searchsorted(self._reader, start)
        for place in np.flatnonzero(self._is_array[its] & (its != other)):
            yield int(self._reader[begin + place]), its[place], other[place]

    def _beginnings(self, first: int, length: int) -> list[int]:
        """Returns where layers may begin: after an equation that reads arrays of a layer."""
        ends = dict.fromkeys(reader for reader, _, _ in self._layered(first, length, 1))
        return [first, *(index + 1 for index in ends)]

    def _is_chain(self, start: int, length: int, layers: int) -> bool:
        """Whether what layers make is read by the layer after them, or is the first layer's."""
        end = start + layers * length
        made = self._made[self._read]
        begins = start + (self._reader - start) // length * length
        is_inside = (self._reader >= start) & (self._reader < end)
        is_near = np.where(
            is_inside, (made < start + length) | (made >= begins - length), made >= end - length
        )
        returned = self._made[self._returned]
        is_last = (returned >= end - length) | (returned < start) | (returned >= end)
        return bool(np.all(is_near | (made < start) | (made >= end)) and np.all(is_last))

    def _prefixes(self, start: int, length: int, layers: int) -> tuple[tuple[str, ...], ...] | None:
        """Returns what the paths of each layer's arrays begin with, or None if they do not tell."""
        found: list[dict[str, str]] = [{} for _ in range(layers)]
        for layer in range(1, layers):
            for _, its, other in self._layered(start, length, layer):
                pair = _differing(self._paths[its], self._paths[other])  # type: ignore[arg-type]
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
        paths = [path for path in self._paths if path is not None]
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

    def _have_their_own(self, layers: LikeLayers) -> bool:
        """Whether each layer alone reads its arrays, and every layer has the same ones."""
        if layers.has_names_twice:
            return False
        layer_of = np.full(len(self._made), -1)
        for number in np.flatnonzero(self._is_array):
            layer = layers.layer_of(self._paths[number])  # type: ignore[arg-type]
            layer_of[number] = -1 if layer is None else layer
        its, reader = layer_of[self._read], (self._reader - layers.start) // layers.length
        is_own = np.all((its < 0) | (its == reader))
        is_returned = np.any(layer_of[self._returned] >= 0)
        return bool(is_own and not is_returned and self._have_the_same_arrays(layers))

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
    if without_numbers(parts[places[0]]) != without_numbers(others[places[0]]):
        return None
    end = places[0] + 1
    return "/".join(parts[:end]), "/".join(others[:end])
