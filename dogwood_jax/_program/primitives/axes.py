"""Which axes of operands and results are the same: ``Axes``.

Axes have names, as in ``einsum("bk,kn->bn")``. An axis of the result lies along all axes of
operands that have a name in common with it. A name that only operands have is summed over, unless
it is ``"#"``: along such an axis, entries are chosen.

An axis may have two names. In a convolution of groups, the input features are summed over within a
group, and their groups are those of the output features.
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
        """Yields the operands along which an axis of the result lies, each with its axis."""
        for place, names in enumerate(self.operands):
            for own, name in enumerate(names):
                if name & self.result[axis]:
                    yield place, own

    def summed(self, place: int) -> list[int]:
        """Returns the axes of an operand that the result lacks."""
        kept = frozenset[str]({"#"}).union(*self.result)
        return [axis for axis, names in enumerate(self.operands[place]) if not names & kept]


def named(names: Sequence[str]) -> tuple[Names, ...]:
    return tuple(frozenset({name}) for name in names)
