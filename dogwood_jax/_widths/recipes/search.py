"""Exact recipes for widths whose size the network computes with: ``find_recipes``.

A norm over a width, or a factor such as 1/sqrt(head_dim), depends on the number of units: with more
units, the old ones compute something else. A recipe rescales arrays and constants to make up for
this. It is found by dimensional analysis. The program is read a second time, for one width and one
way to fill in new units. Each value in the larger network is compared with the same value before:

- Old entries are the old values times a power of the ratio of sizes.
- Along the width, new entries are zero, or the mean of the old ones, or any number. Where an array
  scales units one by one, what writes them can be made a mean that is weighed by the array.

Arrays along the width may be rescaled, by powers that are unknown. The power of each value is a
linear expression of these. Terms of a sum have equal powers, but for epsilons and for numbers that
an array is added to wherever it is read, as 1 + scale. Outputs, and operands of a nonlinear
function, have power zero. The solution of these equations is the recipe. Often there are many. Then
the first one leaves the epsilons of norms as they are, and another one rescales as little as it
can. A width has no recipe if it runs along arrays of a primitive without a rule (``rules``), or if
it meets something that a rule cannot follow.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dogwood_jax import strategies
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.layout import Layout, Role, units_along, units_of
from dogwood_jax._widths.recipes.new_numbers import with_numbers
from dogwood_jax._widths.recipes.no_means import obstacle
from dogwood_jax._widths.recipes.powers import states_of
from dogwood_jax._widths.recipes.reading import (
    Ambiguous,
    Filling,
    LargerNetwork,
    NoRecipe,
    Place,
    Reading,
)
from dogwood_jax._widths.scales import ambiguity
from dogwood_jax._widths.values import SINGLE_PRECISION, Degree, Step, Trace, Value
from dogwood_jax._widths.widths import Leaf, Recipe

# New units that never learn. It is looked for where zeros are the only way.
_DEAD = Filling(strategies.zeros())

_FILLINGS = (
    Filling(strategies.zero_outgoing()),
    Filling(strategies.zero_incoming()),
    _DEAD,
    Filling(strategies.replicate()),
    Filling(strategies.tile()),
    Filling(strategies.tile(), multiple=True),
)


def find_recipes(
    trace: Trace, values: Mapping[str, Value], leaves: Sequence[Leaf], names: Mapping[Dim, str]
) -> dict[Dim, tuple[Recipe, ...]]:
    """Returns the recipes of every width that has hazards.

    Args:
        trace: a network's program, read and with all dimensions known.
        values: its arrays by path.
        leaves: the arrays again, with layouts and roles.
        names: name of each width by dimension.
    """
    widths = [d for d in names if d.hazards and _may_have_recipes(trace, d)]
    if not widths:
        return {}
    program = Finder(trace, values, leaves)
    found = {width: tuple(program.recipes(width, names[width])) for width in widths}
    for width, recipes in found.items():
        number = program.ambiguous.get(names[width])
        if number is not None and not recipes:
            same_numbers = LargerNetwork({}, keeps_tables=False, is_multiple=False)
            if program.solved(width, names[width], same_numbers, None) is not None:
                width.endanger(ambiguity(number))
    return found


def _may_have_recipes(trace: Trace, width: Dim) -> bool:
    """Whether a width may grow, and so have recipes."""
    is_input = any(width is atom for dim in trace.inputs for atom in atoms(dim))
    # What is done along an axis of size 1 is lost where programs drop and repeat such axes.
    return width.size > 1 and not width.fixed and not is_input


class Finder:
    """What the readings of all widths share: who reads which value, and where widths appear.

    Args:
        trace: a network's program, read and with all dimensions known.
        values: its arrays by path.
        leaves: the arrays again, with layouts and roles.

    Attributes:
        ambiguous: by width, a constant that may follow from the size or not.
    """

    def __init__(self, trace: Trace, values: Mapping[str, Value], leaves: Sequence[Leaf]) -> None:
        self._trace, self._steps, self._degrees = trace, trace.steps, trace.degrees
        self.ambiguous: dict[str, float] = {}
        self._leaves, self._paths = list(values.values()), list(values)
        self._places: dict[str, dict[int, Place]] = {}
        numbers = {path: index for index, path in enumerate(values)}
        for leaf in leaves:
            index = numbers[leaf.path]
            use = trace.uses.get(index)
            for name, roles in _roles(leaf).items():
                parts = {
                    axis: _parts(leaf.axes[axis], name)
                    for axis, role in roles.items()
                    if role is None or _is_part(leaf.axes[axis], name)
                }
                place = Place(leaf.path, use.how if use else "", roles, parts)
                self._places.setdefault(name, {})[index] = place
        self._makers = {  # of what goes through a copy, the step before
            id(v): step
            for step in self._steps
            for v in step.results
            if not any(v is operand for operand in step.operands)
        }
        self._readers: dict[int, list[int]] = {}
        self._steps_of: dict[Dim, list[int]] = {}
        known: dict[int, set[Dim]] = {}
        for index, step in enumerate(self._steps):
            found: set[Dim] = set()
            for value in (*step.operands, *step.results):
                if id(value) not in known:
                    known[id(value)] = {atom for dim in value.dims for atom in atoms(dim)}
                found |= known[id(value)]
            for value in step.operands:
                self._readers.setdefault(id(value), []).append(index)
                if primitive(step.name).powers:  # perhaps by the size of what was summed over
                    summed = (*value.contracted, *value.summed)
                    found |= {atom for dim in summed for atom in atoms(dim)}
            for atom in found:
                self._steps_of.setdefault(atom, []).append(index)

    def recipes(self, width: Dim, name: str) -> Iterator[Recipe]:
        """Yields the recipes for each way to fill in new units that is exact.

        First comes the one that keeps the epsilons of norms, because larger models have the same.
        """
        known: dict[str, float] = {}
        why, is_dead = "", False
        for filling in _FILLINGS:
            reading = None
            if filling is _DEAD and not is_dead:
                continue
            try:
                reading = self._reading(name, width, filling)
                self._read(reading)
            except NoRecipe as reason:
                if isinstance(reason, Ambiguous):
                    self.ambiguous.setdefault(name, reason.number)
                if filling.is_tiled and filling.has_rest and reading is not None:
                    why = why or obstacle(reading, self._steps, self._makers)
                continue
            if reading.is_dead and filling is not _DEAD:
                is_dead |= filling.strategy.incoming == "zero"
                continue
            solutions = [_solution(reading, keeps, self._paths) for keeps in (True, False)]
            found = [recipe for recipe in dict.fromkeys(solutions) if recipe is not None]
            if not found:
                continue
            key = name, filling.strategy.name, filling.multiple
            self._degrees[key], self._trace.epsilons[key] = reading.degrees, reading.epsilons
            followed = {degree.number for degree in reading.degrees.values()}
            for recipe in found:
                known |= {what: number for what, number, _ in recipe.constants}
                same = ((what, n, 0.0) for what, n in known.items() if abs(n) not in followed)
                stay = tuple(same) if filling.multiple else ()
                yield replace(
                    recipe,
                    constants=recipe.constants or stay,
                    obstacle=why if filling.multiple else "",
                )
            if filling.is_tiled:  # what works for any number of copies works for the same of each
                return

    def solved(
        self, width: Dim, name: str, larger: LargerNetwork, strategy: str | None
    ) -> tuple[Recipe, Mapping[int, Degree]] | None:
        """Returns a width's recipe for one larger network whose numbers are known.

        The recipe keeps all epsilons, because the larger network's epsilons are not looked at.

        Args:
            width: the width.
            name: its name.
            larger: what is known of the larger network.
            strategy: the strategy that the recipe must go with, if any.

        Returns:
            The recipe, and the numbers that it makes up for, by the index of the step; None if
            there is no recipe.
        """
        if not _may_have_recipes(self._trace, width):
            return None
        for filling in _FILLINGS:
            if filling.is_uneven or (filling.multiple and not larger.is_multiple):
                continue
            if strategy not in (None, filling.strategy.name):
                continue
            if filling is _DEAD and strategy is None:
                continue
            try:
                reading = self._reading(name, width, filling, larger)
                self._read(reading)
            except NoRecipe:
                continue
            if reading.is_dead and filling is not _DEAD:
                continue
            recipe = _solution(reading, True, self._paths)
            if recipe is not None and not any(power for *_, power in recipe.constants):
                return replace(recipe, constants=()), reading.degrees
        return None

    def _reading(
        self, name: str, width: Dim, filling: Filling, larger: LargerNetwork | None = None
    ) -> Reading:
        def readers(value: Value) -> list[Step]:
            steps = [self._steps[index] for index in self._readers.get(id(value), ())]
            return [step for step in steps if not primitive(step.name).runs]

        places = self._places[name]
        return Reading(name, width, filling, places, self._leaves, self._paths, readers, larger)

    def _read(self, reading: Reading) -> None:
        """Reads every equation that has to do with the width, in the order of the program."""
        pending = list(self._steps_of.get(reading.width, ()))
        seen = set(pending)
        while pending:
            reading.index = heapq.heappop(pending)
            step = self._steps[reading.index]
            if step.results and all(value.origin == "constant" for value in step.results):
                reading.repeat(step)
                continue
            states = with_numbers(reading, step, states_of(reading, step))
            for value, state in zip(step.results, states, strict=True):
                if primitive(step.name).pieces and state.power:  # it may be a part of a fused array
                    state = reading.cut(value, state)
                reading.states[id(value)] = state
                if not state.is_plain:
                    new = {*self._readers.get(id(value), ())} - seen
                    seen |= new
                    for index in new:
                        heapq.heappush(pending, index)


def _roles(leaf: Leaf) -> dict[str, dict[int, Role | None]]:
    """The role of each width along each axis of a leaf, None if it has several there."""
    found: dict[str, dict[int, Role | None]] = {}
    for axis, layout in enumerate(leaf.axes):
        for units in units_of(layout):
            roles = found.setdefault(units.width, {})
            roles[axis] = units.role if roles.get(axis, units.role) == units.role else None
    return found


def _parts(layout: Layout, name: str) -> dict[Role, np.ndarray]:
    """Where the units of a width lie along an axis, by role."""
    roles = {units.role for units in units_of(layout) if units.width == name}
    return {role: units_along(layout, name, (role,)) >= 0 for role in roles}


def _is_part(layout: Layout, name: str) -> bool:
    """Whether something else lies beside the units of a width along an axis."""
    if len({units.width for units in units_of(layout)}) == 1:
        return False
    return not np.any([*_parts(layout, name).values()], 0).all()


def _solution(reading: Reading, keeps_epsilons: bool, paths: Sequence[str]) -> Recipe | None:
    """Returns the recipe in which the epsilons of norms stay, or else arrays, if they can.

    It is None if an epsilon would follow from the number of copies.

    Args:
        reading: the program, read for one width.
        keeps_epsilons: whether epsilons stay rather than arrays.
        paths: the paths of all leaves.
    """
    equations = reading.equations.copy()
    epsilons = [constant.power for constant in reading.constants] if keeps_epsilons else []
    for power in (*epsilons, *reading.wishes):
        equations.wish(power)
    leaves = (*reading.places, *sorted(reading.beside))
    powers = {paths[leaf]: equations.value({leaf: 1.0}) for leaf in leaves}
    constants = []
    for constant in reading.constants:
        of_ratio, of_copies = equations.value(constant.power)
        if of_copies:
            return None
        constants.append((constant.what, constant.number, of_ratio))
    filling = reading.filling
    name: Any = filling.strategy.name
    fused = {reading.places[leaf].path for leaf in reading.parts}

    def rescaled(whole: bool) -> tuple[tuple[str, float], ...]:
        return tuple(
            (path, of_ratio)
            for path, (of_ratio, _) in powers.items()
            if of_ratio and (path not in fused) == whole
        )

    places = reading.places.items()
    blank = () if not filling.has_rest else (p.path for leaf, p in places if leaf in reading.blank)
    return Recipe(
        name,
        rescaled(whole=True),
        tuple(constants),
        tuple(blank),
        filling.multiple,
        tuple((path, of_copies) for path, (_, of_copies) in powers.items() if of_copies),
        tuple(
            (place.path, reading.offsets[leaf])
            for leaf, place in places
            if leaf in reading.offsets and any(powers[place.path])
        ),
        rescaled(whole=False),
        tuple(
            (place.path, role)
            for leaf, place in places
            for role in sorted(role for its, role in reading.zeros if its == leaf)
        ),
        weighed=tuple(
            (place.path, reading.places[reading.weighed[leaf]].path)
            for leaf, place in places
            if leaf in reading.weighed
        ),
        rounding=max(
            (c.rounding for c in reading.constants if c.rounding > SINGLE_PRECISION), default=0.0
        ),
    )
