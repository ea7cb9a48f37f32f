"""Proposes growths, which are not evaluated yet: ``proposals``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dogwood_jax import strategies
from dogwood_jax._base.problems import Refused
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.asked import Asked, Copies, Request, in_way
from dogwood_jax._plan.experts.planned import copies_of_experts
from dogwood_jax._plan.larger_model import Larger
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.obstacles import refusals
from dogwood_jax._plan.placements import placements
from dogwood_jax._plan.removals import removals
from dogwood_jax._plan.sizes import asked_of, ways_out
from dogwood_jax._plan.target import splits
from dogwood_jax.strategies import DepthStrategy

_WHICH_COPIES = (
    "there are several ways to copy experts, and only an evaluation shows which one keeps outputs: "
    "leave out check=False"
)


def proposals(request: Request, larger: Larger | None) -> tuple[Asked, Iterator[Growth | Refused]]:
    """Returns the requested sizes, and growths in the order in which they are tried.

    Args:
        request: the arguments of ``plan``.
        larger: the larger model; None if there is none.

    Returns:
        The requested sizes, and an iterator of growths. It ends with a refusal if there is a reason
        why there are no further growths.
    """
    problems: list[str] = []
    asked = asked_of(request, larger, problems)
    copies = copies_of_experts(asked)
    problems += copies.problems
    out = [copies.way_out] * bool(copies.changes)
    asked = replace(
        asked,
        copies=copies if copies.changes else None,
        ways_out=tuple(dict.fromkeys([*out, *asked.ways_out])),
        keeps_outputs=request.depth is None
        and all(one.begins_exact for one in asked.starts.values()),
    )
    return asked, _growths(request, asked, copies, problems)


def _growths(
    request: Request, asked: Asked, copies: Copies, problems: list[str]
) -> Iterator[Growth | Refused]:
    """Yields growths in the order in which they are tried, perhaps with a refusal at the end."""
    widths, larger, keeps = asked.widths, asked.larger, asked.keeps_outputs
    sizes = {name: size for name, size in asked.sizes.items() if name not in copies.changes}
    others = any(size != widths[name].size for name, size in sizes.items())
    is_compared = keeps and request.check and request.keep is None and request.merge is None
    is_compared &= others or not copies.changes
    is_compared &= larger.widths is not None and not larger.inserted
    if request.check and not (is_compared or problems):
        problems += asked.alone
    if copies.others and not request.check:
        problems.append(_WHICH_COPIES)
    made = _changes(request, asked, copies, sizes, problems)
    if problems:
        yield Refused([*ways_out(asked), *problems])
        return
    notes = [*larger.notes, *(copies.notes if keeps else copies.unshown)]
    for change in made:
        notes += notes_of(widths, change, is_seen=is_compared)
    notes += _further_notes(request, asked, made)
    noted = tuple(dict.fromkeys(notes))
    growth = Growth(widths, made, noted, inserted=larger.inserted)
    if misfits := [*_misfits(growth)]:
        yield Refused(misfits)
        return
    yield growth
    for other in copies.others if asked.copies else ():
        yield in_way(growth, other)
    if is_compared:
        yield from placements(growth, asked)


def _changes(
    request: Request,
    asked: Asked,
    copies: Copies,
    sizes: Mapping[str, int],
    problems: list[str],
) -> tuple[Change, ...]:
    """Returns the changes of widths, in the order of the widths.

    Args:
        request: the arguments of ``plan``.
        asked: the requested sizes of all widths.
        copies: units that are copied.
        sizes: new sizes of the other widths.
        problems: receives the reasons why widths cannot change.
    """
    widths, changes = asked.widths, {**copies.changes}
    for name, width in widths.items():
        new = sizes.get(name, width.size)
        if new != width.size:
            strategy = asked.starts.get(name) or strategies.zero_outgoing()
            sources = strategy.sources(width.size, new)
            changes[name] = Change(name, width.size, new, strategy, sources)
            if strategy.method is None:
                problems += refusals(width, changes[name], request.interface)
    keep, merge = request.keep or {}, request.merge or {}
    changes |= removals(widths, keep, merge, request.interface, [*changes], problems)
    return tuple(changes[name] for name in widths if name in changes and _is_any(changes[name]))


def _further_notes(request: Request, asked: Asked, made: Sequence[Change]) -> Iterator[str]:
    """Yields notes on copied heads, on new layers, and on axes that the larger model must split."""
    yield from asked.notes
    if request.depth is not None:
        yield _changes_outputs(request.depth, asked.larger.inserted)
    if asked.larger.widths is None:
        sizes = {change.width: change.new for change in made}
        yield from splits(asked.widths, sizes, every=request.target is not None)


def _is_any(change: Change) -> bool:
    """Whether a change has any effect."""
    return change.new != change.old or change.sources != tuple(range(change.old))


def _misfits(growth: Growth) -> Iterator[str]:
    """Yields problems of new arrays that cannot be copies because their shapes differ."""
    for new in growth.inserted:
        if new.is_whole and new.source is not None:
            if growth.shapes[new.source] != new.shape:
                yield (
                    f"{new.path}: cannot copy {new.source}, which has shape "
                    f"{growth.shapes[new.source]} after the growth, not {new.shape}"
                )


def _changes_outputs(depth: DepthStrategy, inserted: Sequence[Edit]) -> str:
    """Returns a note: new layers change outputs, or there are no new layers."""
    if not inserted:
        return f"strategies.{depth}() fills in new layers, but the target has none"
    return f"outputs change, because strategies.{depth}() does not silence new layers"
