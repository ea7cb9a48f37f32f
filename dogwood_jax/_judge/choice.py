"""How many experts a router chooses, in two programs: ``Choice``.

If every expert is copied, outputs stay in a program that chooses as many times more of them. The
network's own function often holds that number. So its program is written again with another one, as
in other sizes. Small sizes have fewer experts, and fewer of them are chosen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dogwood_jax._program.subprograms import Key
from dogwood_jax._widths.dims import Dim


@dataclass(frozen=True)
class Chosen:
    """How many experts a program chooses, and where it holds this number.

    Attributes:
        count: how many it chooses.
        dims: dimensions of this size.
        steps: steps that compute with the number.
    """

    count: int
    dims: frozenset[Dim]
    steps: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class Choice:
    """How many experts a router chooses before and after a growth.

    Attributes:
        width: name of the width of its logits.
        ours: what the network chooses.
        theirs: what the larger program chooses as it is; that of the network if there is no other.
        new: how many it is to choose.
    """

    width: str
    ours: Chosen
    theirs: Chosen
    new: int

    def few(self, experts: int, fewer: int) -> tuple[int, int]:
        """Returns how many are chosen before and after where there are fewer experts.

        Args:
            experts: how many experts the network has.
            fewer: how many it has in the smaller sizes.
        """
        old = self.ours.count
        small = old if fewer == experts else fewer if old == experts else min(old, fewer // 2)
        return small, small * self.new // old


def dims_of(pairs: Iterable[tuple[Chosen, int]]) -> dict[Dim, int]:
    """Returns the new sizes of dimensions, where programs choose other numbers of experts."""
    return {dim: count for chosen, count in pairs for dim in chosen.dims}


def factors_of(pairs: Iterable[tuple[Chosen, int]]) -> Mapping[Key, float]:
    """Returns what numbers are multiplied by there, by the keys of the steps that take them."""
    return {step: n / chosen.count for chosen, n in pairs for step in chosen.steps}
