"""Groups arrays that are made alike, so that they share a compiled program: ``rounds``.

The layers of a network repeat, and compiling the growth of an array takes longer than running it.
Arrays are therefore made in rounds: the first of each kind, then the second of each kind that has
two, and so on. Arrays of one kind have equal edits without names, so rounds of the same kinds run
the same program.
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
    """Returns rounds of items with at most one item of each kind, in the order of the kinds.

    A few items form a single round: compiling a second program takes longer than a few more arrays
    in the first.

    Args:
        items: the items.
        kind: the kind of an item; equal for items that are made alike.
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
    """Returns the size of an array in bytes."""
    return int(np.size(array)) * int(jnp.result_type(array).itemsize)


def several_times(arrays: Iterable[Any]) -> frozenset[int]:
    """Returns the ids of arrays that occur several times, and must not be deleted after one use."""
    counts = Counter(map(id, arrays))
    return frozenset(name for name, count in counts.items() if count > 1)


def delete(old: Iterable[Any], new: Iterable[Any], keep: frozenset[int]) -> None:
    """Deletes old arrays, except those in ``keep``, once the new arrays have been computed."""
    new = list(new)
    if not any(map(is_traced, new)):
        for array in new:
            array.block_until_ready()
        for array in old:
            if isinstance(array, jax.Array) and id(array) not in keep:
                array.delete()


def unshared(tree: PyTree, *others: PyTree) -> PyTree:
    """Returns a tree that shares no buffers with other trees. Traced arrays have no buffers."""
    held = {id(leaf) for leaf in jax.tree.leaves(others) if is_array(leaf)}

    def own(leaf: Any) -> Any:
        is_shared = id(leaf) in held and not is_traced(leaf)
        return leaf.copy() if is_shared and not isinstance(leaf, jax.ShapeDtypeStruct) else leaf

    return jax.tree.map(own, tree)
