"""The sides of a primitive that chooses, such as ``max`` or ``cond``: ``Sides``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np


class Sides(ABC):
    """The sides of a primitive. By default, side n is operand n."""

    def count(self, eqn: Any) -> int:
        return 2

    @abstractmethod
    def taken(self, *operands: Any) -> set[int]:
        """Returns the sides that are taken with these operands."""

    @abstractmethod
    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        """Returns changed operands with which a side is taken."""

    def is_open(self, moving: Sequence[bool], side: int) -> bool:
        """Whether a side depends on inputs or variables, unlike a constant bound.

        Args:
            moving: whether each operand depends on inputs or variables.
            side: the side.
        """
        return any(moving[side : side + 1])


class Pick(Sides):
    """The sides of ``cond`` and ``select_n``, which select by their first operand."""

    def count(self, eqn: Any) -> int:
        return len(eqn.params["branches"]) if "branches" in eqn.params else len(eqn.invars) - 1

    def taken(self, *operands: Any) -> set[int]:
        return {int(side) for side in np.unique(operands[0])}

    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        return [np.full_like(operands[0], side), *operands[1:]]

    def is_open(self, moving: Sequence[bool], side: int) -> bool:
        return any(moving[:1])
