"""Growths that are tried in turn: ``Attempts``, and alternatives for many routers: ``tried``."""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
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


_MOST = 24  # ways for networks whose routers are of several kinds


def tried(
    alternatives: Mapping[str, Sequence[T]], kinds: Mapping[str, Hashable] = MappingProxyType({})
) -> Iterator[dict[str, T]]:
    """Yields the first alternative of each router, then the second of each, and so on.

    A router that has fewer of them keeps its last one. Without routers, there is one way. If
    routers are of several kinds, as softmax in one layer and sigmoids in another, each kind has
    alternatives of its own after that.

    Args:
        alternatives: what is tried for each router, by name.
        kinds: what kind each router is of; all of them are of one if there are none.
    """
    most = max(map(len, alternatives.values()), default=1)
    of_kinds = [*dict.fromkeys(kinds.get(name) for name in alternatives)]
    ways = [dict.fromkeys(of_kinds, index) for index in range(most)]
    for indices in itertools.islice(itertools.product(range(most), repeat=len(of_kinds)), _MOST):
        if len({*indices}) > 1:
            ways.append(dict(zip(of_kinds, indices, strict=True)))
    for way in ways:
        chosen = {name: way[kinds.get(name)] for name in alternatives}
        yield {name: some[min(chosen[name], len(some) - 1)] for name, some in alternatives.items()}
