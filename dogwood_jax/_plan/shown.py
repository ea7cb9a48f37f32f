"""Accepts a growth if an evaluation has shown that outputs stay: ``shown``.

Rules have proposed the growth. The larger program is the larger model's own, if there is one. Else
it is that of the network's own function in the new sizes, if it takes them. Else, as for a module
whose config states sizes, it is the network's program written again in the new sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isclose

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, struct
from dogwood_jax._growth.evidence import Evidence
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.cases import case_of
from dogwood_jax._judge.judge import Side, Verdict, judge
from dogwood_jax._judge.resize import CannotResize, in_sizes
from dogwood_jax._modules.resizing import says_numbers
from dogwood_jax._plan.comparison import moves_of
from dogwood_jax._plan.own_function import (
    KNOWS_SIZES,
    WITH_TARGET,
    NeedsMore,
    Rejected,
    contradicted,
    own_program,
    says_sizes,
)
from dogwood_jax._program.program import Program, equations
from dogwood_jax._widths.trace import Traced


class Unshown(Exception):
    """The network's own function computes something else in the new sizes."""


def shown_by(growth: Growth, program: Program, unlike: Sequence[str]) -> Growth:
    """Returns a growth with what the larger model's own program has shown of it.

    Args:
        growth: the growth.
        program: the larger model's program.
        unlike: what a comparison of both programs says against the growth.

    Raises:
        ValueError: if the larger model computes something else.
    """
    verdict = _verdict(growth, Side(program.jaxpr, program.arguments, program.results))
    if not verdict.is_shown:
        raise contradicted("the larger model", [*unlike] or [*reasons(verdict)])
    return replace(growth, evidence=_evidence(verdict))


def shown(growth: Growth, target: PyTree) -> Growth:
    """Returns a growth with what was shown of it, where the larger model's function is not given.

    Args:
        growth: by sizes, or by the shapes of a target.
        target: the target, or None.

    Raises:
        Unshown: if the network's own function takes the new sizes and computes something else.
        ValueError: if nothing shows that outputs stay.
    """
    network = growth.widths.network
    assert network is not None
    own = own_program(growth.widths, growth.sizes, target)
    if isinstance(own, Program):
        verdict = _verdict(growth, Side(own.jaxpr, own.arguments, own.results))
        if verdict.is_shown:
            return replace(growth, evidence=_evidence(verdict))
    else:
        _check(growth, own, target)
    sizes = GrownSizes(growth.widths, growth.sizes)
    traced = network.traced
    factors = dict(_factors(growth, traced, every=True))
    try:
        resized = _resized(traced, sizes, factors)
    except CannotResize as error:
        if isinstance(own, Program):
            raise Unshown(*reasons(verdict)) from error
        raise contradicted("in these sizes, the network", [str(error)]) from error
    if isinstance(own, Program) and not _holds_sizes(own, resized):
        raise Unshown(*reasons(verdict))
    again = _verdict(growth, resized)
    if not again.is_shown:
        raise contradicted("in these sizes, the network", [*reasons(again)])
    if target is None:
        means = dict(_factors(growth, traced, every=False))
        if means != factors and not _verdict(growth, _resized(traced, sizes, means)).is_shown:
            raise ValueError(listed("cannot plan this growth", [*_readings(growth, traced, means)]))
    knows = isinstance(own, Program) or not own.is_checked
    notes = (*growth.notes, KNOWS_SIZES) if knows and target is None else growth.notes
    return replace(growth, notes=notes, evidence=_evidence(again))


def reasons(verdict: Verdict) -> Iterator[str]:
    """Yields what a verdict says against a growth."""
    if (found := verdict.difference) is not None:
        where = f"{found.path or 'its output'}{[*found.place] if found.place else ''}"
        yield (
            f"{where} becomes {_number(found.new)} instead of {_number(found.old)} for "
            f"{found.family}"
        )
    elif not verdict.samples:
        yield "the network is finite for none of the samples, so nothing shows that outputs stay"
    for path in verdict.unshown:
        yield f"{path or 'its output'}: no sample shows that it stays"


def _number(number: complex) -> str:
    return f"{number.real:.6g}" if not number.imag else f"{number:.6g}"


def _verdict(growth: Growth, new: Side) -> Verdict:
    network = growth.widths.network
    assert network is not None
    return judge(case_of(growth, network.traced, new))


def _evidence(verdict: Verdict) -> Evidence:
    return Evidence(verdict.samples, (), verdict.largest)


def _check(growth: Growth, own: Rejected, target: PyTree) -> None:
    """Raises if the network's own function does not take the new sizes, and should."""
    network = growth.widths.network
    assert network is not None
    if own.follows_shapes:
        problem = (
            "the network's own function follows the shapes of its arrays but does not take "
            f"these: {own.reason}; grow more widths along, or pass target= and target_apply="
        )
        raise ValueError(NeedsMore(listed("cannot plan this growth", [problem])))
    if target is None and says_numbers(network.variables):
        if not says_sizes(growth.widths, growth.sizes):  # a number of theirs may be half a size
            problem = (
                "the network's own function does not take its modules in these sizes: "
                f"{own.reason}; {WITH_TARGET}"
            )
            raise ValueError(listed("cannot plan this growth", [problem]))


def _resized(traced: Traced, sizes: GrownSizes, factors: dict[int, float]) -> Side:
    jaxpr = in_sizes(traced, sizes, factors)
    arguments = [
        (path, struct(aval.shape, aval.dtype))
        for (path, _), aval in zip(traced.program.arguments, jaxpr.in_avals, strict=True)
    ]
    return Side(jaxpr, arguments, traced.program.results)


def _factors(growth: Growth, traced: Traced, *, every: bool) -> Iterator[tuple[int, float]]:
    """Yields what recipes say that numbers are multiplied by, by the index of the step.

    Args:
        growth: the growth.
        traced: the network's program.
        every: whether to yield them of all numbers, not of those alone that take a mean.
    """
    trace = traced.trace
    for change in growth.changes:
        if (recipe := change.recipe) is None:
            continue
        key = change.width, recipe.strategy, recipe.multiple
        known = trace.degrees.get(key, {})
        for index, (_, ratio) in moves_of(trace, [change]).items():
            if every or known[index].is_mean:
                yield index, ratio
        for index, number in trace.epsilons.get(key, {}).items():
            for _, value, power in recipe.constants:
                if power and isclose(value, number, rel_tol=1e-5):
                    yield index, change.ratio**power
                    break


def _readings(growth: Growth, traced: Traced, means: dict[int, float]) -> Iterator[str]:
    """Yields the numbers that may follow from a size or not, and the way out."""
    for change in growth.changes:
        if (recipe := change.recipe) is None:
            continue
        known = traced.trace.degrees.get((change.width, recipe.strategy, recipe.multiple), {})
        for index, degree in known.items():
            if index not in means:
                yield (
                    f"{change.width}: {degree.number:.6g} may be {_power(change.old, degree.degree)}"
                    f" of {change.old} units, or a number of its own, and the network's function "
                    "does not take other sizes to tell; pass target_apply=, the larger model's "
                    "function"
                )


def _power(size: int, degree: float) -> str:
    return f"{size} ** {degree:g}"


def _holds_sizes(own: Program, resized: Side) -> bool:
    """Whether a program splits axes into sizes of its own, as into a fixed number of heads.

    Then the larger model is another function of the same kind, made from another configuration.
    """
    pairs = zip(equations(own.jaxpr.jaxpr), equations(resized.jaxpr.jaxpr))
    for a, b in pairs:
        if a.primitive.name != b.primitive.name:
            return False
        if [v.aval.shape for v in a.outvars] != [v.aval.shape for v in b.outvars]:
            return bool(a.primitive.name == "reshape")
    return False
