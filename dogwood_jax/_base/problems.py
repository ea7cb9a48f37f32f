"""Errors that list all problems together: ``listed`` and ``Refused``."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dogwood_jax._base.tables import MANY, layers_together, merged

_LONGEST = 100  # most characters of a problem on one line; longer ones get a line for each part
_MOST = 8  # most lines of problems; if there are more, the last line lists the remaining places
ITEM, THOUGHT = "\n- ", "\n  "  # prefixes of a problem in a message and of its further parts
_PLACE = re.compile(r"((?:\w+ of )?\S+): (.*)", re.DOTALL)


def listed(what: str, problems: Iterable[str]) -> str:
    """Returns the message of an error that lists problems.

    A problem is a place, a colon and parts separated by semicolons, the next step among them. A
    long problem gets a line for each part. If three or more problems all end with the same part,
    that part moves to the first line. Equal problems of many layers take one line,
    ``block_{0..11}/up: ...``. If there are more than a few lines, equal problems of other arrays
    share a line, too, ``{up,down}/kernel: ...``.
    """
    thoughts = [_thoughts(problem) for problem in dict.fromkeys(problems)]
    ends = {each[-1] for each in thoughts}
    if len(thoughts) >= MANY and len(ends) == 1 < min(map(len, thoughts)):
        what = f"{what}; {thoughts[0][-1]}"
        thoughts = [each[:-1] for each in thoughts]
    lines = [line for (line,), _ in layers_together(("; ".join(each),) for each in thoughts)]
    if len(lines) > _MOST:
        lines = _alike_together(lines)
    if len(lines) > _MOST:
        matches = ((_PLACE.match(line), line) for line in lines[_MOST - 1 :])
        places = [match[1] if match else line for match, line in matches]
        rest = [path for _, path in merged(("", place) for place in places)]
        lines[_MOST - 1 :] = [f"and {len(lines) - _MOST + 1} more: {', '.join(rest)}"]
    return ITEM.join([f"{what}:", *map(_in_lines, lines)])


def listed_in(message: str) -> list[str]:
    """Returns the problems in a message of ``listed``."""
    return message.replace(THOUGHT, "; ").split(ITEM)[1:]


def _thoughts(problem: str) -> list[str]:
    """Returns the parts of a problem, split at semicolons outside of brackets.

    "expected ...; got ..." stays one part.
    """
    parts, depth = [""], 0
    for piece in re.split(r"(; (?!got |found )|[()\[\]{}])", problem):
        depth += (piece in tuple("([{")) - (piece in tuple(")]}"))
        if piece == "; " and depth <= 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _alike_together(lines: Iterable[str]) -> list[str]:
    """Returns problems in which those with the same text share one line that names their places."""
    found: dict[str, list[str]] = {}
    for line in lines:
        match = _PLACE.match(line)
        place, text = (match[1], match[2]) if match else ("", line)
        found.setdefault(text, []).append(place)
    places = {text: merged(("", place) for place in its) for text, its in found.items()}
    return [f"{place}: {t}" if place else t for t, its in places.items() for _, place in its]


def _in_lines(problem: str) -> str:
    """Returns a problem on one line, or on a line for each part if it is long."""
    return problem if len(problem) <= _LONGEST else THOUGHT.join(_thoughts(problem))


class Refused(ValueError):
    """Raised by ``plan``, and by functions that call it, for a growth that cannot be planned.

    A ``ValueError``, so that ``except ValueError`` catches it, too.

    Attributes:
        problems: reasons and ways out, a line each.
        samples: the number of samples with equal outputs before and after, if others differ.
        differences: what the larger program computes instead, a line each, if it was evaluated.
        then: what to try next: ``"starts"``, other new entries; ``"fillings"``, other new layers;
            ``"nothing"``; or ``""``, everything.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
        >>> widths = dw.trace(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 4)))
        >>> try:
        ...     dw.plan(widths, {"up": 6})
        ... except dw.Refused as refused:
        ...     print(refused.problems[0])  # doctest: +ELLIPSIS
        up: say which units stay, ...
    """

    def __init__(
        self,
        problems: Iterable[str],
        samples: int = 0,
        differences: Iterable[str] = (),
        then: Literal["", "starts", "fillings", "nothing"] = "",
    ) -> None:
        self.problems: Sequence[str] = tuple(problems)
        self.samples, self.differences, self.then = samples, tuple(differences), then
        super().__init__(listed("cannot plan this growth", self.problems))

    def after(self, ways_out: Iterable[str]) -> "Refused":
        """Returns this error with ways out listed before its problems."""
        return Refused([*ways_out, *self.problems], self.samples, self.differences, self.then)

    def __reduce__(self) -> Any:
        return type(self), (self.problems, self.samples, self.differences, self.then)


class UnfitArrays(ValueError):
    """Raised by a module that infers its sizes from its arrays, if these arrays do not allow it."""
