"""New layers that do not compute the identity: ``repeated_layers``, ``scaled_layers``.

A repeated layer has a number in its name, such as ``block_2``, or is an entry of a stack over which
a loop runs. A ``DepthStrategy`` decides, by these numbers alone, which old layer each layer of the
deeper network is or copies. Nothing is evaluated, because outputs change.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from dogwood_jax._base.problems import listed
from dogwood_jax._growth.edit import Edit, Fill, Layers
from dogwood_jax._growth.pairing import nested
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax.strategies import DepthStrategy

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def repeated_layers(
    old: Shapes, new: Shapes, stacked: Mapping[str, int], layers: DepthStrategy
) -> tuple[Edit, ...]:
    """Returns all arrays of a deeper network that are new, moved, or have new layers.

    Args:
        old: shapes of the network by path.
        new: shapes of the deeper network by path.
        stacked: the axis that counts layers, by the path of each array that has one.
        layers: the strategy, which decides what new layers copy.

    Raises:
        ValueError: if the networks differ in more than the number of repeated layers.
    """
    collections = any(path.startswith("params/") for path in old)
    reading = _StackReading(old, new, stacked, layers)
    found = dict(reading.pairs(nested(old, collections), nested(new, collections)))
    if reading.problems:
        raise ValueError(
            listed(f"strategies.{layers}() cannot make these layers", reading.problems)
        )
    return tuple(found[path] for path in new if path in found)


def scaled_layers(
    copied: Iterable[Edit], silenced: Iterable[Edit], order: Sequence[str]
) -> tuple[Edit, ...]:
    """Returns scaled copies of layers: each of n equal layers adds 1 / sqrt(n) of what one added.

    Args:
        copied: the edits of a deeper network whose new layers are copies.
        silenced: the same edits with fillings for which new layers add nothing.
        order: the paths of the deeper network's arrays.

    Raises:
        ValueError: if new layers are not silenced by zeros, so that they add to no residual stream.
    """
    found = {one.path: one for one in copied}
    filled = [e for e in silenced if e.fill and e.fill.kind in ("constant", "identity")]
    if not all(edit.fill and edit.fill.value == 0 for edit in filled):
        raise ValueError(NO_STREAM)
    alike = Counter(edit.source for edit in found.values() if edit.is_whole)
    moved = {edit.source for edit in found.values() if edit.fill is None}
    scaled: dict[str, Edit] = {}
    for copy in {found[one.path].source: found[one.path] for one in filled}.values():
        assert copy.source is not None
        copies = copy.layers.copies if copy.layers else ()
        times = Counter(copies)
        scales = tuple(times[layer] ** -0.5 for layer in copies)
        scales = scales or ((1 + alike[copy.source]) ** -0.5,)
        its = [one for one in found.values() if one.source == copy.source]
        if not copy.layers and copy.source not in moved:  # the old one stays in its place
            its.append(replace(copy, path=copy.source, fill=None))
        scaled |= {one.path: replace(one, scales=scales) for one in its}
    every = found | scaled
    return tuple(every[path] for path in order if path in every)


NO_STREAM = (
    "strategies.interpose(scaled=True) scales what layers add to a residual stream, but zeros do "
    "not silence these layers, so they add to no stream; pass strategies.interpose()"
)


@dataclass
class _StackReading:
    """Pairs two trees of layers: those of the network and of the deeper network."""

    old: Shapes
    new: Shapes
    stacked: Mapping[str, int]
    layers: DepthStrategy
    problems: list[str] = field(default_factory=list)

    def pairs(self, old: Any, new: Any, *, is_copy: bool = False) -> Iterator[tuple[str, Edit]]:
        """Yields the edits of the arrays in a part of the deeper network, with their paths.

        Args:
            old: a part of the network: a path or a mapping of parts.
            new: a part of the deeper network.
            is_copy: whether the part is a copy of the old one, not the old one itself.
        """
        if isinstance(old, str) and isinstance(new, str):
            if (edit := self._array(old, new, is_copy)) is not None:
                yield new, edit
            return
        if isinstance(old, str) or isinstance(new, str):
            self.problems.append(
                f"{old if isinstance(old, str) else new}: array in one network only"
            )
            return
        kept: set[str] = set()
        self._expect_same_growth(list(old), list(new))
        for name, (source, is_new) in self._sources(list(old), list(new)).items():
            if source is None:
                yield from self._free(new[name])
            elif source not in old:
                self.problems.append(f"{name}: the network has no {source}")
            else:
                if not is_new:
                    kept.add(source)
                yield from self.pairs(old[source], new[name], is_copy=is_copy or is_new)
        self.problems += (f"{name}: not in the deeper network" for name in old.keys() - kept)

    def _sources(
        self, old: Sequence[str], new: Sequence[str]
    ) -> dict[str, tuple[str | None, bool]]:
        """Returns, for each part, the old part that it is or copies, and whether it is a copy.

        A number in a name counts layers if the deeper network has more such numbers.
        """
        found: dict[str, tuple[str | None, bool]] = {}
        for kind in dict.fromkeys(map(without_numbers, new)):
            ours, theirs = ([n for n in tree if without_numbers(n) == kind] for tree in (old, new))
            counted = [
                self._counted(
                    sorted({_numbers(name)[place] for name in ours}),
                    sorted({_numbers(name)[place] for name in theirs}),
                )
                for place in range(kind.count("#"))
            ]
            named = {_numbers(name): name for name in ours}
            for name in theirs:
                pairs = [along[n] for along, n in zip(counted, _numbers(name), strict=True)]
                numbers = tuple(number for number, _ in pairs if number is not None)
                source = None
                if len(numbers) == len(pairs):
                    source = named.get(numbers, _with_numbers(kind, numbers))
                found[name] = source, any(is_copy for _, is_copy in pairs)
        return found

    def _expect_same_growth(self, old: Sequence[str], new: Sequence[str]) -> None:
        """Adds a problem if neighboring names do not grow by the same number of layers."""
        counts: dict[tuple[int, int], str] = {}
        for kind in dict.fromkeys(map(without_numbers, new)):
            ours, theirs = (
                [_numbers(n) for n in tree if without_numbers(n) == kind] for tree in (old, new)
            )
            for place in range(kind.count("#")):
                before, after = (len({n[place] for n in names}) for names in (ours, theirs))
                if 0 < before < after:
                    counts.setdefault((before, after), f"{kind} from {before} to {after}")
        ratios = {after / before for before, after in counts}
        if len(ratios) > 1 or (self.layers.keeps_order and len(counts) > 1):
            self.problems.append(
                f"numbers grow differently, {' and '.join(counts.values())}, so it is not known "
                "which of them count the same layers; name modules by the layer that they are in"
            )

    def _counted(self, old: list[int], new: list[int]) -> dict[int, tuple[int | None, bool]]:
        """Returns, for each number of a layer, the old number, and whether the layer is a copy.

        Args:
            old: the numbers in one place of the old names.
            new: the numbers in the same place of the new names.
        """
        if not old and not self.layers.needs_layers:
            return dict.fromkeys(new, (None, True))
        if not old or len(new) <= len(old):
            return {number: (number, False) for number in new}
        found: dict[int, tuple[int | None, bool]] = {}
        for number, source in zip(new, self.layers.sources(len(old), len(new)), strict=True):
            before = None if source is None else old[source]
            found[number] = before, any(before == other for other, _ in found.values())
        return found

    def _array(self, path: str, place: str, is_copy: bool) -> Edit | None:
        before, array = self.old[path].shape, self.new[place]
        fits = len(before) == len(array.shape)
        if not fits or any(a > b for a, b in zip(before, array.shape, strict=True)):
            self.problems.append(f"{place}: has shape {array.shape}, cannot be {path} of {before}")
            return None
        found = Edit(place, array.shape, str(array.dtype), path)
        axis = self.stacked.get(path)
        if axis is not None and before[axis] < array.shape[axis]:
            return self._stack(found, before[axis], axis)
        if is_copy:
            return replace(found, fill=Fill("copy"))
        return None if path == place else found

    def _stack(self, edit: Edit, old: int, axis: int) -> Edit:
        """Returns the edit of an array with an entry for each layer."""
        sources = self.layers.sources(old, edit.shape[axis])
        first = {source: place for place, source in reversed([*enumerate(sources)])}
        kept = (-1 if s is None or first[s] != i else s for i, s in enumerate(sources))
        is_free, copies = None in sources, tuple(s for s in sources if s is not None)
        layers = Layers(axis, tuple(kept), () if is_free else copies)
        return replace(edit, fill=Fill("free" if is_free else "copy"), layers=layers)

    def _free(self, new: Any) -> Iterator[tuple[str, Edit]]:
        if isinstance(new, str):
            array = self.new[new]
            yield new, Edit(new, array.shape, str(array.dtype), fill=Fill("free"))
        else:
            for part in new.values():
                yield from self._free(part)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def _with_numbers(kind: str, numbers: Sequence[int]) -> str:
    values = iter(numbers)
    return re.sub("#", lambda _: str(next(values)), kind)
