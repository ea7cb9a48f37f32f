"""Layers that are called by numbers, such as ``layers_0`` and ``layers_1``: ``numbered_layers``."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
from jax.tree_util import DictKey, SequenceKey

from dogwood_jax._base.trees import Keys, PyTree, leaf_path, level

# A number at the end of a part of a path. In names of checkpoints, parts end at dots.
_NUMBER = re.compile(r"\d+(?=[/._]|$)")


@dataclass(frozen=True)
class NumberedLayers:
    """Layers that are called by numbers which follow each other.

    Attributes:
        name: what they are called without numbers, such as ``"encoder/layers"``.
        heads: what stands before the number in paths, such as ``"params/encoder/layers_"``. There
            are several if layers have arrays in several collections.
        start: the first number.
        count: how many there are.
        digits: how many digits numbers have at least, as in ``layer_00``.
    """

    name: str
    heads: tuple[str, ...]
    start: int
    count: int
    digits: int = 1

    def __len__(self) -> int:
        return self.count

    @cached_property
    def _beginning(self) -> re.Pattern[str]:
        heads = "|".join(map(re.escape, self.heads))
        return re.compile(f"({heads})({_NUMBER.pattern})")

    def layer_of(self, path: str) -> int | None:
        """Returns which layer an array is in, or None."""
        match = self._beginning.match(path)
        return None if match is None else int(match[2]) - self.start

    def beside(self, others: "Iterable[NumberedLayers]") -> "NumberedLayers":
        """Returns layers that also have the arrays of others, which are called by the same numbers.

        Such are ``up_0`` and ``down_0``.
        """
        return replace(self, heads=self.heads + tuple(h for one in others for h in one.heads))

    def renamed(self, path: str, layer: int) -> str:
        """Returns the path that an array of some layer has in another one."""
        number = f"{self.start + layer:0{self.digits}}"
        return self._beginning.sub(rf"\g<1>{number}", path, count=1)

    def keeping(self, variables: PyTree, kept: Sequence[int]) -> PyTree:
        """Returns variables without the other layers. Those that stay get the first numbers.

        Args:
            variables: a pytree in which layers are entries of dicts, lists or tuples.
            kept: the layers that stay, in ascending order.
        """
        places = {layer: place for place, layer in enumerate(kept)}

        def cut(keys: Keys, node: Any) -> Any:
            if isinstance(node, Mapping):
                entries = {
                    name: cut((*keys, DictKey(key)), node[key])
                    for key in node
                    if (name := self._name(key, (*keys, DictKey(key)), places)) is not None
                }
                return entries if type(node) is dict else type(node)(entries)  # type: ignore[call-arg]
            if type(node) in (list, tuple):
                keyed = [((*keys, SequenceKey(index)), part) for index, part in enumerate(node)]
                stay = (self._name("", its, places) is not None for its, _ in keyed)
                return type(node)(cut(*one) for one, stays in zip(keyed, stay) if stays)
            parts, structure = level(node)
            if structure.node_data() is None:
                return node
            return jax.tree.unflatten(structure, [cut((*keys, *key), part) for key, part in parts])

        return cut((), variables)

    def _name(self, key: Any, keys: Keys, places: Mapping[int, int]) -> Any:
        """Returns the name of an entry among those that stay; None if it goes."""
        path = leaf_path(keys)
        layer = self.layer_of(path)
        if layer is None:
            return key
        if layer not in places:
            return None
        name = self.renamed(path, places[layer]).rpartition("/")[2]
        return int(name) if isinstance(key, int) else name


@dataclass(frozen=True)
class KeptLayers:
    """Layers of which some stay, and get the first numbers.

    Attributes:
        layers: all of them.
        kept: those that stay, in ascending order.
    """

    layers: NumberedLayers
    kept: tuple[int, ...]

    @property
    def gone(self) -> set[int]:
        """The layers that go."""
        return {*range(len(self.layers))} - {*self.kept}

    def place(self, path: str) -> str | None:
        """Returns the path that a leaf has then, or None if it goes."""
        layer = self.layers.layer_of(path)
        if layer is None:
            return path
        return self.layers.renamed(path, self.kept.index(layer)) if layer in self.kept else None


def numbered_layers(paths: Iterable[str]) -> dict[str, NumberedLayers]:
    """Returns all layers that are called by numbers, by name.

    Args:
        paths: the paths of all arrays.
    """
    paths = [*paths]
    has_collections = any(path.startswith("params/") for path in paths)
    found: dict[str, dict[str, set[str]]] = {}
    for path in paths:
        for head, number in _numbers(path):
            inner = head.partition("/")[2] if has_collections else head
            found.setdefault(inner.rstrip("/_."), {}).setdefault(head, set()).add(number)
    layers = {}
    for name, heads in found.items():
        texts = set.union(*heads.values())
        numbers, shortest = sorted(map(int, texts)), min(map(len, texts))
        if len(numbers) > 1 and numbers == [*range(numbers[0], numbers[-1] + 1)]:
            layers[name] = NumberedLayers(name, (*heads,), numbers[0], len(numbers), shortest)
    return layers


def without_numbers(name: str) -> str:
    """Returns what like arrays, widths and layers have in common: a name without its numbers."""
    return re.sub(r"\d+", "#", name)


def _numbers(path: str) -> Iterator[tuple[str, str]]:
    """Yields each number that a part of a path ends with, and what stands before it."""
    for match in re.finditer(r"(?<!\d)" + _NUMBER.pattern, path):
        yield path[: match.start()], match[0]
