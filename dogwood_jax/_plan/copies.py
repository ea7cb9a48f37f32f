"""Units that are copied with all that belongs to them, such as experts: ``Copies``."""

from collections.abc import Mapping
from dataclasses import dataclass

from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.widths import Widths


@dataclass(frozen=True)
class Copies:
    """Units that are copied, such as experts.

    Attributes:
        changes: how their widths change, by name.
        others: the same in other ways, to be tried in turn where outputs do not stay.
        notes: what is said of them.
        widths: the network's widths, in which every axis that counts them is one width; None if
            every such axis was one before.
        pieces: the widths that such axes were made of before.
        problems: why outputs would change.
        way_out: what may be called instead.
        alone: why other widths do not grow along where programs cannot be compared.
    """

    changes: Mapping[str, Change]
    others: tuple[Mapping[str, Change], ...] = ()
    notes: tuple[str, ...] = ()
    widths: Widths | None = None
    pieces: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    way_out: str = ""
    alone: str = ""
