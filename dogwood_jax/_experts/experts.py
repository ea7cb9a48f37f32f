"""More experts in a network that has some: ``Mixtures`` and ``copied``.

Every expert is copied, with the router's weights that make its logit. If as many times more experts
are chosen for each token, all copies of an expert are chosen where the expert was, and share its
gate. ``gates`` says whether they do.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from dogwood_jax import strategies
from dogwood_jax._base.trees import PyTree
from dogwood_jax._experts.divided_outputs import divides_outputs
from dogwood_jax._experts.gates import Router, computed_with, counted_elsewhere, routers_of
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.own_function import Rejected, trace_own
from dogwood_jax._widths.dims import PICKED, atoms
from dogwood_jax._widths.layout import Concat, Units, units_of
from dogwood_jax._widths.values import Trace
from dogwood_jax._widths.widths import Facts, Leaf, Recipe, Width, Widths

COPIES = "dw.upcycle copies experts all the same"
_ALONE = (
    "experts grow, too; without new layers and with strategies that keep outputs both go together, "
    "else plan one after the other, first with a target that only has more experts"
)


@dataclass(frozen=True)
class Experts:
    """The experts of one router.

    Attributes:
        router: name of the width of the logits.
        stacks: names of the widths that count experts in arrays of theirs.
        choice: what the program shows of the router.
        logits: paths of the arrays that make the logits.
    """

    router: str
    stacks: tuple[str, ...]
    choice: Router
    logits: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all widths that count these experts."""
        return tuple(dict.fromkeys((self.router, *self.stacks)))

    def arrays(self, widths: Widths) -> list[Leaf]:
        """Returns the arrays of the experts themselves."""
        return [leaf for leaf in arrays_along(widths, self.stacks) if leaf.path not in self.logits]


class Mixtures:
    """The experts in a network, by routers whose logits are made by arrays of it.

    Args:
        widths: the network's widths.
        places: axes that count experts, each by path and axis, as far as they are known besides.

    Attributes:
        widths: the same, in which every axis that counts experts is one width.
        trace: its program as it was read.
        paths: the paths of its arrays, by their numbers in the program.
        experts: the experts of each router.
        routers: the routers in their order, each with the name of the width of its logits.
        pieces: names of the widths that an axis was made of before, by name of the one width.
    """

    def __init__(self, widths: Widths, places: Sequence[tuple[str, int]] = ()) -> None:
        assert widths.network is not None
        traced = widths.network.traced
        self.trace, self._routers = traced.trace, routers_of(traced.trace)
        counted = {dim for router in self._routers for dim in (router.experts, *router.stacks)}
        dims = {
            (path, axis): dim.root
            for path, value in traced.leaves.items()
            for axis, dim in enumerate(value.dims)
        }
        self.widths, self.pieces = _counted_in_one(
            widths, {*places, *(place for place, dim in dims.items() if dim in counted)}
        )
        names = {
            dims[leaf.path, axis]: layout.width
            for leaf in self.widths.leaves
            for axis, layout in enumerate(leaf.axes)
            if isinstance(layout, Units)
        }
        self.paths, found = [*traced.leaves], dict[str, Experts]()
        self.routers = [(names.get(router.experts), router) for router in self._routers]
        for name, router in self.routers:
            if name is None:
                continue
            size = router.experts.size
            stacks = {names[dim] for dim in router.stacks if dim in names and dim.size == size}
            before = found.get(name)
            if before is not None and not router.is_like(before.choice):
                router = replace(router, power=None, sums_to_one=False)
            logits = frozenset(self.paths[leaf] for leaf in router.leaves)
            found[name] = Experts(name, tuple(sorted(stacks)), router, logits)
        self.experts = list(found.values())

    def like(self, width: Width) -> Experts | None:
        """Returns the experts whose router makes logits by the same arrays as another network's."""
        places = {(place.path, place.axis) for place in width.occurrences}
        alike = (
            experts
            for experts in self.experts
            for place in self.widths[experts.router].occurrences
            if (place.path, place.axis) in places
        )
        return next(alike, None)

    def takes_apart(self, experts: Experts) -> bool:
        """Whether the program does something to a part of the experts alone.

        Finding out which tokens go to them does not count.
        """
        dispatch = frozenset[int]().union(*(router.dispatch for router in self._routers))
        router = experts.choice
        wholes = {dim for dim in router.stacks if dim.size == router.experts.size}
        wholes.add(router.experts)
        parts = {dim for whole in wholes for dim in atoms(whole)} - wholes
        return any(
            dim.root in parts
            for index, step in enumerate(self.trace.steps)
            if index not in dispatch
            for value in (*step.operands, *step.results)
            for dim in value.dims
        )

    def differences(self, larger: Trace, *, with_gates: bool) -> list[str]:
        """Returns what only one of two programs computes with, see ``computed_with``."""
        ours = computed_with(self.trace, self._routers, with_gates=with_gates)
        theirs = computed_with(larger, routers_of(larger), with_gates=with_gates)
        return sorted(ours ^ theirs) + self.counted_elsewhere

    @property
    def counted_elsewhere(self) -> list[str]:
        """Where the network depends on how many experts there are, besides the gates."""
        return counted_elsewhere(self.trace, self._routers)


def hidden_in(widths: Widths, leaves: Sequence[Leaf]) -> set[str]:
    """Returns the widths of hidden units of some arrays: nothing else has them."""
    inside = {leaf.path for leaf in leaves}
    return {
        width.name
        for width in widths.values()
        if {place.role for place in width.occurrences} >= {"incoming", "outgoing"}
        if all(place.path in inside for place in width.occurrences)
    }


def outputs_of_experts(widths: Widths, leaves: Sequence[Leaf]) -> list[str]:
    """Returns the arrays of experts that their outputs are sums of.

    These arrays write no hidden units. Factors on the outputs do not count.
    """
    hidden = {(name, "incoming") for name in hidden_in(widths, leaves)}
    written = [{(u.width, u.role) for axis in leaf.axes for u in units_of(axis)} for leaf in leaves]
    return [
        leaf.path
        for leaf, units in zip(leaves, written, strict=True)
        if leaf.kind != "ones" and not units & hidden
    ]


def divisible(network: Mixtures, experts: Experts) -> Sequence[str]:
    """Returns arrays of experts that a factor on their outputs can be multiplied into."""
    arrays = sorted(experts.arrays(network.widths), key=lambda leaf: -len(leaf.shape))
    paths = outputs_of_experts(network.widths, arrays)
    numbers = {path: network.paths.index(path) for path in paths}
    choices = (some for n in range(len(paths), 0, -1) for some in combinations(paths, n))
    for some in islice(choices, 64):
        if divides_outputs(
            network.trace.steps, experts.choice, frozenset(numbers[path] for path in some)
        ):
            return some
    return ()


def arrays_along(widths: Widths, names: Sequence[str]) -> list[Leaf]:
    """Returns the arrays along which some widths lie."""
    return [
        leaf
        for leaf in widths.leaves
        if any(isinstance(units, Units) and units.width in names for units in leaf.axes)
    ]


def copied(
    network: Mixtures,
    experts: Experts,
    new: int,
    larger: Experts | None,
    *,
    sources: Sequence[int] | None = None,
    noise: float = 0.0,
    others: Sequence[str] = (),
) -> tuple[list[Change], list[str]]:
    """Returns how the widths of experts change, and why outputs change if they do.

    Args:
        network: the network.
        experts: its experts.
        new: how many there are to be.
        larger: the same experts in the larger model; None if its program is not known.
        sources: the old expert that each of the new ones copies; all of them in turn if None.
        noise: see ``upcycle``.
        others: what only one of both networks computes with.
    """
    old, still_one = network.widths[experts.router].size, _still_one(experts, larger)
    power = experts.choice.power_of_one if still_one else experts.choice.power
    sources = tuple(i % old for i in range(new)) if sources is None else tuple(sources)
    reasons = []
    if len({sources.count(expert) for expert in range(old)}) > 1:
        reasons.append("some experts get more copies than others, and so more weight")
    elif (
        larger is not None
        and not still_one
        and larger.choice.chosen * old != experts.choice.chosen * new
    ):
        reasons.append(
            f"the larger model chooses {larger.choice.chosen} of {new} experts, and not all "
            f"{experts.choice.chosen * new // old} copies of those chosen before"
        )
    if noise:
        reasons.append("copies carry noise")
    if others:
        reasons.append(f"the two networks do not compute the same with {', '.join(others[:3])}")
    recipe = None
    if not reasons and power:
        paths = divisible(network, experts)
        copies = tuple((path, -float(power)) for path in paths)
        recipe = Recipe("tile", multiple=True, copies=copies)
        if not paths:
            reasons.append(
                "the gate of one copy is smaller than its expert's was"
                if still_one
                else "the gates of all copies of an expert are each as large as its gate was"
            )
    is_exact = not reasons and power is not None
    strategy = replace(strategies.UPCYCLE, noise=float(noise), exact=is_exact)
    changes = [
        Change(name, old, new, strategy, sources, recipe=recipe if name == experts.router else None)
        for name in experts.names
    ]
    return changes, reasons


def _still_one(experts: Experts, larger: Experts | None) -> bool:
    """Whether one expert is chosen for each token in both networks."""
    return larger is not None and larger.choice.chosen == experts.choice.chosen == 1


def said(experts: Experts, old: int, new: int, larger: Experts | None, reasons: list[str]) -> str:
    """Says whether outputs stay, and what the larger model must choose."""
    if reasons:
        return f"outputs change, because {' and '.join(reasons)}"
    still_one = _still_one(experts, larger)
    if (experts.choice.power_of_one if still_one else experts.choice.power) is None:
        return "outputs may change, because its gates cannot be followed; dw.verify tells"
    if still_one:
        return (
            f"outputs stay because the larger model chooses one of {new} experts, as one of {old} "
            "before, and copies do the same. Of equal logits the first is chosen, so let noise= of "
            "dw.upcycle tell copies apart"
        )
    chosen = experts.choice.chosen * new // old
    return (
        f"outputs stay {'if' if larger is None else 'because'} the larger model chooses {chosen} "
        f"of {new} experts instead of {experts.choice.chosen} of {old}"
    )


def notes_of(texts: Mapping[str, str]) -> list[str]:
    """Returns what is said of routers, by name, with like layers together."""
    together: dict[str, list[str]] = {}
    for name, text in texts.items():
        together.setdefault(text, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
        for text, names in together.items()
    ]


def exact_copies(
    widths: Widths,
    sizes: Mapping[str, int],
    larger: Widths | None,
    target: PyTree,
) -> Copies | None:
    """Returns how the widths of experts change, where outputs stay; None if there are none.

    If other widths grow, too, both programs have to be compared besides.

    Args:
        widths: the network's widths.
        sizes: new sizes by name of the width. Only experts whose widths all grow alike count. If a
            program cuts their axes, the larger one has to show that all experts do the same.
        larger: the widths of the larger model, if its program is known.
        target: its variables, or None.
    """
    changes, texts, problems = dict[str, Change](), dict[str, str](), list[str]()
    # Where a router chooses, the largest are picked. Without one, its program need not be read.
    if widths.network is None or not any(
        PICKED in widths[name].hazards for name, new in sizes.items() if new > widths[name].size
    ):
        return None
    network, theirs = Mixtures(widths), None if larger is None else Mixtures(larger)
    cut = network.pieces if larger is not None else {}
    sizes = {
        **sizes,
        **{name: sum(sizes.get(p, widths[p].size) for p in cut[name]) for name in cut},
    }
    parts = frozenset(piece for pieces in cut.values() for piece in pieces)
    names = {name for experts in network.experts for name in experts.names}
    is_alone = all(
        size == widths[name].size for name, size in sizes.items() if name not in names | parts
    )
    others: list[str] | None = None
    for experts in network.experts:
        router = network.widths[experts.router]
        old, new = router.size, sizes.get(experts.router, router.size)
        if new <= old or not experts.stacks:
            continue
        if cut and network.takes_apart(experts):
            continue
        if {sizes.get(name) for name in experts.names} != {new}:
            problems.append(
                f"{experts.router}: its experts grow along, {', '.join(experts.stacks)}; "
                "dw.upcycle plans both"
            )
            continue
        own = theirs.like(router) if theirs is not None else None
        if others is None and is_alone:
            others = differences_of(network, widths, larger, sizes, target)
        elif others is None:  # numbers may follow from other widths
            others = network.counted_elsewhere
        made, reasons = copied(network, experts, new, own, others=others)
        text = said(experts, old, new, own, reasons)
        changes |= {change.width: change for change in made}
        texts[experts.router] = text
        if not all(change.strategy.exact for change in made):
            problems.append(f"{experts.router}: {text}; {COPIES}")
    grown = frozenset(piece for name in changes for piece in cut.get(name, ()))
    wider = network.widths if grown else None
    if not changes and not problems:
        return None
    notes = tuple(notes_of(texts))
    return Copies(changes, notes, wider, grown, tuple(problems), COPIES, _ALONE)


def _counted_in_one(
    widths: Widths, places: Collection[tuple[str, int]]
) -> tuple[Widths, dict[str, tuple[str, ...]]]:
    """Returns widths in which some axes are a width of their own, though a program cuts them.

    The widths that these axes were made of come with them, by name of the one width. A program may
    take experts out of their array one by one, or count tokens of all but the last.
    """
    leaves, facts, names = [], dict(widths.facts), dict[tuple[str, ...], str]()
    for leaf in widths.leaves:
        axes = list(leaf.axes)
        for axis, layout in enumerate(leaf.axes):
            if isinstance(layout, Concat) and (leaf.path, axis) in places:
                pieces = tuple(units.width for units in units_of(layout))
                name = names.setdefault(pieces, f"{leaf.path}[{axis}]")
                facts[name] = Facts(leaf.shape[axis])
                axes[axis] = Units(name, leaf.shape[axis], "incoming")
        leaves.append(replace(leaf, axes=tuple(axes)))
    if not names:
        return widths, {}
    cut = {piece for pieces in names for piece in pieces}
    cut -= {units.width for leaf in leaves for axis in leaf.axes for units in units_of(axis)}
    left = tuple((name, fact) for name, fact in facts.items() if name not in cut)
    return Widths(tuple(leaves), left), {name: pieces for pieces, name in names.items()}


def differences_of(
    network: Mixtures,
    widths: Widths,
    larger: Widths | None,
    sizes: Mapping[str, int],
    target: PyTree,
) -> list[str]:
    """Returns what only one of two networks computes with: numbers and functions.

    Args:
        network: the experts of a network.
        widths: its widths.
        larger: those of the larger network; if None, the network itself is called in other sizes.
        sizes: these sizes, by name of the width.
        target: the larger model's variables, or None.
    """
    if larger is not None and larger.network is not None:
        return network.differences(larger.network.traced.trace, with_gates=True)
    own = trace_own(widths, sizes, target)
    return [] if isinstance(own, Rejected) else network.differences(own.trace, with_gates=True)
