"""Compares the programs of a network and of a larger one: ``Comparison``.

A size may enter a program as a number, as in ``0.1 * width``. In one program, this number looks
like any other. In the programs of two sizes it differs, so it depends on a size. The sizes of
arrays are compared, too: they must be the sizes that the growth gives them. If not, the larger
network cuts or reshapes its arrays in another way.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import isclose, prod
from types import MappingProxyType
from typing import Any

import numpy as np

from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Change
from dogwood_jax._growth.leaf_map import old_places
from dogwood_jax._plan.apart import NO_SINGLE_HEADS, SingleHeads
from dogwood_jax._plan.parameters import differing
from dogwood_jax._plan.tables import SpreadTables
from dogwood_jax._program.inner import scan_counts
from dogwood_jax._program.moves import KEEP_ORDER
from dogwood_jax._widths.contractions import FactorsOf, contractions_of
from dogwood_jax._widths.dims import Dim, factors, parts_of, pieces
from dogwood_jax._widths.positions import are_small, moved
from dogwood_jax._widths.scales import suspicion, to_blame
from dogwood_jax._widths.values import Degree, Step, Table, Trace, Value

# Operations that compute nothing. A program has other ones if other sizes are 1.
_QUIET = KEEP_ORDER | {"convert_element_type", "copy", "stop_gradient"}
# Operations whose operands may change places.
_COMMUTATIVE = frozenset("add add_any mul max min and or xor eq ne dot_general".split())
# Parameters that name axes.
_AXES = frozenset("axes axis dimension dimensions".split())
Degrees = Mapping[int, Degree]

# Operations behind which it is still known what a value was multiplied by.
_SCALED = _QUIET | {"mul", "div", "neg", "transpose", "take"}


def is_constant(number: float, larger: float, rounding: float, changes: Iterable[Change]) -> bool:
    """Whether a recipe explains that a constant is another one in the larger network."""
    return any(
        is_close(number, known, rounding)
        and is_close(larger, known * change.ratio**power, rounding)
        for change in changes
        for _, known, power in (change.recipe.constants if change.recipe else ())
    )


def moves_of(trace: Trace, changes: Iterable[Change]) -> dict[int, tuple[float, float]]:
    """Returns the numbers that must be others in the larger network, where recipes say so.

    Returns:
        By the index of the step that multiplies or divides by it: the number, and how many times
        larger it must be.
    """
    found: dict[int, tuple[float, float]] = {}
    for change in changes:
        for index, known in _degrees(trace.degrees, change).items():
            step, ratio = trace.steps[index], _ratio(change, known)
            is_divisor = step.name == "div" and step.operands[1].number is not None
            _, before = found.get(index, (known.number, 1.0))
            found[index] = known.number, before * (1 / ratio if is_divisor else ratio)
    return found


def _degrees(degrees: Mapping[Any, Degrees], change: Change) -> Degrees:
    """Returns what the recipe of a change knows of numbers, by the step that multiplies by them."""
    recipe = change.recipe
    return degrees.get((change.width, recipe.strategy, recipe.multiple), {}) if recipe else {}


def _ratio(change: Change, known: Degree) -> float:
    """Returns the ratio by which the factor grows that a recipe knows."""
    return float((change.new / change.old) ** known.degree)


class Comparison:
    """The differences between the programs of a network and of a larger one, apart from sizes.

    Args:
        trace: the network's program as it was read.
        larger: the larger network's program.
        grown: the sizes that dimensions of the network should have in the larger one.
        dispatch: the network's steps that take tokens to experts, if the larger network has more
            experts. Numbers there are positions, which follow from sizes.
        single: single heads of keys and values that are copied.

    Attributes:
        sizes: where arrays of the larger network have other sizes than they should, and the
            operations there.
        values: where the larger program does something else.
        numbers: where it computes with another number; for each place the network's number, the
            larger network's number and their rounding.
        is_in_step: whether both programs have the same operations in the same order.
        factors: the numbers that both multiply a value by (the network's number, the larger
            network's number), by the index of the step of the network. A divisor counts as a factor
            of one over it.
        refuted: the name of a width and a hazard, for each constant that turned out not to follow
            from the width.
    """

    def __init__(
        self,
        trace: Trace,
        larger: Trace,
        grown: GrownSizes,
        dispatch: Collection[int] = (),
        single: SingleHeads = NO_SINGLE_HEADS,
    ) -> None:
        self._grown, self._single = grown, single
        self._trace, self._larger = trace, larger
        self._spread = SpreadTables(trace, larger, grown)
        self._scaled: list[tuple[str, Value, Value]] = []
        self._indices = {id(step): index for index, step in enumerate(trace.steps)}
        self._dispatch = {id(trace.steps[index]) for index in dispatch}
        self._compared: set[tuple[int, int]] = set()  # arrays, by identity
        # What each step takes, by its identity. What is made alike has the same number.
        self._sources: dict[int, list[int | None]] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._takes_others = False
        self.sizes: dict[str, str] = {}
        self.values: dict[str, None] = {}
        self.numbers: dict[str, tuple[float, float, float]] = {}
        self.factors: dict[int, tuple[float, float]] = {}
        # Programs have other operations on axes of size 1 than on longer axes. Then axes of size 1
        # do not count in contractions, and other axes may be cut and joined there.
        self._is_loose = bool(single.divided) or any((b == 1) != (a == 1) for b, a in grown.lengths)
        # A single head may have no axis, or one at another place.
        self._counts_ones = not single.divided
        one = self._outline(trace, self._old_factors, self._expected)
        other = self._outline(larger, self._new_factors, self._lengths)
        self.is_in_step = list(map(_kind, one)) == list(map(_kind, other))
        if self.is_in_step:
            for a, b in zip(one, other, strict=True):
                self._compare(a, b)
        else:
            self._compare_unordered(one, other)
        self.refuted = self._refuted(trace.scales, larger.scales) if self.is_in_step else set()

    def _outline(
        self,
        program: Trace,
        factors_of: FactorsOf,
        shape_of: Callable[[Value], tuple[int, ...]],
    ) -> list[Step]:
        """Returns the steps of a program, without the ones that depend on which sizes are 1.

        Args:
            program: the program.
            factors_of: returns what each axis of an array is made of, apart from factors of size 1.
            shape_of: returns the shape that an array has in the larger network.
        """
        steps = _used(program.steps)
        contractions = contractions_of(steps, factors_of if self._is_loose else None)
        found: list[Step] = []
        names: dict[int, str] = {}
        moved: dict[int, Value] = {}
        made = {id(value): ("input", n) for n, value in enumerate(program.arguments)}
        known = {value: self._number(what) for value, what in made.items()}

        def source_of(value: Value) -> int | None:
            """Returns a number for what an array is made of; None for a constant."""
            while id(value) in moved and id(value) not in known:
                value = moved[id(value)]
            if value.origin == "constant":
                return None
            if id(value) not in known:
                known[id(value)] = self._number((value.origin, *sorted(value.leaves)))
            return known[id(value)]

        def name_of(value: Value) -> str:
            """Returns what an array is called: the step that makes it, or what it is."""
            if id(value) not in names:
                shape = shape_of(value)
                if self._is_loose:
                    shape = _without_ones(shape)
                if id(value) in moved:
                    name = f"{name_of(moved[id(value)])} as {shape}"
                else:
                    known = sorted(value.leaves) if value.origin == "parameter" else value.number
                    name = f"{value.origin} {known} {shape}"
                names[id(value)] = name
            return names[id(value)]

        def rank_of(value: Value) -> tuple[Any, ...]:
            source = source_of(value)
            return (-1 if source is None else source, name_of(value))

        for index, step in enumerate(steps):
            if index in contractions:
                if (contraction := contractions[index]) is None:
                    continue
                if contraction.keeps_order:
                    moved[id(step.results[0])] = contraction.operands[0][0]
                    continue
                step = contraction.step(step.results[0], name_of, rank_of, joined=self._is_loose)
            elif step.name in _QUIET:
                (value, *_), (result, *_) = step.operands, step.results
                if result is value:  # some rules return the operand itself
                    continue
                moved[id(result)] = value
                if step.name == "broadcast_in_dim" and value.origin != "constant":
                    axes = step.params["broadcast_dimensions"]
                    spread = _repeated(shape_of(value), shape_of(result), axes)
                    if spread is not None:
                        known[id(result)] = self._number((step.name, spread, source_of(value)))
                        names[id(result)] = f"{name_of(value)} along {spread}, {name_of(result)}"
                continue
            sources = [source_of(value) for value in step.operands]
            self._sources[id(step)] = sources
            if step.name in _COMMUTATIVE:
                sources = sorted(sources, key=str)
            for place, value in enumerate(step.results):
                names[id(value)] = f"{len(found)}.{place}"
                known[id(value)] = self._number((step.name, place, *sources))
            found.append(step)
        return found

    @property
    def names(self) -> Mapping[Dim, str]:
        """Name of each width by dimension."""
        return self._grown.names

    @property
    def agrees(self) -> bool:
        """Whether it is the same program, so that none of its numbers depends on a size."""
        return self._is_same_but_for_scales and not any(
            not is_close(a.scale, b.scale) for _, a, b in self._scaled
        )

    @property
    def _is_same_but_for_scales(self) -> bool:
        return self.is_in_step and not (self.sizes or self.values or self.numbers)

    @cached_property
    def kept_tables(self) -> frozenset[str]:
        """Names of widths whose old units keep their numbers in every table."""
        is_rescaled = any(
            a.origin == "constant" and not is_close(a.scale, b.scale) for _, a, b in self._scaled
        )
        if not self._is_same_but_for_scales or is_rescaled:
            return frozenset()
        if not are_small(self._larger.steps, self._grown.appended, self._spread.is_larger):
            return frozenset()
        others = moved(self._trace.steps) - self._grown.times.keys()
        return frozenset(name for dim, name in self._grown.names.items() if dim not in others)

    def problems(
        self,
        changes: Mapping[str, Change],
        *,
        exactly: bool,
        solved: Mapping[str, Degrees] = MappingProxyType({}),
    ) -> Iterator[str]:
        """Yields what speaks against a growth.

        Args:
            changes: how widths change, by name.
            exactly: whether the program must have the numbers that recipes ask the larger model
                for.
            solved: for each change whose recipe was solved from the numbers of both programs, the
                numbers that the recipe makes up for.
        """
        yield from self.sizes
        yield from self.values
        recipes = [change for change in changes.values() if change.recipe]
        for what, numbers in self.numbers.items():
            if not is_constant(*numbers, recipes):
                yield what
        for name, a, b in self._scaled:
            ratios = self._ratios(a, recipes, exactly, solved)
            wanted = [a.scale * ratio for ratio in ratios]
            rounding = max(a.rounding, b.rounding)
            if not any(is_close(b.scale, scale, rounding) for scale in wanted):
                yield f"{name} takes what was scaled by {b.scale:.6g} instead of {wanted[0]:.6g}"

    def degrees(self, change: Change) -> Degrees:
        """Returns what a change's recipe for any network of these widths knows of numbers."""
        return _degrees(self._trace.degrees, change)

    def _ratios(
        self,
        value: Value,
        changes: Sequence[Change],
        exactly: bool,
        solved: Mapping[str, Degrees],
    ) -> Sequence[float]:
        """Returns how much larger the numbers may be that a value was multiplied by."""
        ratio = noted = 1.0
        known = [(change, solved.get(change.width, self.degrees(change))) for change in changes]
        while (found := self._made.get(id(value))) is not None:
            index, step = found
            if step.name not in _SCALED or (step.name in ("mul", "div") and not _scales(step)):
                break
            for change, degrees in known:
                if (degree := degrees.get(index)) is not None:
                    if degree.is_noted and not exactly:
                        noted *= _ratio(change, degree)
                    else:
                        ratio *= _ratio(change, degree)
            value = next((v for v in step.operands if v.number is None), step.operands[0])
        return (ratio * noted, ratio)

    @cached_property
    def _made(self) -> dict[int, tuple[int, Step]]:
        """By value, the step of the network that makes it, and its index."""
        return {
            id(value): (index, step)
            for index, step in enumerate(self._trace.steps)
            for value in step.results
            if not any(value is operand for operand in step.operands)  # which it hands on
        }

    def _compare(self, old: Step, new: Step) -> None:
        is_dispatch = id(old) in self._dispatch
        takes_the_same = self._takes_the_same(old, new)
        # Operands of a contraction are in the order of what they are made of.
        is_aligned = takes_the_same or old.name != "dot_general"
        pairs = list(zip(old.results, new.results, strict=True))
        if is_dispatch:  # it may make positions of experts, or take tokens once for each choice
            pairs = [pair for pair in pairs if pair[0].origin != "constant"]
        elif is_aligned:
            pairs = [*zip(old.operands, new.operands, strict=True), *pairs]
        # A step may compute a mere number, such as a sum of ones. The number is compared where it
        # is used.
        for a, b in pairs if not _is_number(old) else ():
            if (id(a), id(b)) not in self._compared:
                self._compared.add((id(a), id(b)))
                self._compare_sizes(old, a, b)
        for what, a, b in self._parameters(old, new) if is_aligned else ():
            if a != b:
                if what == "operands":
                    self.values[f"{old.name} contracts other arrays"] = None
                else:
                    self.values[f"{old.name} has {what} {b} instead of {a}"] = None
        # What is made of these takes other arrays, too.
        if not (self._takes_others or takes_the_same):
            self._takes_others = True
            self.values[f"{old.name} takes other arrays"] = None
        self.values.update(dict.fromkeys(self._spread.problems(old, new)))
        if self._spread.makes(old):
            return
        for a, b in _constants(old, new) if not is_dispatch else ():
            if a not in self._spread and not self._is_same(old, a, b):
                what = f"{old.name} has {_said(b)}"
                if not (a.number is b.number is None):
                    what += f" instead of {_said(a)}"
                if a.number and b.number:
                    self.numbers[what] = (a.number, b.number, max(a.rounding, b.rounding))
                else:
                    self.values[what] = None
        if _scales(old) and old.name != "neg":
            for place, (a, b) in enumerate(zip(old.operands, new.operands, strict=True)):
                if a.number and b.number and a.number * b.number < 0:  # scales have no sign
                    self.values[f"{old.name} has {_said(b)} instead of {_said(a)}"] = None
                elif a.number and b.number:
                    sign = -1 if old.name == "div" and place == 1 else 1
                    self.factors[self._indices[id(old)]] = (a.number**sign, b.number**sign)
        if not _scales(old):
            for a, b in zip(old.operands, new.operands, strict=True):
                if (a.scale, b.scale) != (1, 1) and a not in self._spread:
                    self._scaled.append((old.name, a, b))

    def _takes_the_same(self, old: Step, new: Step) -> bool:
        """Whether what one step takes is made as what the other one takes."""
        ours, theirs = (self._sources.get(id(step), []) for step in (old, new))
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if None not in (a, b)]
        if old.name in _COMMUTATIVE:
            return Counter(a for a, _ in pairs) == Counter(b for _, b in pairs)
        return all(a == b for a, b in pairs)

    def _number(self, what: tuple[Any, ...]) -> int:
        return self._numbers.setdefault(what, len(self._numbers))

    def _compare_sizes(self, step: Step, old: Value, new: Value) -> None:
        before = tuple(dim.size for dim in old.dims)
        expected, found = self._expected(old), self._lengths(new)
        is_same = expected == found
        is_loose = self._is_loose and step.name in ("dot_general", "transpose")
        if is_loose or not self._counts_ones:
            is_same = _without_ones(expected) == _without_ones(found)
        if is_same or 0 in found:
            return
        self.sizes[
            f"{step.name} makes or takes an array of shape {found} where growing {before} gives "
            f"{expected}"
        ] = step.name

    def _refuted(self, old: Sequence[Value], new: Sequence[Value]) -> set[tuple[str, str]]:
        same: set[tuple[str, str]] = set()
        others: set[tuple[str, str]] = set()
        for a, b in zip(old, new, strict=False):
            found = same if len(old) == len(new) and is_close(a.scale, b.scale) else others
            for dim in to_blame(a, a.scale, a.rounding):
                names = (self._grown.names.get(part) for part in parts_of(dim))
                found.update((name, suspicion(a.scale)) for name in names if name is not None)
        return same - others

    def _parameters(self, old: Step, new: Step) -> Iterator[tuple[str, Any, Any]]:
        """Yields parameters of a step that must be equal."""
        params = old.params, new.params
        if not self._counts_ones:
            params = _among_long(old, self._expected), _among_long(new, self._lengths)
        yield from differing(*params)
        if old.name == "scan":
            eqns = (old, new)
            if all(len(s.operands) == sum(scan_counts(s)) for s in eqns):
                yield "length", old.params["length"], new.params["length"]
        if old.name == "slice":
            (x,), (y,) = old.operands, new.operands
            one = self._starts(old, self._expected(x), self._grown)
            is_single = id(y) in self._single.copied
            other = self._starts(new, self._lengths(y), lambda dim: self._length(dim, is_single))
            for a, b in zip(one, other, strict=False):
                yield "start", a, b

    def _starts(
        self, step: Step, shape: Sequence[int], length: Callable[[Dim], int]
    ) -> Iterator[int]:
        """Yields where a slice starts in the larger network, without axes that do not count."""
        (value,), starts = step.operands, step.params["start_indices"]
        for dim, start, size in zip(value.dims, starts, shape, strict=True):
            if self._counts_ones or size != 1:
                yield _start(dim, start, length)

    def _expected(self, value: Value) -> tuple[int, ...]:
        """Returns the shape that an array of the network has in the larger one.

        Where a single head is repeated, all its copies count as 1.
        """
        if id(value) not in self._single.repeated:
            return tuple(map(self._grown, value.dims))
        return tuple(prod(size for _, size in axis) for axis in self._unrepeated(value))

    def _unrepeated(self, value: Value) -> Iterator[list[tuple[Dim, int]]]:
        """Yields what each axis of an array is made of, with sizes as in ``_expected``."""
        axes = [[factor.root for factor in factors(dim)] for dim in value.dims]
        every = Counter(factor for axis in axes for factor in axis)
        ones = {f for f in self._single.heads if every[f] == 1}
        if id(value) not in self._single.repeated:
            ones = set()
        for axis in axes:
            yield [(factor, 1 if factor in ones else self._grown(factor)) for factor in axis]

    def _old_factors(self, value: Value) -> list[list[Dim]]:
        """Returns what each axis of an array of the network is made of, without sizes of 1."""
        return [[f for f, size in axis if size != 1] for axis in self._unrepeated(value)]

    def _new_factors(self, value: Value) -> list[list[Dim]]:
        """Returns the same for an array of the larger program, see ``_lengths``."""
        return [[f for f, length in axis if length != 1] for axis in self._undivided(value)]

    def _lengths(self, value: Value) -> tuple[int, ...]:
        """Returns the shape of an array of the larger program, as if no heads were copies.

        Heads that copy a single one count as 1, and all query heads as one dimension.
        """
        if not self._single.divided:
            return tuple(dim.size for dim in value.dims)
        return tuple(prod(length for _, length in axis) for axis in self._undivided(value))

    def _undivided(self, value: Value) -> Iterator[list[tuple[Dim, int]]]:
        """Yields what each axis of an array is made of, with lengths as in ``_lengths``."""
        return self._factors(value.dims, id(value) in self._single.copied)

    def _factors(self, dims: Sequence[Dim], is_single: bool) -> Iterator[list[tuple[Dim, int]]]:
        """Yields the same for dimensions; ``is_single``: whether they are made of copies alone."""
        axes = [[factor.root for factor in factors(dim)] for dim in dims]
        every = Counter(factor for axis in axes for factor in axis)
        divided = self._single.divided
        copies = {*divided.values()}
        for axis in axes:
            found = []
            for before, factor in zip((None, *axis), axis, strict=False):
                length, heads = factor.size, divided.get(factor)
                if heads is factor and not is_single:
                    pass  # query heads, which are no copies
                elif factor in copies or heads is not None:
                    # They are told apart, and in order where they are along one axis.
                    is_plain = every[factor] == 1
                    if heads not in (None, factor):
                        in_order = heads is before or heads not in axis
                        is_plain &= every[heads] == 1 and in_order
                    if not is_plain:
                        factor = Dim(length)
                    else:
                        length = 1 if heads in (None, factor) else length * heads.size
                elif factor.kind:
                    length = sum(self._length(piece, is_single) for piece in pieces(factor))
                found.append((factor, length))
            yield found

    def _length(self, dim: Dim, is_single: bool = False) -> int:
        if not self._single.divided:
            return dim.size
        (axis,) = self._factors((dim,), is_single)
        return prod(length for _, length in axis)

    def _is_same(self, step: Step, a: Value, b: Value) -> bool:
        """Whether constants are the same, sizes aside."""
        if a.number is None or b.number is None:
            return a.number is b.number is None and _same_table(a.table, b.table, self._grown)
        if self._keeps_in_range(step, a, b) or self._wraps(step, a, b):
            return True
        return is_close(a.number, b.number)

    def _keeps_in_range(self, step: Step, a: Value, b: Value) -> bool:
        """Whether indices of an input are compared with the length of an axis that they index.

        Such indices are always less than the length, so the comparison changes nothing.
        """
        assert a.number is not None and b.number is not None
        if step.name in ("lt", "ge"):
            more = 0
        elif step.name in ("min", "clamp", "le", "gt"):
            more = 1
        else:
            return False
        x, y = step.operands[-2:]
        index = y if step.name == "min" and a is x else x
        if not index.index or a is index:
            return False
        if index.origin == "constant" and max((d.size for d in index.dims), default=0) > a.number:
            return False  # it counts beyond the length
        return (a.number + more, b.number + more) in self._indexed.get(id(index), ())

    def _wraps(self, step: Step, length: Value, larger: Value) -> bool:
        """Whether a step adds the length of an axis to indices, in case they are negative.

        In NumPy, negative indices count from the end. Indices from an input are never negative.
        """
        others = [value for value in step.operands if value is not length]
        if step.name != "add" or len(others) != 1 or not others[0].index:
            return False
        (index,), (result,) = others, step.results
        if (length.number, larger.number) not in self._indexed.get(id(index), ()):
            return False
        return all(
            reader.name == "select_n"
            and any(case is index for case in reader.operands[1:])
            and self._is_negative(reader.operands[0], index)
            for reader in self._trace.steps
            if any(value is result for value in reader.operands)
        )

    @cached_property
    def _indexed(self) -> dict[int, set[tuple[float, float]]]:
        """By value, the lengths of the axes that it is used to index, before and after."""
        found: dict[int, set[tuple[float, float]]] = {}
        for step in self._trace.steps:
            for indices, axes in _indices(step):
                dims = [step.operands[0].dims[axis] for axis in axes]
                lengths = {(dim.size, self._grown(dim)) for dim in dims}
                seen, pending = set[int](), [indices]
                while pending:
                    value = pending.pop()
                    if id(value) in seen or not value.index:
                        continue
                    seen.add(id(value))
                    found.setdefault(id(value), set()).update(lengths)
                    if id(value) in self._made:
                        pending += self._made[id(value)][1].operands
        return found

    def _is_negative(self, which: Value, index: Value) -> bool:
        """Whether a value says which indices are less than zero."""
        if (made := self._made.get(id(which))) is None or made[1].name != "lt":
            return False
        step = made[1]
        return step.operands[0] is index and step.operands[1].number == 0

    def _compare_unordered(self, old: Sequence[Step], new: Sequence[Step]) -> None:
        """Compares programs that may have the same steps in different orders."""
        for one, other in zip(old, new, strict=False):
            if _kind(one) != _kind(other):
                break
            values = (*one.operands, *one.results), (*other.operands, *other.results)
            for x, y in zip(*values, strict=True):
                self._compare_sizes(one, x, y)
        counts = Counter(map(_kind, old)), Counter(map(_kind, new))
        for kind in sorted(counts[0].keys() | counts[1].keys()):
            a, b = (count[kind] for count in counts)
            if a != b:
                self.values[f"it has {b} times {kind[0]} instead of {a} times"] = None
        numbers = [
            sorted(x.number for s in steps for x in s.operands if x.number is not None)
            for steps in (old, new)
        ]
        alike = len(numbers[0]) == len(numbers[1]) and all(map(is_close, *numbers))
        if not self.values and not alike:
            self.values["it has other constants"] = None
        made = (
            Counter(
                (step.name, step.params.get("axes"), *sorted(self._sources[id(step)], key=str))
                for step in steps
            )
            for steps in (old, new)
        )
        is_same = len({frozenset(counts.items()) for counts in made}) == 1
        if not (self.values or is_same):
            self.values["it computes with other arrays"] = None


def _repeated(
    before: Sequence[int], after: Sequence[int], axes: Sequence[int]
) -> tuple[int, ...] | None:
    """Returns which axes a broadcast keeps, without sizes of 1; None if it only adds such sizes."""
    kept = {axis for n, axis in zip(before, axes, strict=True) if n == after[axis]}
    long = [axis for axis, n in enumerate(after) if n != 1]
    return None if kept >= {*long} else tuple(i for i, axis in enumerate(long) if axis in kept)


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _among_long(step: Step, shape_of: Callable[[Value], tuple[int, ...]]) -> dict[str, Any]:
    """Returns the parameters of a step, with axes counted as if there were none of size 1."""
    joins = step.name in ("concatenate", "iota", "stack")
    shape = shape_of((step.results if joins or not step.operands else step.operands)[0])
    long = [axis for axis, size in enumerate(shape) if size != 1]
    params = dict(step.params)
    is_contraction = step.name in ("dot_general", "transpose")  # which has labels for axes
    for key in () if is_contraction else _AXES & params.keys():
        axes = params[key]
        if isinstance(axes, tuple):
            params[key] = tuple(long.index(axis) for axis in axes if axis in long)
        elif isinstance(axes, int):
            params[key] = long.index(axes) if axes in long else -1
    if isinstance(strides := params.get("strides"), tuple):
        params["strides"] = tuple(strides[axis] for axis in long)
    return params


def _start(dim: Dim, start: int, length: Callable[[Dim], int]) -> int:
    """Returns where a slice starts if the pieces of an axis have other lengths."""
    before = after = 0
    for piece in pieces(dim):
        if before >= start:
            break
        before, after = before + piece.size, after + length(piece)
    return after if before == start else start


def _used(steps: Sequence[Step]) -> list[Step]:
    """Returns the steps whose results are used. Modules may also compute unused initial values."""
    read: set[int] = set()
    used: set[Step] = set()
    found = -1
    while found < len(used):  # earlier steps read the state that a loop's last steps make
        found = len(used)
        for step in reversed(steps):
            made = step.operands[:1] if step.name == "close" else step.results
            if step not in used and (not made or any(id(value) in read for value in made)):
                read.update(map(id, step.operands))
                used.add(step)
    return [step for step in steps if step in used]


def _indices(step: Step) -> Iterator[tuple[Value, Sequence[int]]]:
    """Yields what a step uses as indices of its first operand, and the axes that they index."""
    numbers: Any = step.params.get("dimension_numbers")
    if step.name == "gather":
        yield step.operands[1], numbers.start_index_map
    elif step.name.startswith("scatter"):
        yield step.operands[1], numbers.scatter_dims_to_operand_dims
    elif step.name in ("dynamic_slice", "dynamic_update_slice"):
        starts = step.operands[1 if step.name == "dynamic_slice" else 2 :]
        for axis, start in enumerate(starts[: step.operands[0].ndim]):
            yield start, (axis,)


def _is_number(step: Step) -> bool:
    """Whether a step computes nothing but a number."""
    return bool(step.results) and all(
        value.origin == "constant" and value.number is not None for value in step.results
    )


def _kind(step: Step) -> tuple[str, int, int]:
    return step.name, len(step.operands), len(step.results)


def is_close(a: float, b: float, rounding: float = 0.0) -> bool:
    """Whether numbers are equal up to rounding; integers, as that of a token, have none."""
    if float(a).is_integer() and float(b).is_integer():
        return a == b
    return isclose(a, b, rel_tol=max(1e-6, 2 * rounding)) or (a != a and b != b)


def _scales(step: Step) -> bool:
    """Whether a step multiplies by a number. Only the product of all such numbers matters."""
    numbers = [value.number for value in step.operands]
    return step.name in ("mul", "div") and any(numbers) and None in numbers or step.name == "neg"


def _constants(old: Step, new: Step) -> Iterator[tuple[Value, Value]]:
    """Yields the constants among the operands whose values matter."""
    if _is_number(old):
        return  # where it is used, the result is compared
    if _scales(old) and _scales(new):
        return  # where it is used, the scale is compared
    for a, b in zip(old.operands, new.operands, strict=True):
        if a.origin == "constant":
            yield a, b


def _same_table(old: Table | None, new: Table | None, grown: GrownSizes) -> bool:
    """Whether tables are equal, apart from new units and axes along which they do not vary."""
    if old is None or new is None:
        return old is new
    a, b = old.array, new.array
    if a.ndim != b.ndim:
        return False
    # Bounds rest on the signs of old entries, so new entries must have the same signs.
    is_alike = bool(np.isfinite(b).all()) and all(
        holds(b) for holds in (_not_negative, _not_positive, np.all) if holds(a)
    )
    for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)):
        if m < n == grown(old.dims[axis]) and is_alike:
            b = np.take(b, old_places(grown.along(old.dims[axis])), axis)
        elif m != n:
            b_first, a = np.take(b, [0], axis), np.take(a, [0], axis)
            if (b_first != b).any():
                return False
            b = b_first
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _not_negative(array: np.ndarray) -> bool:
    return bool((array >= 0).all())


def _not_positive(array: np.ndarray) -> bool:
    return bool((array <= 0).all())


def _said(value: Value) -> str:
    if value.number is not None:
        return f"the number {value.number:.6g}"
    return f"a table of shape {tuple(dim.size for dim in value.dims)} with entries of its own"
