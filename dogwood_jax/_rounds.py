"""Let arrays that grow alike share a compiled program: ``rounds`` and ``apart``.

The layers of a network repeat, and to compile how an array grows takes longer than to grow it. So
arrays go in rounds: the first of each kind, then the second of each kind that has two, and so on.
With numbers for the names of arrays and widths, rounds of the same kinds are the same program.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from dogwood_jax._growth import Change, Growth
from dogwood_jax._layout import renamed, units_of
from dogwood_jax._widths import Leaf, Widths

Item = TypeVar("Item")


def rounds(items: Iterable[Item], kind: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Returns items in rounds with at most one of each kind, in the order of the kinds."""
    alike: dict[Hashable, list[Item]] = {}
    for item in items:
        alike.setdefault(kind(item), []).append(item)
    most = max(map(len, alike.values()), default=0)
    return [[same[n] for same in alike.values() if n < len(same)] for n in range(most)]


def apart(growth: Growth, leaves: Sequence[Leaf]) -> Growth:
    """Returns the growth of some arrays, each by itself, with numbers for names.

    Args:
        growth: the growth of the network, without insertions.
        leaves: the arrays; they are called ``"0"``, ``"1"`` and so on.
    """
    scaled: dict[str, list[Change]] = {}
    for change in growth.changes:
        for path, _ in change.recipe.powers if change.recipe else ():
            scaled.setdefault(path, []).append(change)
    numbered, changes = [], []
    for number, leaf in enumerate(leaves):
        found = dict.fromkeys(units.width for layout in leaf.axes for units in units_of(layout))
        found |= dict.fromkeys(change.width for change in scaled.get(leaf.path, ()))
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
