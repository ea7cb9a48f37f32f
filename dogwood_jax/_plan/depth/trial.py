"""Tries fillings for the arrays of new layers: ``Trial``.

Both networks are evaluated on a few samples, and fillings that leave outputs as they were are
proposed. Zeros come first; zeros that a new layer does not need are removed again. Identities and
scales follow. An evaluation on many samples then decides among the proposals. No rules are needed
for what primitives do with zeros.
"""

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.draw import dtype_named
from dogwood_jax._check.check import (
    TIMES,
    are_alike,
    finite,
    grown,
    larger_inputs,
    old_part,
    rounded_in_one,
    samples_of,
)
from dogwood_jax._check.claim import Case
from dogwood_jax._check.evaluate import Undecided
from dogwood_jax._check.reduced import LargerProgram, claim, is_bearable
from dogwood_jax._check.run import NUDGE, Drawn, Watch, run
from dogwood_jax._check.samples import SampleFamily
from dogwood_jax._growth.edit import Edit, Fill
from dogwood_jax._growth.edited import identity
from dogwood_jax._growth.growth import Growth
from dogwood_jax._program.subprograms import sub_programs
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

W = TypeVar("W", bound=Watch)
Filling = Mapping[str, Edit]  # by path, without arrays that are free

# New biases and scales are random, because free arrays may hold any values.
_FAMILY = SampleFamily("fan", 1.0, 1.0, biases=True)
_SAMPLES = 3
# Up to this many arrays are freed one by one, more of them in groups of like names.
_ONE_BY_ONE = 64
# Zeros in pairs of groups are tried among at most this many groups.
_PAIRS = 12
# At most this many vectors, or entries of short vectors, are zero or one independently.
_CHOICES = 7
_SHORT = 4
# How far outputs may differ, relative to the largest entry.
_DOUBLE = 1e-10
# The output of a loop that does not end: unlike any other array.
_UNDECIDED = np.zeros((0, 0, 0), complex)
# Step of finite differences along a scale, and the number of corrections.
_STEP, _STEPS = 1e-4, 8


class Trial:
    """Tries fillings of new layers.

    Attributes:
        case: the claim, in small sizes if the network is large and finite in small sizes.
        samples: the samples drawn so far; empty if the network is finite for none.
        new: the arrays of new layers that may be filled, in the order in which they are read.
    """

    def __init__(
        self, growth: Growth, network: Traced, larger: Widths, program: LargerProgram, case: Case
    ) -> None:
        self._ones = {leaf.path for leaf in larger.leaves if leaf.kind == "ones"}
        self._take(case)
        if not self.samples and case.is_reduced and is_bearable(network):
            # A table of positions may end in the reduced model before the inputs do.
            whole = claim(growth, network, program, in_own_sizes=True)
            if isinstance(whole, Case):
                self._take(whole)
        inserted = {
            e.path: e for e in growth.inserted if e.fill and e.fill.kind in ("free", "copy")
        }
        read = [path for path in self._read() if path in inserted]
        rest = [path for path in inserted if path not in read]
        self.new = {path: inserted[path] for path in (*rest, *read) if _is_float(inserted[path])}

    def _take(self, case: Case) -> None:
        self.case = case
        self._small = {edit.path: edit for edit in case.growth.inserted}
        # Constants that only one of the two programs has are rounded, each in its own dtype.
        self._rounded = rounded_in_one(case)
        self._rounding = max(self._rounded.values(), default=0.0) + _DOUBLE
        self._drawn = self._draw()
        self.samples = [*itertools.islice(self._drawn, 1)]

    def _draw(self) -> Iterator[Drawn]:
        case, larger, samples = self.case, grown(self.case), samples_of(self.case)
        for seed in range(_SAMPLES):
            found = finite(case, replace(samples, seed=seed), _FAMILY)
            if found is not None:
                drawn, variables, inputs, old = found
                fresh = drawn.variables(case.new.arguments, _FAMILY, new=True)
                wide = {path: _apart(array) for path, array in larger(variables, fresh).items()}
                theirs = larger_inputs(case, inputs, drawn, _FAMILY)
                near = run(case.old, variables, inputs, Watch(NUDGE, seed, self._rounded))
                yield Drawn(_FAMILY, variables, inputs, old, wide, theirs, near)

    def _read(self) -> list[str]:
        """Returns the paths of arrays in the order in which they are last read."""
        read = self.watched({}, Readings, self.samples[0]).read if self.samples else {}
        return sorted(read, key=read.__getitem__)

    def watched(
        self, filling: Filling, watching: Callable[[Mapping[str, Any]], W], sample: Drawn
    ) -> W:
        """Returns a watch, made from the deeper network's arrays, after an evaluation with it."""
        arrays = self.arrays(sample, filling)
        watch = watching(arrays)
        with contextlib.suppress(Undecided):
            run(self.case.new, arrays, sample.larger, watch)
        return watch

    def arrays(self, sample: Drawn, filling: Filling) -> dict[str, Any]:
        """Returns the arrays of the deeper network with a filling."""
        filled = {path: self._filled(sample.wide[path], one) for path, one in filling.items()}
        return sample.wide | filled

    def _filled(self, array: Any, edit: Edit) -> Any:
        assert edit.fill is not None
        small = self._small[edit.path]
        return np.where(small.new, _value(edit.fill, small), array)

    def _outputs(self, sample: Drawn, filling: Filling) -> Iterator[tuple[Any, Any, Any]]:
        """Yields for each output: the network's, the nudged network's, and the deeper network's."""
        try:
            results = run(self.case.new, self.arrays(sample, filling), sample.larger, Watch())
        except Undecided:
            results = [_UNDECIDED] * len(self.case.new.results)
        for output in self.case.outputs:
            found = results[output.new]
            found = found if found is _UNDECIDED else old_part(results, output)
            yield sample.old[output.old], sample.new[output.old], found

    def fits(self, filling: Filling) -> bool:
        """Whether outputs stay the same on all samples."""
        for number in range(_SAMPLES):
            if number == len(self.samples):
                self.samples += itertools.islice(self._drawn, 1)
            if number == len(self.samples):
                break
            found = self._outputs(self.samples[number], filling)
            if not all(_are_equal(*outputs, self._rounding) for outputs in found):
                return False
        return bool(self.samples)

    def is_finite(self, filling: Filling) -> bool:
        """Whether outputs are finite on the first sample wherever those of the network are."""
        return self._moved(filling) is not None

    def that_fit(self, *, quickly: bool) -> Iterator[Filling]:
        """Yields fillings that keep outputs, without arrays that need not be filled.

        Args:
            quickly: whether to try only a few fillings.
        """
        known = list[Filling]()
        more = () if quickly else (self._few_zeros(), self._by_entries())
        for start in itertools.chain(self.starts(), *more):
            if any(one.items() <= start.items() for one in known) or not self.samples:
                continue
            if self.fits(start):
                found: Filling | None = start
            else:
                found = self._scaled(start)
            if found is not None and (found := self._needed(found)) not in known:
                known.append(found)
                yield found

    def starts(self) -> Iterator[Filling]:
        """Yields no filling, zeros everywhere, zeros in vectors, identities with scales of one."""
        yield {}
        yield _zeros(self.new.values())
        vectors = [*filter(_is_vector, self.new.values())]
        yield _zeros(vectors)
        usual = {i.path: _constant(i, float(i.path in self._ones)) for i in vectors}
        yield from (matrices | usual for matrices in self._matrices())

    def _matrices(self) -> Iterator[dict[str, Edit]]:
        """Yields matrices of zeros, then identities along some axes."""
        matrices = [*itertools.filterfalse(_is_vector, self.new.values())]
        yield _zeros(matrices)
        for which in (0, 1):
            found = {}
            for one in matrices:
                pairs = _identities(one.layer)
                found[one.path] = _constant(one, 0.0)
                if pairs:
                    axes = pairs[min(which, len(pairs) - 1)]
                    found[one.path] = _filled_with(one, Fill("identity", axes=axes))
            yield found

    def _few_zeros(self) -> Iterator[Filling]:
        """Yields zeros in one or two groups of arrays; groups that are read last come first."""
        for names in (_alike, _by_last_name):
            groups = [*reversed(_grouped(self.new.values(), names))]
            yield from map(_zeros, groups)
            for pair in itertools.combinations(groups[:_PAIRS], 2):
                yield _zeros(itertools.chain(*pair))

    def _by_entries(self) -> Iterator[Filling]:
        """Yields zeros and ones in vectors, independently for each entry of short vectors."""
        groups = _grouped(filter(_is_vector, self.new.values()), _by_last_name)
        sizes = [math.prod(group[0].layer) for group in groups]
        counts = [size if 1 < size <= _SHORT else 1 for size in sizes]
        if max(counts, default=1) == 1 or sum(counts) > _CHOICES:
            return
        for matrices in self._matrices():
            for numbers in itertools.product((0.0, 1.0), repeat=sum(counts)):
                left, found = iter(numbers), dict(matrices)
                for group, count in zip(groups, counts, strict=True):
                    values = tuple(itertools.islice(left, count))
                    found.update((one.path, _constant(one, *values)) for one in group)
                yield found

    def _needed(self, filling: Filling) -> Filling:
        """Returns a filling without unneeded arrays; those read first are dropped first."""
        alone = len(self.new) <= _ONE_BY_ONE
        for group in _grouped(self.new.values(), (lambda i: i.path) if alone else _alike):
            paths = {i.path for i in group}
            fewer = {path: one for path, one in filling.items() if path not in paths}
            if len(fewer) < len(filling) and self.fits(fewer):
                filling = fewer
        return filling

    def _scaled(self, filling: Filling) -> Filling | None:
        """Returns a filling with a scale that undoes the effect of the other values, or None."""
        ones = [edit for edit in filling.values() if edit.fill and edit.fill.value == 1]
        for group in reversed(_grouped(ones, _by_last_name)):
            value = 1.0

            def scaled(value: float, group: Sequence[Edit] = group) -> Filling:
                return {**filling, **{i.path: _constant(i, value) for i in group}}

            for _ in range(_STEPS):
                moved, other = (self._moved(scaled(v)) for v in (value, value + _STEP))
                if moved is None or other is None or not np.any(slope := (other - moved) / _STEP):
                    break
                value -= float(moved @ slope / (slope @ slope))
            else:
                if self.fits(scaled(value)):
                    return scaled(value)
        return None

    def _moved(self, filling: Filling) -> Any:
        """Returns the differences of outputs on the first sample; None if not all are finite."""
        found = [np.zeros(0)]
        for old, _, new in self._outputs(self.samples[0], filling):
            if not are_alike(old, new):
                return None
            if isinstance(old, np.ndarray) and old.dtype.kind == "f":
                found.append((new - old)[np.isfinite(old)])
        moved = np.concatenate(found)
        return moved if np.isfinite(moved).all() else None


class Readings(Watch):
    """Records when arrays are read.

    Attributes:
        read: number of the last equation that reads an array, by path of the array.
        steps: number of equations so far.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        super().__init__()
        self._paths = {id(array): path for path, array in arrays.items()}
        self._kept = list[Any]()  # keeps their ids from being used again
        self.read, self.steps = dict[str, int](), 0

    def path_of(self, operand: Any) -> str | None:
        """Returns the path of the array that an operand is, is a view of, or is computed from."""
        base = getattr(operand, "base", None)
        return self._paths.get(id(operand)) or self._paths.get(id(base))

    def equation(self, eqn: Any, operands: list[Any], callers: Sequence[Any]) -> list[Any]:
        if not sub_programs(eqn):
            self.steps += 1
            for operand in operands:
                if (path := self.path_of(operand)) is not None:
                    self.read[path] = self.steps
        return operands

    def results(
        self, eqn: Any, operands: Sequence[Any], results: Sequence[Any], callers: Sequence[Any]
    ) -> None:
        if len(operands) == 1 and (path := self.path_of(operands[0])) is not None:
            self._kept += results
            self._paths.update((id(result), path) for result in results)


def _apart(array: Any) -> Any:
    """Returns a copy of an array, so that it is no view of another one."""
    return array.copy() if isinstance(array, np.ndarray) else array


def _are_equal(old: Any, near: Any, new: Any, rounding: float) -> bool:
    if not are_alike(old, new):
        return False
    if not isinstance(old, np.ndarray | np.generic) or old.dtype.kind not in "fc":
        return isinstance(old, np.ndarray | np.generic) and bool(np.array_equal(old, new))
    with np.errstate(all="ignore"):
        moved, size = np.abs(near - old), np.abs(old)
    bound = sum(times * _largest(array) for times, array in ((rounding, size), (TIMES, moved)))
    return np.allclose(new, old, 0, bound)


def _largest(array: Any) -> float:
    return float(np.max(array[np.isfinite(array)], initial=0.0))


def _is_float(edit: Edit) -> bool:
    return bool(jnp.issubdtype(dtype_named(edit.dtype), jnp.inexact))


def _is_vector(edit: Edit) -> bool:
    return max(edit.layer, default=1) == math.prod(edit.layer)


def _filled_with(edit: Edit, fill: Fill) -> Edit:
    return replace(edit, fill=fill, source=edit.source if edit.layers else None)


def _constant(edit: Edit, *values: float) -> Edit:
    return _filled_with(edit, Fill("constant", values if len({*values}) > 1 else values[:1]))


def _zeros(edits: Iterable[Edit]) -> dict[str, Edit]:
    return {edit.path: _constant(edit, 0.0) for edit in edits}


def _value(fill: Fill, small: Edit) -> Any:
    """Returns the values of a filling, broadcast or repeated for the new layers of an array."""
    if fill.value is not None:
        return fill.value
    is_constant, layer = fill.kind == "constant", small.layer
    one = np.array(fill.values).reshape(layer) if is_constant else _identity(layer, fill.axes)
    if small.layers is None:
        return one
    if len(layer) < len(small.shape):
        return np.expand_dims(one, small.layers.axis)
    return np.concatenate([one] * len(small.layers.places), small.layers.axis)


@functools.cache
def _identity(shape: tuple[int, ...], axes: tuple[int, int]) -> Any:
    with jax.ensure_compile_time_eval():  # the caller may be traced by jit
        return np.asarray(identity(shape, axes), np.float64)


def _identities(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the pairs of axes, (contracted, produced), that an identity can have."""
    n = len(shape)
    pairs = [(0, 1)] if n == 2 else [(n - 2, n - 1), (1, 0)]
    return [(i, o) for i, o in pairs if shape[i] and shape[o] % shape[i] == 0]


def _alike(edit: Edit) -> Any:
    """Returns a key that arrays of like layers share: path without numbers, and shape."""
    return re.sub(r"\d+", "", edit.path), edit.shape


def _by_last_name(edit: Edit) -> str:
    """Returns the last part of an array's path, without numbers."""
    names = re.sub(r"\d+", "", edit.path).split("/")
    return next((name for name in reversed(names) if name), "")


def _grouped(edits: Iterable[Edit], name: Any) -> list[list[Edit]]:
    """Returns arrays in groups with the same name, in the order of first appearance."""
    groups: dict[Any, list[Edit]] = {}
    for edit in edits:
        groups.setdefault(name(edit), []).append(edit)
    return [*groups.values()]
