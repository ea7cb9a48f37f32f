"""Hashable configs: ``frozen``."""

from collections.abc import Iterator, Mapping
from typing import Any


class FrozenConfig(Mapping[str, Any]):
    """A hashable config, because fields of modules must be hashable.

    Unlike a ``FrozenDict``, Flax does not search it for modules. Such a search at every call would
    be slow: a config may hold a hundred thousand boundaries.
    """

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {key: frozen(value) for key, value in items.items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenConfig({self._items!r})"


def frozen(tree: Any) -> Any:
    """Returns a config, or a value in it, in hashable form."""
    if isinstance(tree, Mapping):
        return tree if isinstance(tree, FrozenConfig) else FrozenConfig(tree)
    return tuple(map(frozen, tree)) if isinstance(tree, list | tuple) else tree
