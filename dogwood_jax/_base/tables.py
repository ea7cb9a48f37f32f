"""Tables that people read: aligned columns, in which repeated lines are merged.

Sixty lines for the places of a residual stream become
``<- block_{0..11}/attention/{query,key,value}/kernel[0]``.
"""

import re
import shutil
import textwrap
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Row = tuple[str, ...]

# Numbers in paths, not in sizes (4x12), nor in brackets (axes), nor in braces (merged already).
_NUMBER = re.compile(r"((?<=[A-Za-z_/])(?<!\dx)\d+|\d+(?=/))(?![^\[\]{}]*[\]}])")
_LONGEST_CELL, _SHORTEST_CELL = 60, 24  # limits on the line length of the wrapped last column
_LINE_OF_A_FILE = 100  # line length without a terminal
MANY = 3  # minimal number of alike items that are merged
_MOST_ALTERNATIVES = 8


def table(rows: Sequence[Row]) -> str:
    """Returns rows as text with aligned columns, the first row underlined.

    Cells may have several lines. Long cells of the last column are wrapped.
    """
    lines: list[Row] = []
    others = sum(
        2 + max(map(len, "\n".join(column).splitlines()), default=0)
        for column in [*zip(*rows, strict=True)][:-1]
    )
    length = max(_SHORTEST_CELL, min(_LONGEST_CELL, line_length() - others))
    for *cells, last in rows:
        columns = [*(cell.splitlines() for cell in cells), textwrap.wrap(last, length)]
        height = max(map(len, columns))
        lines += zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    widest = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(cell.ljust(n) for cell, n in zip(line, widest, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "  ".join("-" * n for n in widest), *texts[1:]])


def line_length() -> int:
    """Returns the longest line allowed: the width of the terminal, or 100 without a terminal."""
    return shutil.get_terminal_size((_LINE_OF_A_FILE, 0)).columns


def fits(text: str) -> bool:
    """Whether no line of a text is longer than ``line_length``."""
    return max(map(len, text.splitlines()), default=0) <= line_length()


def wrapped(text: str, indent: str = "  ") -> str:
    """Returns a text wrapped at ``line_length``, with all lines but the first indented."""
    length = max(line_length(), 2 * len(indent) + 1)
    return textwrap.fill(
        text, length, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def blocks(rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Returns rows that are too wide for a table as text: a line each, with indented lines below.

    Args:
        rows: the first line of each row, and the lines below it.
    """
    lines = []
    for first, below in rows:
        lines += [wrapped(first), *(wrapped(f"  {line}", "    ") for line in below)]
    return "\n".join(lines)


def merged(paths: Iterable[tuple[Key, str]]) -> list[tuple[Key, str]]:
    """Returns paths, after merging paths that have equal keys and differ in one component.

    ``up/kernel`` and ``down/kernel`` become ``{up,down}/kernel`` if their keys are equal.
    """
    items: list[tuple[Key, tuple[Row, ...]]]
    items = [(key, tuple((part,) for part in path.split("/"))) for key, path in paths]
    count = -1
    while count != len(items):
        count = len(items)
        for place in reversed(range(max((len(parts) for _, parts in items), default=0))):
            groups: dict[tuple[Key, tuple[Row, ...], int], list[str]] = {}
            for key, parts in items:
                others = parts[:place] + parts[place + 1 :]
                here = parts[place] if place < len(parts) else ()
                groups.setdefault((key, others, len(parts)), []).extend(here)
            items = [
                (
                    key,
                    others[:place]
                    + ((tuple(dict.fromkeys(here)),) if here else ())
                    + others[place:],
                )
                for (key, others, _), here in groups.items()
            ]
    return [(key, "/".join(map(_one_of, parts))) for key, parts in items]


def _one_of(names: Sequence[str]) -> str:
    """Returns one text for alternatives: ``{a,b}``, or ``block_{0..11}``."""
    if len({_pattern(name) for name in names}) == 1:
        return _together(names)
    more = ["..."] if len(names) > _MOST_ALTERNATIVES else []
    return f"{{{','.join([*names[:_MOST_ALTERNATIVES], *more])}}}"


def layers_together(rows: Iterable[Row]) -> list[tuple[Row, list[int]]]:
    """Returns rows, after merging rows that differ only in the number of a layer.

    Args:
        rows: texts, ``("block_0/up", ...)``, all of the same length.

    Returns:
        Rows, ``("block_{0..11}/up", ...)``, each with the indices of the rows merged into it.
    """
    alike: dict[Row, list[tuple[Row, int]]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(tuple(map(_pattern, row)), []).append((row, index))
    found: list[tuple[Row, list[int]]] = []
    for group in alike.values():
        cells = [*zip(*(row for row, _ in group), strict=True)]
        numbers = {column for cell in cells for column in zip(*map(_NUMBER.split, cell))}
        if len(group) >= MANY and sum(len({*column}) > 1 for column in numbers) == 1:
            found.append((tuple(map(_together, cells)), [index for _, index in group]))
        else:
            found += [(row, [index]) for row, index in group]
    return found


def _pattern(text: str) -> str:
    """Returns a text with its numbers replaced by ``*``, except axis numbers and sizes."""
    return _NUMBER.sub("*", text)


def _together(texts: Iterable[str]) -> str:
    """Returns one text for several with the same pattern: ``block_{0..11}/up``."""
    columns = zip(*map(_NUMBER.split, texts), strict=True)
    return "".join(map(_numbers, map(dict.fromkeys, columns)))


def _numbers(texts: Iterable[str]) -> str:
    found = list(texts)
    if len(found) == 1:
        return found[0]
    ints = [int(text) for text in found]
    if len(ints) > 2 and ints == list(range(ints[0], ints[-1] + 1)):
        return f"{{{found[0]}..{found[-1]}}}"
    if len(ints) > _MOST_ALTERNATIVES:
        found[3:-1] = ["..."]
    return f"{{{','.join(found)}}}"
