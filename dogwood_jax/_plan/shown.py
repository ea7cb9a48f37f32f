"""Accepts a growth if an evaluation has shown that outputs stay: ``shown``.

``Programs`` says which larger programs a growth is compared with.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isnan
from types import MappingProxyType

import numpy as np

from dogwood_jax._base.problems import Refused
from dogwood_jax._base.tables import merged
from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.evidence import Evidence
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._judge.judge import Verdict, judge, spot
from dogwood_jax._judge.resize import CannotResize
from dogwood_jax._judge.twin import CannotShrink, LargerProgram, OtherTable, claim, is_bearable
from dogwood_jax._modules.resizing import says_numbers
from dogwood_jax._plan.family import Family
from dogwood_jax._plan.numbers_of_sizes import numbers_of_sizes, scales_of_sums, tables_of
from dogwood_jax._plan.own_function import (
    KNOWS_SIZES,
    NUMBERS_STAY,
    WITH_TARGET,
    Contradicted,
    NeedsMore,
    Rejected,
    contradicted,
    other_splits,
    says_sizes,
)
from dogwood_jax._plan.programs import Programs
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import Key
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

_ROUNDING = "only one of both programs has {}, so outputs may differ by what that rounds"
_COPIES = "; strategies.replicate() makes copies, which are finite where old units are"
_MOST_PROBLEMS = 5  # that are listed of fillings
_NOT_EVALUATED = "the programs cannot be evaluated, so nothing shows that outputs stay: {}"


class Unshown(Exception):
    """The network's own function computes something else in the new sizes, or is not evaluated.

    Attributes:
        is_evaluated: whether it was evaluated.
        samples: see ``Refused``.
        is_seldom: whether numbers differ in some samples only, as where units are compared.
    """

    def __init__(self, problems: Sequence[str], verdict: Verdict | None = None) -> None:
        super().__init__(*problems)
        self.is_evaluated = verdict is not None
        self.samples = 0 if verdict is None else verdict.samples
        found = None if verdict is None else verdict.difference
        self.is_seldom = self.samples > 1 and found is not None and np.isfinite(found.new)


class OpenNumbers(Refused):
    """Numbers of a program that may follow from a size, and no function tells whether they do."""


class NeverLearns(Refused):
    """A growth whose new units get no gradient, or one that is not finite."""


class UnfitFilling(Refused):
    """A growth with new layers in which something is not finite, or which would never learn."""


def first_shown(
    show: Callable[[tuple[Insertion, ...]], Growth], fillings: Iterable[tuple[Insertion, ...]]
) -> Growth:
    """Returns the growth by the first filling of new layers that is shown.

    Args:
        show: returns the growth by a filling with what was shown of it, or raises.
        fillings: what is filled into new layers, the best filling first.

    Raises:
        ValueError: if none is shown, with what speaks against the first.
    """
    first, others = None, list[str]()
    for filling in fillings:
        try:
            return show(filling)
        except (UnfitFilling, Contradicted) as error:
            first, (why, *_) = first or error, error.problems
            if why not in (first.problems[0], *others) and len(others) < _MOST_PROBLEMS:
                filled = (i.path for i in filling if i.fill in ("constant", "identity"))
                paths = (path for _, path in merged(("", path) for path in filled))
                others.append(f"{', '.join(paths)} filled instead: {why}")
    if first is None or isinstance(first, Contradicted):
        raise first or Refused([])
    raise Refused([*first.problems, *others])


def shown_by(
    growth: Growth,
    programs: Programs,
    families: Sequence[Family] = (),
) -> Growth:
    """Returns a growth with what the larger model's own program has shown of it.

    Args:
        growth: the growth.
        programs: the program, see ``Programs``.
        families: see ``Family``.

    Raises:
        ValueError: if the larger model computes something else, or nothing shows that it does not.
    """
    one = next(iter(programs))
    few, its = one.of(growth), one.its
    try:
        verdict, evidence = _judged(few, its, families, as_it_is=True)
    except OtherTable as error:
        raise contradicted("the larger model", [str(error)]) from error
    except (CannotShrink, CannotResize) as error:
        raise Refused([_NOT_EVALUATED.format(error)]) from error
    if not verdict.is_shown:
        if growth.insertions and verdict.is_unfit:
            raise UnfitFilling(reasons(verdict, ""))
        _check_gradients(verdict)
        raise contradicted("the larger model", [*reasons(verdict)], verdict.samples)
    notes = (*growth.notes, *map(_ROUNDING.format, verdict.rounding))
    return replace(growth, notes=notes, evidence=evidence)


def what_shows(
    growths: Iterable[Growth],
    network: Widths,
    larger: Widths | None,
    target: PyTree,
    families: Sequence[Family],
    *,
    notes: Sequence[str],
) -> Growth:
    """Returns the first growth that is shown to keep outputs.

    If there is none, it is the one that keeps them for most samples. Then its strategies are not
    exact, and its notes say what differs.

    Args:
        growths: the growths, with the notes of ones that do not keep outputs.
        network: the network's widths, with its program.
        larger: those of the larger model; None for the network's own function.
        target: the larger model's variables, or None.
        families: see ``Family``.
        notes: what is said where outputs stay.
    """
    found = list[tuple[int, Growth]]()
    for growth in growths:
        exact = _claiming(growth, True, notes)
        problems: Sequence[str]
        try:
            programs = Programs(exact, network, larger, target)
            return (shown if larger is None else shown_by)(exact, programs, families)
        except Unshown as unshown:
            problems, is_evaluated, samples = unshown.args, unshown.is_evaluated, unshown.samples
        except Contradicted as error:
            problems, is_evaluated, samples = error.reasons, True, error.samples
        except Refused as error:
            problems, is_evaluated, samples = error.problems, False, 0
        evidence = None if is_evaluated else Evidence(why_not="; ".join(problems))
        texts = [f"outputs change: {problem}" for problem in problems] if is_evaluated else []
        unknown = _claiming(growth, False, (*growth.notes, *texts))
        found.append((samples, replace(unknown, evidence=evidence)))
    return max(found, key=lambda pair: pair[0])[1]


def _claiming(growth: Growth, is_exact: bool, notes: Sequence[str]) -> Growth:
    changes = tuple(
        replace(change, strategy=replace(change.strategy, exact=is_exact))
        for change in growth.changes
    )
    return replace(growth, changes=changes, notes=tuple(notes))


def shown(
    growth: Growth,
    programs: Programs,
    families: Sequence[Family] = (),
    *,
    as_it_is: bool = False,
) -> Growth:
    """Returns a growth with what was shown of it, where the larger model's function is not given.

    Args:
        growth: by sizes, or by the shapes of a target.
        programs: the programs, see ``Programs``.
        families: see ``Family``.
        as_it_is: whether the larger program chooses experts as it does, see ``Family.choices``.

    Raises:
        Unshown: if the network's own function takes the new sizes and computes something else.
        ValueError: if nothing shows that outputs stay.
    """
    unshown, few, own = Unshown(()), growth, None
    target = programs.target
    for one in programs:
        few, own = one.of(growth), one.own
        if isinstance(own, Rejected):
            _check(few, own, target)
            break
        try:
            verdict, evidence = _judged(few, one.its, families, as_it_is=as_it_is)
        except OtherTable as error:
            raise Unshown([str(error)], Verdict()) from error
        except (CannotShrink, CannotResize) as error:
            unshown = Unshown([_NOT_EVALUATED.format(error)])
            continue
        if verdict.is_shown:
            rounding = map(_ROUNDING.format, verdict.rounding)
            notes = (*growth.notes, *rounding)
            if isinstance(own, Program) and any(scales_of_sums(few, _traced(few), own)):
                notes += (*dict.fromkeys(scales_of_sums(growth, _traced(growth), own)),)
            return replace(growth, notes=notes, evidence=evidence)
        _check_gradients(verdict)
        unshown = Unshown([*reasons(verdict)], verdict)
    notes = ()
    if isinstance(own, Program):
        if not (notes := _other_splits(few, own)):
            raise unshown
    else:
        few = programs.written_again.of(growth)
    try:
        evidence = _rewritten(few, target, families, is_known=isinstance(own, Program))
    except (CannotShrink, CannotResize) as error:
        if isinstance(own, Program):
            raise unshown from error
        raise Refused([_NOT_EVALUATED.format(error)]) from error
    if isinstance(own, Rejected):
        evidence = replace(evidence, assumes=NUMBERS_STAY)
        notes = (KNOWS_SIZES,) * (target is None and not own.is_checked)
    return replace(growth, notes=(*growth.notes, *notes), evidence=evidence)


def _other_splits(growth: Growth, own: Program) -> tuple[str, ...]:
    """Returns how the network's own function splits axes otherwise than the growth does."""
    try:
        return (*other_splits(own, _traced(growth), GrownSizes(growth.widths, growth.sizes)),)
    except CannotResize:
        return ()


def _rewritten(
    growth: Growth, target: PyTree, families: Sequence[Family], *, is_known: bool
) -> Evidence:
    """Returns what the network's program shows, written again in the new sizes.

    Args:
        growth: the growth.
        target: the larger model's variables, or None.
        families: see ``Family``.
        is_known: whether numbers are known to stay what they are.

    Raises:
        Refused: if outputs change, or nothing shows that they stay.
        CannotShrink, CannotResize: if it cannot be evaluated.
    """
    traced = _traced(growth)
    verdict, evidence = _judged(growth, None, families)
    if not verdict.is_shown:
        _check_gradients(verdict)
        raise contradicted("in these sizes, the network", [*reasons(verdict)], verdict.samples)
    if not is_known and (tables := tables_of(growth.widths, growth.change)):
        raise OpenNumbers(tables)
    if not is_known and (open_numbers := numbers_of_sizes(growth, traced)):
        moved = {step: number.ratio for step, number in open_numbers.items()}
        with suppress(CannotShrink, CannotResize):
            verdict, _ = _judged(growth, None, families, moved)
        if not verdict.is_shown:
            raise OpenNumbers(str(number) for number in open_numbers.values())
    return evidence


def fitting(growth: Growth) -> Growth:
    """Returns a growth that need not keep outputs, if the network's own function takes its arrays.

    A function that knows its sizes need not take them. A note says so.

    Raises:
        ValueError: if the function does not take the new sizes, and should.
    """
    one = next(iter(Programs(growth, growth.widths)))
    if not isinstance(own := one.own, Rejected):
        return growth
    _check(growth, own, None)
    if own.is_checked:
        return growth
    return replace(growth, notes=(*growth.notes, KNOWS_SIZES))


def _traced(growth: Growth) -> Traced:
    assert growth.widths.network is not None
    traced: Traced = growth.widths.network.traced
    return traced


def _judged(
    growth: Growth,
    its: Traced | None,
    families: Sequence[Family],
    numbers: Mapping[Key, float] = MappingProxyType({}),
    *,
    as_it_is: bool = False,
) -> tuple[Verdict, Evidence]:
    """Returns the verdict on a growth, and what was evaluated.

    Args:
        growth: the growth.
        its: the larger program; None for the network's own in larger sizes.
        families: see ``Family``.
        numbers: there, what numbers are multiplied by, see ``in_sizes``.
        as_it_is: whether the larger program chooses experts as it does, see ``Family.choices``.

    Raises:
        CannotShrink, CannotResize: if the programs cannot be evaluated.
    """
    found: list[tuple[Verdict, Evidence]] = []
    problem: CannotShrink | CannotResize | None = None
    ways = [way for one in families for way in one.choices(growth, its, as_it_is=as_it_is)]
    for choices in ways or [()]:
        try:
            found.append(_verdict_on(growth, LargerProgram(its, numbers, choices)))
        except (CannotShrink, CannotResize) as error:
            problem = problem or error
        else:
            if found[-1][0].is_shown:
                return found[-1]
    if not found and problem is not None:
        raise problem
    return max(found, key=lambda pair: pair[0].samples)  # the one that is equal for longest


def _verdict_on(growth: Growth, larger: LargerProgram) -> tuple[Verdict, Evidence]:
    traced = _traced(growth)
    case = claim(growth, traced, larger)
    verdict = judge(case)
    if not verdict.is_shown and case.is_twin and is_bearable(traced):
        case = claim(growth, traced, larger, in_own_sizes=True)  # a table may end in the twin
        verdict = judge(case)
    sizes = tuple((c.width, c.old, c.new) for c in case.growth.changes)
    return verdict, Evidence(verdict.samples, sizes, verdict.largest, verdict.unseen)


def reasons(verdict: Verdict, way_out: str = _COPIES) -> Iterator[str]:
    """Yields what a verdict says against a growth.

    Args:
        verdict: the verdict.
        way_out: what is said to someone whose network would not be finite any more.
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


def _check_gradients(verdict: Verdict) -> None:
    """Raises if nothing but gradients speaks against a growth."""
    if verdict.gradients and not (verdict.difference or verdict.problem or verdict.unshown):
        raise NeverLearns([verdict.gradients], verdict.samples)


def _number(number: complex) -> str:
    return f"{number.real:.9g}" if not number.imag else f"{number:.9g}"


def _check(growth: Growth, own: Rejected, target: PyTree) -> None:
    """Raises if the network's own function does not take the new sizes, and should."""
    network = growth.widths.network
    assert network is not None
    if own.follows_shapes:
        problem = (
            "the network's own function follows the shapes of its arrays but does not take "
            f"these: {own.reason}; grow more widths along, or pass target= and target_apply="
        )
        raise NeedsMore([problem])
    if target is None and says_numbers(network.variables):
        if not says_sizes(growth.widths, growth.sizes):  # a number of theirs may be half a size
            problem = (
                "the network's own function does not take its modules in these sizes: "
                f"{own.reason}; {WITH_TARGET}"
            )
            raise Refused([problem])
