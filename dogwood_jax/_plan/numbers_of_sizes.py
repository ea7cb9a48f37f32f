"""Constants of a program that may depend on a size: ``numbers_of_sizes``.

For example, a module that holds its size ``n`` computes ``h + 0.1 * n``, and its program adds 0.8.
If the module accepts no other sizes, nothing shows whether 0.8 depends on ``n``. Only constants in
the caller's own code are in question. Constants in ``jax.nn`` and in layers of a library do not
depend on sizes, except roots such as 1 / sqrt(head_dim) that scale queries, keys and scores.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, product
from math import isclose, log10
from typing import Any, NamedTuple

from dogwood_jax._check.constant_tables import tables_along
from dogwood_jax._check.lines import is_of_library, line_of, with_line
from dogwood_jax._check.resize import ratio_of_mean
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.modules.resizing import sizes_in
from dogwood_jax._plan.fewer_layers import few_layers_of
from dogwood_jax._program.dims import parts_of
from dogwood_jax._program.interpret import called
from dogwood_jax._program.primitives.table import PRIMITIVES, primitive
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import Key, numbers_of
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

# Usual factors on a power of a size.
_TIMES = (1.0, *(2.0**k for k in range(-4, 5)), 0.01, 0.1, 10.0, 100.0)
# Formulas are tried for larger sizes only: many constants match small sizes by chance.
_SMALL = 4
_NEAR = 1e-6
_POWERS = (1.0, -1.0, 0.5, -0.5)
_ROOTS = (0.5, -0.5, 0.25, -0.25)

_OPEN = (
    "{}: {:.6g}{} may follow from a size, as {}, or be a number of its own, and the network's "
    "function does not take other sizes to tell; pass target_apply=, the larger model's function"
)
_FOLLOWS = (
    "{}: {:.6g}{} is taken for {}, so it is {:.6g} in the larger model; pass target_apply=, the "
    "larger model's function, if it is a number of its own"
)
_STAYS = (
    "{}: {:.6g}{} stays what it is; pass target_apply=, the larger model's function, if it follows "
    "from a size, as {}"
)
_SCALES = (
    "{}: the constant {:.6g} scales what is summed over it: the larger model must have the same; "
    "if it has another, pass its function as target_apply="
)
_TABLE = (
    "{}: {}, has a number for each unit, which may be another one in the larger model, and the "
    "network's function does not take other sizes to tell; pass target_apply=, the larger model's "
    "function"
)


class NumberOfSize(NamedTuple):
    """A constant that may depend on a size.

    Attributes:
        width: name of the width.
        number: the constant.
        ratio: the constant in the larger model divided by this one, if it depends on the size.
        formula: the possible formula, such as ``"8**-0.5"``.
        line: the line in the caller's code, or nothing.
        is_root: whether the formula is a root of the size, and nothing else.
    """

    width: str
    number: float
    ratio: float
    formula: str
    line: str
    is_root: bool

    @property
    def is_simple(self) -> bool:
        """Whether the number or its inverse is whole, so that it may be one by chance."""
        return _is_simple(self.number)

    def __str__(self) -> str:
        return _OPEN.format(self.width, self.number, self._where, self.formula)

    @property
    def follows(self) -> str:
        """The note on the number if it is taken for its formula."""
        other = self.number * self.ratio
        return _FOLLOWS.format(self.width, self.number, self._where, self.formula, other)

    @property
    def stays(self) -> str:
        """The note on the number if it is not."""
        return _STAYS.format(self.width, self.number, self._where, self.formula)

    @property
    def _where(self) -> str:
        return f" ({self.line})" if self.line else ""


class _Number(NamedTuple):
    """A constant of a program that acts on units that grow.

    Attributes:
        number: the constant.
        name: name of the primitive that takes the constant.
        step: the key of its step.
        widths: the widths of the units, or of the units that a product was last summed over.
        is_summed: whether ``widths`` are only those that were summed over.
        is_scored: whether two activations are contracted over the widths.
        is_library: whether a library function takes the constant.
        equations: the equations of the calls around the step, then that of the step.
    """

    number: float
    name: str
    step: Key
    widths: Collection[str]
    is_summed: bool
    is_scored: bool
    is_library: bool
    equations: Sequence[Any]


def _is_simple(number: float) -> bool:
    return any(isclose(n, round(n), rel_tol=_NEAR) for n in (number, 1 / number))


def _numbers(
    growth: Growth, traced: Traced, names: Collection[str] | None = None
) -> Iterator[_Number]:
    """Yields the constants of a program that act on units that grow, except divisors of means.

    Args:
        growth: the growth.
        traced: the network's program.
        names: the primitives that take the constants; None for all.
    """
    sizes = GrownSizes(growth.widths, growth.sizes)
    for step in traced.trace.program.flat(names=names):
        number = next((v.number for v in step.operands[::-1] if v.number is not None), None)
        if not number or called(step.eqn) is not None or ratio_of_mean(step, sizes) is not None:
            continue
        values = (*step.operands, *step.results)
        own = {d for value in values for d in value.dims if sizes(d) != d.size}
        grows = own or {d for v in values for d in v.contracted if sizes(d) != d.size}
        parts = {part for dim in grows for part in (dim.root, *parts_of(dim))}
        if own_names := {sizes.names[part] for part in parts if part in sizes.names}:
            yield _Number(
                float(number),
                step.name,
                step.key,
                own_names & growth.change.keys(),
                not own,
                any(part.bilinear for part in parts),
                is_library=is_of_library(equations := (*step.callers, step.eqn)),
                equations=equations,
            )


def numbers_of_sizes(growth: Growth, traced: Traced) -> dict[Key, NumberOfSize]:
    """Returns constants that act on units that grow and may depend on the number of these units.

    Args:
        growth: the growth.
        traced: the network's program.

    Returns:
        The constants by the key of the step that takes them.
    """
    layouts = [layout for leaf in growth.widths.leaves for layout in leaf.axes]
    stay = {old for old, new in chain(*(sizes_in(a, growth.sizes) for a in layouts)) if old == new}
    found = dict[Key, NumberOfSize]()
    for its in _numbers(growth, traced):
        ways, changes = list[_Way](), [growth.change[name] for name in sorted(its.widths)]
        if its.is_scored:
            ways += _powers(its, changes, _ROOTS)
        if not its.is_library:
            ways += _powers(its, changes, _POWERS) if its.is_summed else _formulas(its, changes)
        if ways and not (min(ways)[0] and _is_any(its.number, stay)):
            _, width, formula, ratio = min(ways)
            line = line_of(with_line(its.equations))
            size = growth.change[width].old
            is_root = formula in {f"{size}**{power:g}" for power in _ROOTS}
            is_root &= its.is_scored or size > _SMALL
            # A factor on a sum may also be a quotient, such as LoRA's alpha / rank.
            is_root &= its.is_scored or not (its.is_summed and _is_simple(its.number))
            found[its.step] = NumberOfSize(width, its.number, ratio, formula, line, is_root)
    return found


def tables_of(widths: Widths, names: Collection[str]) -> list[str]:
    """Returns problems with constant tables that have a number for each unit.

    The numbers may be different in the larger model.

    Args:
        widths: the network's widths.
        names: the widths along which tables are looked for.
    """
    if widths.network is None:
        return []
    widths = few_layers_of(widths)
    dims = GrownSizes(widths, {}).names
    assert widths.network is not None
    found = tables_along(widths.network.traced, {d: n for d, n in dims.items() if n in names})
    return [*dict.fromkeys(_TABLE.format(name, what) for name, what in found)]


def scales_of_sums(
    growth: Growth, traced: Traced, own: Program | None
) -> Iterator[tuple[float, str]]:
    """Yields constants that scale a sum over units, such as LoRA's alpha / rank, with a note.

    Args:
        growth: the growth.
        traced: the network's program.
        own: the program of the network's own function in the new sizes, or None. Only constants
            that it also has are noted.
    """
    known = None if own is None else {*numbers_of(own.jaxpr)}
    products = [name for name, record in PRIMITIVES.items() if record.powers]
    for its in _numbers(growth, traced, products):
        if its.is_summed and not its.is_library:
            if abs(its.number) != 1 and (known is None or its.number in known):
                names = ", ".join(sorted(its.widths))
                yield its.number, _SCALES.format(names, its.number)


# The distance of a formula from a plain power of a size, the width, the formula, and the ratio of
# the constants after and before the growth.
_Way = tuple[float, str, str, float]


def _is_any(number: float, sizes: Iterable[int]) -> bool:
    """Whether a number is a power of a size that stays, such as the root of eight."""
    powers = (float(size) ** power for size in sizes if size > 1 for power in _POWERS)
    return any(isclose(number, power, rel_tol=_NEAR) for power in powers)


def _powers(its: _Number, changes: Iterable[Change], powers: Sequence[float]) -> Iterator[_Way]:
    """Yields the sizes of which a factor or divisor is a power."""
    for change, power in product(changes if primitive(its.name).powers else (), powers):
        if change.old > 1 and isclose(abs(its.number), change.old**power, rel_tol=_NEAR):
            ratio = (change.new / change.old) ** power
            yield 0.0, change.width, f"{change.old}**{power:g}", ratio


def _formulas(its: _Number, changes: Iterable[Change]) -> Iterator[_Way]:
    """Yields formulas by which a number may depend on a size.

    An added 1 has many reasons, so it is skipped. Nobody multiplies by 1 on purpose, so such a
    factor may be a quotient of the size and another number.
    """
    law = primitive(its.name)
    if abs(its.number) == 1 and law.terms is not None:  # such as 1 + scale
        return
    is_quotient = abs(its.number) == 1 and bool(law.powers)
    for change, offset in product(changes, (0.0, 1.0)):
        for power in _POWERS if change.old > _SMALL else ():
            times = (its.number - offset) / change.old**power
            times = 1.0 if isclose(times, 1.0, rel_tol=_NEAR) else times
            usual = any(
                isclose(abs(times), t, rel_tol=_NEAR) for t in _TIMES[: 1 if offset else None]
            )
            if usual or (is_quotient and not offset and abs(power) == 1):
                begin = f"{offset:g} + " * bool(offset)
                by = f"{times:g} * " * (times != 1)
                formula = f"{begin}{by}{change.old}**{power:g}"
                other = offset + times * change.new**power
                yield abs(log10(abs(times))), change.width, formula, other / its.number
