"""What ``plan`` is asked for: ``Request`` by its caller, ``Asked`` in sizes of all widths."""

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


@dataclass(frozen=True)
class Asked:
    """The sizes that a growth is asked for.

    Attributes:
        before: the network's widths.
        named: the sizes that the caller named.
        widths: the widths that change, and those of copied heads.
        sizes: their new sizes by name.
        larger: the larger model; without arrays if there is none.
        starts: what new units begin with of widths that are given a strategy, and of copied heads.
        problems: why sizes do not explain the shapes of the larger model.
        notes: what is said of copied heads.
        alone: why copied heads do not grow where programs cannot be compared.
        ways_out: what may be passed instead, whether or not the growth is planned.
        copies: units that are copied with all that belongs to them, or None.
        keeps_outputs: whether the growth is to keep outputs.
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
        """Whether a width would become smaller."""
        known = self.widths.sizes
        return any(size < known.get(name, size) for name, size in self.sizes.items())

    def explained(self, widths: Widths, sizes: Mapping[str, int]) -> "Asked":
        """Returns the same with the sizes that explain the larger model's shapes.

        Args:
            widths: the widths that change.
            sizes: sizes that are known.
        """
        problems: list[str] = []
        found = sizes_of_target(widths, self.larger.shapes, sizes, problems)
        return replace(self, widths=widths, sizes=found, problems=tuple(problems))


@dataclass(frozen=True)
class Request:
    """The arguments of ``plan``. Their own texts say what they mean.

    Attributes:
        widths: the widths of the network.
        sizes: new sizes.
        target: the larger model's variables, or None.
        target_apply: its function, or None.
        keep: units that stay.
        merge: units that become one.
        strategy: how widths grow.
        depth: how new layers are filled, if they are not to compute the identity.
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
