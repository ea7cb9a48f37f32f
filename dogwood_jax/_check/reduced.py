"""The claim of a growth, in small sizes if the network is large: ``claim``.

A network with 4,096 units has a reduced model with 6 units: the same program in other sizes. If a
growth keeps the outputs of the reduced model, it keeps the outputs of the network, because a
program depends on the length of an axis only through its constants, which stay the same. If arrays
are rescaled or units are copied, a width keeps the ratio of its sizes, so factors and shares stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd, prod
from typing import Any

import jax.numpy as jnp

from dogwood_jax._base.trees import struct
from dogwood_jax._check.choices import Chosen, RouterChoice, dims_of, factors_of
from dogwood_jax._check.claim import Case, Side, case_of
from dogwood_jax._check.constant_tables import first_other_table, first_partial_table
from dogwood_jax._check.resize import in_sizes, least_sizes
from dogwood_jax._check.spatial import lost_entries, spatial_sizes
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._program.dims import Dim, atoms, factors, pieces, spread_out
from dogwood_jax._program.primitives.new_sizes import CannotResize
from dogwood_jax._program.subprograms import Key, entries, every_constant
from dogwood_jax._widths.layout import Layout, Product, Units, resized, size_of, units_of
from dogwood_jax._widths.roles import spots_along
from dogwood_jax._widths.trace import Traced

# No array of a reduced model has more entries than this.
_MOST = 10_000_000
# All of its arrays together have no more, because many samples of it are evaluated.
_MOST_TOGETHER = 20_000_000
# Sizes up to this one stay the same.
_SHORT = 4
# The sizes of widths in a reduced model, used in turn.
_SIZES = (5, 6, 7)
# The sizes of its inputs: smaller, because no input may be longer than a table of positions.
_OF_INPUTS = (3, 4, 2)
# Which axes of inputs get smaller sizes, in the order in which it is tried.
_INPUTS = ("all", "spatial and first", "first", "none")
# A width keeps its own sizes if their ratio needs more units than this.
_LARGEST = 64


# Programs with at most this many entries in all arrays are evaluated in their own sizes.
_FEW = 50_000
# Larger programs are, too, if a reduced model does not suffice and no array has more entries.
_BEARABLE = 2_000_000


class CannotShrink(ValueError):
    """The reason why there is no reduced model."""


class OtherTable(CannotShrink):
    """A constant table differs between two programs that are too large to be evaluated."""


# The reason why nothing can be evaluated.
NoCase = CannotShrink | CannotResize


@dataclass(frozen=True)
class LargerProgram:
    """The larger program.

    Attributes:
        traced: the program as it was read; None for the network's own program in larger sizes.
        numbers: factors on constants of the program, by key of the step, see ``in_sizes``.
        choices: the choices of routers whose experts are copied.
    """

    traced: Traced | None
    numbers: Mapping[Key, float] = field(default_factory=dict)
    choices: Sequence[RouterChoice] = ()


def claim(
    growth: Growth, traced: Traced, larger: LargerProgram, *, in_own_sizes: bool = False
) -> Case | NoCase:
    """Returns the claim of a growth, in small sizes if the network is large.

    Args:
        growth: the growth.
        traced: the network's program.
        larger: the larger program.
        in_own_sizes: whether to keep the network's own sizes.

    Returns:
        The claim; ``CannotShrink`` if the programs do not fit small sizes and are too large to be
        evaluated; ``CannotResize`` if there is no larger program and the network's program does not
        fit larger sizes.
    """
    try:
        return _claim(growth, traced, larger, in_own_sizes)
    except (CannotShrink, CannotResize) as why:
        return why


def _claim(growth: Growth, traced: Traced, larger: LargerProgram, in_own_sizes: bool) -> Case:
    is_few = sum(entries(traced.program.jaxpr)) <= _FEW
    is_few &= sum(map(prod, growth.shapes.values())) <= _BEARABLE
    if larger.traced is not None and is_bearable(traced):
        is_few |= _count_otherwise(growth, traced, larger.traced)
    if larger.traced is not None and not (is_few or in_own_sizes):
        other = first_other_table(growth, traced, larger.traced)
        if other is not None and not is_bearable(traced):
            raise OtherTable(other)
        is_few |= other is not None
    if not is_few and not in_own_sizes:
        try:
            return reduced_case(growth, traced, larger)
        except CannotShrink:
            if not is_bearable(traced):
                raise
    chosen = [(choice.theirs, choice.new) for choice in larger.choices]
    numbers = {**larger.numbers, **factors_of(chosen)}
    if larger.traced is None:
        sizes = GrownSizes(growth.widths, growth.sizes, dims_of(chosen))
        new = _side(_fit(in_sizes(traced, sizes, numbers)), traced)
    elif any(theirs.count != count for theirs, count in chosen):
        of_choices = in_sizes(larger.traced, _Sizes(dims_of(chosen)), numbers)
        new = _side(_fit(of_choices), larger.traced)
    else:
        program = larger.traced.program
        new = Side(program.jaxpr, program.arguments, program.results)
    return replace(case_of(growth, traced, new), is_resized=larger.traced is None)


def _fit(jaxpr: Any) -> Any:
    """Returns a program, or raises the ``CannotResize`` in its place."""
    if isinstance(jaxpr, CannotResize):
        raise jaxpr
    return jaxpr


def is_bearable(traced: Traced) -> bool:
    """Whether a program can be evaluated in its own sizes."""
    return most_entries(traced.program.jaxpr) <= _BEARABLE


def _count_otherwise(growth: Growth, traced: Traced, larger: Traced) -> bool:
    """Whether two programs differ in integers that are not sizes, such as a window or a position.

    Small sizes may not reach these integers.
    """
    sizes = {size for change in growth.changes for size in (change.old, change.new)}
    ours, theirs = _integers(traced.program.jaxpr), _integers(larger.program.jaxpr)
    return bool((ours ^ theirs) - sizes)


def _integers(jaxpr: Any) -> frozenset[int]:
    found = set[int]()

    def constant(array: Any, aval: Any) -> None:
        if not aval.shape and jnp.issubdtype(aval.dtype, jnp.integer):
            found.add(int(array))

    every_constant(jaxpr, constant)
    return frozenset(found)


def reduced_case(growth: Growth, traced: Traced, larger: LargerProgram) -> Case:
    """Returns the claim in small sizes, with the growth in these sizes.

    Raises:
        CannotShrink: if the programs do not fit small sizes.
    """
    problem = ""
    for inputs in _INPUTS:
        try:
            return _Reduced(growth, traced, larger, inputs).case()
        except (CannotResize, CannotShrink) as error:
            problem = problem or str(error)
    raise CannotShrink(problem)


class _Reduced:
    def __init__(self, growth: Growth, traced: Traced, larger: LargerProgram, inputs: str) -> None:
        self._growth, self._traced, self._larger = growth, traced, larger
        self._left = 0
        self._pairs: dict[Any, tuple[int, int]] = {}
        widths = growth.widths
        self._before: dict[str, int] = {}
        self._after: dict[str, int] = {}
        least = least_sizes(traced)
        # Entries along axes of images that inputs lose, and the sizes that follow.
        self._lost = lost_entries(traced) if inputs in _INPUTS[:2] else {}
        spatial = spatial_sizes(traced, self._lost)
        names = GrownSizes(widths, {}).names if spatial else {}
        positions = {names[dim]: size for dim, size in spatial.items() if dim in names}
        for name, facts in widths.facts:
            change = growth.change.get(name)
            if name in positions:  # such as the rows of a table of positions
                if change is not None:
                    raise CannotShrink(f"{name} counts positions, and grows")
                pair = positions[name], positions[name]
            elif change is not None:
                alike = change.old, change.new, _keeps_ratio(change)
                if alike not in self._pairs:
                    self._pairs[alike] = self._pair(change)
                pair = self._pairs[alike]
            elif facts.size <= _SHORT or facts.fixed:
                pair = facts.size, facts.size
            else:
                assert widths.network is not None
                dims = widths.network.dims(widths[name].occurrences)
                needed = max((least.get(dim, 0) for dim in dims), default=0)
                if (facts.size, needed) not in self._pairs:
                    self._pairs[facts.size, needed] = (max(self._next(), needed),) * 2
                pair = self._pairs[facts.size, needed]
            self._before[name], self._after[name] = pair
        self._chosen_before, self._chosen = self._choices()
        shapes = {**self._of_inputs(inputs, spatial), **spatial}
        before, after = dims_of(self._chosen_before), dims_of(self._chosen)
        try:
            self.before = GrownSizes(widths, self._before, {**shapes, **before})
            # If a larger program is given, ``after`` holds dimensions of that program.
            after = after if larger.traced is None else before
            self.after = GrownSizes(widths, self._after, {**shapes, **after})
        except ValueError as error:  # layouts that do not fit the dimensions of the program
            raise CannotShrink(str(error)) from error

    def _next(self) -> int:
        self._left += 1
        return _SIZES[self._left % len(_SIZES)]

    def _pair(self, change: Change) -> tuple[int, int]:
        """Returns the reduced sizes of a width before and after the growth."""
        old, new = change.old, change.new
        if old <= 1 or new <= old or max(old, new) <= _SHORT:
            return old, new
        if change.sources != change.strategy.sources(old, new):  # useful experts get more copies
            return old, new
        if not _keeps_ratio(change):
            size = min(old, self._next())
            return size, size + min(new - old, 2)
        common = gcd(old, new)
        least = old // common
        times = -(-4 // least)
        if times * new // common > max(_LARGEST, 8 * times):
            return old, new
        return least * times, new // common * times

    def _choices(self) -> tuple[list[tuple[Chosen, int]], list[tuple[Chosen, int]]]:
        """Returns the numbers of experts that both programs choose in the reduced sizes."""
        before, after = [], []
        for choice in self._larger.choices:
            experts = self._growth.widths[choice.width].size
            old, new = choice.few(experts, self._before[choice.width])
            if old * choice.new != new * choice.ours.count:
                raise CannotShrink(f"small sizes lose the ratio of {choice.new} chosen experts")
            before.append((choice.ours, old))
            after.append((choice.theirs, new))
        return before, after

    def _of_inputs(self, which: str, spatial: Mapping[Dim, int]) -> dict[Dim, int]:
        """Returns reduced sizes of other input dimensions that no variable has, as the batch."""
        if which == "none":
            return {}
        leaves = {a for value in self._traced.leaves.values() for d in value.dims for a in atoms(d)}
        found: dict[Dim, int] = {}
        for value in self._traced.trace.arguments:
            for dim in value.dims if which == "all" else value.dims[:1]:
                for atom in atoms(dim):
                    if atom not in {*leaves, *found, *spatial} and atom.size > _SHORT:
                        found[atom] = _OF_INPUTS[len(found) % len(_OF_INPUTS)]
        return found

    def case(self) -> Case:
        """Returns the claim.

        Raises:
            CannotShrink: if the larger program splits axes in another way, if the reduced model is
                too large, or if constant tables have numbers of fewer kinds in it.
            CannotResize: if a program does not fit these sizes.
        """
        traced, its = self._traced, self._larger.traced
        jaxpr = _fit(in_sizes(traced, self.before, factors_of(self._chosen_before)))
        old = _side(_within_bounds(jaxpr), traced)
        if (table := first_partial_table(traced, jaxpr)) is not None:
            raise CannotShrink(f"small sizes hide numbers of {table}")
        numbers = {**self._larger.numbers, **factors_of(self._chosen)}
        if its is None:
            new = _side(_within_bounds(_fit(in_sizes(traced, self.after, numbers))), traced)
            inserted: tuple[Edit, ...] = ()
        else:
            sizes = _Sizes(self._known(its))
            new = _side(_within_bounds(_fit(in_sizes(its, sizes, numbers))), its)
            inserted = tuple(_shrunk(one, its, sizes) for one in self._growth.inserted)
        growth = self._growth_in_sizes(inserted)
        case = case_of(growth, traced, new, old, self.before, self.after)
        return replace(case, is_reduced=True, is_resized=its is None)

    def _growth_in_sizes(self, inserted: tuple[Edit, ...]) -> Growth:
        widths = self._growth.widths
        leaves = tuple(
            replace(
                leaf,
                shape=tuple(size_of(layout, self._before) for layout in leaf.axes),
                axes=tuple(resized(layout, self._before) for layout in leaf.axes),
            )
            for leaf in widths.leaves
        )
        facts = tuple((name, replace(f, size=self._before[name])) for name, f in widths.facts)
        changes = tuple(self._change(change) for change in self._growth.changes)
        small = replace(widths, leaves=leaves, facts=facts)
        return Growth(small, changes, (), None, inserted)

    def _change(self, change: Change) -> Change:
        old, new = self._before[change.width], self._after[change.width]
        if (old, new) == (change.old, change.new):
            return change
        strategy = replace(change.strategy, units=())
        sources = None if change.sources is None else strategy.sources(old, new)
        return replace(change, old=old, new=new, strategy=strategy, sources=sources)

    def _known(self, its: Traced) -> dict[Dim, int]:
        """Returns the reduced sizes of dimensions of the larger program."""
        known = {**spatial_sizes(its, self._lost), **dims_of(self._chosen)}
        growth = self._growth
        inserted = growth.inserted
        stacked = {edit.path: edit.layers.axis for edit in inserted if edit.layers}
        if any(e.experts or (e.fill and len(e.fill.values) > 1) for e in inserted):
            raise CannotShrink("arrays of new layers combine several old arrays")
        every = ((leaf, growth.place(leaf.path)) for leaf in growth.widths.leaves)
        places = [(leaf, path) for leaf, path in every if path is not None]
        copies = {edit.path: edit.source for edit in inserted if edit.is_whole}
        places += [(growth.widths.leaf(old), new) for new, old in copies.items() if old is not None]
        for leaf, path in places:
            for axis, layout in enumerate(leaf.axes):
                if axis != stacked.get(path):
                    self._match(its.leaves[path].dims[axis], layout, known)
        real = GrownSizes(growth.widths, growth.sizes)
        pairs = zip(self._traced.trace.arguments, its.trace.arguments, strict=True)
        for ours, theirs in pairs:
            for dim, larger in zip(ours.dims, theirs.dims, strict=True):
                match(larger, _of_dim(dim, real, self.after), known)
        least = least_sizes(its)
        for value in its.leaves.values():  # of new layers
            for dim in value.dims:
                for atom in atoms(dim):
                    if atom not in known and atom.size > _SHORT and not atom.fixed:
                        known[atom] = max(self._next(), least.get(atom, 0))
        return known

    def _match(self, dim: Dim, layout: Layout, known: dict[Dim, int]) -> None:
        """Records the reduced sizes of the parts of an axis in the larger program."""
        spots = [spot.atom for spot in spots_along(0, 0, spread_out(dim))]
        units = [self._expression(one) for one in units_of(layout)]
        if [atom.size for atom in spots] == [one.real for one in units]:
            for atom, one in zip(spots, units, strict=True):
                _note(atom, one.reduced, known)
        else:
            match(dim, self._expression(layout), known)

    def _expression(self, layout: Layout) -> "Expression":
        if isinstance(layout, Units):
            real = self._growth.sizes.get(layout.width, layout.size)
            return Expression(real, self._after[layout.width])
        parts = tuple(map(self._expression, layout.parts))
        kind = "product" if isinstance(layout, Product) else "concat"
        return _joined(kind, parts)


def _keeps_ratio(change: Change) -> bool:
    """Whether factors or shares of copies depend on the ratio of a width's sizes."""
    return change.recipe is not None or change.strategy.makes_alike


@dataclass(frozen=True)
class Expression:
    """The parts of an axis, with its sizes in the larger network and in the reduced model."""

    real: int
    reduced: int
    kind: str | None = None
    parts: tuple["Expression", ...] = ()

    def flat(self, kind: str) -> list["Expression"]:
        """Returns its parts; a part of the same kind is replaced by its own parts."""
        if self.kind != kind:
            return [self]
        return [inner for part in self.parts for inner in part.flat(kind)]

    @cached_property
    def keeps(self) -> bool:
        """Whether the axis and all its parts keep their sizes in the reduced model."""
        return self.real == self.reduced and all(part.keeps for part in self.parts)


def _joined(kind: str, parts: Sequence[Expression]) -> Expression:
    parts = tuple(parts)
    if len(parts) == 1:
        return parts[0]
    measure = prod if kind == "product" else sum
    return Expression(
        measure(p.real for p in parts), measure(p.reduced for p in parts), kind, parts
    )


def _of_dim(dim: Dim, real: GrownSizes, reduced: GrownSizes) -> Expression:
    dim = dim.root
    if dim.kind is None:
        return Expression(real(dim), reduced(dim))
    return _joined(dim.kind, [_of_dim(part, real, reduced) for part in dim.parts])


def match(dim: Dim, expression: Expression, known: dict[Dim, int]) -> None:
    """Records the reduced sizes of a dimension of the larger program, and of its parts.

    Raises:
        CannotShrink: if the dimension has other parts in the program.
    """
    dim = dim.root
    if expression.keeps:
        for atom in atoms(dim):
            _note(atom, atom.size, known)
        return
    if dim.kind is None:
        if dim.size != expression.real:
            raise CannotShrink(f"an axis has {dim.size} entries instead of {expression.real}")
        _note(dim, expression.reduced, known)
        return
    parts = factors(dim) if dim.kind == "product" else pieces(dim)
    ours = expression.flat(dim.kind)
    if dim.kind == "product":
        ours, parts = [e for e in ours if e.real != 1], [p for p in parts if p.size != 1]
    left = iter(ours)
    for part in parts:
        taken = [next(left, None)]
        while (whole := _whole(dim.kind, taken)) is not None and whole.real < part.size:
            taken.append(next(left, None))
        if whole is None or whole.real != part.size:
            raise CannotShrink(f"an axis of {dim.size} entries has other parts in one program")
        match(part, whole, known)


def _whole(kind: str, taken: Sequence[Expression | None]) -> Expression | None:
    known = [e for e in taken if e is not None]
    return _joined(kind, known) if len(known) == len(taken) else None


def _note(dim: Dim, size: int, known: dict[Dim, int]) -> None:
    if known.setdefault(dim.root, size) != size:
        raise CannotShrink(f"several widths share a dimension of {dim.size} entries")


class _Sizes:
    """Computes the size of each dimension from the sizes of its parts."""

    def __init__(self, known: Mapping[Dim, int]) -> None:
        self._known = {**known}

    def __call__(self, dim: Dim) -> int:
        dim = dim.root
        if dim not in self._known:
            parts = list(map(self, dim.parts))
            size = prod(parts) if dim.kind == "product" else sum(parts)
            self._known[dim] = size if dim.kind else dim.size
        return self._known[dim]


def _shrunk(edit: Edit, its: Traced, sizes: _Sizes) -> Edit:
    return replace(edit, shape=tuple(map(sizes, its.leaves[edit.path].dims)))


def _side(jaxpr: Any, traced: Traced) -> Side:
    arguments = [
        (path, struct(aval.shape, aval.dtype))
        for (path, _), aval in zip(traced.program.arguments, jaxpr.in_avals, strict=True)
    ]
    return Side(jaxpr, arguments, traced.program.results)


def _within_bounds(jaxpr: Any) -> Any:
    counts = [*entries(jaxpr)]
    if max(counts, default=0) > _MOST:
        raise CannotShrink("an array has more than ten million entries")
    if sum(counts) > _MOST_TOGETHER:
        raise CannotShrink("its arrays have more than twenty million entries in all")
    return jaxpr


def most_entries(jaxpr: Any) -> int:
    """Returns the number of entries of the largest array in a program."""
    return max(entries(jaxpr), default=0)
