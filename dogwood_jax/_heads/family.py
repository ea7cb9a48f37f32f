"""Copied heads as a family of growths: ``Heads``."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dogwood_jax import strategies
from dogwood_jax._heads.groups import (
    Groups,
    divided,
    first_of_two,
    interleaved_heads,
    no_copies,
    single_heads_grow,
    split_groups,
    split_single_heads,
)
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.family import Family
from dogwood_jax._plan.sizes import explained

_MORE_HEADS = (
    "if the larger model has more heads of keys and values for the same query heads, pass its "
    "function as target_apply=, and these heads are copied"
)

_FOR_EACH = (
    "if the larger model has a head of keys and values for each query head, in the place of one "
    "for all: plan two growths, the first one with fewer of these heads"
)

_IN_TWO = (
    "if the larger model has more query heads, but fewer for each head of keys and values: plan "
    "two growths, the first one to {} heads of keys and values and the query heads of today"
)


class Heads(Family):
    """Heads of keys and values that are copied, so that fewer query heads share one."""

    def asked(self, asked: Asked) -> Asked:
        before, larger, told = asked.before, asked.larger, {**asked.larger.sizes, **asked.named}
        heads = split_single_heads(before, larger)
        found = asked if heads is None else _asked(asked, heads, told)
        if found.problems or found.shrinks:
            more = split_groups(before, larger, heads)
            if more is not None and more.widths is not found.widths:
                found = _asked(asked, more, told)
        return found

    def ways_out(self, asked: Asked) -> Iterator[str]:
        before, larger = asked.before, asked.larger
        heads_differ = any({*pair} - {*asked.sizes} for pair in divided(before).items())
        unsplit = not asked.alone or bool(asked.problems)
        unsplit = unsplit and single_heads_grow(before, larger)
        shrinks = any(before[n].size > size for n, size in asked.sizes.items() if n in before)
        if asked.problems or shrinks:
            yield from interleaved_heads(before, larger)
        if larger.widths is None:
            if unsplit or (heads_differ and asked.problems):
                yield _MORE_HEADS
            return
        if unsplit:
            yield _FOR_EACH
        if between := first_of_two(before, larger):
            yield _IN_TWO.format(between)
        elif not asked.alone:
            yield from no_copies(before, larger)


def _asked(asked: Asked, heads: Groups, sizes: Mapping[str, int]) -> Asked:
    """Returns the asked sizes, in widths with copies of heads."""
    found = explained(asked, heads.widths, heads.asked(sizes))
    return replace(
        found,
        starts={**asked.starts, **dict.fromkeys(heads.copies, strategies.replicate())},
        notes=(*asked.notes, *heads.notes),
        alone=(*asked.alone, *heads.alone),
        ways_out=(*asked.ways_out, *([_FOR_EACH] if heads.is_for_each else [])),
    )
