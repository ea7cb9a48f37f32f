"""Let arrays that grow alike share a compiled program: ``rounds`` and ``apart``.

The layers of a network repeat, and to compile how an array grows takes longer than to grow it. So
arrays go in rounds: the first of each kind, then the second of each kind that has two, and so on.
With numbers for the names of arrays and widths, rounds of the same kinds are the same program.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import is_traced
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._widths.layout import renamed, units_of
from dogwood_jax._widths.widths import Leaf, Widths

Item = TypeVar("Item")

_FEW = 8


def rounds(
    items: Sequence[Item],
    kind: Callable[[Item], Hashable],
    size: Callable[[Item], int] | None = None,
) -> list[list[Item]]:
    """Returns items in rounds with at most one of each kind, in the order of the kinds.

    A few go together: another program takes as long to compile as some more arrays in one.

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


def apart(growth: Growth, leaves: Sequence[Leaf]) -> Growth:
    """Returns the growth of some arrays, each by itself, with numbers for names.

    Args:
        growth: the growth of the network, without insertions.
        leaves: the arrays; they are called ``"0"``, ``"1"`` and so on.
    """
    numbered, changes = [], []
    for number, leaf in enumerate(leaves):
        found = dict.fromkeys(units.width for layout in leaf.axes for units in units_of(layout))
        found |= dict.fromkeys(change.width for change, _ in growth.powers.get(leaf.path, ()))
        names = {width: f"{number}.{n}" for n, width in enumerate(found)}
        axes = tuple(renamed(layout, names) for layout in leaf.axes)
        numbered.append(replace(leaf, path=str(number), axes=axes))
        changes += [
            _for_one(growth.change[width], name, leaf.path, str(number))
            for width, name in names.items()
            if width in growth.change
        ]
    return Growth(Widths(tuple(numbered), ()), tuple(changes))


def _for_one(change: Change, name: str, path: str, number: str) -> Change:
    """Returns how a width changes under another name, with the recipe for one array only."""
    recipe = change.recipe
    if recipe is not None:
        powers = tuple((number, power) for place, power in recipe.powers if place == path)
        blank = (number,) if path in recipe.blank else ()
        recipe = replace(recipe, powers=powers, blank=blank, constants=())
    return replace(change, width=name, recipe=recipe)
