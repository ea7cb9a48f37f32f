"""Evaluates a program for several arguments at once: ``Together``."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.extend as jex
import numpy as np

from dogwood_jax._base.trees import struct
from dogwood_jax._check.claim import Side
from dogwood_jax._check.evaluate import Undecided, evaluate
from dogwood_jax._program.subprograms import entries

# How many evaluations at once, and how many numbers they may have together.
_MOST, _NUMBERS = 48, 4e6


class Together:
    """Evaluates a program for several arguments at once, because most of its arrays are small.

    Args:
        side: the program.
        least: so many arguments, and no more, are evaluated one by one.
    """

    def __init__(self, side: Side, least: int = 2) -> None:
        self._side, self._least = side, least
        self._size = int(max(2, min(_MOST, _NUMBERS // max(sum(entries(side.jaxpr)), 1))))

    def __call__(
        self, every: Sequence[Sequence[Any]], watch: Callable[[], Any], *, always: bool = False
    ) -> list[list[Any]]:
        """Returns the results for each list of arguments, and what is ordered in the evaluation.

        Args:
            every: the lists of arguments.
            watch: makes what sees an evaluation, see ``LargeEpsilons``.
            always: whether to evaluate few of them at once, too: one by one, more is ordered.

        Raises:
            Undecided: if a loop does not end.
        """
        is_plain = all(isinstance(a, np.ndarray | np.generic) for a in every[0])
        if (always or len(every) > self._least) and is_plain and self._batched is not None:
            try:
                return self._at_once(every, watch)
            except Undecided:
                raise
            except Exception:  # a loop cannot end for some and go on for others
                self._batched = None
        found = []
        for arguments in every:
            sees = watch()
            results = evaluate(self._side.jaxpr, arguments, sees, self._side.draws)
            found.append([*results, *sees.ordered])
        return found

    def _at_once(self, every: Sequence[Sequence[Any]], watch: Callable[[], Any]) -> list[list[Any]]:
        found: list[list[Any]] = []
        for start in range(0, len(every), self._size):
            few = every[start : start + self._size]
            padded = [*few, *([few[-1]] * (self._size - len(few)))]
            columns = [np.stack(column) for column in zip(*padded, strict=True)]
            sees = watch()
            results = evaluate(self._batched, columns, sees)
            results += (its for its in sees.ordered if len(its) == self._size)
            found += [[result[n] for result in results] for n in range(len(few))]
        return found

    @cached_property
    def _batched(self) -> Any:
        """The program with a leading axis on everything; None if there is none."""
        if self._side.draws:
            return None
        structs = [struct((self._size, *a.shape), a.dtype) for _, a in self._side.arguments]
        run = jex.core.jaxpr_as_fun(self._side.jaxpr)

        def each(*arguments: Any) -> Any:  # JAX would print ``run``, which takes as long as tracing
            return run(*arguments)

        try:
            return jax.make_jaxpr(jax.vmap(each))(*structs)
        except Exception:  # a primitive need not have a rule for it
            return None
