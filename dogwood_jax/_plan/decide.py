"""Decides about the growth that programs propose: ``decide``.

An evaluation accepts the proposal, or refuses it. Then other proposals come: rescaled arrays make
up for numbers of the network's own function, a width takes its next recipe, other layers of the
larger model are the new ones. If all are refused, the caller reads why the one was that is right
for most samples, or the last one of those.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
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
from dogwood_jax._plan.by_few_layers import by_few_layers
from dogwood_jax._plan.copies import in_way, without_noise
from dogwood_jax._plan.extensions import other_strategies
from dogwood_jax._plan.larger import ANOTHER, Larger, is_deeper, read_larger
from dogwood_jax._plan.own_function import ITS_OWN_NUMBERS, Contradicted, contradicted
from dogwood_jax._plan.propose import Proposal, draft
from dogwood_jax._plan.removals import NO_MERGE
from dogwood_jax._plan.request import Request
from dogwood_jax._plan.resampled import by_widths, inputs_of
from dogwood_jax._plan.shown import Unshown, first_shown, fitting, shown, shown_by
from dogwood_jax._plan.sizes import target_in_sizes, ways_out, whole
from dogwood_jax._widths.by_analogy import NotAlike
from dogwood_jax.strategies import Strategy

_NO_PROGRAM = (
    "widths from a file hold no program, so nothing shows that outputs stay; trace the network "
    "again, or pass check=False"
)
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
    each_layer = request.depth or request.keep or request.merge
    if request.target_apply is not None and not (each_layer or _is_by_width(request)):
        with suppress(NotAlike, ValueError):  # with all layers, the error says all
            return by_few_layers(request, functools.partial(_evaluated, request))
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


def _is_by_width(request: Request) -> bool:
    return request.strategy is not None and not isinstance(request.strategy, Strategy)


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
    raise refused


def _samples(error: ValueError) -> int:
    return error.samples if isinstance(error, Refused) else 0


def _proposed(request: Request, found: Proposal, larger: Larger | None) -> Growth:
    """Returns the growth that is proposed, or one that differs in its recipes or numbers."""
    if not _is_claim(request, found):
        return _without_claim(request, found, larger)
    refused: Refused
    try:
        return _accepted(request, found)
    except Unshown as unshown:
        if found.is_last:
            with suppress(ValueError):
                return _by_own_numbers(request, found)
        refused = _contradiction(request, found, unshown)
    except Refused as error:
        refused = error.beside(found.doubts, found.ways_out)
        refused.__cause__ = error.__cause__
    except NothingFits as nothing:
        if found.asked.larger.is_unlikely:
            raise
        another = [ANOTHER] if request.target_apply is None else []
        refused = Refused(
            [*ways_out(request.families, found.asked), *another, nothing.said, *found.doubts]
        )
        refused.__cause__ = nothing
    with suppress(ValueError):
        return _by_other_recipes(request, found)
    raise refused


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
    growth = in_way(found.growth, way)
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
            shown(alone, found.asked.before, None, request.families, as_it_is=copies.as_it_is)
            return way
    raise Refused([*copies.unshown, f"{_NO_WAY}; {copies.way_out}"])


def _accepted(request: Request, found: Proposal) -> Growth:
    """Returns a growth with what an evaluation has shown of it.

    Raises:
        Unshown: if the network's own function takes the new sizes and computes something else.
        Refused: if nothing shows that outputs stay.
        NothingFits: if no filling of new layers leaves outputs as they are.
    """
    asked = found.asked
    if not request.check or (asked.larger.widths is not None and asked.larger.widths.network):
        return _evaluated(request, found)
    if asked.widths.network is not None:
        return shown(
            found.growth,
            asked.widths,
            request.target,
            request.families,
            is_doubtful=bool(found.doubts),
        )
    if asked.widths.is_saved and found.growth.changes:
        raise Refused([_NO_PROGRAM])
    return found.growth


def _evaluated(request: Request, found: Proposal) -> Growth:
    """Returns a growth with what the larger model's function has shown of it."""
    growth, larger = found.growth, found.asked.larger.widths
    if not found.keeps_outputs:
        return growth
    if not request.check:
        if growth.insertions:
            growth = replace(growth, insertions=next(_fillings(found)))
        return replace(growth, evidence=Evidence(why_not="planned with check=False"))
    assert larger is not None
    before, is_doubtful = found.asked.before, bool(found.doubts)

    def show(insertions: tuple[Insertion, ...]) -> Growth:
        filled = replace(growth, insertions=insertions)
        return shown_by(filled, before, larger, request.families, is_doubtful=is_doubtful)

    return first_shown(show, _fillings(found)) if growth.insertions else show(())


def _fillings(found: Proposal) -> Iterator[tuple[Insertion, ...]]:
    larger = found.asked.larger
    assert larger.widths is not None
    return fillings(found.growth, found.asked.before, larger.widths, quickly=larger.is_unlikely)


def _by_own_numbers(request: Request, found: Proposal) -> Growth:
    """Returns the growth by the numbers of the network's own function in the new sizes.

    Raises:
        ValueError: if there is none.
    """
    widths = found.asked.widths
    if request.target is not None or request.merge is not None or widths.network is None:
        raise ValueError
    apply = widths.network.apply
    return decide(replace(request, widths=widths, sizes=found.asked.named, target_apply=apply))


def _by_other_recipes(request: Request, found: Proposal) -> Growth:
    """Returns the growth in which a width takes its next recipe.

    Raises:
        ValueError: if there is none.
    """
    others = None if request.merge else other_strategies(found.growth)
    if request.strategy is not None or not others:
        raise ValueError
    sizes = found.asked.named
    return _decided(replace(request, widths=found.asked.before, sizes=sizes, strategy=others))


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
    refused = its.beside(found.doubts)
    refused.__cause__ = unshown
    return refused
