"""Growths with rescaled arrays that compensate for sizes and constants: ``searched_of``."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from math import isclose, isfinite

from dogwood_jax import strategies
from dogwood_jax._check.claim import Case
from dogwood_jax._check.reduced import LargerProgram, claim
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.experts.planned import choices_of
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.programs import Programs
from dogwood_jax._plan.search.problem import other_numbers
from dogwood_jax._plan.search.search import searched
from dogwood_jax._program.like_layers import LikeLayers
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._program.reasons import kind_of
from dogwood_jax._widths.widths import Recipe, Widths
from dogwood_jax.strategies import Start


def searched_of(
    growth: Growth,
    heard: Collection[str],
    chosen: Mapping[str, Start],
    programs: Programs,
) -> Iterator[Growth]:
    """Yields growths with recipes, which compensate for what changes with sizes.

    Args:
        growth: the growth, without recipes.
        heard: the widths for which other starts are tried, too, because zeros in marked weights
            may not silence their new units.
        chosen: the caller's strategies by width.
        programs: the larger programs.
    """
    network, is_seen = programs.widths, programs.larger is not None
    told = (note for c in growth.changes for note in growth.widths[c.width].notes)
    if any(kind_of(note) == "drawn" for note in told):
        return
    alike = [*_alike(None if network.network is None else network.network.layers)]
    few = programs.of(growth)
    for case in _cases(few, programs):
        for found in searched(few, case, chosen, alike, {*heard, *chosen}):
            changes = found.changes
            if programs.fewer is not None and programs.are_of_fewer:
                by_name = {change.width: change for change in changes}
                changes = tuple(programs.fewer.of_all(growth, by_name))
            notes = dict.fromkeys(growth.notes)
            for before, change in zip(growth.changes, changes, strict=True):
                of_both = [[*notes_of(network, c, is_seen=is_seen)] for c in (before, change)]
                notes = dict.fromkeys(n for n in notes if n not in of_both[0])
                notes |= dict.fromkeys(of_both[1])
            notes |= dict.fromkeys(_made_up_for(found, case))
            yield replace(growth, changes=changes, notes=tuple(notes))


def for_removal(widths: Widths, name: str) -> Recipe | None:
    """Returns the recipe for removing silent units of a width, or None if none is found.

    The recipe is that of a growth to twice the size: its powers of new / old hold for smaller
    sizes, too.

    Args:
        widths: the network's widths.
        name: name of the width.
    """
    if widths.network is None or widths[name].fixed or widths[name].size < 2:
        return None
    old = widths[name].size
    for strategy in (strategies.zero_outgoing(), strategies.zero_incoming()):
        growth = Growth(widths, (Change(name, old, 2 * old, strategy),))
        programs = Programs(growth, widths, in_module=False)
        found = next(searched_of(growth, [name], {name: strategy}, programs), None)
        if found is not None:
            return found.change[name].recipe
    return None


def _alike(layers: LikeLayers | None) -> Iterator[Callable[[str], str]]:
    """Yields functions that map the paths of arrays with the same factors to the same text.

    The arrays are those of like layers. The layer before the like layers is often the same, except
    for what it reads.
    """
    if layers is None:
        yield without_numbers
        yield lambda path: path
        return
    prefixes = (re.sub(r"\d+", r"\\d+", re.escape(prefix)) for prefix in layers.prefixes[0])
    pattern = re.compile(rf"^(?:{'|'.join(prefixes)})(?![\w.-])")
    yield lambda path: pattern.sub(lambda match: without_numbers(match[0]), path)


def _cases(growth: Growth, programs: Programs) -> Iterator[Case]:
    """Yields the claims of a growth, with empty recipes for a search to fill."""
    as_it_is, its = programs.larger is not None, programs.its
    assert growth.widths.network is not None
    changes = (
        replace(c, recipe=c.recipe or Recipe()) if c.new > c.old else c for c in growth.changes
    )
    begun = replace(growth, changes=tuple(changes))  # recipes keep ratios in a reduced model
    for choices in choices_of(begun, its, as_it_is=as_it_is):
        numbers = {step: number.ratio for step, number in programs.following.items()}
        case = claim(begun, growth.widths.network.traced, LargerProgram(its, numbers, choices))
        if isinstance(case, Case):
            yield case


def _made_up_for(growth: Growth, case: Case) -> Iterator[str]:
    """Yields notes on constants of the larger program that rescaled arrays make up for.

    Sizes and divisors of means are left out, because they follow from shapes in any model.
    """
    names = ", ".join(c.width for c in growth.changes if c.recipe and [*c.factors()])
    ratios = [1.0, *(r for c in growth.changes if c.old for r in (c.new / c.old, c.old / c.new))]
    for new, old in other_numbers(case).items() if names and not case.is_resized else ():
        by, is_mean = new / (old or 1.0), all(_is_whole(1 / (n or 1.0)) for n in (new, old))
        is_mean &= any(isclose(by, ratio, rel_tol=1e-5) for ratio in ratios)
        is_size = _is_whole(new) and _is_whole(old)  # a size of 1, or its root, is no divisor
        is_size &= min(new, old) > 1 or any(
            isclose(by * by, ratio**p) for ratio in ratios for p in (1, 2)
        )
        if isfinite(old * new) and not (is_mean or is_size):
            yield (
                f"{names}: the larger model has {new:.6g} instead of {old:.6g}; rescaled arrays "
                "make up for it"
            )


def _is_whole(number: float) -> bool:
    return isclose(number, round(number), rel_tol=1e-5) if isfinite(number) else False
