"""What a growth is asked for: the sizes and strategies of widths, by name."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dogwood_jax._base.arguments import is_integer
from dogwood_jax._base.problems import Refused
from dogwood_jax._base.trees import PyTree
from dogwood_jax._modules.resizing import Resizing
from dogwood_jax._plan.groups import (
    Groups,
    divided,
    first_of_two,
    interleaved_heads,
    no_copies,
    single_heads_grow,
    split_groups,
    split_single_heads,
)
from dogwood_jax._plan.larger import NOT_AT_HAND, Larger, is_deeper
from dogwood_jax._plan.more_experts import counts_experts
from dogwood_jax._plan.obstacles import IN_LARGER_MODEL, fewer
from dogwood_jax._plan.own_function import WITH_TARGET
from dogwood_jax._plan.target import sizes_of_target
from dogwood_jax._widths.dims import LAYERS
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import Strategy

_MORE_EXPERTS = (
    "if the network gets more experts: dw.upcycle copies them, in a growth of their own, and says "
    "whether outputs stay"
)

_MORE_HEADS = (
    "if the larger model has more heads of keys and values for the same query heads, pass its "
    "function as target_apply=, and these heads are copied"
)

HEADS_FOR_EACH = (
    "if the larger model has a head of keys and values for each query head, in the place of one "
    "for all: plan two growths, the first one with fewer of these heads"
)

_HEADS_IN_TWO = (
    "if the larger model has more query heads, but fewer for each head of keys and values: plan "
    "two growths, the first one to {} heads of keys and values and the query heads of today"
)

_EACH_ALONE = (
    "beside new layers, programs do not say which numbers follow from sizes: grow the widths "
    "first, or insert the layers first, each in a growth of its own"
)

_MORE_LAYERS = (
    "if the larger model has more layers, pass its function of variables and inputs as "
    "target_apply=, and they are inserted"
)

_BY_TARGET = "new layers are inserted by target= and target_apply="


@dataclass(frozen=True)
class Asked:
    """The sizes that a growth is asked for.

    Attributes:
        before: the network's widths.
        named: the sizes that the caller named.
        widths: the widths that change, with those of copied heads.
        sizes: their new sizes by name.
        larger: the larger model; without arrays if there is none.
        heads: the heads of keys and values that are copied, or None.
        is_explained: whether the shapes of the larger model follow from sizes.
    """

    before: Widths
    named: Mapping[str, int]
    widths: Widths
    sizes: Mapping[str, int]
    larger: Larger = Larger({})
    heads: Groups | None = None
    is_explained: bool = True

    def ways_out(self) -> Iterator[str]:
        """Yields what may be passed instead, if the growth is refused."""
        larger, before = self.larger, self.before
        if larger.shapes:
            if not self.named and not larger.insertions and counts_experts(before, larger.shapes):
                yield _MORE_EXPERTS
            heads_differ = any({*pair} - {*self.sizes} for pair in divided(before).items())
            unsplit = self.heads is None or not self.is_explained
            unsplit = unsplit and single_heads_grow(before, larger)
            shrinks = any(before[n].size > size for n, size in self.sizes.items() if n in before)
            if not self.is_explained or shrinks:
                yield from interleaved_heads(before, larger)
            if larger.widths is None and (unsplit or (heads_differ and not self.is_explained)):
                yield _MORE_HEADS
            elif larger.widths is not None and unsplit:
                yield HEADS_FOR_EACH
            if larger.widths is not None and (between := first_of_two(before, larger)):
                yield _HEADS_IN_TWO.format(between)
            elif larger.widths is not None and self.heads is None:
                yield from no_copies(before, larger)
            if larger.insertions and self._meets_numbers:
                yield _EACH_ALONE
            unread = larger.widths is None and before.network is not None
            if unread and is_deeper(before, larger.shapes):
                yield _MORE_LAYERS
        elif any(
            self.widths[name].fixed == LAYERS and size > self.widths[name].size
            for name, size in self.sizes.items()
        ):
            yield _BY_TARGET

    @property
    def _meets_numbers(self) -> bool:
        """Whether a width grows that numbers may follow from."""
        return any(
            kind_of(hazard) in IN_LARGER_MODEL
            for name, size in self.sizes.items()
            if size > self.widths[name].size
            for hazard in self.widths[name].hazards
        )


def asked_of(
    widths: Widths,
    sizes: Mapping[Any, int],
    larger: Larger | None,
    problems: list[str],
) -> Asked:
    """Returns the sizes that are asked for, by name or by a larger model; see ``plan``."""
    named = named_sizes(widths, sizes, problems)
    if larger is None:
        return Asked(widths, named, widths, named)
    problems += [
        f"{name}: asked for {size} units, but the larger model has {larger.sizes[name]}"
        for name, size in named.items()
        if larger.sizes.get(name, size) != size
    ]
    told, contradictions = larger.sizes | named, list[str]()
    heads = split_single_heads(widths, larger)
    wider = widths if heads is None else heads.widths
    new = sizes_of_target(
        wider, larger.shapes, told if heads is None else heads.asked(told), contradictions
    )
    if contradictions or any(size < wider[name].size for name, size in new.items()):
        heads = split_groups(widths, larger, heads)
    if heads is not None and heads.widths is not wider:
        wider, contradictions = heads.widths, []
        new = sizes_of_target(wider, larger.shapes, heads.asked(told), contradictions)
    problems += contradictions
    return Asked(widths, named, wider, new, larger, heads, not contradictions)


def in_sizes(widths: Widths, sizes: Mapping[Any, int]) -> tuple[PyTree, Mapping[str, int]]:
    """Returns the network's variables in other sizes, to be a target, and the sizes of all widths.

    Args:
        widths: the widths of the network.
        sizes: new sizes by name of the width, or by place.

    Raises:
        ValueError: if the network is not at hand, sizes are of no widths or below today's, or
            modules among the variables hold numbers that are not known in these sizes.
    """
    if widths.network is None:
        raise ValueError(NOT_AT_HAND)
    problems: list[str] = []
    named = named_sizes(widths, sizes, problems)
    for name, size in named.items():
        problems += fewer(widths[name], size)
    resizing = Resizing(widths.leaves, named)
    target = resizing.resized(widths.network.variables)
    problems += (f"{problem}; {WITH_TARGET}" for problem in resizing.problems)
    if problems:
        raise Refused(problems)
    return target, widths.sizes | named


def by_name(
    widths: Widths, asked: Mapping[Any, Any], problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yields the name of each width, and what is asked of the width."""
    for place, value in asked.items():
        is_place = isinstance(place, tuple) and len(place) == 2
        try:
            yield (widths.of(*place) if is_place else widths[place]).name, value
        except KeyError as error:
            problems.append(str(error.args[0]))


def named_sizes(widths: Widths, sizes: Mapping[Any, int], problems: list[str]) -> dict[str, int]:
    """Returns the asked sizes by width name."""
    new: dict[str, int] = {}
    for name, size in by_name(widths, sizes, problems):
        if not is_integer(size):
            problems.append(f"{name}: the number of units must be an integer, got {size!r}")
        elif new.setdefault(name, operator.index(size)) != size:
            problems.append(f"{name}: asked for two sizes, {new[name]} and {size}")
    return new


def strategies_by_name(
    widths: Widths, strategy: Strategy | Mapping[str, Strategy] | None, problems: list[str]
) -> Mapping[str, Strategy]:
    """Returns the strategy of each width that is given one."""
    if strategy is None:
        return {}
    if isinstance(strategy, Strategy):
        return dict.fromkeys(widths, strategy)
    for one in strategy.values() if isinstance(strategy, Mapping) else [strategy]:
        if not isinstance(one, Strategy):
            raise TypeError(
                f"strategy must come from dw.strategies, such as dw.strategies.replicate(), "
                f"got {one!r}"
            )
    for name in strategy:
        try:
            widths[name]
        except KeyError as error:
            problems.append(f"strategy: {error.args[0]}")
    return strategy
