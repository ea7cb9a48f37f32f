"""Accepts a growth if an evaluation shows that outputs stay: ``shown``.

``Programs`` holds the larger program that a growth is compared with.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan
from types import MappingProxyType

import numpy as np

from dogwood_jax._base.problems import Refused
from dogwood_jax._base.tables import merged
from dogwood_jax._base.trees import PyTree
from dogwood_jax._check.check import Verdict, check, spot
from dogwood_jax._check.claim import Case
from dogwood_jax._check.reduced import LargerProgram, NoCase, OtherTable, claim, is_bearable
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Evidence, Growth
from dogwood_jax._growth.modules.resizing import says_numbers
from dogwood_jax._plan.experts.planned import choices_of
from dogwood_jax._plan.numbers_of_sizes import (
    NumberOfSize,
    numbers_of_sizes,
    scales_of_sums,
    tables_of,
)
from dogwood_jax._plan.own_function import (
    KNOWS_SIZES,
    NUMBERS_STAY,
    WITH_TARGET,
    Rejected,
    other_splits,
    says_sizes,
)
from dogwood_jax._plan.programs import Programs
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import Key
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

_ROUNDING = "only one of both programs has {}, so outputs may differ by its rounding"
_COPIED = (
    "new units of {} are copies, and stay so until noise or dropout tells them apart: "
    "strategies.replicate(noise=)"
)
_COPIES = "; strategies.replicate() makes copies, which are finite where old units are"
_MOST_PROBLEMS = 5  # at most this many problems of fillings are listed
_NOT_EVALUATED = "the programs cannot be evaluated, so nothing shows that outputs stay: {}"


# The verdict and its evidence, or the reason why no evaluation was possible.
_Checked = tuple[Verdict, Evidence] | NoCase


def first_shown(
    show: Callable[[tuple[Edit, ...]], Growth | Refused],
    fillings: Iterable[tuple[Edit, ...]],
) -> Growth | Refused:
    """Returns the growth with the first filling of new layers that is shown to keep outputs.

    Args:
        show: returns the growth with a filling and its evidence, or the refusal.
        fillings: fillings of the new layers, the best one first.

    Returns:
        The growth; if no filling is accepted, the refusal of the first.
    """
    first, others = None, list[str]()
    for filling in fillings:
        found = show(filling)
        if isinstance(found, Growth) or not (found.differences or found.then == "fillings"):
            return found
        first, (why, *_) = first or found, found.problems
        if why not in (first.problems[0], *others) and len(others) < _MOST_PROBLEMS:
            filled = (e.path for e in filling if e.fill and e.fill.kind in ("constant", "identity"))
            paths = (path for _, path in merged(("", path) for path in filled))
            others.append(f"{', '.join(paths)} filled instead: {why}")
    if first is None or first.then != "fillings":
        return first or Refused([])
    return Refused([*first.problems, *others])


def shown_by(
    growth: Growth,
    programs: Programs,
) -> Growth | Refused:
    """Returns a growth with the evidence of a comparison with the larger model's own program.

    Args:
        growth: the growth.
        programs: the larger program, see ``Programs``.

    Returns:
        The growth, or its refusal: the larger model computes something else, or no evaluation shows
        that it computes the same.
    """
    checked = verdict_of(programs.of(growth), programs.its, as_it_is=True)
    if isinstance(checked, OtherTable):
        return _contradicted("the larger model", [str(checked)])
    if isinstance(checked, ValueError):
        return Refused([_NOT_EVALUATED.format(checked)])
    verdict, evidence = checked
    if verdict.is_shown:
        return _accepted(growth, evidence, map(_ROUNDING.format, verdict.rounding))
    if growth.inserted and verdict.is_unfit:
        return Refused(reasons(verdict, ""), then="fillings")
    said = [*reasons(verdict)]
    return _never_learns(verdict) or _contradicted("the larger model", said, verdict.samples)


def what_shows(
    growths: Iterable[Growth],
    network: Widths,
    larger: Widths | None,
    target: PyTree,
    *,
    notes: Sequence[str],
) -> Growth:
    """Returns the first growth that is shown to keep outputs.

    If there is none, returns the growth that keeps outputs for most samples. Its strategies are
    then marked as not exact, and its notes list the differences.

    Args:
        growths: the growths, with the notes for outputs that change.
        network: the network's widths, with its program.
        larger: the larger model's widths; None for the network's own function.
        target: the larger model's variables, or None.
        notes: the notes for outputs that stay.
    """
    refused = list[tuple[int, Growth]]()
    for growth in growths:
        exact = _claiming(growth, True, notes)
        programs = Programs(exact, network, larger, target)
        found = (shown if larger is None else shown_by)(exact, programs)
        if isinstance(found, Growth):
            return found
        texts = [f"outputs change: {difference}" for difference in found.differences]
        evidence = None if texts else Evidence(why_not="; ".join(found.problems))
        unknown = _claiming(growth, False, (*growth.notes, *texts))
        refused.append((found.samples, replace(unknown, evidence=evidence)))
    return max(refused, key=lambda pair: pair[0])[1]


def _claiming(growth: Growth, is_exact: bool, notes: Sequence[str]) -> Growth:
    changes = tuple(
        replace(change, strategy=replace(change.strategy, exact=is_exact))
        for change in growth.changes
    )
    return replace(growth, changes=changes, notes=tuple(notes))


def shown(
    growth: Growth,
    programs: Programs,
    *,
    as_it_is: bool = False,
    way_out: str = "",
) -> Growth | Refused:
    """Returns a growth with its evidence, if the larger model's function is not given.

    Args:
        growth: a growth by sizes, or by the shapes of a target.
        programs: the larger programs, see ``Programs``.
        as_it_is: whether the larger program keeps its number of chosen experts, see ``choices_of``.
        way_out: advice for the case that the network's own function computes something else.

    Returns:
        The growth, or its refusal: the network's own function computes something else in these
        sizes, or no evaluation shows that outputs stay.
    """
    few, own = programs.of(growth), programs.own
    if isinstance(own, Rejected):
        return _written_again(growth, few, own, programs)
    checked = verdict_of(few, programs.its, as_it_is=as_it_is)
    if isinstance(checked, OtherTable):
        return _itself([str(checked)], way_out, Verdict())
    assert isinstance(own, Program)
    if isinstance(checked, ValueError):
        refused = Refused([_with(_NOT_EVALUATED.format(checked), way_out)])
    else:
        verdict, evidence = checked
        if verdict.is_shown:
            notes = [*map(_ROUNDING.format, verdict.rounding)]
            scales = list[tuple[float, str]]()
            if any(scales_of_sums(few, _traced(few), own)):
                scales = [*scales_of_sums(growth, _traced(growth), own)]
            notes += dict.fromkeys(note for _, note in scales)
            if programs.target is not None:
                said_of = {number for number, _ in scales}
                stay = (its for its in programs.numbers.values() if its.number not in said_of)
                said = dict.fromkeys(its.stays for its in stay)
                growth = replace(growth, notes=(*said, *growth.notes))
            return _accepted(growth, evidence, notes)
        if (never := _never_learns(verdict)) is not None:
            return never
        refused = _itself([*reasons(verdict)], way_out, verdict)
    splits = other_splits(own, _traced(few), GrownSizes(few.widths, few.sizes))
    if not splits:
        return refused
    found = _rewritten(few, {}, is_known=True)
    if isinstance(found, NoCase):
        return refused
    if isinstance(found, Refused):
        return found
    return _accepted(growth, found, splits)


def _written_again(
    growth: Growth, few: Growth, own: Rejected, programs: Programs
) -> Growth | Refused:
    """Returns a growth with the evidence of the network's program, rewritten in the new sizes.

    Args:
        growth: the growth.
        few: the same growth for the layers that are compared.
        own: the error that the network's own function raised for these sizes.
        programs: the larger programs, see ``Programs``.
    """
    if problem := _rejected(few, own, programs.target):
        return Refused([problem])
    following = programs.following
    found = _rewritten(few, following, is_known=False)
    if isinstance(found, Refused):
        return found
    if isinstance(found, ValueError):
        return Refused([_NOT_EVALUATED.format(found)])
    said = dict.fromkeys(number.follows for number in following.values())
    scales = scales_of_sums(growth, _traced(growth), None)
    notes = (KNOWS_SIZES,) * (programs.target is None and not own.is_checked)
    notes = (*dict.fromkeys(note for _, note in scales), *notes)
    growth = replace(growth, notes=(*said, *growth.notes))
    assumes = f"{'other ' * bool(following)}{NUMBERS_STAY}"
    return _accepted(growth, replace(found, assumes=assumes), notes)


def _accepted(growth: Growth, evidence: Evidence, notes: Iterable[str]) -> Growth:
    """Returns a growth with its evidence and more notes, perhaps on new units that stay copies.

    Args:
        growth: the growth, for all layers.
        evidence: the evidence, perhaps for a few like layers.
        notes: more notes.
    """
    alike = {*map(without_numbers, evidence.copied)}
    widths = (c.width for c in growth.changes if c.new > c.old)
    copied = tuple(name for name in widths if without_numbers(name) in alike)
    if copied:
        names = ", ".join(name for _, name in merged(("", name) for name in copied))
        notes = (_COPIED.format(names), *notes)
    notes = (*growth.notes, *notes)
    return replace(growth, notes=notes, evidence=replace(evidence, copied=copied))


def _rewritten(
    growth: Growth, following: Mapping[Key, NumberOfSize], *, is_known: bool
) -> Evidence | Refused | NoCase:
    """Returns the evidence of the network's program, rewritten in the new sizes.

    Args:
        growth: the growth.
        following: constants that follow sizes, by key of their step.
        is_known: whether constants are known to stay as they are.

    Returns:
        The evidence, the refusal of the growth, or why the program cannot be evaluated.
    """
    numbers = {step: number.ratio for step, number in following.items()}
    checked = verdict_of(growth, None, numbers)
    if isinstance(checked, ValueError):
        return checked
    verdict, evidence = checked
    if not verdict.is_shown:
        whose, said = "in these sizes, the network", [*reasons(verdict)]
        return _never_learns(verdict) or _contradicted(whose, said, verdict.samples)
    if is_known:
        return evidence
    if tables := tables_of(growth.widths, growth.change):
        return Refused(tables, then="nothing")
    every = numbers_of_sizes(growth, _traced(growth))
    if open_numbers := {step: its for step, its in every.items() if step not in following}:
        moved = {step: number.ratio for step, number in open_numbers.items()}
        again = verdict_of(growth, None, numbers | moved)
        if not isinstance(again, ValueError) and not again[0].is_shown:
            return Refused(map(str, open_numbers.values()), then="nothing")
    return evidence


def fitting(growth: Growth) -> Growth | Refused:
    """Returns a growth that need not keep outputs, if the network's own function fits its arrays.

    A function with fixed sizes may reject the arrays; then the growth gets a note.
    """
    own = Programs(growth, growth.widths).own
    if not isinstance(own, Rejected):
        return growth
    if problem := _rejected(growth, own, None):
        return Refused([problem])
    if own.is_checked:
        return growth
    return replace(growth, notes=(*growth.notes, KNOWS_SIZES))


def _traced(growth: Growth) -> Traced:
    assert growth.widths.network is not None
    traced: Traced = growth.widths.network.traced
    return traced


def verdict_of(
    growth: Growth,
    its: Traced | None,
    numbers: Mapping[Key, float] = MappingProxyType({}),
    *,
    as_it_is: bool = False,
) -> _Checked:
    """Returns the verdict on a growth with its evidence, or why it cannot be evaluated.

    Args:
        growth: the growth.
        its: the larger program; None for the network's program in larger sizes.
        numbers: factors on constants of the larger program, by key of the step, see ``in_sizes``.
        as_it_is: whether the larger program keeps its number of chosen experts, see ``choices_of``.
    """
    found, problems = list[tuple[Verdict, Evidence]](), list[NoCase]()
    for choices in choices_of(growth, its, as_it_is=as_it_is):
        checked = _verdict_on(growth, LargerProgram(its, numbers, choices))
        if isinstance(checked, ValueError):
            problems.append(checked)
        elif checked[0].is_shown:
            return checked
        else:
            found.append(checked)
    # The verdict with the most equal samples.
    return max(found, key=lambda pair: pair[0].samples) if found else problems[0]


def _verdict_on(growth: Growth, larger: LargerProgram) -> _Checked:
    traced = _traced(growth)
    case = claim(growth, traced, larger)
    if not isinstance(case, Case):
        return case
    verdict = check(case)
    if not verdict.is_shown and case.is_reduced and is_bearable(traced):
        case = claim(growth, traced, larger, in_own_sizes=True)  # a reduced table may be too short
        if not isinstance(case, Case):
            return case
        verdict = check(case)
    sizes = tuple((c.width, c.old, c.new) for c in case.growth.changes)
    evidence = Evidence(
        verdict.samples, sizes, verdict.largest, verdict.unseen, copied=verdict.copied
    )
    return verdict, evidence


def reasons(verdict: Verdict, way_out: str = _COPIES) -> Iterator[str]:
    """Yields the reasons against a growth in a verdict.

    Args:
        verdict: the verdict.
        way_out: advice that is added if outputs are no longer finite.
    """
    if (found := verdict.difference) is not None:
        where = spot(found.path, found.place)
        if not found.place and isnan(found.old.real):
            yield f"{where} has another shape or dtype"
        else:
            because = f", {found.cause}" if found.cause else ""
            yield (
                f"{where} becomes {_number(found.new)} instead of {_number(found.old)} for "
                f"{found.family}{because}{'' if np.isfinite(found.new) else way_out}"
            )
    elif not verdict.samples:
        yield "the network is finite for none of the samples, so nothing shows that outputs stay"
    yield from filter(None, (verdict.problem, verdict.gradients))
    for path in verdict.unshown:
        yield f"{spot(path, ())}: no sample shows that it stays"


def _never_learns(verdict: Verdict) -> Refused | None:
    """Returns the refusal of a growth if gradients are the only reason against it."""
    if verdict.gradients and not (verdict.difference or verdict.problem or verdict.unshown):
        return Refused([verdict.gradients], verdict.samples, then="starts")
    return None


def _contradicted(whose: str, differences: Sequence[str], samples: int = 0) -> Refused:
    """Returns the refusal for a larger program with other outputs, see ``Refused``."""
    said = (f"{whose} computes something else: {what}" for what in differences[:3])
    return Refused(said, samples, differences)


def _itself(differences: Sequence[str], way_out: str, verdict: Verdict) -> Refused:
    """Returns the refusal for the network's own function with other outputs, with advice."""
    found = verdict.difference
    # If only some samples differ, for example where units are compared, other new entries may do.
    is_seldom = verdict.samples > 1 and found is not None and np.isfinite(found.new)
    its = "in these sizes, the network itself computes something else: "
    said = (f"{its}{_with(difference, way_out)}" for difference in differences[:3])
    return Refused(said, verdict.samples, differences, "starts" if is_seldom else "")


def _with(problem: str, way_out: str) -> str:
    return f"{problem}; {way_out}" if way_out else problem


def _number(number: complex) -> str:
    return f"{number.real:.9g}" if not number.imag else f"{number:.9g}"


def _rejected(growth: Growth, own: Rejected, target: PyTree) -> str | None:
    """Returns a problem if the network's own function should accept the new sizes, or nothing."""
    network = growth.widths.network
    assert network is not None
    if own.follows_shapes:
        return (
            "the network's own function follows the shapes of its arrays but does not take "
            f"these: {own.reason}; grow more widths as well, or pass target= and target_apply="
        )
    if target is None and says_numbers(network.variables):
        if not says_sizes(growth.widths, growth.sizes):  # a number of theirs may be half a size
            return (
                "the network's own function does not take its modules in these sizes: "
                f"{own.reason}; {WITH_TARGET}"
            )
    return None
