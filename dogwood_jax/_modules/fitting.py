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

    alone = [{index: new} for index, (_, *others) in ways.items() for new in others]
    paths = {**wanted, **dict.fromkeys(path for one in alone for path in made(one) or ())}
    deciding = {
        path: {index for one in alone for index in one if shape(one, path) != told(today, path)}
        for path in paths
    }
    found: list[_Numbers] = [{}]
    # Arrays that few numbers decide come first, so that few numbers are open at a time.
    for path in sorted(paths, key=lambda path: len(deciding[path])):
        tried = _each_way(found, ways, sorted(deciding[path]))
        found = [numbers for numbers in tried if shape(numbers, path) == told(wanted, path)]
        if not 0 < len(found) <= _MOST_WAYS:
            return
    free = [index for index in ways if index not in found[0]]
    others = [{index: new} for index in free for new in ways[index][1:]]
    for other, numbers in itertools.product([{}, *others], found):
        if made({**numbers, **other}) == wanted:
            yield changed({**numbers, **other})


def is_size(value: Any) -> bool:
    """Whether something may be a size: an integer of Python or NumPy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _each_way(
    found: Sequence[_Numbers], ways: Mapping[int, Sequence[int]], indices: Iterable[int]
) -> Iterator[_Numbers]:
    """Yields numbers with some more of them filled in, in every way."""
    free = [index for index in indices if index not in found[0]]
    for numbers in found:
        for way in itertools.product(*(ways[index] for index in free)):
            yield {**numbers, **dict(zip(free, way))}
