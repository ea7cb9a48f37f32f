"""Growths that are tried in turn: ``Attempts``, and alternatives for many routers: ``in_step``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from dogwood_jax._growth.growth import Growth

T = TypeVar("T")

STAYS = "outputs stay, as both programs show"  # against what was expected


class Attempts(NamedTuple):
    """Growths that are tried in turn, until an evaluation shows that one keeps outputs.

    Attributes:
        growths: the growths, each with the notes of one that is not shown to keep outputs.
        notes: the notes of one that is.
    """

    growths: Sequence[Growth] = ()
    notes: Sequence[str] = ()


def in_step(alternatives: Mapping[str, Sequence[T]]) -> Iterator[dict[str, T]]:
    """Yields the first alternative of each router, then the second of each, and so on.

    A router that has fewer of them keeps its last one. Without routers, there is one way.
    """
    for index in range(max(map(len, alternatives.values()), default=1)):
        yield {name: some[min(index, len(some) - 1)] for name, some in alternatives.items()}
