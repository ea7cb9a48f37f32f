"""Let arrays that are made alike share a compiled program: ``rounds``.

The layers of a network repeat, and to compile how an array grows takes longer than to grow it. So
arrays go in rounds: the first of each kind, then the second of each kind that has two, and so on.
Edits without names are equal for arrays of one kind, so rounds of the same kinds are the same
program.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import PyTree, is_array, is_traced

Item = TypeVar("Item")

_FEW = 8


def rounds(
    items: Sequence[Item],
    kind: Callable[[Item], Hashable],
    size: Callable[[Item], int] | None = None,
) -> list[list[Item]]:
    """Returns items in rounds with at most one of each kind, in the order of the kinds.

    If there are only a few, all are one round: a second program takes longer to compile than a few
    more arrays in the first.

    Args:
        items: what goes in rounds.
        kind: tells which items are alike.
        size: if given, rounds are cut into portions that are no larger than the largest item.
    """
    alike: dict[Hashable, list[Item]] = {}
    for index, item in enumerate(items):
        alike.setdefault(kind(item) if len(items) > _FEW else index, []).append(item)
    most = max(map(len, alike.values()), default=0)
    whole = [[same[n] for same in alike.values() if n < len(same)] for n in range(most)]
    if size is None:
        return whole
    largest = max(map(size, items), default=0)
    return [part for items in whole for part in _portions(items, size, largest)]


def _portions(
    items: Iterable[Item], size: Callable[[Item], int], largest: int
) -> Iterator[list[Item]]:
    portion, room = list[Item](), largest
    for item in items:
        if size(item) > room:
            yield portion
            portion, room = [], largest
        portion.append(item)
        room -= size(item)
    yield portion


def bytes_of(array: Any) -> int:
    """Returns how much memory an array takes."""
    return int(np.size(array)) * int(jnp.result_type(array).itemsize)


def several_times(arrays: Iterable[Any]) -> frozenset[int]:
    """Returns the ids of arrays that occur several times, which one place may not delete."""
    counts = Counter(map(id, arrays))
    return frozenset(name for name, count in counts.items() if count > 1)


def delete(old: Iterable[Any], new: Iterable[Any], keep: frozenset[int]) -> None:
    """Deletes old arrays but some, as soon as the new ones no longer need them."""
    new = list(new)
    if not any(map(is_traced, new)):
        for array in new:
            array.block_until_ready()
        for array in old:
            if isinstance(array, jax.Array) and id(array) not in keep:
                array.delete()


def unshared(tree: PyTree, *others: PyTree) -> PyTree:
    """Returns a tree that shares no array with other trees; traced arrays are no buffers yet."""
    held = {id(leaf) for leaf in jax.tree.leaves(others) if is_array(leaf)}

    def own(leaf: Any) -> Any:
        is_shared = id(leaf) in held and not is_traced(leaf)
        return leaf.copy() if is_shared and not isinstance(leaf, jax.ShapeDtypeStruct) else leaf

    return jax.tree.map(own, tree)
