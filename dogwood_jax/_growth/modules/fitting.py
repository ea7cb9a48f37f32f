"""Finds numbers with which a module or a config makes arrays of wanted shapes: ``fitting``.

Nothing marks the numbers of a module, or of a config, that are sizes. A number may be a size if it
equals a size that changes. Each such number is therefore tried with its new sizes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
# New values of some numbers, by their index in ``given``.
_Numbers = Mapping[int, int]
# Upper limit on combinations of numbers that are tried for one array.
_MOST_WAYS = 256


def fitting(
    shapes: Callable[[Sequence[Any]], Shapes | None],
    given: Sequence[Any],
    today: Shapes,
    sizes: Mapping[int, Iterable[int]],
    wanted: Shapes,
    *,
    strictly: bool = True,
) -> Iterator[list[Any]]:
    """Yields variants of ``given`` with other numbers, which make arrays of the wanted shapes.

    Variants that keep all numbers without influence on shapes come first, then variants that change
    one of these.

    Args:
        shapes: takes a variant of ``given``. Returns the shapes of the arrays made from it, by
            path; None if it cannot be made.
        given: values that arrays are made from; integers among them may be sizes.
        today: the shapes of the arrays made from ``given``, by path.
        sizes: for each size that changes, its possible new sizes.
        wanted: the wanted shapes, by path.
        strictly: whether numbers without influence on shapes are changed, too, one at a time.
    """
    ways = {
        index: [number, *sorted({*sizes[number]} - {number})]
        for index, number in enumerate(given)
        if is_size(number) and number in sizes
    }
    known: dict[tuple[int, ...], Shapes | None] = {tuple(way[0] for way in ways.values()): today}

    def changed(numbers: _Numbers) -> list[Any]:
        return [numbers.get(index, value) for index, value in enumerate(given)]

    def made(numbers: _Numbers) -> Shapes | None:
        case = tuple(numbers.get(index, way[0]) for index, way in ways.items())
        if case not in known:
            known[case] = shapes(changed(numbers))
        return known[case]

    def told(its: Shapes, path: str) -> tuple[int, ...] | bool | None:
        # For a new array only its existence is compared; more numbers may decide its shape.
        return its.get(path) if path in today else path in its

    def shape(numbers: _Numbers, path: str) -> tuple[int, ...] | bool | None:
        its = made(numbers)  # a variant that cannot be made is not ruled out until all are set
        return told(wanted if its is None else its, path)

    # A number influences the same arrays, whatever its new size.
    alone = {index: {index: its[1]} for index, its in ways.items() if len(its) > 1}
    paths = {**wanted, **dict.fromkeys(p for one in alone.values() for p in made(one) or ())}
    deciding = {
        path: [index for index, one in alone.items() if shape(one, path) != told(today, path)]
        for path in paths
    }
    # Arrays that depend on few numbers come first, so that few sizes are left for later arrays.
    left = {index: ways[index] for index in dict.fromkeys(itertools.chain(*deciding.values()))}
    for path in sorted(paths, key=lambda path: len(deciding[path])):
        own = deciding[path]
        if own and all(len(left[index]) == 1 for index in own):
            continue  # the final comparison of all shapes checks this array
        tried = [dict(zip(own, way)) for way in _each_way(left, own)]
        found = [one for one in tried if shape(one, path) == told(wanted, path)]
        if not found:
            return
        left |= {index: [*dict.fromkeys(one[index] for one in found)] for index in own}
    free = [index for index in alone if index not in left] if strictly else []
    others: list[_Numbers] = [{index: new} for index in free for new in ways[index][1:]]
    for other in [{}, *others]:
        for way in _each_way(left, left):
            numbers = {**dict(zip(left, way)), **other}
            if made(numbers) == wanted:
                yield changed(numbers)


def _each_way(
    left: Mapping[int, Sequence[int]], indices: Iterable[int]
) -> Iterator[tuple[int, ...]]:
    """Yields combinations of the remaining sizes of some numbers, up to ``_MOST_WAYS``."""
    every = itertools.product(*(left[index] for index in indices))
    return itertools.islice(every, _MOST_WAYS)


def is_size(value: Any) -> bool:
    """Whether a value may be a size: a Python or NumPy integer, but not a boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def smallest(given: Sequence[Any], found: Sequence[Sequence[Any]]) -> Sequence[Any] | None:
    """Returns the choice of numbers whose changes are a part of all other choices' changes.

    Args:
        given: the numbers before.
        found: choices of new numbers. If there is only one, it is returned.

    Returns:
        The choice, or None if no choice is a part of all others.
    """
    changes = [
        {
            (place, new)
            for place, (old, new) in enumerate(zip(given, its, strict=True))
            if old != new
        }
        for its in found
    ]
    pairs = zip(changes, found, strict=True)
    return next((its for own, its in pairs if all(own <= other for other in changes)), None)
