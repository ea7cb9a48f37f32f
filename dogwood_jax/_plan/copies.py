"""Experts that are copied: ``Copies``."""

from collections.abc import Mapping
from dataclasses import dataclass

from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.widths import Widths


@dataclass(frozen=True)
class Copies:
    """Experts that are copied.

    Attributes:
        changes: how the widths of experts change, by name.
        notes: what is said of each router.
        widths: the network's widths, in which every axis that counts experts is one width; None if
            every such axis was one before.
        pieces: the widths that such axes were made of before.
    """

    changes: Mapping[str, Change]
    notes: tuple[str, ...] = ()
    widths: Widths | None = None
    pieces: frozenset[str] = frozenset()
