"""Searches for new entries and factors on arrays with which outputs stay: ``searched``."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, inf, log
from typing import NamedTuple

import jax.numpy as jnp

from dogwood_jax._base.progress import say
from dogwood_jax._check.check import rounded_in_one
from dogwood_jax._check.claim import Case
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.search.problem import Problem, network_sample, other_numbers
from dogwood_jax._plan.search.solve import Powers, Ratio, RatioPowers, Solver, ratios
from dogwood_jax._plan.search.starts import Candidate, candidates
from dogwood_jax._plan.search.statistics import statistics_of
from dogwood_jax._plan.search.together import Together
from dogwood_jax._plan.search.unknowns import Unknown, unknowns
from dogwood_jax._plan.search.weighed import weighed_pairs
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.widths import Recipe
from dogwood_jax.strategies import Start

_MOST = 14  # upper limit on combinations of starts
_NEAR = 10.0  # residuals up to this many times the least one are near

Candidates = Mapping[str, Candidate]
Groups = Sequence[Sequence[Unknown]]


class _Opened(NamedTuple):
    """Starts of all widths, with the problem of finding factors for which outputs stay.

    Attributes:
        chosen: the starts by width.
        growth: the growth with these starts, in the sizes of the claim.
        ratios: the ratios whose powers are factors.
        groups: the choices of unknowns, each in groups.
        problem: the problem, without unknowns.
    """

    chosen: Candidates
    growth: Growth
    ratios: Sequence[Ratio]
    groups: Sequence[Groups]
    problem: Problem


def searched(
    growth: Growth,
    case: Case,
    strategies: Mapping[str, Start],
    alike: Sequence[Callable[[str], str]],
    heard: Collection[str],
) -> Iterator[Growth]:
    """Yields growths whose outputs are likely to equal the network's.

    Args:
        growth: the growth, without recipes.
        case: the claim of the growth, perhaps in smaller sizes.
        strategies: the caller's strategies by width.
        alike: functions that map the paths of arrays with the same factors to the same text, in
            the order in which they are tried.
        heard: the widths for which starts are tried, since outputs may depend on their new units.
    """
    together, others = Together(case.new), other_numbers(case)
    draw = functools.cache(functools.partial(network_sample, case))
    numbers = dict.fromkeys(new / old for new, old in others.items() if 0 < new * old < inf)
    network = growth.widths.network
    statistics = {} if network is None else statistics_of(network)
    floats = {p for p, a in case.old.arguments if p and jnp.issubdtype(a.dtype, jnp.inexact)}
    rounding = max([1e-6, *(2 * eps for eps in rounded_in_one(case).values())])

    def begun(growth: Growth, chosen: Candidates) -> Growth:
        changes = (
            chosen[c.width].of(c, strategies.get(c.width)) if c.width in chosen else c
            for c in growth.changes
        )
        return replace(growth, changes=tuple(changes))

    def opened(chosen: Candidates) -> _Opened | None:
        """Returns starts with their problem; None if they cannot keep outputs."""
        if any(start.weighs for start in chosen.values()):
            weighing = {n: _weighed(case, n, start) for n, start in chosen.items() if start.weighs}
            chosen = {**chosen, **weighing}
            if not any(start.recipe.weighed for start in chosen.values()):
                return None
        # Constants of a program stay in smaller sizes, so the ratios are those of the full sizes.
        begins = begun(case.growth, chosen)
        every = [*ratios(begun(growth, chosen), numbers, rounding)]
        exact = {new: (old, _unrounded(new, old, every, rounding)) for new, old in others.items()}
        integers = (its for path, its in begins.maps.items() if path not in floats)
        if not all(its.keeps_integers for its in integers if its.changes):
            return None
        mixing = [name for name, start in chosen.items() if start.mixes]
        ways = itertools.product(alike, (False, True))
        tried = [unknowns(begins, floats, mixing, like, statistics, every=n) for like, n in ways]
        each = [its for n, its in enumerate(tried) if its not in tried[:n]]
        problem = Problem(replace(case, growth=begins), together, exact, draw)
        return _Opened(chosen, begins, every, each, problem)

    def solver(its: _Opened, groups: Groups) -> Solver:
        problem = its.problem.of([*itertools.chain.from_iterable(groups)])
        return Solver(problem, groups, its.ratios)

    def growths(its: _Opened, solved: Solver, powers: Powers) -> Iterator[Growth]:
        """Yields growths with factors for which outputs stay."""
        larger = begun(growth, its.chosen)
        yield _with_recipes(larger, _recipes(its, powers))
        # Other factors may give the same outputs and also keep values that are compared.
        if (other := solved.with_ordered()) is not None:
            others = other.powers()
            if others is not None and others != powers:
                yield _with_recipes(larger, _recipes(its, others))

    left = list[tuple[float, _Opened]]()
    for chosen in _combinations(growth, strategies, heard):
        say("looking for new entries that keep outputs")
        its = opened(chosen)
        if its is None:
            continue
        first = solver(its, its.groups[0])
        if first.problem.depends_on_new():
            continue
        powers, residual = first.guess()
        if powers is None:
            left.append((residual, its))
        else:
            yield from growths(its, first, powers)
    # Newton takes long. The starts whose guesses come near are tried first, and the others only if
    # none of those is solved.
    near, is_solved = _NEAR * min((residual for residual, _ in left), default=0.0), False
    left.sort(key=lambda each: each[0] > near)
    for number, (residual, its) in enumerate(left):
        if is_solved and residual > near:
            return
        names = " and ".join({f"{start.start}": None for start in its.chosen.values()})
        say(f"looking for factors with {names}, {len(left) - number} starts left")
        for groups in its.groups:
            found = solver(its, groups)
            if (powers := found.powers()) is not None:
                is_solved = True
                yield from growths(its, found, powers)
                break


def _unrounded(new: float, old: float, every: Sequence[Ratio], rounding: float) -> float:
    """Returns the network's number times powers of ratios if this is near the new number."""
    if not 0 < new / (old or inf) < inf:
        return new
    near = RatioPowers(every).near(log(new / old))
    return old * exp(near[1]) if near and abs(near[1] - log(new / old)) <= rounding else new


def _combinations(
    growth: Growth, strategies: Mapping[str, Start], heard: Collection[str]
) -> Iterator[Candidates]:
    """Yields combinations of a start for each width in ``heard``; like widths share a start."""
    widths = growth.widths
    growing = [c for c in growth.changes if c.new > c.old and c.recipe is None]
    ways = {
        c.width: its
        for c in growing
        if c.width in heard
        if (its := [*candidates(widths, widths[c.width], c.new, strategies.get(c.width))])
    }
    if not ways:  # no other starts, only factors
        yield {c.width: Candidate() for c in growing}
        return
    alike: dict[str, list[str]] = {}
    for name in ways:
        alike.setdefault(without_numbers(name), []).append(name)
    places = [range(max(len(ways[name]) for name in names)) for names in alike.values()]
    every = sorted(itertools.product(*places), key=lambda chosen: (sum(chosen), chosen))
    for chosen in every[:_MOST]:
        yield {
            name: ways[name][min(place, len(ways[name]) - 1)]
            for place, names in zip(chosen, alike.values(), strict=True)
            for name in names
        }


def _weighed(case: Case, name: str, start: Candidate) -> Candidate:
    """Returns a start with the arrays that weight its means."""
    pairs = tuple(weighed_pairs(case, name))
    scales = {scale for _, scale in pairs}
    blank = tuple(path for path in start.recipe.blank if path not in scales)
    return replace(start, recipe=replace(start.recipe, weighed=pairs, blank=blank))


def _with_recipes(growth: Growth, recipes: Mapping[str, Recipe]) -> Growth:
    changes = (replace(c, recipe=recipes.get(c.width, c.recipe)) for c in growth.changes)
    return replace(growth, changes=tuple(changes))


def _recipes(its: _Opened, powers: Powers) -> dict[str, Recipe]:
    """Returns recipes by width.

    Args:
        its: the starts.
        powers: for each unknown, the power of each ratio.
    """
    growth, every = its.growth, its.ratios
    found = {name: start.recipe for name, start in its.chosen.items()}

    def add(name: str, field: str, item: object) -> None:
        recipe = found.get(name) or Recipe()
        items = dict.fromkeys((*getattr(recipe, field), item))
        found[name] = replace(recipe, **{field: tuple(items)})

    for u, own_powers in powers.items():
        leaf = growth.widths.leaf(u.path)
        if u.kind == "mix" and not own_powers[0]:
            name = next(
                units.width for units in units_of(leaf.axes[u.axis]) if units.width in found
            )
            is_zero = leaf.kind == "zeros"  # the array is zero in a new network, too
            add(name, *(("blank", u.path) if is_zero else ("zeros", (u.path, "incoming"))))
        if u.kind == "mix":
            continue
        if u.kind == "part" and any(own_powers):  # a power of the ratio of the width along the axis
            along = [units.width for units in units_of(leaf.axes[u.axis])]
            own = next(c for c in growth.changes if c.width in along and c.new > c.old)
            by = sum(
                power * ratio.logarithm for power, ratio in zip(own_powers, every, strict=True)
            )
            add(own.width, "parts", (u.path, round(by / log(own.ratio), 12)))
            continue
        for power, ratio in zip(own_powers, every, strict=True):
            if power:
                add(ratio.width, ratio.kind, (u.path, power * ratio.times))
                if u.kind == "offset":
                    add(ratio.width, "offsets", (u.path, u.added))
    return found
