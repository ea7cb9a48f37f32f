"""Finds the like layers of a program, and leaves some of them out: ``find_like_layers``.

A deep network that is not written as a loop repeats the same equations for each layer. Only the
arrays that they read differ: one layer reads ``layers/6``, the next one ``layers/7``. Each layer
starts from the output of the layer before it. If layers are left out of the program, the layer
after them starts from the output of the layer before them.

Here, a layer is the part that repeats. In a network in which two kinds of layers alternate, it is
a pair of layers.
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

# Minimum number of repeated equations; with fewer, leaving layers out saves too little.
WORTH = 300

# Minimum number of layers.
FEWEST = 4

# Maximum number of distances between equal equations that are tried as the length of a layer.
_TRIED = 8
# Maximum occurrences in one layer of an equation that shows its length. Gemma 3 repeats six layers,
# five of which are alike.
_BETWEEN = 8


@dataclass(frozen=True)
class LikeLayers:
    """Layers of a program that repeat the same equations.

    Attributes:
        start: index of the first equation of the first of these layers.
        length: number of equations of a layer.
        prefixes: for each layer, the prefixes of its arrays' paths, such as ``"layers/7"``. There
            are several if a layer's arrays are in several places, in the same order for every
            layer.
    """

    start: int
    length: int
    prefixes: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.prefixes)

    @property
    def few(self) -> tuple[int, ...]:
        """Layers that represent all: the first, the second (for all inner layers) and the last."""
        return (0, 1, len(self) - 1)

    def layer_of(self, path: str) -> int | None:
        """Returns the index of the layer of an array, or None if it is in no layer."""
        place = self.place_of(path)
        return None if place is None else place[0]

    def place_of(self, path: str) -> tuple[int, tuple[int, str]] | None:
        """Returns the layer of an array and its place in the layer; None if it is in no layer."""
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            if (found := self._layers.get("/".join(parts[:end]))) is not None:
                layer, family = found
                return layer, (family, "/".join(parts[end:]))
        return None

    @property
    def has_names_twice(self) -> bool:
        """Whether several layers share a prefix."""
        return len(self._layers) < sum(map(len, self.prefixes))

    @cached_property
    def _layers(self) -> dict[str, tuple[int, int]]:
        return {
            prefix: (layer, family)
            for layer, prefixes in enumerate(self.prefixes)
            for family, prefix in enumerate(prefixes)
        }

    def are_like(self, program: Program, other: Program, kept: Sequence[int]) -> bool:
        """Whether another program has these layers, too, and leaves out no layer of its own kind.

        Args:
            program: the program in which they were found.
            other: the same function in other sizes, in which layers may have several sizes.
            kept: the layers that represent all.
        """
        if not _have_same_variables(program, other):
            return False
        same, eqns = Sameness(), other.jaxpr.jaxpr.eqns
        starts = range(self.start, self.start + len(self) * self.length, self.length)
        layers = [tuple(map(same.equation, eqns[n : n + self.length])) for n in starts]
        inner = {layers[n] for n in kept if 0 < n < len(self) - 1}
        return all(layer in inner for n, layer in enumerate(layers) if n not in kept)

    def keeping(self, program: Program, layers: Sequence[int]) -> Program:
        """Returns a program with only some of these layers.

        Args:
            program: the program in which they were found.
            layers: the layers to keep, in ascending order, with the first and the last one.
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
    """Returns the like layers of a program; None if leaving some out would save too little.

    If a program has several kinds of layers, one after another, the kind with the most equations
    is returned.
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


def _have_same_variables(program: Program, other: Program) -> bool:
    """Whether the equations of two programs read the same variables, in the same order."""
    ours, theirs = program.jaxpr.jaxpr, other.jaxpr.jaxpr
    takes = [[path for path, _ in side.arguments] for side in (program, other)]
    sides = [(side.constvars, side.invars, side.eqns, side.outvars) for side in (ours, theirs)]
    if [*map(len, sides[0])] != [*map(len, sides[1])] or takes[0] != takes[1]:
        return False
    known = dict(zip((*ours.constvars, *ours.invars), (*theirs.constvars, *theirs.invars)))

    def are_same(those: Sequence[Any], others: Sequence[Any]) -> bool:
        its = (None if isinstance(var, jex.Literal) else known[var] for var in those)
        found = (None if isinstance(var, jex.Literal) else var for var in others)
        return len(those) == len(others) and all(a is b for a, b in zip(its, found))

    for one, its in zip(ours.eqns, theirs.eqns):
        if one.primitive is not its.primitive or not are_same(one.invars, its.invars):
            return False
        known.update(zip(one.outvars, its.outvars))
    return are_same(ours.outvars, theirs.outvars)


def _lengths(numbers: np.ndarray) -> list[int]:
    """Returns the most frequent distances between equal equations."""
    order = np.argsort(numbers, kind="stable")
    distances = list[np.ndarray]()
    for nth in range(1, _BETWEEN + 1):
        one, other = order[:-nth], order[nth:]
        distances.append((other - one)[numbers[one] == numbers[other]])
    found, counts = np.unique(np.concatenate(distances), return_counts=True)
    return [int(found[index]) for index in np.argsort(-counts, kind="stable")[:_TRIED]]


class _LayerReading:
    """The variables that the equations of a program read, from which layers are found.

    Variables are numbers, so that NumPy compares the variables of all layers at once.
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
        # The variables that equations read, with the equations; the variables that are returned.
        self._read, self._reader = np.asarray(reads).T
        self._returned = np.asarray([*returned], int)
        # By variable: the equation that makes it, or -1; its place among the results; its path.
        self._made = np.repeat([-1, *range(len(results))], [len(outside), *results])
        first = np.cumsum([0, len(outside), *results])[self._made + 1]
        self._place = np.arange(len(numbers)) - first
        self._paths = [paths.get(var) for var in numbers]
        self._is_array = np.asarray([path is not None for path in self._paths])

    def _reads(self, first: int, end: int) -> np.ndarray:
        """Returns the variables that equations ``first`` to ``end - 1`` read, in order."""
        begin, end = np.searchsorted(self._reader, [first, end])
        found: np.ndarray = self._read[begin:end]
        return found

    def layers(self, begin: int, count: int, length: int) -> LikeLayers | None:
        """Returns the like layers of a given length; None if there are none.

        Args:
            begin: index of the first equation that equals the equation ``length`` later.
            count: number of such equations in a row.
            length: number of equations of a layer.
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
        """Whether each equation and the one a layer later read values that are a layer apart."""
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
        """Yields the arrays that differ between the first layer and another layer.

        Yields:
            The equation of the first layer, its array, and the array of the other layer.
        """
        its = self._reads(start, start + length)
        other = self._reads(start + layer * length, start + (layer + 1) * length)
        begin = np.searchsorted(self._reader, start)
        for place in np.flatnonzero(self._is_array[its] & (its != other)):
            yield int(self._reader[begin + place]), its[place], other[place]

    def _beginnings(self, first: int, length: int) -> list[int]:
        """Returns possible starts of a layer: after each equation that reads arrays of a layer."""
        ends = dict.fromkeys(reader for reader, _, _ in self._layered(first, length, 1))
        return [first, *(index + 1 for index in ends)]

    def _is_chain(self, start: int, length: int, layers: int) -> bool:
        """Whether layers read only the first and the previous layer, and the rest only the last."""
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
        """Returns the prefixes of the paths of each layer's arrays; None if they are unclear."""
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
        """Adds the prefixes of the layers' arrays in collections other than ``params``.

        The program may not read these arrays, and so not show their prefixes.
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
        """Whether only its own layer reads an array, and all layers have the same arrays."""
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
        """Whether all layers have arrays of equal names, shapes and dtypes, read or unread."""
        found: list[set[Any]] = [set() for _ in range(len(layers))]
        for path, struct in self._arguments:
            place = None if path is None else layers.place_of(path)
            if place is not None:
                layer, inside = place
                found[layer].add((inside, struct.shape, struct.dtype))
        return all(arrays == found[0] for arrays in found)


def _longest(where: np.ndarray) -> tuple[int, int]:
    """Returns the start and the length of the longest run of true values."""
    ends = np.flatnonzero(~np.append(where, False))
    counts = np.diff(ends, prepend=-1) - 1
    longest = int(counts.argmax())
    return int(ends[longest] - counts[longest]), int(counts[longest])


def _differing(path: str, other: str) -> tuple[str, str] | None:
    """Returns the prefixes of two paths up to the only part that differs, or None."""
    parts, others = path.split("/"), other.split("/")
    places = [i for i, pair in enumerate(zip(parts, others, strict=False)) if pair[0] != pair[1]]
    if len(parts) != len(others) or len(places) != 1:
        return None
    if without_numbers(parts[places[0]]) != without_numbers(others[places[0]]):
        return None
    end = places[0] + 1
    return "/".join(parts[:end]), "/".join(others[:end])
