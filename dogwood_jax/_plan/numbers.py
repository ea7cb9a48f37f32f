"""The numbers that a network and a larger one multiply by: ``Numbers``.

A size may enter a program as a number, as in ``0.1 * width``. In one program, this number looks
like any other. In the programs of two sizes it differs, so it depends on a size, and arrays may
make up for it (``solved``). Which number of one program is which of the other is a guess by their
order. A wrong guess makes a growth that the judge refuses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import isclose
from typing import TypeVar

from dogwood_jax._growth.growth import Change
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.dims import Dim, parts_of
from dogwood_jax._widths.scales import suspicion, to_blame
from dogwood_jax._widths.values import Degree, Step, Trace

T = TypeVar("T")
Degrees = Mapping[int, Degree]


class Numbers:
    """The numbers that two programs multiply by.

    Args:
        trace: the network's program as it was read.
        larger: the larger network's program.
        names: name of each width by dimension of the network.

    Attributes:
        factors: the numbers that both multiply a value by (the network's number, the larger
            network's number), by the index of the step of the network. A divisor counts as a factor
            of one over it. There are none if both programs have other numbers of them.
        rounding: how far the network's numbers may be rounded, relative to the number.
        names: name of each width by dimension.
    """

    def __init__(self, trace: Trace, larger: Trace, names: Mapping[Dim, str]) -> None:
        self._trace, self._larger, self.names = trace, larger, names
        ours, theirs = [*_factors(trace.steps)], [*_factors(larger.steps)]
        pairs = zip(ours, theirs) if len(ours) == len(theirs) else ()
        found = {one: (a, b) for (one, a, _), (_, b, _) in pairs if a * b > 0}
        self.factors: Mapping[int, tuple[float, float]] = found
        self.rounding = {index: rounding for index, _, rounding in ours}

    @property
    def agree(self) -> bool:
        """Whether all numbers are the same."""
        return all(_is_close(a, b) for a, b in self.factors.values())

    @cached_property
    def refuted(self) -> frozenset[tuple[str, str]]:
        """The name of a width and a hazard, for each number that does not follow from the width."""
        old, new = self._trace.scales, self._larger.scales
        same, others = set[tuple[str, str]](), set[tuple[str, str]]()
        for a, b in zip(old, new, strict=False):
            found = same if len(old) == len(new) and _is_close(a.scale, b.scale) else others
            for dim in to_blame(a, a.scale, a.rounding):
                names = (self.names.get(part) for part in parts_of(dim))
                found.update((name, suspicion(a.scale)) for name in names if name is not None)
        return frozenset(same - others)

    def degrees(self, change: Change) -> Degrees:
        """Returns what a change's recipe for any network of these widths knows of numbers."""
        return of_recipe(self._trace.degrees, change)


def moves_of(trace: Trace, changes: Iterable[Change]) -> dict[int, tuple[float, float]]:
    """Returns the numbers that must be others in the larger network, where recipes say so.

    Returns:
        By the index of the step that multiplies or divides by it: the number, and how many times
        larger it must be.
    """
    found: dict[int, tuple[float, float]] = {}
    for change in changes:
        for index, known in of_recipe(trace.degrees, change).items():
            ratio = float((change.new / change.old) ** known.degree)
            _, before = found.get(index, (known.number, 1.0))
            is_divisor = _divides(trace.steps[index])
            found[index] = known.number, before * (1 / ratio if is_divisor else ratio)
    return found


def of_recipe(
    noted: Mapping[tuple[str, str, bool], Mapping[int, T]], change: Change
) -> Mapping[int, T]:
    """Returns what was noted of numbers for the recipe of a change, by the index of a step."""
    recipe = change.recipe
    return noted.get((change.width, recipe.strategy, recipe.multiple), {}) if recipe else {}


def _factors(steps: Sequence[Step]) -> Iterator[tuple[int, float, float]]:
    """Yields the index of each step that multiplies by a number, the number and its rounding."""
    for index, step in enumerate(steps):
        numbers = [value.number for value in step.operands]
        if (powers := primitive(step.name).powers) and None in numbers:
            for value, power in zip(step.operands, powers, strict=True):
                if value.number:
                    yield index, value.number**power, value.rounding


def _divides(step: Step) -> bool:
    powers = primitive(step.name).powers
    return powers == (1, -1) and step.operands[1].number is not None


def _is_close(a: float, b: float) -> bool:
    return a == b or isclose(a, b, rel_tol=1e-6) or (a != a and b != b)
