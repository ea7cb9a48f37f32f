"""Numbers of a program that may follow from a size: ``numbers_of_sizes``.

A module that holds its size computes ``h + 0.1 * n``, and its program adds 0.8. Where the module
takes no other sizes, nothing tells this number from one of its own. It is asked only of numbers in
the caller's own code: those of ``jax.nn`` and of layers of a library are known not to follow.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from math import isclose, log10
from typing import NamedTuple

from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.lines import is_of_library, line_of, with_line
from dogwood_jax._judge.resize import ratio_of_mean
from dogwood_jax._modules.resizing import sizes_in
from dogwood_jax._program.interpret import called
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.subprograms import equations_as_read
from dogwood_jax._widths.trace import Traced

# What somebody may multiply a power of a size by.
_TIMES = (1.0, *(2.0**k for k in range(-4, 5)), 0.01, 0.1, 10.0, 100.0)
# Smaller sizes are numbers of all kinds.
_SMALL = 4
_POWERS = (1.0, -1.0, 0.5, -0.5)

_OPEN = (
    "{}: {:.6g}{} may follow from a size, as {}, or be a number of its own, and the network's "
    "function does not take other sizes to tell; pass target_apply=, the larger model's function"
)


class NumberOfSize(NamedTuple):
    """A number that may follow from a size.

    Attributes:
        width: the width.
        number: the number.
        ratio: how many times larger it would be in the larger model.
        formula: how it may follow.
        line: its line in the caller's code.
    """

    width: str
    number: float
    ratio: float
    formula: str
    line: str

    def __str__(self) -> str:
        where = f" ({self.line})" if self.line else ""
        return _OPEN.format(self.width, self.number, where, self.formula)


def numbers_of_sizes(
    growth: Growth, traced: Traced, known: Mapping[int, float]
) -> dict[int, NumberOfSize]:
    """Returns numbers that act on units that grow and may follow from how many these are.

    Args:
        growth: the growth.
        traced: the network's program.
        known: the steps whose numbers are known.

    Returns:
        The numbers by the index of their step.
    """
    sizes, found = GrownSizes(growth.widths, growth.sizes), dict[int, NumberOfSize]()
    layouts = [layout for leaf in growth.widths.leaves for layout in leaf.axes]
    stay = {old for old, new in chain(*(sizes_in(a, growth.sizes) for a in layouts)) if old == new}
    (read,) = traced.trace.programs
    for eqn, callers, sized in equations_as_read(traced.program.jaxpr.jaxpr, read):
        values = (*sized.operands, *sized.results)
        grows = any(sizes(dim) != dim.size for value in values for dim in value.dims)
        number = next((v.number for v in sized.operands[::-1] if v.number is not None), None)
        if not grows or not number or sized.step in known or called(eqn) is not None:
            continue
        if ratio_of_mean(eqn, sized, sizes) is not None or is_of_library((*callers, eqn)):
            continue
        found_now = _formula(float(number), eqn.primitive.name, growth, stay)
        if found_now is not None:
            width, formula, ratio = found_now
            line = line_of(with_line((*callers, eqn)))
            found[sized.step] = NumberOfSize(width, number, ratio, formula, line)
    return found


def _formula(
    number: float, name: str, growth: Growth, stay: Iterable[int]
) -> tuple[str, str, float] | None:
    """Returns which width a number may follow from, how, and how many times larger it would be.

    If it rather follows from a size that stays, such as the root of eight from eight, it is None.
    """
    ways = [
        (far, change.width, formula, other / number)
        for change in growth.changes
        for far, formula, other in _others(number, name, change.old, change.new)
    ]
    powers = {float(size) ** power for size in stay if size > 1 for power in _POWERS}
    if not ways or (min(ways)[0] and any(isclose(number, p, rel_tol=1e-6) for p in powers)):
        return None
    return min(ways)[1:]


def _others(number: float, name: str, old: int, new: int) -> Iterator[tuple[float, str, float]]:
    """Yields how a number may follow from a size, and what it is in the new size.

    Before them comes how far the formula is from a plain power of the size.

    Args:
        number: the number.
        name: the primitive that takes it. One is added for many reasons, but
            nobody multiplies by it: it must be a quotient.
        old: the size.
        new: the new size.
    """
    law = primitive(name)
    if abs(number) == 1 and law.terms is not None:  # as in 1 + scale
        return
    is_quotient = abs(number) == 1 and bool(law.powers)
    for offset in (0.0, 1.0):
        for power in _POWERS if old > _SMALL else ():
            times = (number - offset) / old**power
            usual = any(
                isclose(abs(times), t, rel_tol=1e-6) for t in _TIMES[: 1 if offset else None]
            )
            if usual or (is_quotient and not offset and abs(power) == 1):
                begin = f"{offset:g} + " * bool(offset)
                formula = f"{begin}{times:g} * {old}**{power:g}"
                yield abs(log10(abs(times))), formula, offset + times * new**power
