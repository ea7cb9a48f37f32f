"""Which axes of operands and results are the same: ``Axes``.

Axes have names, as in ``einsum("bk,kn->bn")``. An axis of the result lies along all axes of
operands that share a name with it. An operand axis whose name the result lacks is summed over. If
its name is ``"#"``, entries are chosen along it instead.

An axis may have two names. In a grouped convolution, input features are summed over within each
group, and their groups are the groups of the output features.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Names = frozenset[str]
Shape = Sequence[int]


class Axes(NamedTuple):
    """The names of axes.

    Attributes:
        operands: for each operand, the names of each axis.
        result: the names of each axis of the result.
    """

    operands: tuple[tuple[Names, ...], ...]
    result: tuple[Names, ...]

    def sources(self, axis: int) -> Iterator[tuple[int, int]]:
        """Yields the axes of operands along which an axis of the result lies: (operand, axis)."""
        for place, names in enumerate(self.operands):
            for own, name in enumerate(names):
                if name & self.result[axis]:
                    yield place, own

    def summed(self, place: int) -> list[int]:
        """Returns the axes of an operand that are summed over."""
        kept = frozenset[str]({"#"}).union(*self.result)
        return [axis for axis, names in enumerate(self.operands[place]) if not names & kept]


def named(names: Sequence[str]) -> tuple[Names, ...]:
    return tuple(frozenset({name}) for name in names)
