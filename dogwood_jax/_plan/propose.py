"""The growth that programs propose, before it is evaluated: ``propose``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dogwood_jax import strategies
from dogwood_jax._base.problems import Refused
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._plan.asked import HEADS_FOR_EACH, Asked, asked_of, strategies_by_name
from dogwood_jax._plan.between import Between, find_between
from dogwood_jax._plan.comparison import Comparison
from dogwood_jax._plan.constants import constants, missing_epsilons
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.experts import exact_copies
from dogwood_jax._plan.extensions import extensions
from dogwood_jax._plan.larger import Larger
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.removals import removals
from dogwood_jax._plan.request import Request
from dogwood_jax._plan.target import splits
from dogwood_jax.strategies import DepthStrategy, Strategy


@dataclass(frozen=True)
class Proposal:
    """A growth that programs propose, before it is evaluated.

    Attributes:
        growth: the growth.
        asked: what it was asked for.
        keeps_outputs: whether it is to keep outputs.
        has_copies: whether it copies experts.
        is_solved: whether arrays make up for numbers of the larger model.
        unlike: what the larger model's program computes otherwise.
        doubts: why outputs may change, as far as the widths tell.
        ways_out: what may be passed instead.
    """

    growth: Growth
    asked: Asked
    keeps_outputs: bool
    has_copies: bool
    is_solved: bool
    unlike: Sequence[str]
    doubts: Sequence[str]
    ways_out: Sequence[str]


def propose(request: Request, larger: Larger | None) -> Proposal:
    """Returns the growth that programs propose.

    Args:
        request: what is asked for.
        larger: what is known of the larger model; None if there is none.

    Raises:
        Refused: if there is no such growth, with all reasons.
    """
    problems: list[str] = []
    asked = asked_of(request.widths, request.sizes, larger, problems)
    keep, merge, depth = request.keep, request.merge, request.depth
    widths, larger, heads = asked.widths, asked.larger, asked.heads
    chosen = strategies_by_name(widths, request.strategy, problems)
    without_strategy = {name: size for name, size in asked.sizes.items() if name not in chosen}
    copies = exact_copies(widths, without_strategy, larger.widths, request.target, problems)
    copied = {*copies.changes, *copies.pieces}
    others = {name: size for name, size in asked.sizes.items() if name not in copied}
    if heads is not None:
        chosen = {**chosen, **dict.fromkeys(heads.copies, strategies.replicate())}

    keeps_outputs = depth is None and all(s.begins_exact for s in chosen.values())
    others_grow = any(size != widths[name].size for name, size in others.items())
    is_checked = (
        not problems
        and keep is None
        and merge is None
        and keeps_outputs
        and (others_grow or not copies.changes)
    )
    compared, between = _compared(asked, chosen, copies) if is_checked else (None, Between())
    if heads is not None and compared is None and not problems:
        problems += heads.alone
    extended = extensions(asked, others, chosen, request.interface, compared)
    problems += extended.refusals
    if copies.changes and larger.widths is not None and extended.changes and compared is None:
        problems.append(
            f"{', '.join(extended.changes)}: experts grow, too; without new layers and with "
            "strategies that keep outputs both go together, else plan one after the other, first "
            "with a target that only has more experts"
        )
    changes = {**copies.changes, **extended.changes}
    changes |= removals(widths, keep or {}, merge or {}, request.interface, [*changes], problems)
    whole = widths if copies.widths is None else copies.widths
    made = [
        change
        for name in whole
        if (change := changes.get(name))
        if (change.new, change.sources) != (change.old, tuple(range(change.old)))
    ]

    notes = [*larger.notes, *copies.notes]
    for change in made:
        notes += notes_of(whole, change, is_seen=compared is not None)
    notes += between.notes
    problems += between.refusals(made)
    doubts = [*extended.doubts]
    for change in made:
        notes += constants(larger, change, doubts)
    if not doubts:
        doubts += missing_epsilons(widths, larger, made)
    is_judged = (
        keeps_outputs and request.check and keep is None and merge is None and not copies.changes
    )
    is_judged &= asked.before.network is not None
    if problems or (doubts and not is_judged):
        raise Refused([*problems, *doubts, *asked.ways_out()])
    if heads is not None:
        notes += heads.notes
    if compared is not None:
        notes += extended.solved.notes(compared, extended.changes)
    if depth is not None:
        notes.append(_changes_outputs(depth, larger.insertions))
    if larger.widths is None:
        sizes_now = {change.width: change.new for change in made}
        notes += splits(widths, sizes_now, every=request.target is not None)

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
        keeps_outputs,
        bool(copies.changes),
        bool(extended.solved.recipes),
        extended.unlike,
        doubts,
        [*dict.fromkeys(ways_out)],
    )


def _compared(
    asked: Asked, chosen: Mapping[str, Strategy], copies: Copies
) -> tuple[Comparison | None, Between]:
    """Compares the larger model's program with the network's, and finds what grows between units.

    Args:
        asked: what the growth is asked for.
        chosen: the strategies of widths that are given one.
        copies: the experts that are copied.
    """
    sizes, divided = asked.sizes, dict[str, str]()
    if asked.heads is not None:
        sizes, divided = asked.heads.sizes_in_program(sizes), asked.heads.divided
    larger, widths = asked.larger, asked.before
    compared = larger.compared(widths, sizes, copies, divided)
    between = find_between(widths, sizes, chosen, larger, copies, divided, compared)
    return between.compared or compared, between


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
