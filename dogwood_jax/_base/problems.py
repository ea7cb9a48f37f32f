"""How errors list all that is wrong: ``listed``, ``Refused``, and what several of them say."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import jax

from dogwood_jax._base.tables import layers_together


def listed(what: str, problems: Iterable[str]) -> str:
    """Returns the message of an error with a line for each problem.

    What is wrong with many layers in the same way takes one line: ``block_{0..11}/up: ...``.
    """
    lines = [f"- {line}" for (line,), _ in layers_together((problem,) for problem in problems)]
    return "\n".join([f"{what}:", *lines])


class Refused(ValueError):
    """A growth that cannot be planned.

    Attributes:
        problems: what speaks against it, a line each.
        samples: how many samples are equal before and after it, where others differ.
    """

    def __init__(self, problems: Iterable[str], samples: int = 0) -> None:
        self.problems: Sequence[str] = tuple(problems)
        self.samples = samples
        super().__init__(listed("cannot plan this growth", self.problems))

    def beside(self, doubts: Iterable[str], ways_out: Iterable[str] = ()) -> Self:
        """Returns this error with reasons to expect it before, and what may be done after it."""
        return type(self)([*doubts, *self.problems, *ways_out], self.samples)

    def __reduce__(self) -> Any:
        return type(self), (self.problems, self.samples)


class UnfitArrays(ValueError):
    """Raised by a module that takes its sizes from its arrays, and cannot take them from these."""


def cut_short(path: str, dtype: Any) -> list[str]:
    """Returns the problem of an array that JAX would make one of fewer bits, if it would."""
    if jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return []
    return [
        f"{path}: is {dtype}, which JAX would cut short; "
        "set jax.config.update('jax_enable_x64', True) first"
    ]
