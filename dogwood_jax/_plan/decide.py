"""Evaluates proposed growths and returns the first one that is accepted: ``decide``.

Growths are tried in turn: the growth proposed from the programs; growths with rescaled arrays from
a search; growths that copy units in another way, or in which other layers of the larger model are
new. If all are refused, the error reports the refused growth that keeps outputs for most samples.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import jax

from dogwood_jax._base.problems import Refused, listed_in
from dogwood_jax._base.progress import say
from dogwood_jax._base.trees import arrays_of, leaves_by_path
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.edit import silenced as in_silence
from dogwood_jax._growth.growth import Change, Evidence, Growth
from dogwood_jax._plan.asked import Asked, Request, in_way, without_noise
from dogwood_jax._plan.depth.fillings import Fillings
from dogwood_jax._plan.depth.layers import UNSHOWN
from dogwood_jax._plan.depth.repeated import NO_STREAM, scaled_layers
from dogwood_jax._plan.experts.more_experts import counted_in_one
from dogwood_jax._plan.experts.planned import experts_instead
from dogwood_jax._plan.larger_model import ANOTHER, Larger, in_dtypes_of, is_deeper, read_larger
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.numbers_of_sizes import tables_of
from dogwood_jax._plan.obstacles import only_under_a_norm
from dogwood_jax._plan.own_function import ITS_OWN_NUMBERS, Rejected, own_function
from dogwood_jax._plan.programs import Programs
from dogwood_jax._plan.propose import proposals
from dogwood_jax._plan.removals import NO_MERGE
from dogwood_jax._plan.resampled import by_widths, inputs_of
from dogwood_jax._plan.searching import searched_of
from dogwood_jax._plan.shown import first_shown, fitting, shown, shown_by
from dogwood_jax._plan.silence import SEEN, heard, likely_heard, silenced
from dogwood_jax._plan.sizes import copies_a_unit, target_in_sizes, ways_out
from dogwood_jax._plan.trained import noted
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._program.primitives.reading import DRAWN

_NO_PROGRAM = (
    "widths from a file hold no program, so nothing shows that outputs stay; trace the network "
    "again, or pass check=False"
)
_HEARD = f"{{}}: {SEEN}; strategies.random() grows it, but outputs change"
_NO_DRAWS = "trace the network in evaluation, or pass the key as an input"
_ONLY_COPIES = Refused(["new units would stay copies"], then="starts")
_NO_WAY = (
    "no way of copying the experts was shown to keep outputs; make two growths, the first with a "
    "target that only has more experts"
)


# A growth that was tried, or why it is refused, and a rank. If all are refused, the refusal with
# the largest rank is raised. The rank prefers the first larger model, then the most equal samples,
# then the last proposal, then its first growth.
_Tried = tuple[Growth | Refused, tuple[int, ...]]


def decide(request: Request) -> Growth:
    """Returns the first growth that is accepted.

    Raises:
        ValueError: if all are refused, with all reasons against the one that keeps outputs for
            most samples.
    """
    structure = None if request.target is None else jax.tree.structure(request.target)
    told: tuple[Refused, tuple[int, ...]] | None = None
    for found, rank in _tried(by_widths(request)):
        if isinstance(found, Growth):
            return noted(replace(found, structure=structure), request.widths)
        if told is None or rank > told[1]:
            told = found, rank
    assert told is not None
    raise told[0]


def _tried(request: Request) -> Iterator[_Tried]:
    """Yields each growth that is tried, or its refusal, with a rank."""
    is_larger_known = request.target_apply is not None or copies_a_unit(request)
    if request.target is None and is_larger_known:
        problems: list[str] = []
        target, sizes = target_in_sizes(request.widths, request.sizes, problems)
        if problems and request.target_apply is not None:
            yield Refused(problems), (0,)
            return
        if not problems:
            request = replace(request, target=target, sizes=sizes)
    if request.target is None:
        yield from _tried_with(request, None)
        return
    request = replace(request, target=in_dtypes_of(request.widths.network, request.target))
    shapes = arrays_of(leaves_by_path(request.target))
    request = replace(request, widths=counted_in_one(request.widths, shapes))
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
        if instead := [*experts_instead(request.widths, shapes)]:
            raise Refused([*instead, *listed_in(str(error))]) from error
        raise
    for number, one in enumerate(itertools.chain([larger], larger.others)):
        for found, rank in _tried_with(request, one):
            yield found, (-number, *rank)


def _tried_with(request: Request, larger: Larger | None) -> Iterator[_Tried]:
    """Yields the growths to a larger model, or by sizes if it is None, or their refusals."""
    asked, growths = proposals(request, larger)
    last: Growth | None = None
    for number, growth in enumerate(growths):
        if isinstance(growth, Refused):
            yield growth, (0, number, 0)
            return
        last = growth
        if not _is_claim(request, asked, growth):
            yield _without_claim(request, asked, growth, larger), (0, number, 0)
            continue
        for turn, its in enumerate(_in_turn(request, asked, growth)):
            if isinstance(its, Refused):
                its = its.after([*_heard_of(asked, growth), *asked.ways_out])
            samples = its.samples if isinstance(its, Refused) else 0
            yield its, (samples, number, -turn)
    if last is not None and _is_claim(request, asked, last):
        yield from _one_by_one(request, asked, last)
        # In a multiple of the size, old units may keep their constants from a table, and a router
        # may choose as many experts as before.
        grown = [change.width for change in last.changes]
        if asked.copies is not None or tables_of(asked.before, grown):
            yield from _by_own_numbers(request, asked, last)


def _one_by_one(request: Request, asked: Asked, growth: Growth) -> Iterator[_Tried]:
    """Yields a growth whose widths begin as each does on its own, if they do not grow together.

    A search tries only some of the combinations of the initial values of several widths.
    """
    growing = [c for c in growth.changes if c.new > c.old and c.recipe is None]
    groups: dict[str, list[Change]] = {}
    for change in growing:
        groups.setdefault(without_numbers(change.width), []).append(change)
    is_searched = request.check and request.merge is None and asked.copies is None
    if len(groups) < 2 or growth.inserted or not is_searched or asked.before.network is None:
        return
    found, widths = dict[str, Change](), asked.widths
    for group in groups.values():
        alone = Request(
            widths,
            sizes={change.width: change.new for change in group},
            strategy={c.width: asked.starts[c.width] for c in group if c.width in asked.starts},
            interface=True,
        )
        try:
            its = decide(alone)
        except ValueError:
            return
        found, widths = {**found, **its.change}, its.widths
    whole = replace(in_way(growth, found), widths=widths)
    programs = Programs(whole, asked.before, asked.larger.widths, request.target)
    yield _evaluated(request, asked, whole, programs), (-1,)


def _by_own_numbers(request: Request, asked: Asked, growth: Growth) -> Iterator[_Tried]:
    """Yields growths, or refusals, with the network's own function as ``target_apply``."""
    widths = asked.widths
    if request.target is None and request.merge is None and widths.network is not None:
        if not isinstance(Programs(growth, asked.before).own, Rejected):
            sizes, apply = asked.named, own_function(asked.before, growth.sizes)
            own = replace(request, widths=widths, sizes=sizes, target_apply=apply)
            yield from ((found, (-1,)) for found, _ in _tried(own))


def _heard_of(asked: Asked, growth: Growth) -> Iterator[str]:
    """Yields problems of widths whose new units change outputs, or along which values are drawn."""
    changes = [c for c in growth.changes if c.new > c.old and c.strategy.begins_exact]
    grown = [change.width for change in changes]
    yield from map(_HEARD.format, heard(asked.before, grown))
    notes = {name: growth.widths[name].notes for name in grown}
    yield from (f"{name}: {DRAWN}; {_NO_DRAWS}" for name in grown if DRAWN in notes[name])


def _in_turn(request: Request, asked: Asked, growth: Growth) -> Iterator[Growth | Refused]:
    """Yields a growth that must keep outputs, then alternatives to it; each accepted or refused.

    A growth whose new units stay copies comes last, unless the caller named the strategy.
    """
    refused, before, programs = list[Refused](), asked.before, None
    copied: Growth | None = None
    if before.network is not None:
        programs = Programs(growth, before, asked.larger.widths, request.target)
    known = list[tuple[Growth, Refused]]()  # refused, but perhaps only because a guess is wrong
    for one, is_guess in _growths_in_turn(request, asked, growth, programs, refused):
        before_it = [its for other, its in known if other == one]
        its = before_it[0] if before_it else _evaluated(request, asked, one, programs)
        if isinstance(its, Growth) and _stays_copied(asked, its):
            copied, its = copied or its, _ONLY_COPIES
        if is_guess and isinstance(its, Refused):
            known.append((one, its))
            continue
        yield its
        if isinstance(its, Refused):
            refused.append(its)
            if its.then == "nothing":
                return
    if copied is not None:
        yield copied
    if not refused:
        need = (change for change in growth.changes if change.strategy.needs_recipe)
        yield Refused(only_under_a_norm(growth.widths[c.width], c) for c in need)


def _stays_copied(asked: Asked, growth: Growth) -> bool:
    """Whether new units stay copies although the caller did not name their strategy."""
    return growth.evidence is not None and not asked.starts.keys() >= {*growth.evidence.copied}


def _noted(growth: Growth) -> Growth:
    """Returns the growth with notes on its changes."""
    told = (note for c in growth.changes for note in notes_of(growth.widths, c, is_seen=True))
    return replace(growth, notes=tuple(dict.fromkeys((*growth.notes, *told))))


def _growths_in_turn(
    request: Request,
    asked: Asked,
    growth: Growth,
    programs: Programs | None,
    refused: Sequence[Refused],
) -> Iterator[tuple[Growth, bool]]:
    """Yields growths to evaluate, and whether what silences new units is only a guess.

    An evaluation tells what silences new units, but an accepted growth needs no such evaluation, so
    guesses come first. If the network computes with a size that changes, growths with rescaled
    arrays come before the others.

    Args:
        request: the arguments of ``plan``.
        asked: the requested sizes.
        growth: the proposed growth.
        programs: the larger programs, or None if there is no function.
        refused: the refusals of the growths yielded so far; the caller appends to it.
    """
    changing = [c.width for c in growth.changes if c.new != c.old and request.check]
    grows = [c for c in growth.changes if c.new > c.old and c.recipe is None]
    can_search = programs is not None and bool(grows) and asked.copies is None
    can_search &= request.check and request.merge is None and not asked.larger.is_unlikely
    is_complete = not any(c.strategy.needs_recipe for c in grows)
    layers = tuple(map(in_silence, growth.inserted))
    known: dict[tuple[Growth, frozenset[str]], list[Growth]] = {}

    def by_search(way: Growth, names: Collection[str]) -> Iterator[Growth]:
        assert programs is not None
        every = any(one.then == "starts" for one in refused)
        begun = replace(way, inserted=layers), frozenset(changing if every else names)
        if begun not in known:
            found = []
            for its in searched_of(*begun, asked.starts, programs):
                found.append(replace(its, inserted=growth.inserted))
                yield found[-1]
            known[begun] = found
        else:
            yield from known[begun]

    likely = likely_heard(growth.widths, changing) if request.merge is None else None
    if likely and can_search:
        yield from ((its, True) for its in by_search(growth, likely))
    elif likely == [] and changing and is_complete and not growth.inserted:
        yield _noted(growth), True
    before = asked.before
    loud = heard(before, changing)
    silent, quiet = (
        replace(growth, widths=silenced(growth.widths, names, before))
        for names in (changing, [name for name in changing if name not in loud])
    )
    silent = _noted(silent)

    def by_every_way() -> Iterator[tuple[Growth, bool]]:
        ways = {way.widths: way for way in (growth, quiet, silent)}  # without duplicates
        for way in reversed(ways.values()):
            others = (name for name in changing if way.widths[name] != silent.widths[name])
            yield from ((its, False) for its in by_search(way, {*loud, *others}))

    is_first = can_search and any(c.width in loud for c in grows)
    if is_first:
        yield from by_every_way()
    if is_complete:
        yield silent, False
    if can_search and (not is_first or any(one.then == "starts" for one in refused)):
        yield from by_every_way()


def _is_claim(request: Request, asked: Asked, growth: Growth) -> bool:
    """Whether the growth must keep outputs."""
    return _may_be_run(request, growth) and asked.keeps_outputs


def _may_be_run(request: Request, growth: Growth) -> bool:
    """Whether no units are removed; merged units may not be those of an input or output.

    Merging also needs a network with a program.
    """
    if request.keep is not None or request.merge is None:
        return request.keep is None
    widths, changes = growth.widths, growth.changes
    is_closed = not any(widths[change.width].interface for change in changes)
    return bool(changes) and is_closed and widths.network is not None


def _without_claim(
    request: Request, asked: Asked, proposed: Growth, larger: Larger | None
) -> Growth | Refused:
    """Returns a growth that need not keep outputs.

    New layers still compute the identity, and copies still compute the same as their sources.
    """
    way, network = _way_to_copy(request, asked, proposed), asked.widths.network
    if isinstance(way, Refused):
        return way
    growth = _rescaled(request, asked, in_way(proposed, way))
    depth, new = request.depth, proposed.inserted
    if isinstance(growth, Growth) and new and (depth is None or depth.scaled):
        plain = replace(request, keep=None, merge=None, strategy=None)
        its, growths = proposals(plain, larger)
        if isinstance(exact := next(growths), Refused):
            return exact
        filled = _filled(its, in_way(exact, without_noise(way)))
        if isinstance(filled, Refused):
            return filled if depth is None else Refused([NO_STREAM])
        silent = filled.inserted
        if depth is not None:
            assert asked.larger.widths is not None
            order = [leaf.path for leaf in asked.larger.widths.leaves]
            silent = scaled_layers(new, silent, order)
        growth = replace(growth, inserted=silent)
    is_own = request.target is None and network is not None and asked.copies is None
    if isinstance(growth, Growth) and request.check and is_own and _may_be_run(request, proposed):
        return fitting(growth)
    return growth


def _rescaled(request: Request, asked: Asked, growth: Growth) -> Growth | Refused:
    """Returns a growth in which widths with exact strategies grow as they would on their own."""
    copied = asked.copies.changes if asked.copies else {}
    own = (c for c in growth.changes if c.new > c.old and c.width not in copied)
    exact = tuple(c for c in own if c.strategy.begins_exact)
    before, names = asked.before, [c.width for c in exact]
    loud = heard(before, names) if request.check else []
    quiet = [name for name in names if name not in loud and request.check]
    growth = replace(growth, widths=silenced(growth.widths, quiet, before))
    if not loud:
        return growth
    alone = replace(growth, changes=exact, inserted=())
    programs = Programs(alone, before)
    for searched in searched_of(alone, loud, asked.starts, programs):
        changes = (searched.change.get(change.width, change) for change in growth.changes)
        return replace(growth, changes=tuple(changes), notes=searched.notes)
    return Refused(asked.ways_out)


def _way_to_copy(request: Request, asked: Asked, growth: Growth) -> Mapping[str, Change] | Refused:
    """Returns changes by width that copy units and keep outputs if nothing else changes.

    If no way of copying is shown to keep outputs, returns a refusal.
    """
    copies = asked.copies
    if copies is None:
        return {}
    for way in (copies.changes, *copies.others):
        alone = Growth(growth.widths, tuple(without_noise(way).values()))
        programs = Programs(alone, asked.before)
        if isinstance(shown(alone, programs, as_it_is=copies.as_it_is), Growth):
            return way
    return Refused([*copies.unshown, f"{_NO_WAY}; {copies.way_out}"])


def _evaluated(
    request: Request, asked: Asked, growth: Growth, programs: Programs | None
) -> Growth | Refused:
    """Returns a growth with the evidence of its evaluation, or its refusal."""
    is_larger_seen = asked.larger.widths is not None and asked.larger.widths.network is not None
    say("comparing both networks")
    if not request.check:
        filled = _filled(asked, growth) if growth.inserted else growth
        unchecked = Evidence(why_not="planned with check=False")
        return filled if isinstance(filled, Refused) else replace(filled, evidence=unchecked)
    if not is_larger_seen and programs is not None:
        way_out = _way_out_of(request, asked)
        return shown(growth, programs, way_out=way_out)
    if not is_larger_seen:
        is_unknown = asked.widths.is_saved and growth.changes
        unchecked = Evidence(why_not="these widths hold no program, so nothing was evaluated")
        return Refused([_NO_PROGRAM]) if is_unknown else replace(growth, evidence=unchecked)
    assert programs is not None
    if not growth.inserted:
        return shown_by(growth, programs)
    fillings = _fillings(asked, growth)

    def show(inserted: tuple[Edit, ...]) -> Growth | Refused:
        return shown_by(replace(growth, inserted=inserted), programs)

    its = first_shown(show, fillings)
    is_any = isinstance(its, Growth) or its.problems
    return its if is_any else _nothing_fits(request, asked, fillings)


def _fillings(asked: Asked, growth: Growth) -> Fillings:
    larger = asked.larger
    assert larger.widths is not None
    return Fillings(growth, asked.before, larger.widths, quickly=larger.is_unlikely)


def _filled(asked: Asked, growth: Growth) -> Growth | Refused:
    """Returns a growth with the first filling of new layers that fits, or its refusal."""
    fillings = _fillings(asked, growth)
    first = next(iter(fillings), None)
    if first is None:
        return Refused([f"{UNSHOWN}: {fillings.why_none}"])
    return replace(growth, inserted=first)


def _nothing_fits(request: Request, asked: Asked, fillings: Fillings) -> Refused:
    """Returns the refusal if no filling of new layers keeps outputs."""
    if asked.larger.is_unlikely:  # the error reports the likelier layers
        return Refused([UNSHOWN], then="nothing")
    another = [ANOTHER] if request.target_apply is None else []
    why = f"{UNSHOWN}: {fillings.why_none}"
    return Refused([*ways_out(asked), *another, why])


def _way_out_of(request: Request, asked: Asked) -> str:
    """Returns what the caller may do if the network itself computes something else."""
    if asked.copies is not None:
        return ""  # ``Asked.ways_out`` has it already
    if request.merge is not None:
        return NO_MERGE
    # By size, the network's own function was already evaluated with rescaled arrays.
    return ANOTHER if request.target is None else ITS_OWN_NUMBERS
