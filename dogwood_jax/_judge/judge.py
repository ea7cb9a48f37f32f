"""Decides by evaluation whether a growth keeps what a network computes: ``judge``.

Both networks are evaluated on random numbers in float64. The variables of the larger one come from
``grow``, so the judge checks the plan and its execution. It knows nothing of what primitives mean.

Rounding grows with depth. So the network is evaluated a second time with every number nudged by
1e-15, and an entry differs if it moves by more than 30 times as much as by the nudge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._arrays.choose import without_choices
from dogwood_jax._arrays.grow import grow
from dogwood_jax._base.draw import random_keys
from dogwood_jax._base.trees import struct
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.evaluate import Undecided, evaluate, in_64_bits, widest
from dogwood_jax._judge.samples import FAMILIES, MODES, Arguments, Family, Samples, kinds_of
from dogwood_jax._program.program import every_constant

# By how much every number is nudged, relative to the number.
NUDGE = 1e-15
# How many times as much an entry may move between both networks as by the nudge.
_TIMES = 30.0
# What rounding alone may move an entry by, relative to the entry.
_ROUNDING = 1e-11
# An entry that the nudge moves by more than this, relative to the entry, shows nothing.
_UNSTEADY = 1e-6
# Numbers that are smaller than this are zero.
_SMALLEST = 1e-290


@dataclass(frozen=True)
class Side:
    """One of two networks.

    Attributes:
        jaxpr: its program.
        arguments: path of each of its arguments, None for an input, with shape and dtype.
        results: path of each of its results.
    """

    jaxpr: Any
    arguments: Arguments
    results: Sequence[str]


@dataclass(frozen=True)
class Compared:
    """An output of both networks that must be equal.

    Attributes:
        path: its path in the network.
        old: its place among the results of the network.
        new: its place among those of the larger one.
        places: for each axis, where its old entries are in the larger network; None for all.
    """

    path: str
    old: int
    new: int
    places: tuple[np.ndarray | None, ...] = ()


@dataclass(frozen=True)
class Case:
    """A claim: two networks with a growth between them compute the same."""

    old: Side
    new: Side
    growth: Growth
    outputs: Sequence[Compared]
    inputs: Sequence[tuple[np.ndarray | None, ...]]

    @cached_property
    def has_ids(self) -> bool:
        """Whether there are integers among the inputs."""
        arrays = (array for path, array in self.old.arguments if path is None)
        return any(jnp.issubdtype(array.dtype, jnp.integer) for array in arrays)


@dataclass(frozen=True)
class Difference:
    """A sample in which both networks differ.

    Attributes:
        path: the output.
        family: the kind of sample.
        place: where in the output.
        old: what the network computes.
        new: what the larger network computes.
    """

    path: str
    family: Family
    place: tuple[int, ...]
    old: complex
    new: complex


@dataclass(frozen=True)
class Verdict:
    """What evaluating a claim has shown.

    Attributes:
        samples: how many samples counted.
        difference: a sample in which both differ; None if there is none.
        largest: the largest difference, relative to the entry.
        unshown: the outputs that no sample has shown.
    """

    samples: int = 0
    difference: Difference | None = None
    largest: float = 0.0
    unshown: tuple[str, ...] = ()

    @property
    def is_shown(self) -> bool:
        """Whether the claim is shown to be true."""
        return self.difference is None and self.samples > 0 and not self.unshown


class Watch:
    """Nudges the numbers of a program, and finds out how large ids may be.

    Args:
        nudge: by how much every number is nudged.
        seed: where random signs begin.
        rounded: constants that only one of two programs has. They are nudged by what they may be
            rounded by in their own dtype, because 1 / 768 and 1 / 1024 are rounded otherwise.
    """

    def __init__(
        self, nudge: float = 0.0, seed: int = 0, rounded: frozenset[bytes] = frozenset()
    ) -> None:
        self._nudge, self._rng = nudge, np.random.default_rng(seed)
        self._rounded = rounded
        self.last: int | None = None  # the largest index of the smallest table
        self.compared: set[int] = set()

    def nudged(self, array: Any) -> Any:
        if not self._nudge or not isinstance(array, np.ndarray) or array.dtype.kind not in "fc":
            return array
        signs = self._rng.integers(2, size=array.shape) * 2 - 1
        return array * (1 + self._nudge * signs)

    def number(self, array: np.ndarray, dtype: Any) -> np.ndarray:
        if self._rounded and array.tobytes() in self._rounded:
            signs = self._rng.integers(2, size=array.shape) * 2 - 1
            return np.asarray(array * (1 + _eps(dtype) / 2 * signs))
        return np.asarray(self.nudged(array))

    def equation(self, eqn: Any, operands: Sequence[Any]) -> None:
        if eqn.primitive.name in _COMPARISONS:
            self.compared |= {*_numbers_compared(operands)}
        if eqn.primitive.name != "gather":
            return
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        for place, axis in enumerate(numbers.start_index_map):
            last = operands[0].shape[axis] - sizes[axis]
            ids = operands[1][..., place]
            if ids.size and ids.max() > last:
                self.last = max(last if self.last is None else min(last, self.last), 0)


_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))


def _numbers_compared(operands: Sequence[Any]) -> Iterator[int]:
    """Yields the integers that others are compared with, and those beside them."""
    for operand in operands:
        if isinstance(operand, np.ndarray) and operand.dtype.kind in "iu" and operand.size:
            first = int(operand.flat[0])
            if 0 <= first < 1 << 20 and (operand.size == 1 or (operand == first).all()):
                yield from (number for number in (first - 1, first, first + 1) if number >= 0)


def judge(case: Case) -> Verdict:
    """Evaluates both networks on samples, and says whether they are equal.

    Args:
        case: the claim.
    """
    larger, rounded = grown(case), rounded_in_one(case)
    samples = Samples(kinds_of(case.growth), last=_last_id(case.growth))
    counted, largest, shown = 0, 0.0, set[str]()
    for number, family in enumerate(FAMILIES):
        found = finite(case, replace(samples, seed=number), family)
        if found is None:
            continue
        samples, variables, inputs, old = found
        try:
            near = run(case.old, variables, inputs, Watch(NUDGE, number))
            if rounded:
                watch = Watch(NUDGE, number, rounded)
                rounding = run(case.old, variables, inputs, watch)
            wide = larger(variables, samples.variables(case.new.arguments, family, new=True))
            new = run(case.new, wide, _larger_inputs(case, inputs, samples, family), Watch())
        except Undecided:
            continue
        counted += 1
        for output in case.outputs:
            ours, nudged, theirs = old[output.old], near[output.old], new[output.new]
            for axis, places in enumerate(output.places):
                if places is not None:
                    theirs = np.take(theirs, places, axis)
            if np.shape(theirs) != np.shape(ours):
                place: tuple[int, ...] = ()
                return Verdict(counted, Difference(output.path, family, place, np.nan, np.nan))
            moved = np.abs(rounding[output.old] - ours) if rounded else 0.0
            counts, differs, relative = compared(ours, nudged, theirs, moved)
            if differs.any():
                place = tuple(int(i) for i in np.argwhere(differs)[0])
                pair = complex(ours[place]), complex(theirs[place])
                return Verdict(counted, Difference(output.path, family, place, *pair))
            if counts.any():
                shown.add(output.path)
                largest = max(largest, float(relative[counts].max()))
    paths = dict.fromkeys(output.path for output in case.outputs)
    unshown = tuple(path for path in paths if path not in shown)
    return Verdict(counted, None, largest, unshown)


def _last_id(growth: Growth) -> int | None:
    """Returns the largest id among inputs that is surely known to the network, None for any."""
    known = [change.old for change in growth.changes if growth.widths[change.width].interface]
    return max(min(known) - 1, 0) if known else None


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def rounded_in_one(case: Case) -> frozenset[bytes]:
    """Returns the constants that are rounded and that only one of both programs has."""
    return _numbers(case.old.jaxpr) ^ _numbers(case.new.jaxpr)


def _numbers(jaxpr: Any) -> frozenset[bytes]:
    """Returns the constants of a program that are rounded, because their dtype is a narrow one."""
    found = set()

    def constant(array: Any, aval: Any) -> None:
        if jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.itemsize < 8:
            found.add(np.asarray(array).astype(np.float64).tobytes())

    every_constant(jaxpr, constant)
    return frozenset(found)


def compared(old: Any, near: Any, new: Any, rounding: Any) -> tuple[Any, Any, Any]:
    """Returns which entries count, which differ, and by how much, relative to the entry.

    Args:
        old: an output of the network.
        near: the same output with every number nudged.
        new: the same output of the larger network.
        rounding: by how much the rounding of constants moves the output.
    """
    with np.errstate(all="ignore"):
        if old.dtype.kind not in "fc":
            counts = np.asarray(old == near)
            return counts, np.asarray(counts & (old != new)), np.zeros(old.shape)
        finite = np.isfinite(old) & np.isfinite(near)
        size, moved = np.abs(old), np.abs(near - old)
        steady = finite & ((moved <= _UNSTEADY * size) | (size < _SMALLEST))
        by = np.abs(new - old)
        bound = _TIMES * moved + 4 * rounding + _ROUNDING * size + _SMALLEST
        differs = steady & ~(by <= bound)
        # Minus infinity, as in a mask, stays what it is.
        differs |= np.isinf(old) & (old == near) & ~((old == new) | np.isnan(new))
        relative = np.where(steady & (size > 0), by / np.where(size > 0, size, 1), 0.0)
        return steady, np.asarray(differs), relative


def finite(
    case: Case, samples: Samples, family: Family
) -> tuple[Samples, dict[str, Any], list[Any], list[Any]] | None:
    """Returns a sample for which the network is finite, with its outputs; None if there is none."""
    modes = MODES[MODES.index(samples.mode) :]
    for mode in modes:
        samples = replace(samples, mode=mode)
        for _ in range(4):
            variables = samples.variables(case.old.arguments, family)
            inputs = samples.inputs(case.old.arguments, family)
            watch = Watch()
            try:
                old = run(case.old, variables, inputs, watch)
            except Undecided:
                break
            known = [last for last in (samples.last, watch.last) if last is not None]
            last, more = min(known, default=None), samples.more | watch.compared
            if not case.has_ids or (last, more) == (samples.last, samples.more):
                break
            samples = replace(samples, last=last, more=more)
        else:
            continue
        if all(_is_finite(old[output.old]) for output in case.outputs):
            return samples, variables, inputs, old
    return None


def _is_finite(array: Any) -> bool:
    if array.dtype.kind not in "fc":
        return True
    return not bool(np.isnan(array).any()) and bool(np.isfinite(array).any() or not array.size)


def run(side: Side, variables: Mapping[str, Any], inputs: Sequence[Any], watch: Watch) -> Any:
    left = iter(inputs)
    arguments = [
        watch.nudged(next(left) if path is None else variables[path]) for path, _ in side.arguments
    ]
    return evaluate(side.jaxpr, arguments, watch)


def _larger_inputs(
    case: Case, inputs: Sequence[Any], samples: Samples, family: Family
) -> list[Any]:
    """Returns inputs of the larger network that hold those of the network."""
    if not any(places is not None for axes in case.inputs for places in axes):
        return [*inputs]
    larger = replace(samples, seed=samples.seed + 1000).inputs(case.new.arguments, family)
    found = []
    for old, new, axes in zip(inputs, larger, case.inputs, strict=True):
        if any(places is not None for places in axes):
            pairs = zip(old.shape, axes, strict=True)
            where = [np.arange(size) if p is None else p for size, p in pairs]
            new = np.array(new)
            new[np.ix_(*where)] = old
            found.append(new)
        else:
            found.append(old)
    return found


def grown(case: Case) -> Any:
    """Returns ``grow`` as a function of NumPy's arrays by path: the old ones, and new entries."""
    growth = replace(without_choices(case.growth), structure=None)
    old = {path: _wide(array) for path, array in case.old.arguments if path is not None}
    new = {path: _wide(array) for path, array in case.new.arguments if path is not None}
    key = random_keys(jnp.array([0, 1], jnp.uint32), (), jax.random.key(0).dtype)

    def arrays(variables: dict[str, Any], fresh: dict[str, Any], key: Any) -> dict[str, Any]:
        found = grow(variables, growth, key=key, fresh=fresh)
        return {path: found[path] for path in new}

    with in_64_bits():  # factors are not rounded
        jaxpr = jax.make_jaxpr(arrays)(old, new, key)
    paths = sorted(new)

    def larger(variables: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
        arguments = [*(variables[p] for p in sorted(old)), *(fresh[p] for p in sorted(new)), key]
        return dict(zip(paths, evaluate(jaxpr, arguments), strict=True))

    return larger


def _wide(array: Any) -> Any:
    return struct(array.shape, widest(array.dtype) if _is_float(array) else array.dtype)


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))
