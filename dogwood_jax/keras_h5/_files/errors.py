"""Errors about files, in text that a terminal can show, whatever names the file contains."""

from dogwood_jax._base.printable import printable
from dogwood_jax._base.problems import ITEM, THOUGHT

_LINE, _ALL = 1000, 3000  # upper limits on the characters of a line and of a message


def shown(text: str) -> str:
    """Returns a message as printable text of bounded length: one line, or a list by ``listed``."""
    lines = [THOUGHT.join(map(in_line, line.split(THOUGHT))) for line in text.split(ITEM)]
    fitting = 1
    while fitting < len(lines) and sum(map(len, lines[: fitting + 1])) <= _ALL:
        fitting += 1
    if fitting < len(lines):
        lines[fitting:] = [f"and {len(lines) - fitting:,} more"]
    return ITEM.join(lines)


def in_line(text: str, most: int = _LINE) -> str:
    """Returns text as one printable line; a long text loses its middle.

    Example:
        >>> in_line("a rather long name", 12)
        'a ra ... ame'
    """
    text = printable(text)
    return text if len(text) <= most else f"{text[: most * 3 // 4 - 5]} ... {text[-most // 4 :]}"


class KerasFileError(ValueError):
    """Raised for a file that does not hold Keras weights in a supported layout."""

    def __init__(self, message: str):
        super().__init__(shown(message))


class NotSavable(ValueError):
    """Raised for variables that a file cannot hold: the caller's error, not the file's."""

    def __init__(self, message: str):
        super().__init__(shown(message))
