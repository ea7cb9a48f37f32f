"""Experts that are copied, and what counts them in both programs: ``Copies``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.gates import Router, routers_of
from dogwood_jax._widths.dims import Dim
from dogwood_jax._widths.values import Trace
from dogwood_jax._widths.widths import Widths


@dataclass(frozen=True)
class Copies:
    """Experts that are copied.

    Attributes:
        changes: how the widths of experts change, by name.
        notes: what is said of each router.
        routers: the routers that choose among them, by their places in the network's program.
        widths: the network's widths, in which every axis that counts experts is one width; None if
            every such axis was one before.
        pieces: the widths that such axes were made of before.
    """

    changes: Mapping[str, Change]
    notes: tuple[str, ...] = ()
    routers: Mapping[int, Router] = field(default_factory=dict)
    widths: Widths | None = None
    pieces: frozenset[str] = frozenset()

    @property
    def dispatch(self) -> frozenset[int]:
        """The steps that only find out which tokens go to which of these experts."""
        return frozenset[int]().union(*(router.dispatch for router in self.routers.values()))

    def choices(self, larger: Trace) -> dict[Dim, int]:
        """Returns how many experts a larger program chooses, by what counts them in the network's.

        If it chooses other ones than all copies, ``exact_copies`` has said so.
        """
        theirs = routers_of(larger)
        return {
            router.choices: theirs[place].chosen
            for place, router in self.routers.items()
            if place < len(theirs)
        }
