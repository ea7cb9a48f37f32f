"""Experts as a family of growths: ``Experts``."""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax import strategies
from dogwood_jax._depth.layers import more_numbers
from dogwood_jax._experts.chosen import choices_of
from dogwood_jax._experts.copied import CARRY_NOISE, Copied, notes_of, ways_to_copy
from dogwood_jax._experts.mixtures import Mixtures
from dogwood_jax._experts.more_experts import counted_in_one
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.choice import Choice
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.family import Family
from dogwood_jax._widths.dims import PICKED
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

_MODULES = (
    "experts that are modules of their own, as experts_0 and experts_1, are not copied; keep the "
    "arrays of all experts in one, [experts, in, out]"
)
_COPIES = "dw.upcycle copies experts all the same"


class Experts(Family):
    """More experts, which are copies, where outputs stay."""

    def whole(self, widths: Widths, shapes: Mapping[str, Any]) -> Widths:
        return counted_in_one(widths, shapes)

    def instead(self, widths: Widths, shapes: Mapping[str, Any]) -> Iterator[str]:
        known = {leaf.path for leaf in widths.leaves}
        new = [tuple(array.shape) for path, array in shapes.items() if path not in known]
        for leaf in widths.leaves:
            stacks = [shape[0] for shape in new if shape[1:] == leaf.shape and len(leaf.shape) > 1]
            if leaf.path not in shapes and stacks:
                yield (
                    f"the target has {stacks[0]} arrays like {leaf.path} in one; if these are "
                    "experts, dw.upcycle makes a mixture of a layer"
                )
                return

    def copies(self, asked: Asked) -> Copies | None:
        return _copies(asked)

    def choices(
        self, growth: Growth, larger: Traced | None, *, as_it_is: bool
    ) -> Iterator[tuple[Choice, ...]]:
        return choices_of(growth, larger, as_it_is=as_it_is)


def _copies(asked: Asked) -> Copies | None:
    """Returns how the widths of experts change, where outputs may stay; None if there are none.

    Only experts whose widths all grow alike count, without a strategy or by copies.
    """
    widths, larger = asked.widths, asked.larger.widths
    given = {name: strategy.for_experts for name, strategy in asked.starts.items()}
    sizes = {n: size for n, size in asked.sizes.items() if given.get(n, strategies.UPCYCLE)}
    # Where a router chooses, the largest are picked. Without one, its program need not be read.
    if widths.network is None or not any(
        PICKED in widths[name].notes for name, new in sizes.items() if new > widths[name].size
    ):
        return None
    network, theirs = Mixtures(widths), None if larger is None else Mixtures(larger)
    every, problems = list[Copied](), list[str]()
    paths = (*asked.larger.shapes, *(edit.path for edit in asked.larger.inserted))
    numbers = more_numbers((leaf.path for leaf in widths.leaves), paths)
    for experts in network.experts:
        new = sizes.get(experts.router, experts.count)
        if new <= experts.count:
            continue
        if not experts.stacks:
            if (experts.count, new) in numbers:
                problems.append(f"{experts.router}: {_MODULES}")
            continue
        if {sizes.get(name) for name in experts.names} != {new}:
            problems.append(
                f"{experts.router}: its experts grow along, {', '.join(experts.stacks)}; "
                "dw.upcycle plans both"
            )
            continue
        own = theirs.like(experts) if theirs is not None else None
        named = (strategy for name in experts.names if (strategy := given.get(name)))
        strategy = next(named, strategies.UPCYCLE)
        sources = strategy.sources(experts.count, new) or ()
        every.append(copied := Copied(experts, new, own, sources, strategy))
        if copied.reasons:
            problems.append(f"{experts.router}: {copied.unshown}; {_COPIES}")
    if not every and not problems:
        return None
    first, *others = ways_to_copy(network.widths, every)
    unshown = notes_of({copied.experts.router: copied.unshown for copied in every})
    has_noise = any(copied.strategy.noise for copied in every)
    return Copies(
        first,
        others=tuple(others),
        notes=tuple(notes_of({copied.experts.router: copied.note for copied in every})),
        unshown=(*unshown, *([CARRY_NOISE] if has_noise else [])),
        as_it_is=any(copied.is_still_one for copied in every),
        problems=tuple(problems),
        way_out=_COPIES,
    )
