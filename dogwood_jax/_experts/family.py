"""Experts as a family of growths: ``Experts``."""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax._base.trees import PyTree
from dogwood_jax._experts.chosen import choices_of
from dogwood_jax._experts.copied import Copied, in_turn, notes_of, ways_to_copy
from dogwood_jax._experts.mixtures import Mixtures
from dogwood_jax._experts.more_experts import counts_experts
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.choice import Choice
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.family import Family
from dogwood_jax._widths.dims import PICKED
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

_UPCYCLE = (
    "if the network gets more experts: dw.upcycle copies them, in a growth of their own, and says "
    "whether outputs stay"
)
_COPIES = "dw.upcycle copies experts all the same"
_ALONE = (
    "experts grow, too; without new layers and with strategies that keep outputs both go together, "
    "else plan one after the other, first with a target that only has more experts"
)


class Experts(Family):
    """More experts, which are copies, where outputs stay."""

    def counts(self, widths: Widths, shapes: Mapping[str, Any]) -> bool:
        return counts_experts(widths, shapes)

    def ways_out(self, asked: Asked) -> Iterator[str]:
        is_alone = not asked.named and not asked.larger.insertions
        if is_alone and counts_experts(asked.before, asked.larger.shapes):
            yield _UPCYCLE

    def copies(self, asked: Asked, sizes: Mapping[str, int], target: PyTree) -> Copies | None:
        return _copies(asked.widths, sizes, asked.larger.widths)

    def choices(
        self, growth: Growth, larger: Traced | None, *, as_it_is: bool
    ) -> Iterator[tuple[Choice, ...]]:
        return choices_of(growth, larger, as_it_is=as_it_is)


def _copies(widths: Widths, sizes: Mapping[str, int], larger: Widths | None) -> Copies | None:
    """Returns how the widths of experts change, where outputs may stay; None if there are none.

    Args:
        widths: the network's widths.
        sizes: new sizes by name of the width. Only experts whose widths all grow alike count. If a
            program cuts their axes, the program of the larger model must be known.
        larger: the widths of the larger model, if its program is known.
    """
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
    every, problems = list[Copied](), list[str]()
    for experts in network.experts:
        new = sizes.get(experts.router, experts.count)
        if new <= experts.count or not experts.stacks:
            continue
        if {sizes.get(name) for name in experts.names} != {new}:
            problems.append(
                f"{experts.router}: its experts grow along, {', '.join(experts.stacks)}; "
                "dw.upcycle plans both"
            )
            continue
        own = theirs.like(experts) if theirs is not None else None
        every.append(copied := Copied(experts, new, own, in_turn(experts.count, new)))
        if copied.reasons:
            problems.append(f"{experts.router}: {copied.unshown}; {_COPIES}")
    if not every and not problems:
        return None
    names = {name for copied in every for name in copied.experts.names}
    pieces = frozenset(piece for name in names for piece in cut.get(name, ()))
    first, *others = ways_to_copy(network.widths, every)
    return Copies(
        first,
        others=tuple(others),
        notes=tuple(notes_of({copied.experts.router: copied.note for copied in every})),
        widths=network.widths if pieces else None,
        pieces=pieces,
        problems=tuple(problems),
        way_out=_COPIES,
        alone=_ALONE,
    )
