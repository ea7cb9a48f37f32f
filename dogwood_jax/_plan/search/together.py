"""Evaluates a program for several lists of arguments at once: ``Together``."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.extend as jex
import numpy as np

from dogwood_jax._base.trees import struct
from dogwood_jax._check.claim import Side
from dogwood_jax._check.evaluate import Undecided, evaluate
from dogwood_jax._program.subprograms import entries

# Upper limits on evaluations at once, and on the entries of their arrays together.
_MOST, _NUMBERS = 48, 4e6


class Together:
    """Evaluates a program for several lists of arguments at once; fast, as most arrays are small.

    Args:
        side: the program.
        least: up to this many lists of arguments are evaluated one by one.
    """

    def __init__(self, side: Side, least: int = 2) -> None:
        self._side, self._least = side, least
        self._size = int(max(2, min(_MOST, _NUMBERS // max(sum(entries(side.jaxpr)), 1))))
        self._is_batched, self._batched = not side.draws, cache(self._of_size)

    def __call__(
        self, every: Sequence[Sequence[Any]], watch: Callable[[], Any], *, always: bool = False
    ) -> list[list[Any]]:
        """Returns, for each list of arguments, the results and then the ``ordered`` arrays.

        Args:
            every: the lists of arguments.
            watch: makes the watch of an evaluation, see ``LargeEpsilons``.
            always: whether to evaluate even a few lists at once; evaluations one by one record more
                ``ordered`` arrays.

        Raises:
            Undecided: if a loop does not end.
        """
        is_plain = all(isinstance(a, np.ndarray | np.generic) for a in every[0])
        if (always or len(every) > self._least) and is_plain and self._is_batched:
            try:
                return self._at_once(every, watch)
            except Undecided:
                raise
            except Exception:  # no batching rule, or a batched loop that ends for some lists only
                self._is_batched = False
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
            size = self._size // 2 if 2 * len(few) <= self._size else self._size
            padded = [*few, *([few[-1]] * (size - len(few)))]
            columns = [np.stack(column) for column in zip(*padded, strict=True)]
            sees = watch()
            results = evaluate(self._batched(size), columns, sees)
            results += (its for its in sees.ordered if len(its) == size)
            found += [[result[n] for result in results] for n in range(len(few))]
        return found

    def _of_size(self, size: int) -> Any:
        """Returns the program with a leading batch axis of this size on all arrays."""
        structs = [struct((size, *a.shape), a.dtype) for _, a in self._side.arguments]
        run = jex.core.jaxpr_as_fun(self._side.jaxpr)

        def each(*arguments: Any) -> Any:  # else JAX prints ``run``, as slow as tracing it
            return run(*arguments)

        return jax.make_jaxpr(jax.vmap(each))(*structs)
