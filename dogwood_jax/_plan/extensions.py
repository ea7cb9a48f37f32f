"""How widths get more units: ``extensions``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.constants import unlike
from dogwood_jax._plan.numbers import Numbers
from dogwood_jax._plan.obstacles import IN_LARGER_MODEL, MULTIPLES, doubts, refusals
from dogwood_jax._plan.recipes_for_larger import Solved, solve_recipes
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.widths import Recipe, Width
from dogwood_jax.strategies import Strategy


@dataclass(frozen=True)
class Extensions:
    """How widths get more units.

    Attributes:
        changes: the changes by name of the width.
        refusals: why some cannot.
        doubts: why outputs may change.
        solved: the recipes that make up for numbers of the larger model.
    """

    changes: Mapping[str, Change]
    refusals: Sequence[str] = ()
    doubts: Sequence[str] = ()
    solved: Solved = Solved()


def extensions(
    asked: Asked,
    sizes: Mapping[str, int],
    interface: bool,
    numbers: Numbers | None,
    *,
    keeps_tables: bool,
) -> Extensions:
    """Returns how widths get more units.

    Args:
        asked: what the growth is asked for.
        sizes: the new sizes of these widths, by name.
        interface: whether widths that are dimensions of inputs or outputs may change.
        numbers: those of the network's program and the larger model's, if there is one.
        keeps_tables: whether old units are taken to keep their numbers in every table.
    """

    def grown(recipes: Mapping[str, Recipe]) -> Extensions:
        changes, refused, doubtful = dict[str, Change](), list[str](), list[str]()
        for name, width in asked.widths.items():
            new = sizes.get(name, width.size)
            if new != width.size:
                known = width if numbers is None else _cleared(width, new, numbers, keeps_tables)
                its = [recipes[name]] if name in recipes else None
                change = _extended(known, new, asked.strategies.get(name), its, asked)
                changes[name] = change
                if change.strategy.method is None:
                    refused += refusals(known, change, interface)
                    doubtful += doubts(known, change)
        return Extensions(changes, refused, doubtful)

    found = grown({})
    if numbers is None:
        return found
    solved = solve_recipes(
        asked.widths, numbers, found.changes, asked.strategies, keeps_tables=keeps_tables
    )
    again = grown(solved.recipes) if solved.recipes else found
    return found if again.refusals or again.doubts else replace(again, solved=solved)


def other_strategies(growth: Growth) -> dict[str, Strategy]:
    """Returns the strategies of recipes that were not taken, by width.

    Evaluation may refuse a growth by the recipes that come first. Behind a relu, for example, units
    whose incoming weights are zero never learn, but copies do.
    """
    found = dict[str, Strategy]()
    for change in growth.changes:
        if change.recipe is None:
            continue
        for recipe in _recipes(growth.widths[change.width], change.new, None):
            if recipe is not None and recipe.strategy != change.recipe.strategy:
                found.setdefault(change.width, strategies.by_name(recipe.strategy))
    return found


def _cleared(width: Width, new: int, numbers: Numbers, keeps_tables: bool) -> Width:
    """Returns a width without the hazards that the larger model's program is taken to refute.

    A constant that looked computed from the size did not change, for example. If old units keep
    their numbers in every table, tables are hazards for copies only.
    """
    multiples = f"; {MULTIPLES}, but {new} is no multiple of {width.size}" * bool(
        new % max(width.size, 1)
    )
    tables = [hazard for hazard in width.hazards if kind_of(hazard) == "table"]
    hazards = tuple(
        f"{hazard}, and {IN_LARGER_MODEL[kind_of(hazard)]}"
        + multiples * (kind_of(hazard) == "table")
        if kind_of(hazard) in IN_LARGER_MODEL
        else hazard
        for hazard in width.hazards
        if not (kind_of(hazard) == "suspicion" and numbers.agree)
        if (width.name, hazard) not in numbers.refuted
        if not (keeps_tables and hazard in tables)
    )
    return replace(
        width,
        hazards=hazards,
        copy_hazards=(*width.copy_hazards, *tables),
        recipes=width.recipes if hazards else (),
    )


def _extended(
    width: Width,
    new: int,
    strategy: Strategy | None,
    recipes: Sequence[Recipe] | None,
    asked: Asked,
) -> Change:
    """Returns how a width gets more units."""
    ways = [
        Change(
            width.name,
            width.size,
            new,
            strategy or strategies.by_name(recipe.strategy if recipe else "zero_outgoing"),
            recipe=recipe,
        )
        for recipe in recipes or _recipes(width, new, strategy)
    ]

    def misfit(way: Change) -> tuple[bool, int]:
        """Whether the larger model has other constants than a way needs, and how many it lacks."""
        lacking = sum(count for _, count in asked.larger.epsilons(asked.widths, [way]))
        return next(unlike(asked.larger, way), None) is not None, lacking

    change = min(ways, key=misfit) if len(ways) > 1 else ways[0]
    return replace(change, sources=change.strategy.sources(width.size, new))


def _recipes(width: Width, new: int, strategy: Strategy | None) -> Sequence[Recipe | None]:
    """Returns the recipes to choose from, with this strategy if there is one, or None."""
    if not width.hazards:
        return [None]
    name = None if strategy is None else strategy.recipes_for
    fitting = [
        recipe
        for recipe in width.recipes
        if (recipe.learns if name is None else recipe.strategy == name)
        if not recipe.multiple or new % width.size == 0
    ]
    return fitting or [None]
