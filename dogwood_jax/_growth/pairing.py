"""Pairs the layers of a network with layers of a deeper network, by their names and shapes.

Layers with the same path are paired, unless their shapes or the programs contradict. In numbered
names (``layers_0``, ``Dense_1``, or the index in a list), an inserted layer shifts the numbers of
later layers, which are paired in their order. Several pairings may be possible. Pairings that
follow the order in which both programs read their arrays are tried early.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

Shapes = Mapping[str, jax.ShapeDtypeStruct]
Fits = Callable[[str, str], bool]

_LIMIT = 64  # upper limit on pairings by names and shapes
_MOST_PLACES = 16  # upper limit on pairings by the order in which arrays are read


class Pairing:
    """The possible pairings of a network's arrays with arrays of a deeper network.

    Attributes:
        problems: why there is no pairing, as far as it can be detected.
    """

    def __init__(
        self,
        old: Shapes,
        new: Shapes,
        *,
        fits: Fits,
        rename: Mapping[str, str],
    ) -> None:
        """Prepares to pair arrays.

        Args:
            old: shapes of the network by path.
            new: shapes of the deeper network by path.
            fits: whether an old and a new array can be a pair, by their paths.
            rename: new paths of modules by old path, with or without their collection.
        """
        self._old, self._new, self._fits = old, new, fits
        self.problems: list[str] = []
        self._pinned = self._renamed(rename)

    def _renamed(self, rename: Mapping[str, str]) -> dict[str, str]:
        pinned: dict[str, str] = {}
        for before, after in rename.items():
            found = {path: place for path in self._old if (place := _moved(path, before, after))}
            if not found:
                self.problems.append(f"rename: the network has no {before!r}")
            for path, place in found.items():
                if place not in self._new:
                    self.problems.append(f"rename: {place} is not in the target")
                elif not self._fits(path, place):
                    self.problems.append(self._misfit(path, place))
            pinned |= found
        return pinned

    def candidates(
        self, old_order: Sequence[str] = (), new_order: Sequence[str] = ()
    ) -> list[dict[str, str]]:
        """Returns possible pairings, as new paths by old path.

        The pairing that keeps the most paths comes first. If the orders are given in which both
        programs read their arrays, pairings come next in which all new arrays are in one place of
        that order, or in two places.
        """
        if self.problems:
            return []
        free = set(self._new) - set(self._pinned.values())
        collections = any(path.startswith("params/") for path in self._old)
        old = nested((p for p in self._old if p not in self._pinned), collections)
        new = nested((p for p in self._new if p in free), collections)
        embeddings = self._embeddings(old, new)
        found = [self._pinned | dict(pairs) for pairs in itertools.islice(embeddings, _LIMIT)]
        if not found:
            self.problems += self._misfits()
        found.sort(key=_moves)
        read = itertools.islice(self._as_read(old_order, new_order), _MOST_PLACES)
        found[1:1] = [pairs for pairs in read if self._pinned.items() <= pairs.items()]
        return found

    def _as_read(
        self, old_order: Sequence[str], new_order: Sequence[str]
    ) -> Iterator[dict[str, str]]:
        """Yields pairings in these orders with all new arrays in one place, or in two places.

        Two places are needed for an encoder and a decoder. If new layers could be in several places
        of a stack, the last place comes first.
        """
        if {*old_order} != {*self._old}:
            return

        def fits(place: int, shift: int) -> bool:
            old, new = old_order[place], new_order[place + shift]
            return _kind(old) == _kind(new) and self._fits(old, new)

        def apart(cut: int) -> bool:
            """Whether a cut before this array keeps the arrays of a module together."""
            beside = [path.rpartition("/")[0] for path in old_order[max(cut - 1, 0) : cut + 1]]
            return len({*beside}) == len(beside)

        more = len(new_order) - len(old_order)
        for cuts in _cuts(len(old_order), more, fits):
            if all(apart(cut) for cut, _ in cuts):
                shifts = [0] * len(old_order)
                for cut, shift in cuts:
                    shifts[cut:] = [shift] * (len(old_order) - cut)
                yield {old: new_order[i + n] for i, (old, n) in enumerate(zip(old_order, shifts))}

    def _misfits(self) -> list[str]:
        missing = [f"{path}: not in the target" for path in self._old if path not in self._new]
        both = [path for path in self._old if path in self._new]
        return missing + [self._misfit(p, p) for p in both if not self._fits(p, p)]

    def _misfit(self, path: str, place: str) -> str:
        shape, other = self._old[path].shape, self._new[place].shape
        name = "" if path == place else f" as {place}"
        return f"{path}: has shape {shape}, in the target{name} {other}"

    def _embeddings(self, old: Any, new: Any) -> Iterator[list[tuple[str, str]]]:
        """Yields ways to pair all arrays of one tree with arrays of another, as pairs of paths."""
        if isinstance(old, str) or isinstance(new, str):
            if isinstance(old, str) and isinstance(new, str) and self._fits(old, new):
                yield [(old, new)]
            return
        groups: dict[str, list[str]] = {}
        for name in old:
            groups.setdefault(_stem(name), []).append(name)
        parts = [
            _Replayed(self._in_order(old, names, new, [n for n in new if _stem(n) == group]))
            for group, names in groups.items()
        ]
        for choice in _product(parts):
            yield [pair for pairs in choice for pair in pairs]

    def _in_order(
        self, old: Any, names: list[str], new: Any, others: list[str]
    ) -> Iterator[list[tuple[str, str]]]:
        """Yields ways to pair children with numbered names in their order, as pairs of paths."""
        if not names:
            yield []
            return
        first, *rest = names
        spare = len(others) - len(names)
        places = list(range(spare + 1))
        if first in others:
            places.sort(key=lambda i: others[i] != first)
        for i in places:
            tail = _Replayed(self._in_order(old, rest, new, others[i + 1 :]))
            for head in self._embeddings(old[first], new[others[i]]):
                for more in tail:
                    yield head + more


def _cuts(
    count: int, more: int, fits: Callable[[int, int], bool]
) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yields one or two cuts of a sequence, so that its parts fit into a longer sequence.

    Args:
        count: length of the sequence.
        more: the number of further entries in the longer sequence.
        fits: whether an entry (index) equals the longer sequence's entry a number of places later.

    Yields:
        For each cut, the entry after it, and the number of places by which that entry and all later
        ones move. Single cuts come first. Pairs of cuts follow: first those with the most possible
        places, then the latest.
    """
    if more <= 0:
        return
    first = next((i for i in reversed(range(count)) if not fits(i, more)), -1) + 1
    last = _run(0, count, 0, fits)
    for cut in range(last, first - 1, -1):
        yield ((cut, more),)
    twice = []
    for shift in range(1, more):
        end = _run(last, count, shift, fits)
        start = next((i for i in reversed(range(last)) if not fits(i, shift)), -1) + 1
        # New layers may also come before equal layers, so a cut can move back within these.
        free = min(last - start, end - first)
        for earlier in range(min(last - start, _MOST_PLACES) + 1):
            for back in range(min(end - first, _MOST_PLACES - earlier) + 1):
                cut, again = last - earlier, end - back
                if cut < again:
                    twice.append((-free, earlier + back, ((cut, shift), (again, more))))
    yield from (cuts for *_, cuts in sorted(twice))


def _run(start: int, count: int, shift: int, fits: Callable[[int, int], bool]) -> int:
    """Returns the first entry from ``start`` on that does not fit after the shift."""
    return next((i for i in range(start, count) if not fits(i, shift)), count)


class _Replayed:
    """Iterates repeatedly over the items of one iterator, which is consumed only as needed."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.count():
            if i == len(self._seen):
                try:
                    self._seen.append(next(self._iterator))
                except StopIteration:
                    return
            yield self._seen[i]


def _product(parts: list[_Replayed]) -> Iterator[list[Any]]:
    """Yields combinations like ``itertools.product``, but without collecting the parts first."""
    if not parts:
        yield []
        return
    for first in parts[0]:
        for rest in _product(parts[1:]):
            yield [first, *rest]


def _moves(places: Mapping[str, str]) -> int:
    """Returns the number of arrays with another path."""
    return sum(path != place for path, place in places.items())


def split_number(name: str) -> tuple[str, int | None]:
    """Returns a name without the number at its end, and the number or None."""
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def closest(path: str, others: Iterable[str]) -> list[str]:
    """Returns the most similar paths: most equal parts from the end, equal numbers count extra."""

    def alike(other: str) -> int:
        pairs = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
        same = ((a == b) + (_kind(a) == _kind(b)) for a, b in pairs)
        return sum(itertools.takewhile(bool, same))

    counts = {other: alike(other) for other in others}
    return [other for other, count in counts.items() if count == max(counts.values())]


@functools.cache
def _kind(name: str) -> str:
    """Returns a name without its numbers: the same for ``block_1_up`` and ``block_2_up``."""
    return re.sub(r"\d+", "", name)


def _stem(name: str) -> str:
    start, number = split_number(name)
    return name if number is None else f"{start}#"


def _moved(path: str, before: str, after: str) -> str | None:
    """Returns the new path of an array of a renamed module; None for arrays of other modules."""
    collection, _, rest = path.partition("/")
    for start, inner in (("", path), (f"{collection}/", rest)):
        if f"{inner}/".startswith(f"{before}/"):
            return f"{start}{after}{inner.removeprefix(before)}"
    return None


def nested(paths: Iterable[str], collections: bool) -> Any:
    """Returns a tree of modules, with numbered modules in the order of their numbers.

    With collections, as in Flax, a module holds its arrays of all collections.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        *modules, name = path.split("/")
        if collections and modules:
            collection, *modules = modules
            name = f"{collection}/{name}"
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[name] = path
    return _sorted(tree)


def _sorted(tree: Any) -> Any:
    if isinstance(tree, str):
        return tree
    names = sorted(tree, key=lambda name: (_stem(name), split_number(name)[1] or 0))
    return {name: _sorted(tree[name]) for name in names}
