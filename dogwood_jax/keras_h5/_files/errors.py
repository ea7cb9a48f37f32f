"""Errors about files, in text that a terminal can show whatever the file has for names."""

from dogwood_jax._base.printable import printable
from dogwood_jax._base.problems import ITEM, THOUGHT

_LINE, _ALL = 1000, 3000  # characters of a line and of a message


def shown(text: str) -> str:
    """Returns a message, a line or what ``listed`` makes, printable and of bounded length."""
    lines = [THOUGHT.join(map(in_line, line.split(THOUGHT))) for line in text.split(ITEM)]
    fitting = 1
    while fitting < len(lines) and sum(map(len, lines[: fitting + 1])) <= _ALL:
        fitting += 1
    if fitting < len(lines):
        lines[fitting:] = [f"and {len(lines) - fitting:,} more"]
    return ITEM.join(lines)


def in_line(text: str, most: int = _LINE) -> str:
    """Returns text in one line, printable, and without its middle if it is long.

    Example:
        >>> in_line("a rather long name", 12)
        'a ra ... ame'
    """
    text = printable(text)
    return text if len(text) <= most else f"{text[: most * 3 // 4 - 5]} ... {text[-most // 4 :]}"


class KerasFileError(ValueError):
    """A file that does not hold Keras weights in a layout known here."""

    def __init__(self, message: str):
        super().__init__(shown(message))


class NotSavable(ValueError):
    """Variables that do not belong into a file: the caller's mistake, not the file's."""

    def __init__(self, message: str):
        super().__init__(shown(message))
