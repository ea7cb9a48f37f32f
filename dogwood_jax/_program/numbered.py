"""Finds layers with numbers in their names, such as ``layers_0``: ``numbered_layers``."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
from jax.tree_util import DictKey, SequenceKey

from dogwood_jax._base.trees import Keys, PyTree, leaf_path, level

# A number at the end of a part of a path. In checkpoints, dots separate the parts of a name.
_NUMBER = re.compile(r"\d+(?=[/._]|$)")


@dataclass(frozen=True)
class NumberedLayers:
    """Layers with consecutive numbers in their names.

    Attributes:
        name: their common name without numbers, such as ``"encoder/layers"``.
        heads: the text before the number in paths, such as ``"params/encoder/layers_"``. There are
            several if layers have arrays in several collections.
        start: the first number.
        count: the number of layers.
        digits: minimum number of digits, such as 2 in ``layer_00``.
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
        """Returns the index of the layer of an array, or None if it is in no layer."""
        match = self._beginning.match(path)
        return None if match is None else int(match[2]) - self.start

    def beside(self, others: "Iterable[NumberedLayers]") -> "NumberedLayers":
        """Returns layers that also contain the arrays of other layers with the same numbers.

        For example, ``up_0`` and ``down_0`` become one layer.
        """
        return replace(self, heads=self.heads + tuple(h for one in others for h in one.heads))

    def renamed(self, path: str, layer: int) -> str:
        """Returns the path of the array that is in the same place of another layer."""
        number = f"{self.start + layer:0{self.digits}}"
        return self._beginning.sub(rf"\g<1>{number}", path, count=1)

    def keeping(self, variables: PyTree, kept: Sequence[int]) -> PyTree:
        """Returns variables with only some layers, which are renumbered from ``start`` on.

        Args:
            variables: a pytree in which layers are entries of dicts, lists or tuples.
            kept: the layers to keep, in ascending order.
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
        """Returns the new name of an entry; None if its layer is removed."""
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
    """Numbered layers, some of which are kept and renumbered from ``start`` on.

    Attributes:
        layers: all layers.
        kept: the layers to keep, in ascending order.
    """

    layers: NumberedLayers
    kept: tuple[int, ...]

    @property
    def gone(self) -> set[int]:
        """The layers to remove."""
        return {*range(len(self.layers))} - {*self.kept}

    def place(self, path: str) -> str | None:
        """Returns the new path of a leaf, or None if its layer is removed."""
        layer = self.layers.layer_of(path)
        if layer is None:
            return path
        return self.layers.renamed(path, self.kept.index(layer)) if layer in self.kept else None


def numbered_layers(paths: Iterable[str]) -> dict[str, NumberedLayers]:
    """Returns all layers with consecutive numbers in their names, by name without numbers.

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
    """Returns a name with ``#`` for each number, equal for like arrays, widths and layers."""
    return re.sub(r"\d+", "#", name)


def _numbers(path: str) -> Iterator[tuple[str, str]]:
    """Yields the numbers at the end of parts of a path, each after the text before it."""
    for match in re.finditer(r"(?<!\d)" + _NUMBER.pattern, path):
        yield path[: match.start()], match[0]
