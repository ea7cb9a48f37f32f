"""Whether a larger network is the network in other sizes, by both programs: ``Comparison``.

A size that enters a program as a number, as ``0.1 * width`` or a loop of ``width`` steps do, cannot
be told from any other number. The same program in two sizes tells: what is not the same number
there depends on the sizes. Beside numbers, arrays must have the sizes that the growth gives them,
or the larger network cuts and reshapes otherwise.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isclose, prod
from typing import Any

import numpy as np

from dogwood_jax._dims import Dim, parts_of, pieces, spread_out
from dogwood_jax._growth import Change
from dogwood_jax._jaxpr import scan_counts
from dogwood_jax._layout import units_of
from dogwood_jax._roles import spots_along
from dogwood_jax._scales import suspicion, to_blame
from dogwood_jax._values import Step, Trace, Value
from dogwood_jax._widths import Widths

# Operations that compute nothing. What they are depends on which sizes are 1.
_QUIET = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims transpose convert_element_type copy "
    "stop_gradient".split()
)
# Parameters that follow from the sizes of what an operation takes and makes.
_SIZES = frozenset(
    "shape new_sizes sizes slice_sizes start_indices limit_indices padding_config reps length k "
    "feature_group_count batch_group_count fft_lengths".split()
)
_POWERS = (1.0, -1.0, 0.5, -0.5, 0.25, -0.25)


class GrownSizes:
    """The size that each dimension of a network has once some widths have grown.

    Args:
        widths: the network's widths.
        dims: the dimensions of its arrays, by path.
        sizes: new sizes by name of the width.

    Attributes:
        names: name of each width by dimension.
        lengths: the sizes of all axes of arrays, and of what these are made of, before and after.
    """

    def __init__(
        self, widths: Widths, dims: Mapping[str, Sequence[Dim]], sizes: Mapping[str, int]
    ) -> None:
        self.names: dict[Dim, str] = {}
        self._sizes: dict[Dim, int] = {}
        for leaf in widths.leaves:
            for axis, (layout, dim) in enumerate(zip(leaf.axes, dims[leaf.path], strict=True)):
                spots = spots_along(0, axis, spread_out(dim))
                for spot, units in zip(spots, units_of(layout), strict=True):
                    self.names[spot.atom] = units.width
                    self._sizes[spot.atom] = sizes.get(units.width, units.size)
        every = (d for along in dims.values() for dim in along for d in parts_of(dim))
        self.lengths = {(d.size, self(d)) for d in every}

    def __call__(self, dim: Dim) -> int:
        dim = dim.root
        if dim not in self._sizes:
            parts = list(map(self, dim.parts))
            size = prod(parts) if dim.kind == "product" else sum(parts)
            self._sizes[dim] = size if dim.kind else dim.size
        return self._sizes[dim]


def is_constant(number: float, larger: float, changes: Iterable[Change]) -> bool:
    """Whether a constant becomes this one in the larger network by the recipe of a change."""
    return any(
        _is_close(number, known) and _is_close(larger, known * change.ratio**power)
        for change in changes
        for _, known, power in (change.recipe.constants if change.recipe else ())
    )


def is_scale(ratio: float, changes: Iterable[Change]) -> bool:
    """Whether a factor can change so with a width that grows by a recipe, as that of a mean."""
    sizes = (r for c in changes if c.recipe for r in (c.ratio, c.new / c.old))
    return any(isclose(ratio, size**power, rel_tol=1e-5) for size in sizes for power in _POWERS)


class Comparison:
    """What a larger network's program does otherwise than the network's, sizes aside.

    Args:
        trace: the network's program as it was read.
        larger: the larger network's.
        grown: the sizes that dimensions of the network should have in the larger one.

    Attributes:
        sizes: where arrays of the larger network have other sizes than they should, and the
            operations there.
        values: where it does something else.
        numbers: where it computes with other numbers, the network's and its own.
        scales: where its operations take what was multiplied by other numbers, and the ratio.
        is_in_step: whether both programs have the same operations in the same order.
        refuted: names of widths and hazards of constants that turn out not to follow from them.
    """

    def __init__(self, trace: Trace, larger: Trace, grown: GrownSizes) -> None:
        self._grown = grown
        self._scaled: list[tuple[str, Value, Value]] = []
        self.sizes: dict[str, str] = {}
        self.values: dict[str, None] = {}
        self.numbers: dict[str, tuple[float, float]] = {}
        self.scales: dict[str, float] = {}
        one, other = (
            [step for step in _used(program.steps) if step.name not in _QUIET]
            for program in (trace, larger)
        )
        self.is_in_step = list(map(_kind, one)) == list(map(_kind, other))
        if self.is_in_step:
            for a, b in zip(one, other, strict=True):
                self._compare(a, b)
        else:
            self._compare_unordered(one, other)
        self.refuted = self._refuted(trace.scales, larger.scales) if self.is_in_step else set()

    @property
    def cuts_elsewhere(self) -> bool:
        """Whether arrays come to have other sizes because they are cut in other places."""
        return next(iter(self.sizes.values()), "") in ("slice", "split", "dynamic_slice", "pad")

    @property
    def agrees(self) -> bool:
        """Whether it is the same program, so that none of its numbers depends on a size."""
        return self.is_in_step and not (self.sizes or self.values or self.numbers or self.scales)

    def problems(self, changes: Mapping[str, Change], *, exactly: bool) -> Iterator[str]:
        """Yields what speaks against a growth.

        Args:
            changes: how widths change, by name.
            exactly: whether the constants that recipes ask for must be those of the program.
        """
        yield from self.sizes
        yield from self.values
        recipes = [change for change in changes.values() if change.recipe]
        for what, numbers in self.numbers.items():
            if not is_constant(*numbers, recipes):
                yield what
        for what, ratio in self.scales.items():
            if not is_scale(ratio, recipes):
                yield what
        for name, a, b in self._scaled if exactly else ():
            for dim in to_blame(a, a.scale) if recipes else ():
                change = changes.get(self._grown.names.get(dim.root, ""))
                if change is None or change.recipe is None:
                    continue
                for _, number, power in change.recipe.constants:
                    wanted = number * change.ratio**power
                    if _is_close(number, a.scale) and not _is_close(wanted, b.scale):
                        scales = f"{b.scale:.6g} instead of {wanted:.6g}"
                        yield f"{name} takes what was scaled by {scales}"

    def _compare(self, old: Step, new: Step) -> None:
        values = (*old.operands, *old.results), (*new.operands, *new.results)
        # The order of several contractions in one einsum depends on the sizes.
        for a, b in zip(*values, strict=True) if old.name != "dot_general" else ():
            expected = tuple(map(self._grown, a.dims))
            found = tuple(dim.size for dim in b.dims)
            if expected != found and 0 not in found:
                self.sizes[
                    f"{old.name} makes or takes an array of shape {found} where growing "
                    f"{tuple(dim.size for dim in a.dims)} gives {expected}"
                ] = old.name
        for what, a, b in self._parameters(old, new):
            if a != b:
                self.values[f"{old.name} has {what} {b} instead of {a}"] = None
        for a, b in _constants(old, new):
            if not self._is_same(old, a, b):
                what = f"{old.name} has {_said(b)} instead of {_said(a)}"
                if a.number and b.number:
                    self.numbers[what] = (a.number, b.number)
                else:
                    self.values[what] = None
        if not _scales(old):
            for a, b in zip(old.operands, new.operands, strict=True):
                if a.scale != 1:
                    self._scaled.append((old.name, a, b))
                if not _is_close(a.scale, b.scale):
                    scales = f"{b.scale:.6g} instead of {a.scale:.6g}"
                    self.scales[f"{old.name} takes what was scaled by {scales}"] = b.scale / a.scale

    def _refuted(
        self, old: Sequence[tuple[Value, float]], new: Sequence[tuple[Value, float]]
    ) -> set[tuple[str, str]]:
        same: set[tuple[str, str]] = set()
        others: set[tuple[str, str]] = set()
        for (value, number), (_, its) in zip(old, new, strict=False):
            found = same if len(old) == len(new) and _is_close(number, its) else others
            for dim in to_blame(value, number):
                names = (self._grown.names.get(part) for part in parts_of(dim))
                found.update((name, suspicion(number)) for name in names if name is not None)
        return same - others

    def _parameters(self, old: Step, new: Step) -> Iterator[tuple[str, Any, Any]]:
        """Yields parameters of a step that must be equal."""
        keys = old.params.keys() & new.params.keys() - _SIZES if old.name != "dot_general" else ()
        for key in sorted(keys):
            if _is_plain(old.params[key]) and _is_plain(new.params[key]):
                yield key, old.params[key], new.params[key]
        if old.name == "scan":
            eqns = (old, new)
            if all(len(s.operands) == sum(scan_counts(s)) for s in eqns):
                yield "length", old.params["length"], new.params["length"]
        if old.name == "slice":
            (x,) = old.operands
            starts = old.params["start_indices"], new.params["start_indices"]
            for dim, a, b in zip(x.dims, *starts, strict=True):
                yield "start", self._start(dim, a), b

    def _start(self, dim: Dim, start: int) -> int:
        """Returns where a slice should start in the larger network."""
        before = after = 0
        for piece in pieces(dim):
            if before >= start:
                break
            before, after = before + piece.size, after + self._grown(piece)
        return after if before == start else start

    def _is_same(self, step: Step, a: Value, b: Value) -> bool:
        """Whether constants are the same, sizes aside."""
        if a.number is None or b.number is None:
            return a.number is b.number is None and _same_table(a.table, b.table)
        others = [x for x in step.operands if x is not a]
        if all(x.index or x.wrapped or x.number == 0 for x in others):
            pair = (a.number, b.number)
            if {pair, (a.number + 1, b.number + 1)} & self._grown.lengths:
                return True  # indices, counted from the end or kept in range
        return _is_close(a.number, b.number)

    def _compare_unordered(self, old: Sequence[Step], new: Sequence[Step]) -> None:
        """Compares programs of which one may have the other's steps in another order."""
        counts = Counter(map(_kind, old)), Counter(map(_kind, new))
        for kind in sorted(counts[0].keys() | counts[1].keys()):
            a, b = (count[kind] for count in counts)
            if a != b:
                self.values[f"it has {b} times {kind[0]} instead of {a} times"] = None
        numbers = [
            sorted(x.number for s in steps for x in s.operands if x.number is not None)
            for steps in (old, new)
        ]
        alike = len(numbers[0]) == len(numbers[1]) and all(map(_is_close, *numbers))
        if not self.values and not alike:
            self.values["it has other constants"] = None


def _used(steps: Sequence[Step]) -> list[Step]:
    """Returns the steps whose results are used: modules also set up tables to initialize from."""
    read: set[int] = set()
    used: set[Step] = set()
    found = -1
    while found < len(used):  # what a loop hands on is read before it in the program
        found = len(used)
        for step in reversed(steps):
            made = step.operands[:1] if step.name == "close" else step.results
            if step not in used and (not made or any(id(value) in read for value in made)):
                read.update(map(id, step.operands))
                used.add(step)
    return [step for step in steps if step in used]


def _is_plain(value: Any) -> bool:
    """Whether a parameter is made of numbers and names, so that it can be compared."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, int | str)


def _kind(step: Step) -> tuple[str, int, int]:
    return step.name, len(step.operands), len(step.results)


def _is_close(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=1e-5) or (a != a and b != b)


def _scales(step: Step) -> bool:
    """Whether a step multiplies by a number: then it matters what comes of all such steps."""
    numbers = [value.number for value in step.operands]
    return step.name in ("mul", "div") and any(numbers) and None in numbers or step.name == "neg"


def _constants(old: Step, new: Step) -> Iterator[tuple[Value, Value]]:
    """Yields the constants among the operands whose values matter."""
    if all(value.origin == "constant" for value in old.results):
        if all(value.number is not None for value in old.results):
            return  # where it is used, the result is compared
    if _scales(old) and _scales(new):
        return  # where it is used, the scale is compared
    for a, b in zip(old.operands, new.operands, strict=True):
        if a.origin == "constant":
            yield a, b


def _same_table(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether arrays of constants are equal, but for axes along which they do not vary."""
    if a is None or b is None:
        return a is b
    if a.ndim != b.ndim:
        return False
    for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)):
        if m != n:
            b_first, a = np.take(b, [0], axis), np.take(a, [0], axis)
            if (b_first != b).any():
                return False
            b = b_first
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _said(value: Value) -> str:
    return "a table" if value.number is None else f"the number {value.number:.6g}"
