"""Units that are copied with all that belongs to them, such as experts: ``Copies``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dogwood_jax._growth.growth import Change, Growth


@dataclass(frozen=True)
class Copies:
    """Units that are copied, such as experts.

    Attributes:
        changes: how their widths change, by name.
        others: the same in other ways, to be tried in turn where outputs do not stay.
        notes: what is said of them where outputs stay.
        unshown: what is said of them where outputs change.
        as_it_is: whether the larger model chooses as many of them as the network.
        problems: why outputs would change.
        way_out: what may be called instead.
    """

    changes: Mapping[str, Change]
    others: tuple[Mapping[str, Change], ...] = ()
    notes: tuple[str, ...] = ()
    unshown: tuple[str, ...] = ()
    as_it_is: bool = False
    problems: tuple[str, ...] = ()
    way_out: str = ""


def in_way(growth: Growth, way: Mapping[str, Change]) -> Growth:
    """Returns a growth in which units are copied in another way, given by name of the width."""
    changes = tuple(way.get(change.width, change) for change in growth.changes)
    return replace(growth, changes=changes)


def without_noise(way: Mapping[str, Change]) -> dict[str, Change]:
    """Returns a way in which copies are what they copy."""
    return {
        name: replace(change, strategy=replace(change.strategy, noise=0.0))
        for name, change in way.items()
    }
