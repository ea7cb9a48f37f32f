"""The arguments of ``plan``, ``Request``, and the same as sizes of all widths, ``Asked``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.larger_model import Larger
from dogwood_jax._plan.target import sizes_of_target
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import DepthStrategy, Start, Strategy


@dataclass(frozen=True)
class Copies:
    """Units that are copied, such as experts.

    Attributes:
        changes: how their widths change, by name.
        others: alternatives to ``changes``, tried in turn where outputs do not stay.
        notes: the notes of the growth if outputs stay.
        unshown: the notes of the growth if outputs change.
        as_it_is: whether the larger model chooses as many of these units as the network.
        problems: why outputs would change.
        way_out: what the caller may call instead.
    """

    changes: Mapping[str, Change]
    others: tuple[Mapping[str, Change], ...] = ()
    notes: tuple[str, ...] = ()
    unshown: tuple[str, ...] = ()
    as_it_is: bool = False
    problems: tuple[str, ...] = ()
    way_out: str = ""


def in_way(growth: Growth, way: Mapping[str, Change]) -> Growth:
    """Returns a growth in which units are copied in another way: a change by name of the width."""
    changes = tuple(way.get(change.width, change) for change in growth.changes)
    return replace(growth, changes=changes)


def without_noise(way: Mapping[str, Change]) -> dict[str, Change]:
    """Returns the same way of copying without noise, so that copies equal their sources."""
    return {
        name: replace(change, strategy=replace(change.strategy, noise=0.0))
        for name, change in way.items()
    }


@dataclass(frozen=True)
class Asked:
    """The requested sizes of a growth.

    Attributes:
        before: the network's widths.
        named: the sizes that the caller named.
        widths: the network's widths, with the widths of copied heads added.
        sizes: new sizes by name of the width.
        larger: the larger model; without arrays if there is none.
        starts: the initial values of new units, for widths with a strategy and for copied heads.
        problems: why sizes do not explain the shapes of the larger model.
        notes: notes on copied heads.
        alone: why heads cannot be copied where programs cannot be compared.
        ways_out: what the caller may pass instead, whether or not the growth is planned.
        copies: units that are copied with all their arrays, such as experts, or None.
        keeps_outputs: whether the growth must keep outputs.
    """

    before: Widths
    named: Mapping[str, int]
    widths: Widths
    sizes: Mapping[str, int]
    larger: Larger = Larger({})
    starts: Mapping[str, Start] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    ways_out: tuple[str, ...] = ()
    copies: Copies | None = None
    keeps_outputs: bool = True

    @property
    def shrinks(self) -> bool:
        """Whether a width becomes smaller."""
        known = self.widths.sizes
        return any(size < known.get(name, size) for name, size in self.sizes.items())

    def explained(self, widths: Widths, sizes: Mapping[str, int]) -> "Asked":
        """Returns the same request with the sizes that explain the larger model's shapes.

        Args:
            widths: the network's widths, with the widths of copied heads.
            sizes: known sizes by name.
        """
        problems: list[str] = []
        found = sizes_of_target(widths, self.larger.shapes, sizes, problems)
        return replace(self, widths=widths, sizes=found, problems=tuple(problems))


@dataclass(frozen=True)
class Request:
    """The arguments of ``plan``, which documents them.

    Attributes:
        widths: the widths of the network.
        sizes: new sizes.
        target: the larger model's variables, or None.
        target_apply: the larger model's function, or None.
        keep: units that stay.
        merge: groups of units that become one unit each.
        strategy: how widths grow.
        depth: how new layers are filled if they need not compute the identity, or None.
        interface: whether inputs and outputs may change.
        check: whether the growth is evaluated.
    """

    widths: Widths
    sizes: Mapping[Any, int] = field(default_factory=dict)
    target: PyTree = None
    target_apply: Callable[..., Any] | None = None
    keep: Mapping[Any, Any] | None = None
    merge: Mapping[Any, Sequence[Sequence[int]]] | None = None
    strategy: Strategy | Mapping[str, Strategy] | None = None
    depth: DepthStrategy | None = None
    interface: bool = False
    check: bool = True
