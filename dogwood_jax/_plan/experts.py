"""More experts in a network that has some: ``experts_of`` and ``copied``.

Every expert is copied, with the router's weights that make its logit. If as many times more experts
are chosen for each token, all copies of an expert are chosen where the expert was, and share its
gate. ``gates`` says whether they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.gates import routers_of
from dogwood_jax._plan.grown_sizes import GrownSizes
from dogwood_jax._widths.layout import Units, units_of
from dogwood_jax._widths.widths import Leaf, Recipe, Width, Widths


@dataclass(frozen=True)
class Experts:
    """The experts of one router.

    Attributes:
        router: name of the width of the logits.
        stacks: names of the widths that count experts in arrays of theirs.
        chosen: how many are chosen for each token.
        power: see ``Router``.
        sums_to_one: see ``Router``.
    """

    router: str
    stacks: tuple[str, ...]
    chosen: int
    power: float | None
    sums_to_one: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all widths that count these experts."""
        return tuple(dict.fromkeys((self.router, *self.stacks)))


def experts_of(widths: Widths) -> list[Experts]:
    """Returns the experts of each router whose logits are made by arrays of the network."""
    if widths.network is None:
        return []
    found, names = dict[str, Experts](), GrownSizes(widths, {}).names
    for router in routers_of(widths.network.traced.trace):
        name = names.get(router.experts)
        size = router.experts.size
        stacks = tuple(
            sorted({names[dim] for dim in router.stacks if dim in names and dim.size == size})
        )
        if name is not None:
            one = Experts(name, stacks, router.chosen, router.power, router.sums_to_one)
            both = found.get(name, one)
            # One router may be read several times, as in a network that is applied twice.
            found[name] = one if both == one else replace(one, power=None, sums_to_one=False)
    return list(found.values())


def experts_like(width: Width, larger: Widths | None) -> Experts | None:
    """Returns the experts of a larger model whose router makes logits by the same arrays."""
    if larger is None:
        return None
    places = {(place.path, place.axis) for place in width.occurrences}
    alike = (
        experts
        for experts in experts_of(larger)
        if any((place.path, place.axis) in places for place in larger[experts.router].occurrences)
    )
    return next(alike, None)


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
    """Returns the arrays of experts that make their outputs: those that write no hidden units."""
    hidden = hidden_in(widths, leaves)
    return [
        leaf.path
        for leaf in leaves
        if not any(
            units.width in hidden and units.role == "incoming"
            for layout in leaf.axes
            for units in units_of(layout)
        )
    ]


def arrays_along(widths: Widths, names: Sequence[str]) -> list[Leaf]:
    """Returns the arrays along which some widths lie."""
    return [
        leaf
        for leaf in widths.leaves
        if any(isinstance(units, Units) and units.width in names for units in leaf.axes)
    ]


def copied(
    widths: Widths,
    experts: Experts,
    new: int,
    larger: Experts | None,
    *,
    sources: Sequence[int] | None = None,
    noise: float = 0.0,
) -> tuple[list[Change], list[str]]:
    """Returns how the widths of experts change, and why outputs change if they do.

    Args:
        widths: the network's widths.
        experts: its experts.
        new: how many there are to be.
        larger: the same experts in the larger model; None if its program is not known.
        sources: the old expert that each of the new ones copies; all of them in turn if None.
        noise: see ``upcycle``.
    """
    old = widths[experts.router].size
    sources = tuple(i % old for i in range(new)) if sources is None else tuple(sources)
    reasons = []
    if len({sources.count(expert) for expert in range(old)}) > 1:
        reasons.append("some experts get more copies than others, and so more weight")
    elif larger is not None and larger.chosen * old != experts.chosen * new:
        reasons.append(
            f"the larger model chooses {larger.chosen} of {new} experts for each token, and not "
            f"all {experts.chosen * new // old} copies of those chosen before"
        )
    if noise:
        reasons.append("copies carry noise")
    recipe = None
    if not reasons and experts.power:
        arrays = arrays_along(widths, [n for n in experts.stacks if n != experts.router])
        paths = outputs_of_experts(widths, arrays)
        copies = tuple((path, -float(experts.power)) for path in paths)
        recipe = Recipe("tile", multiple=True, copies=copies)
        if not paths:
            reasons.append("the gates of all copies of an expert are each as large as its gate was")
    is_exact = not reasons and experts.power is not None
    strategy = replace(strategies.UPCYCLE, noise=float(noise), exact=is_exact)
    changes = [
        Change(name, old, new, strategy, sources, recipe=recipe if name == experts.router else None)
        for name in experts.names
    ]
    return changes, reasons


def said(experts: Experts, old: int, new: int, larger: Experts | None, reasons: list[str]) -> str:
    """Says whether outputs stay, and what the larger model must choose."""
    if reasons:
        return f"outputs change, because {' and '.join(reasons)}"
    if experts.power is None:
        return "outputs may change, because its gates cannot be followed; dw.verify tells"
    chosen = experts.chosen * new // old
    return (
        f"outputs stay {'if' if larger is None else 'because'} the larger model chooses {chosen} "
        f"of {new} experts for each token, instead of {experts.chosen} of {old}"
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
