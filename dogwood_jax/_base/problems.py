"""How errors list all that is wrong: ``listed``, ``Refused``, and what several of them say."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dogwood_jax._base.tables import MANY, layers_together, merged

_LONGEST = 100  # characters of a line with more than one thought
_MOST = 8  # lines of problems; where there are more, the last one names their places
ITEM, THOUGHT = "\n- ", "\n  "  # what begins a problem in a message, and another thought of it
_PLACE = re.compile(r"((?:\w+ of )?\S+): (.*)", re.DOTALL)


def listed(what: str, problems: Iterable[str]) -> str:
    """Returns the message of an error that lists problems.

    A problem begins with its place and has thoughts between semicolons, what to do among them. A
    long one has a line for each thought. What many say in the end is said once, in the first line.
    What is wrong with many layers in the same way takes one line, ``block_{0..11}/up: ...``, and so
    does what is wrong with arrays if there are more than a few lines, ``{up,down}/kernel: ...``.
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
    """Returns the problems that ``listed`` has put into a message."""
    return message.replace(THOUGHT, "; ").split(ITEM)[1:]


def _thoughts(problem: str) -> list[str]:
    """Returns the parts of a problem between semicolons that are in no brackets.

    What was expected and what came are one thought.
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
    """Returns problems; problems that say the same of several places become one."""
    found: dict[str, list[str]] = {}
    for line in lines:
        match = _PLACE.match(line)
        place, text = (match[1], match[2]) if match else ("", line)
        found.setdefault(text, []).append(place)
    places = {text: merged(("", place) for place in its) for text, its in found.items()}
    return [f"{place}: {t}" if place else t for t, its in places.items() for _, place in its]


def _in_lines(problem: str) -> str:
    """Returns a problem on one line, or with a line for each thought."""
    return problem if len(problem) <= _LONGEST else THOUGHT.join(_thoughts(problem))


class Refused(ValueError):
    """Raised by ``plan`` and what calls it: a growth that cannot be planned.

    A ``ValueError``, so that ``except ValueError`` catches it, too.

    Attributes:
        problems: what speaks against it, a line each, ways out among them.
        samples: how many samples are equal before and after it, where others differ.
        differences: what another program computes instead, a line each, if it was evaluated.
        then: what may be tried: ``"starts"``, other new entries; ``"fillings"``, other new layers;
            ``"nothing"``; or ``""`` for all that there is.

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
        """Returns this error with what may be done before it."""
        return Refused([*ways_out, *self.problems], self.samples, self.differences, self.then)

    def __reduce__(self) -> Any:
        return type(self), (self.problems, self.samples, self.differences, self.then)


class UnfitArrays(ValueError):
    """Raised by a module that takes its sizes from its arrays, and cannot take them from these."""
