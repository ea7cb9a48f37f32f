"""The growths that programs propose, before they are evaluated: ``draft``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dogwood_jax import strategies
from dogwood_jax._base.problems import Refused
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._plan.asked import HEADS_FOR_EACH, Asked, asked_of, strategies_by_name
from dogwood_jax._plan.between import Between, find_between, has_tables
from dogwood_jax._plan.constants import constants, missing_epsilons
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.experts import exact_copies
from dogwood_jax._plan.extensions import extensions
from dogwood_jax._plan.larger import Larger
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.numbers import Numbers
from dogwood_jax._plan.removals import removals
from dogwood_jax._plan.request import Request
from dogwood_jax._plan.target import splits
from dogwood_jax.strategies import DepthStrategy, Strategy

# What becomes of tables such as theta ** (-2 * i / dim) in the larger model: the first entries stay
# as they are, or old entries have new ones between them, or all entries change.
Tables = Literal["stay", "between", "change"]


@dataclass(frozen=True)
class Proposal:
    """A growth that programs propose, before it is evaluated.

    Attributes:
        growth: the growth.
        asked: what it was asked for.
        keeps_outputs: whether it is to keep outputs.
        has_copies: whether it copies experts.
        is_solved: whether arrays make up for numbers of the larger model.
        doubts: why outputs may change, as far as the widths tell.
        ways_out: what may be passed instead.
    """

    growth: Growth
    asked: Asked
    keeps_outputs: bool
    has_copies: bool
    is_solved: bool
    doubts: Sequence[str]
    ways_out: Sequence[str]


@dataclass(frozen=True)
class Draft:
    """What all proposals for a request share.

    Attributes:
        request: what the caller asks for.
        asked: the sizes that follow from it.
        chosen: the strategies of widths that are given one.
        copies: the experts that are copied.
        numbers: those of the network's program and the larger model's; None if there is none, or
            outputs are not to stay.
        problems: why there can be no proposal.
    """

    request: Request
    asked: Asked
    chosen: Mapping[str, Strategy]
    copies: Copies
    numbers: Numbers | None
    problems: Sequence[str]

    def proposals(self) -> Iterator[Proposal]:
        """Yields growths in the order in which they are tried.

        Raises:
            Refused: if there is no further growth, with all reasons.
        """
        refused: Refused | None = None
        is_any = False
        for tables in self._tables():
            try:
                proposal = self._proposal(tables)
            except Refused as error:
                refused = error
            else:
                is_any = True
                yield proposal
        if refused is not None and not is_any:
            raise refused

    def _tables(self) -> Sequence[Tables]:
        if self.numbers is None:
            return ["change"]
        widths, sizes = self.asked.widths, self.asked.sizes
        growing = [name for name in sizes if sizes[name] > widths[name].size]
        if not any(has_tables(widths[name]) for name in growing):
            return ["stay"]
        return ["stay", "between", "change"] if self._between.times else ["stay", "change"]

    @property
    def _between(self) -> Between:
        return find_between(self.asked.widths, self.asked.sizes, self.chosen)

    @property
    def keeps_outputs(self) -> bool:
        exact = all(strategy.begins_exact for strategy in self.chosen.values())
        return self.request.depth is None and exact

    @property
    def _sizes(self) -> dict[str, int]:
        """New sizes of all widths but those of experts that are copied."""
        copied = {*self.copies.changes, *self.copies.pieces}
        return {name: size for name, size in self.asked.sizes.items() if name not in copied}

    def _proposal(self, tables: Tables) -> Proposal:
        request, asked, copies = self.request, self.asked, self.copies
        keep, merge, problems = request.keep or {}, request.merge or {}, [*self.problems]
        widths, larger, heads, numbers = asked.widths, asked.larger, asked.heads, self.numbers
        between = self._between if tables == "between" else Between()
        stay = tables != "change"
        extended = extensions(
            asked, self._sizes, self.chosen, request.interface, numbers, keeps_tables=stay
        )
        problems += extended.refusals
        changes = {**copies.changes, **extended.changes}
        changes |= removals(widths, keep, merge, request.interface, [*changes], problems)
        whole = widths if copies.widths is None else copies.widths
        made = [change for name in whole if (change := changes.get(name)) if _is_any(change)]
        problems += between.refusals(made)

        notes = [*larger.notes, *copies.notes]
        for change in made:
            notes += notes_of(whole, change, is_seen=numbers is not None)
        notes += between.notes
        doubts = [*extended.doubts]
        for change in made:
            notes += constants(larger, change, doubts)
        if not doubts:
            doubts += missing_epsilons(widths, larger, made)
        if problems or (doubts and not self._is_judged):
            raise Refused([*problems, *doubts, *asked.ways_out()])
        notes += self._further_notes(made)
        if numbers is not None:
            notes += extended.solved.notes(numbers, extended.changes)
        growth = Growth(
            between.widths(whole),
            between.changes(made),
            tuple(dict.fromkeys(notes)),
            insertions=larger.insertions,
        )
        if misfits := [*_misfits(growth)]:
            raise Refused(misfits)
        ways_out = [*asked.ways_out()] if doubts else []
        if heads is not None and heads.is_for_each:
            ways_out.append(HEADS_FOR_EACH)
        return Proposal(
            growth,
            asked,
            self.keeps_outputs,
            bool(copies.changes),
            bool(extended.solved.recipes),
            doubts,
            [*dict.fromkeys(ways_out)],
        )

    @property
    def _is_judged(self) -> bool:
        """Whether an evaluation decides about doubts."""
        request = self.request
        keeps = self.keeps_outputs and request.keep is None and request.merge is None
        has_program = self.asked.before.network is not None
        return keeps and request.check and not self.copies.changes and has_program

    def _further_notes(self, made: Sequence[Change]) -> Iterator[str]:
        """Yields notes on copied heads, on new layers, and on how a larger model splits axes."""
        asked, depth = self.asked, self.request.depth
        if asked.heads is not None:
            yield from asked.heads.notes
        if depth is not None:
            yield _changes_outputs(depth, asked.larger.insertions)
        if asked.larger.widths is None:
            sizes = {change.width: change.new for change in made}
            yield from splits(asked.widths, sizes, every=self.request.target is not None)


def draft(request: Request, larger: Larger | None) -> Draft:
    """Returns what all proposals for a request share.

    Args:
        request: what is asked for.
        larger: what is known of the larger model; None if there is none.
    """
    problems: list[str] = []
    asked = asked_of(request.widths, request.sizes, larger, problems)
    widths, larger, heads = asked.widths, asked.larger, asked.heads
    chosen = strategies_by_name(widths, request.strategy, problems)
    without_strategy = {name: size for name, size in asked.sizes.items() if name not in chosen}
    copies = exact_copies(widths, without_strategy, larger.widths, request.target, problems)
    if heads is not None:
        chosen = {**chosen, **dict.fromkeys(heads.copies, strategies.replicate())}
    made = Draft(request, asked, chosen, copies, None, problems)
    others = [name for name, size in made._sizes.items() if size != widths[name].size]
    keeps = made.keeps_outputs and request.keep is None and request.merge is None
    numbers = larger.numbers(widths) if keeps and (others or not copies.changes) else None
    if numbers is None and heads is not None and not problems:
        problems += heads.alone
    if numbers is None and copies.changes and others and larger.widths is not None:
        problems.append(
            f"{', '.join(others)}: experts grow, too; without new layers and with "
            "strategies that keep outputs both go together, else plan one after the other, first "
            "with a target that only has more experts"
        )
    return Draft(request, asked, chosen, copies, numbers, problems)


def _is_any(change: Change) -> bool:
    """Whether a change does anything."""
    return (change.new, change.sources) != (change.old, tuple(range(change.old)))


def _misfits(growth: Growth) -> Iterator[str]:
    """Yields the new arrays that cannot be copies, because their shapes are others."""
    for new in growth.insertions:
        if new.fill == "copy" and new.source is not None and not new.layers:
            if growth.shapes[new.source] != new.shape:
                yield (
                    f"{new.path}: cannot copy {new.source}, which has shape "
                    f"{growth.shapes[new.source]} then, because its own shape is {new.shape}"
                )


def _changes_outputs(depth: DepthStrategy, insertions: Sequence[Insertion]) -> str:
    """Says that new layers change outputs, or that there are none."""
    if not insertions:
        return f"strategies.{depth}() fills in new layers, but the target has none"
    return f"outputs change, because strategies.{depth}() does not silence new layers"
