"""Experts as a family of growths: ``Experts``."""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax._base.trees import PyTree
from dogwood_jax._experts.chosen import choices_of
from dogwood_jax._experts.experts import exact_copies
from dogwood_jax._experts.more_experts import counts_experts
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.choice import Choice
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.family import Family
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

_UPCYCLE = (
    "if the network gets more experts: dw.upcycle copies them, in a growth of their own, and says "
    "whether outputs stay"
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
        return exact_copies(asked.widths, sizes, asked.larger.widths, target)

    def choices(
        self, growth: Growth, larger: Traced | None, *, as_it_is: bool
    ) -> Iterator[tuple[Choice, ...]]:
        return choices_of(growth, larger, as_it_is=as_it_is)
