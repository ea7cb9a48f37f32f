"""Numbers with which something makes arrays of the shapes that are wanted: ``fitting``.

Nothing says which numbers of a module, or of a config, are sizes. But a number that equals a size
that changes may be one. So each such number is tried in its new sizes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
# The values of some numbers, by their index among all that is given.
_Numbers = Mapping[int, int]
# More ways to fill in numbers are not followed.
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
    """Yields what is given with other numbers, with which arrays get the shapes that are wanted.

    What keeps all numbers that decide no shape comes first, then what changes one of them.

    Args:
        shapes: takes what is given, perhaps with other numbers. Returns the shapes of the arrays
            that are made of it, by path; None if nothing can be made.
        given: what they are made of, in which integers may be sizes.
        today: the shapes of the arrays that are made of it as it is.
        sizes: what each size that changes may become.
        wanted: the shapes, by path.
        strictly: whether numbers that decide no shape may be others, too, one at a time.
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
        # More numbers may decide the shape of a new array than whether there is one.
        return its.get(path) if path in today else path in its

    def shape(numbers: _Numbers, path: str) -> tuple[int, ...] | bool | None:
        its = made(numbers)  # what cannot be made is not ruled out before all numbers are set
        return told(wanted if its is None else its, path)

    # A number decides the same arrays, whichever size it becomes.
    alone = {index: {index: its[1]} for index, its in ways.items() if len(its) > 1}
    paths = {**wanted, **dict.fromkeys(p for one in alone.values() for p in made(one) or ())}
    deciding = {
        path: [index for index, one in alone.items() if shape(one, path) != told(today, path)]
        for path in paths
    }
    # Arrays that few numbers decide come first, so that few sizes are left for the next ones.
    left = {index: ways[index] for index in dict.fromkeys(itertools.chain(*deciding.values()))}
    for path in sorted(paths, key=lambda path: len(deciding[path])):
        own = deciding[path]
        if own and all(len(left[index]) == 1 for index in own):
            continue  # which the last look tells
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
    """Yields the sizes of some numbers in every way, but for more ways than are followed."""
    every = itertools.product(*(left[index] for index in indices))
    return itertools.islice(every, _MOST_WAYS)


def is_size(value: Any) -> bool:
    """Whether something may be a size: an integer of Python or NumPy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
