"""Recipes for one larger model, solved from the numbers in both programs: ``solve_recipes``.

A recipe of a width holds for any larger model, and asks it for certain numbers, such as
1/sqrt(head_dim). A larger model may have other numbers. LoRA scales by alpha / rank, and head_dim
may grow only where rotary embeddings do not rotate it. If the larger model's program is at hand,
its numbers are known. Then arrays are rescaled so that they make up for the ratio of every number
that differs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isclose, isfinite, log

from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.numbers import Degrees, Numbers
from dogwood_jax._plan.obstacles import has_tables
from dogwood_jax._widths.dims import atoms
from dogwood_jax._widths.recipes.reading import LargerNetwork
from dogwood_jax._widths.recipes.search import Finder
from dogwood_jax._widths.widths import Recipe, Widths
from dogwood_jax.strategies import Strategy

_ROUNDING = 1e-5  # logarithms of ratios that are as small come from numbers in single precision


@dataclass(frozen=True)
class Solved:
    """Recipes for one larger model.

    Attributes:
        recipes: the recipes, by name of the width.
        degrees: for each of them the numbers that it makes up for, by the index of the step.
    """

    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    degrees: Mapping[str, Degrees] = field(default_factory=dict)

    def notes(self, numbers: Numbers, changes: Mapping[str, Change]) -> Iterator[str]:
        """Yields the numbers that the recipes make up for, except numbers that take a mean."""
        for name, degrees in self.degrees.items():
            change = changes[name]
            for index in degrees:
                number, larger = numbers.factors[index]
                shares = number * change.old, larger * change.new
                if all(isclose(share, 1, rel_tol=_ROUNDING) for share in shares):
                    continue
                yield (
                    f"{name}: the larger model multiplies by {larger:.6g} instead of "
                    f"{number:.6g}; rescaled arrays make up for it"
                )


def solve_recipes(
    widths: Widths,
    numbers: Numbers,
    changes: Mapping[str, Change],
    strategies: Mapping[str, Strategy],
    *,
    keeps_tables: bool,
) -> Solved:
    """Returns recipes for widths whose other recipes, if any, do not fit the larger model.

    Several widths may follow from the same number. The first of them makes up for all of it.

    Args:
        widths: the network's widths.
        numbers: those of its program and of the larger model's program.
        keeps_tables: whether old units are taken to keep their numbers in every table.
        changes: how widths grow without these recipes, by name.
        strategies: strategies by width, where the caller has chosen one.
    """
    assert widths.network is not None
    traced = widths.network.traced
    finder = Finder(traced.trace, traced.leaves, widths.leaves)
    dims = {name: dim for dim, name in numbers.names.items()}
    differing = {index: _log(*pair) for index, pair in numbers.factors.items()}
    growing = [
        name for name, change in changes.items() if name in dims and 0 < change.old < change.new
    ]
    sizes = {name: log(changes[name].new / changes[name].old) for name in growing}
    known = {name: numbers.degrees(changes[name]) for name in growing}
    lacking = {name for name in growing if widths[name].hazards and not changes[name].recipe}
    summed = {
        atom
        for index, ratio in differing.items()
        for value in traced.trace.steps[index].operands
        for dim in (value.contracted if abs(ratio) > _ROUNDING else ())
        for atom in atoms(dim)
    }

    def rounding(index: int) -> float:
        return max(_ROUNDING, 2 * numbers.rounding.get(index, 0.0))

    recipes: dict[str, Recipe] = {}
    # A number follows from the width that was summed over, as alpha / rank does, if from any.
    for name in sorted(growing, key=lambda n: (n not in lacking, dims[n] not in summed)):
        left = dict(differing)
        for other in known.keys() - {name}:
            for index in known[other].keys() & left.keys():
                left[index] -= sizes[other] * known[other][index].degree
        larger = LargerNetwork(
            {i: rest / sizes[name] for i, rest in left.items() if abs(rest) > rounding(i)},
            keeps_tables and has_tables(widths[name]),
            not changes[name].new % changes[name].old,
        )
        strategy = strategies[name].recipes_for if name in strategies else None
        solved = finder.solved(dims[name], name, larger, strategy)
        if solved is None:
            continue
        its = {index: sizes[name] * degree.degree for index, degree in known[name].items()}
        misfits = (
            abs(left.get(index, 0.0) - its.get(index, 0.0)) > rounding(index)
            for index in {*solved[1], *its}
        )
        if name in lacking or any(misfits):
            recipes[name], known[name] = solved
    return Solved(recipes, {name: known[name] for name in recipes})


def _log(number: float, larger: float) -> float:
    """Returns the logarithm of the ratio of two numbers, zero if no rescaling makes up for it."""
    if not number or not larger or number * larger < 0 or not isfinite(larger / number):
        return 0.0
    return log(larger / number)
