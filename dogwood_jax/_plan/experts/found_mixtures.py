"""The experts in a network and their arrays: ``Mixtures``."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix

from dogwood_jax._plan.experts.routers import Router, routers_of
from dogwood_jax._widths.layout import Concat, Units, units_of
from dogwood_jax._widths.widths import Facts, Leaf, Widths

_LABEL = "experts"  # label of a width along an axis that a program cuts into pieces


@dataclass(frozen=True)
class RoutedExperts:
    """The experts of one router.

    Attributes:
        router: name of the width of the logits.
        stacks: names of the widths that count experts in the experts' own arrays.
        choice: the router, as read from the program.
        logits: paths of the arrays that make the logits.
    """

    router: str
    stacks: tuple[str, ...]
    choice: Router
    logits: frozenset[str]

    @property
    def count(self) -> int:
        """The number of experts."""
        return self.choice.experts.size

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all widths that count these experts."""
        return tuple(dict.fromkeys((self.router, *self.stacks)))

    def arrays(self, widths: Widths) -> list[Leaf]:
        """Returns the arrays of the experts themselves."""
        return [leaf for leaf in arrays_along(widths, self.stacks) if leaf.path not in self.logits]


class Mixtures:
    """The experts in a network, for each router whose logits are made by the network's arrays.

    Args:
        widths: the network's widths.
        places: further axes that are known to count experts, each as (path, axis).

    Attributes:
        widths: the network's widths, in which every axis that counts experts is one width.
        experts: the experts of each router.
        routers: the routers in their order, each with the name of the width of its logits, or None.
    """

    def __init__(self, widths: Widths, places: Sequence[tuple[str, int]] = ()) -> None:
        assert widths.network is not None
        traced = widths.network.traced
        routers = routers_of(traced.trace)
        counted = {dim for router in routers for dim in (router.experts, *router.stacks)}
        dims = {
            (path, axis): dim.root
            for path, value in traced.leaves.items()
            for axis, dim in enumerate(value.dims)
        }
        self.widths = _counted_in_one(
            widths, {*places, *(place for place, dim in dims.items() if dim in counted)}
        )
        names = {
            dims[leaf.path, axis]: layout.width
            for leaf in self.widths.leaves
            for axis, layout in enumerate(leaf.axes)
            if isinstance(layout, Units)
        }
        paths, found = [*traced.leaves], dict[str, RoutedExperts]()
        self.routers = [(names.get(router.experts), router) for router in routers]
        for name, router in self.routers:
            if name is None:
                continue
            size = router.experts.size
            stacks = {names[dim] for dim in router.stacks if dim in names and dim.size == size}
            logits = frozenset(paths[leaf] for leaf in router.leaves)
            found[name] = RoutedExperts(name, tuple(sorted(stacks)), router, logits)
        self.experts = [*found.values()]
        tied = {name for group in self.experts for name in group.names}
        for name, facts in self.widths.facts:
            if facts.label == _LABEL and name not in tied:
                if (group := closest(self.widths, name, self.experts)) is not None:
                    more = replace(group, stacks=(*group.stacks, name))
                    self.experts[self.experts.index(group)] = more

    def like(self, experts: RoutedExperts) -> RoutedExperts | None:
        """Returns the experts here that correspond to another network's, or None.

        Their routers make logits with the same arrays.
        """
        return next((own for own in self.experts if own.logits & experts.logits), None)


def closest(widths: Widths, name: str, every: Sequence[RoutedExperts]) -> RoutedExperts | None:
    """Returns the experts whose router's arrays share the longest path with those of a width.

    Returns None if there is a tie, or no router.
    """

    def shared(group: RoutedExperts) -> int:
        return max(
            len(commonprefix([one.path.split("/"), other.path.split("/")]))
            for one in widths[name].occurrences
            for other in widths[group.router].occurrences
        )

    ranked = sorted(every, key=shared, reverse=True)
    if not ranked or (len(ranked) > 1 and shared(ranked[0]) == shared(ranked[1])):
        return None
    return ranked[0]


def hidden_in(widths: Widths, leaves: Sequence[Leaf]) -> set[str]:
    """Returns the widths of hidden units of some arrays: no other arrays have these widths."""
    inside = {leaf.path for leaf in leaves}
    return {
        width.name
        for width in widths.values()
        if {place.role for place in width.occurrences} >= {"incoming", "outgoing"}
        if all(place.path in inside for place in width.occurrences)
    }


def factors_of_outputs(widths: Widths, experts: RoutedExperts) -> list[tuple[str, ...]]:
    """Returns groups of arrays on which a factor may scale outputs of experts, likeliest first.

    The first group has all arrays that write outputs, such as a projection and a bias. Single
    arrays that write no hidden units follow, such as a scale.
    """
    arrays = sorted(experts.arrays(widths), key=lambda leaf: -len(leaf.shape))
    hidden, known = hidden_in(widths, arrays), {*experts.names}
    terms, factors = list[str](), list[tuple[str, ...]]()
    for leaf in arrays:
        units = [units for axis in leaf.axes for units in units_of(axis)]
        if leaf.kind == "ones" or any(u.width in hidden and u.role == "incoming" for u in units):
            continue
        factors.append((leaf.path,))
        terms += [leaf.path] if any(u.width not in known for u in units) else []
    return [tuple(terms), *factors] if len(terms) > 1 else factors


def arrays_along(widths: Widths, names: Sequence[str]) -> list[Leaf]:
    """Returns the arrays that have one of some widths along an axis."""
    return [
        leaf
        for leaf in widths.leaves
        if any(isinstance(units, Units) and units.width in names for units in leaf.axes)
    ]


def _counted_in_one(widths: Widths, places: Collection[tuple[str, int]]) -> Widths:
    """Returns widths in which each of some axes is one width, though a program cuts it.

    A program may take experts out of their array one by one, or skip the last one when it counts
    tokens.
    """
    leaves, facts, names = [], dict(widths.facts), dict[tuple[str, ...], str]()
    for leaf in widths.leaves:
        axes = list(leaf.axes)
        for axis, layout in enumerate(leaf.axes):
            if isinstance(layout, Concat) and (leaf.path, axis) in places:
                pieces = tuple(units.width for units in units_of(layout))
                name = names.setdefault(pieces, f"{leaf.path}[{axis}]")
                facts[name] = Facts(leaf.shape[axis], label=_LABEL)
                axes[axis] = Units(name, leaf.shape[axis], "incoming")
        leaves.append(replace(leaf, axes=tuple(axes)))
    if not names:
        return widths
    cut = {piece for pieces in names for piece in pieces}
    cut -= {units.width for leaf in leaves for axis in leaf.axes for units in units_of(axis)}
    left = tuple((name, fact) for name, fact in facts.items() if name not in cut)
    return replace(widths, leaves=tuple(leaves), facts=left)


# Returns a share for sizes by name of the width.
Share = Callable[[Mapping[str, int]], float]


def idle_shares(widths: Widths) -> Iterator[tuple[str, Share]]:
    """Yields paths of experts' arrays, each with the share of the array that a token does not use.

    The share depends on the number of experts; the number of chosen experts is the same for all
    sizes.

    Args:
        widths: the widths of a network that was traced in this process.
    """
    mixtures = Mixtures(widths)
    for experts in mixtures.experts:
        for leaf in experts.arrays(mixtures.widths):
            yield leaf.path, _share_of(experts)


def _share_of(experts: RoutedExperts) -> Share:
    def share(sizes: Mapping[str, int]) -> float:
        count = sizes.get(experts.router, experts.count)
        return max(count - experts.choice.chosen, 0) / count

    return share
