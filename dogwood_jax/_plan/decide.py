"""Decides about the growth that programs propose: ``decide``.

An evaluation accepts the proposal, or refuses it. Then other proposals come: a search finds arrays
that make up for sizes and numbers, units are copied in another way, other layers of the larger
model are the new ones. If all are refused, the caller reads why the one was that is right
for most samples, or the last one of those.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import jax

from dogwood_jax._base.problems import Refused, listed_in
from dogwood_jax._base.trees import arrays_of, leaves_by_path
from dogwood_jax._depth.insertions import NothingFits, fillings
from dogwood_jax._depth.repeated import NO_STREAM, scaled_insertions
from dogwood_jax._growth.evidence import Evidence
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._growth.insertion import silenced as in_silence
from dogwood_jax._plan.copies import in_way, without_noise
from dogwood_jax._plan.larger import ANOTHER, Larger, is_deeper, read_larger
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.numbers_of_sizes import tables_of
from dogwood_jax._plan.obstacles import only_under_a_norm
from dogwood_jax._plan.own_function import ITS_OWN_NUMBERS, Contradicted, contradicted
from dogwood_jax._plan.programs import Programs
from dogwood_jax._plan.propose import Proposal, draft
from dogwood_jax._plan.removals import NO_MERGE
from dogwood_jax._plan.request import Request
from dogwood_jax._plan.resampled import by_widths, inputs_of
from dogwood_jax._plan.searching import searched_of
from dogwood_jax._plan.shown import (
    NeverLearns,
    OpenNumbers,
    Unshown,
    first_shown,
    fitting,
    shown,
    shown_by,
)
from dogwood_jax._plan.silence import SEEN, heard, silenced
from dogwood_jax._plan.sizes import target_in_sizes, ways_out, whole
from dogwood_jax._widths.rules.registry import DRAWN

_NO_PROGRAM = (
    "widths from a file hold no program, so nothing shows that outputs stay; trace the network "
    "again, or pass check=False"
)
_HEARD = f"{{}}: {SEEN}; strategies.random() grows it, but outputs change"
_NO_DRAWS = "trace the network in evaluation, or pass the key as an input"
_NO_WAY = (
    "nothing shows in which way copies keep outputs, as they are to do where nothing else changes; "
    "plan one after the other, first with a target that only has more experts"
)


def decide(request: Request) -> Growth:
    """Returns the growth that is accepted.

    Raises:
        ValueError: if none is, with all that speaks against the first proposal.
    """
    structure = None if request.target is None else jax.tree.structure(request.target)
    request = by_widths(request)
    if request.target is None and request.target_apply is not None:
        target, sizes = target_in_sizes(request.widths, request.sizes)
        request = replace(request, target=target, sizes=sizes)
    return replace(_decided(request), structure=structure)


def _decided(request: Request) -> Growth:
    if request.target is None:
        return _with_larger(request, None)
    shapes = arrays_of(leaves_by_path(request.target))
    request = replace(request, widths=whole(request.families, request.widths, shapes))
    try:
        larger = read_larger(
            request.widths,
            request.target,
            request.target_apply,
            request.depth,
            is_deeper=is_deeper(request.widths, shapes),
            inputs=inputs_of(request, shapes),
        )
    except ValueError as error:
        its = (family.instead(request.widths, shapes) for family in request.families)
        if instead := [*itertools.chain(*its)]:
            raise Refused([*instead, *listed_in(str(error))]) from error
        raise
    try:
        return _with_larger(request, larger)
    except ValueError:
        for other in larger.others:
            with suppress(ValueError):
                return _with_larger(request, other)
        raise


def _with_larger(request: Request, larger: Larger | None) -> Growth:
    """Returns the growth to the larger model, or by sizes if there is none.

    Raises:
        ValueError: if none is accepted, with what speaks against the one that is right for most
            samples.
    """
    refused: ValueError | None = None
    for proposal in draft(request, larger).proposals():
        try:
            return _proposed(request, proposal, larger)
        except ValueError as error:
            if refused is None or _samples(error) >= _samples(refused):
                refused = error
    assert refused is not None
    # In a multiple of the size, old units may keep their numbers; a router may choose as few.
    grown = [change.width for change in proposal.growth.changes]
    before, copies = proposal.asked.before, proposal.copies
    if _is_claim(request, proposal) and (copies is not None or tables_of(before, grown)):
        with suppress(ValueError):
            return _by_own_numbers(request, proposal)
    raise refused


def _samples(error: ValueError) -> int:
    return error.samples if isinstance(error, Refused) else 0


def _proposed(request: Request, found: Proposal, larger: Larger | None) -> Growth:
    """Returns the growth that is proposed, or one in which arrays make up for sizes."""
    if not _is_claim(request, found):
        return _without_claim(request, found, larger)
    refused, widths, errors = None, found.growth.widths, list[Refused]()
    for growth, programs in _in_turn(request, found, errors):
        its = replace(found, growth=growth)
        try:
            return _accepted(request, its, programs)
        except Unshown as unshown:
            error: Refused = _contradiction(request, found, unshown)
        except OpenNumbers as why:
            raise why.after(found.ways_out) from why.__cause__
        except Refused as why:
            error = why.after(found.ways_out)
            error.__cause__ = why.__cause__
        except NothingFits as nothing:
            if found.asked.larger.is_unlikely:
                raise
            another = [ANOTHER] if request.target_apply is None else []
            error = Refused([*ways_out(request.families, found.asked), *another, nothing.said])
            error.__cause__ = nothing
        errors.append(error)
        if refused is None or _samples(error) > _samples(refused):
            refused = error
    if refused is None:
        need = (c for c in found.growth.changes if c.strategy.needs_recipe)
        refused = Refused([*found.ways_out, *(only_under_a_norm(widths[c.width], c) for c in need)])
    grown = [c.width for c in found.growth.changes if c.new > c.old and c.strategy.begins_exact]
    reasons = [_HEARD.format(name) for name in heard(found.asked.before, grown)]
    reasons += (f"{n}: {DRAWN}; {_NO_DRAWS}" for n in grown if DRAWN in widths[n].notes)
    raise refused.after(reasons) from refused.__cause__


def _by_own_numbers(request: Request, found: Proposal) -> Growth:
    """Returns the growth by the network's own function in the new sizes, as by another function.

    Raises:
        ValueError: if there is none.
    """
    widths = found.asked.widths
    if request.target is not None or request.merge is not None or widths.network is None:
        raise ValueError
    apply = widths.network.apply
    return decide(replace(request, widths=widths, sizes=found.asked.named, target_apply=apply))


def _in_turn(
    request: Request, found: Proposal, errors: Sequence[Refused]
) -> Iterator[tuple[Growth, Programs | None]]:
    """Yields growths to evaluate, with the programs to compare.

    If the network computes with a size that changes, arrays that make up for it come first.

    Args:
        request: the arguments of ``plan``.
        found: the growth that programs propose.
        errors: why those were refused that were yielded so far.
    """
    growth, asked, before = found.growth, found.asked, found.asked.before
    changing = [c.width for c in growth.changes if c.new != c.old and request.check]
    loud = {*heard(before, changing)}
    silent, quiet = (
        replace(growth, widths=silenced(growth.widths, names, before))
        for names in (changing, [name for name in changing if name not in loud])
    )
    told = (note for c in silent.changes for note in notes_of(silent.widths, c, is_seen=True))
    silent = replace(silent, notes=tuple(dict.fromkeys((*growth.notes, *told))))
    grows = [c for c in growth.changes if c.new > c.old and c.recipe is None]
    programs = None
    if before.network is not None:
        programs = Programs(growth, before, asked.larger.widths, request.target)
    can_search = programs is not None and bool(grows) and found.copies is None
    can_search &= request.check and request.merge is None and not asked.larger.is_unlikely

    def by_search() -> Iterator[tuple[Growth, Programs | None]]:
        assert programs is not None
        layers = tuple(map(in_silence, growth.insertions))
        ways = {way.widths: way for way in (growth, quiet, silent)}  # equal ones are one
        for way in reversed(ways.values()):
            begun = replace(way, insertions=layers)
            every = any(map(_asks_for_others, errors))
            for its in searched_of(
                begun, asked.strategies, programs, request.families, every=every
            ):
                yield replace(its, insertions=growth.insertions), programs

    is_first = can_search and any(c.width in loud for c in grows)
    if is_first:
        yield from by_search()
    if not any(c.strategy.needs_recipe and c.recipe is None for c in grows):
        yield silent, programs
    if can_search and (not is_first or any(map(_asks_for_others, errors))):
        yield from by_search()


def _asks_for_others(error: Refused) -> bool:
    """Whether new entries should begin otherwise, although most samples do not show it."""
    why = error.__cause__
    return isinstance(error, NeverLearns) or (isinstance(why, Unshown) and why.is_seldom)


def _is_claim(request: Request, found: Proposal) -> bool:
    """Whether outputs are to stay."""
    return _may_be_run(request, found) and found.keeps_outputs


def _may_be_run(request: Request, found: Proposal) -> bool:
    """Whether units stay, or become one in a network with a program, whose outputs all stay."""
    if request.keep is not None or request.merge is None:
        return request.keep is None
    widths, changes = found.growth.widths, found.growth.changes
    is_closed = not any(widths[change.width].interface for change in changes)
    return bool(changes) and is_closed and widths.network is not None


def _without_claim(request: Request, found: Proposal, larger: Larger | None) -> Growth:
    """Returns a growth that need not keep outputs.

    New layers do nothing all the same, and copies compute what they copy.
    """
    way, network = _way_to_copy(request, found), found.asked.widths.network
    growth = _rescaled(request, found, in_way(found.growth, way))
    depth, new = request.depth, growth.insertions
    if new and (depth is None or depth.scaled):
        plain = draft(replace(request, keep=None, merge=None, strategy=None), larger)
        exact = next(plain.proposals())
        exact = replace(exact, growth=in_way(exact.growth, without_noise(way)))
        try:
            silenced = next(_fillings(exact))
        except NothingFits as nothing:
            if depth is None:
                raise
            raise Refused([NO_STREAM]) from nothing
        if depth is not None:
            assert found.asked.larger.widths is not None
            order = [leaf.path for leaf in found.asked.larger.widths.leaves]
            silenced = scaled_insertions(new, silenced, order)
        growth = replace(growth, insertions=silenced)
    is_own = request.target is None and network is not None and found.copies is None
    return fitting(growth) if request.check and is_own and _may_be_run(request, found) else growth


def _rescaled(request: Request, found: Proposal, growth: Growth) -> Growth:
    """Returns a growth in which the widths that are to keep outputs grow as they would alone.

    Raises:
        Refused: if they would not keep outputs alone.
    """
    copied = found.copies.changes if found.copies else {}
    own = (c for c in growth.changes if c.new > c.old and c.width not in copied)
    exact = tuple(c for c in own if c.strategy.begins_exact)
    before, names = found.asked.before, [c.width for c in exact]
    loud = heard(before, names) if request.check else []
    quiet = [name for name in names if name not in loud and request.check]
    growth = replace(growth, widths=silenced(growth.widths, quiet, before))
    if not loud:
        return growth
    alone = replace(growth, changes=exact, insertions=())
    programs = Programs(alone, found.asked.before)
    for searched in searched_of(alone, found.asked.strategies, programs, request.families):
        changes = (searched.change.get(change.width, change) for change in growth.changes)
        return replace(growth, changes=tuple(changes), notes=searched.notes)
    raise Refused(found.ways_out)


def _way_to_copy(request: Request, found: Proposal) -> Mapping[str, Change]:
    """Returns the changes of copied units that keep outputs where nothing else changes, by width.

    Raises:
        Refused: if no way to copy them is shown to keep outputs.
    """
    copies = found.copies
    if copies is None:
        return {}
    for way in (copies.changes, *copies.others):
        alone = Growth(found.growth.widths, tuple(without_noise(way).values()))
        with suppress(Unshown, ValueError):
            programs = Programs(alone, found.asked.before)
            shown(alone, programs, request.families, as_it_is=copies.as_it_is)
            return way
    raise Refused([*copies.unshown, f"{_NO_WAY}; {copies.way_out}"])


def _accepted(request: Request, found: Proposal, programs: Programs | None) -> Growth:
    """Returns a growth with what an evaluation has shown of it.

    Raises:
        Unshown: if the network's own function takes the new sizes and computes something else.
        Refused: if nothing shows that outputs stay.
        NothingFits: if no filling of new layers leaves outputs as they are.
    """
    asked = found.asked
    if not request.check or (asked.larger.widths is not None and asked.larger.widths.network):
        return _evaluated(request, found, programs)
    if programs is not None:
        return shown(found.growth, programs, request.families)
    if asked.widths.is_saved and found.growth.changes:
        raise Refused([_NO_PROGRAM])
    return found.growth


def _evaluated(request: Request, found: Proposal, programs: Programs | None) -> Growth:
    """Returns a growth with what the larger model's function has shown of it."""
    growth = found.growth
    if not found.keeps_outputs:
        return growth
    if not request.check or programs is None:
        if growth.insertions:
            growth = replace(growth, insertions=next(_fillings(found)))
        return replace(growth, evidence=Evidence(why_not="planned with check=False"))

    def show(insertions: tuple[Insertion, ...]) -> Growth:
        return shown_by(replace(growth, insertions=insertions), programs, request.families)

    return first_shown(show, _fillings(found)) if growth.insertions else show(())


def _fillings(found: Proposal) -> Iterator[tuple[Insertion, ...]]:
    larger = found.asked.larger
    assert larger.widths is not None
    return fillings(found.growth, found.asked.before, larger.widths, quickly=larger.is_unlikely)


def _contradiction(request: Request, found: Proposal, unshown: Unshown) -> Refused:
    if found.copies is not None:
        way_out = found.copies.way_out
    elif request.merge is not None:
        way_out = NO_MERGE
    elif request.target is not None:
        way_out = ITS_OWN_NUMBERS
    else:  # the network's own function has been asked with rescaled arrays already
        way_out = ANOTHER
    reasons = [f"{reason}; {way_out}" for reason in unshown.args]
    its = Contradicted(reasons, unshown.samples)
    if unshown.is_evaluated:
        its = contradicted("in these sizes, the network itself", reasons, unshown.samples)
    its.__cause__ = unshown
    return its
