"""How far outputs of a larger network differ, for given factors on its arrays: ``Problem``."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log10
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from dogwood_jax._check.check import (
    finite,
    grown,
    larger_inputs,
    old_part,
    samples_of,
)
from dogwood_jax._check.claim import Case, mirrored
from dogwood_jax._check.evaluate import Undecided
from dogwood_jax._check.run import Watch, run
from dogwood_jax._check.samples import SampleFamily, Samples
from dogwood_jax._plan.search.together import Together
from dogwood_jax._plan.search.unknowns import Unknown
from dogwood_jax._program.subprograms import numbers_of
from dogwood_jax._widths.layout import units_along, units_of

Arrays = Mapping[str, Any]

_FAMILIES = (
    SampleFamily("fan", 1.0, 1.0, biases=True),
    SampleFamily("mixed", 1.0, 1.0, biases=True),
)
_SEED = 50
# Samples are drawn until outputs have this many entries for each unknown; upper limit on samples.
_FOR_EACH, _MOST = 2, 8
# Largest residual of a solution, relative to outputs.
SOLVED = 1e-7
FAR = 1e6  # the residual of entries that are not finite
# The largest number that counts as an epsilon, and the size to which epsilons are raised.
_EPSILON, _LARGE = 1e-2, 0.1


# For a constant of the larger network: the network's constant in its place, and its own value
# before rounding, such as 3.4641 for 3.46875.
Other = tuple[float, float]


class LargeEpsilons(Watch):
    """Raises epsilons in the same way in both networks, so that outputs depend on them.

    After a norm, a scale on its units shows only through the epsilon of the norm.

    Args:
        others: constants of the larger network, each with the network's constant in its place and
            its own value before rounding.

    Attributes:
        ordered: float arrays from which no floats are computed, such as operands of comparisons.
    """

    def __init__(self, others: Mapping[float, Other] = MappingProxyType({})) -> None:
        super().__init__()
        self._others = others
        self.ordered: list[np.ndarray] = []

    def equation(self, eqn: Any, operands: list[Any], callers: Sequence[Any]) -> list[Any]:
        is_sum = eqn.primitive.name in ("add", "add_any", "max")
        operands = [self._in_its_place(operand, is_sum) for operand in operands]
        if not any(map(is_float, (var.aval for var in eqn.outvars))):  # results hide differences
            self.ordered += (its for its in operands if is_float(its) and its.size > 1)
        return operands

    def _in_its_place(self, operand: Any, is_sum: bool) -> Any:
        if np.size(operand) != 1 or getattr(operand, "dtype", None) != np.float64:
            return operand
        number = float(np.asarray(operand).reshape(()))
        old, by = number, 1.0
        if number in self._others:
            its, exact = self._others[number]
            old, by = number if its == 1 else its, exact / number if number else 1.0
        by *= raised(old) if is_sum else 1.0
        return operand if by == 1 else np.asarray(operand * by)


def raised(number: float) -> float:
    """Returns the factor on a number that raises it if it is an epsilon, see ``LargeEpsilons``."""
    if not 1e-30 < abs(number) <= _EPSILON:
        return 1.0
    return float(_LARGE * 10.0 ** -round(log10(abs(number))))


class NetworkSample(NamedTuple):
    """A sample of the network.

    Attributes:
        family: the kind of sample.
        samples: the source of the sample's arrays.
        variables: the network's arrays.
        inputs: the larger network's inputs.
        before: the network's outputs.
        ordered: see ``LargeEpsilons``.
    """

    family: SampleFamily
    samples: Samples
    variables: Arrays
    inputs: list[Any]
    before: list[Any]
    ordered: list[np.ndarray]


def network_sample(case: Case, number: int) -> NetworkSample | None:
    """Returns a sample of a network; None if it is not finite or a loop does not end.

    Args:
        case: the claim.
        number: index of the sample.
    """
    family = _FAMILIES[number % len(_FAMILIES)]
    try:
        found = finite(case, replace(samples_of(case), seed=_SEED + number), family)
        if found is None:
            return None
        samples, variables, inputs, _ = found
        watch = LargeEpsilons()
        before = run(case.old, variables, inputs, watch)
    except Undecided:
        return None
    wide = larger_inputs(case, inputs, samples, family)
    outputs = [before[output.old] for output in case.outputs]
    return NetworkSample(family, samples, variables, wide, outputs, watch.ordered)


class _Sample(NamedTuple):
    """A sample. Arrays of the larger network are affine in the unknowns: ``base + by * move``.

    Attributes:
        network: the sample of the network.
        base: the larger network's arrays.
        others: the same arrays with other new entries.
        old: the arrays with zeros as new entries.
        added: the arrays of which each entry of the network is 1, with zeros as new entries.
        none: zeros, which are no new entries.
        moves: for each unknown, what a unit change of it adds to its array.
    """

    network: NetworkSample
    base: Arrays
    others: Arrays
    old: Arrays
    added: Arrays
    none: Arrays
    moves: dict[Unknown, Any]

    @property
    def drawn(self) -> tuple[Arrays, Arrays]:
        return self.base, self.others


class Problem:
    """A claim with unknown factors. Its residual is zero if old outputs stay.

    Args:
        case: the claim.
        together: evaluates the larger program of the claim.
        others: see ``LargeEpsilons``.
        draw: returns a sample of the network by index, see ``network_sample``.

    Attributes:
        unknowns: the unknowns; none at first, see ``of``.
    """

    def __init__(
        self,
        case: Case,
        together: Together,
        others: Mapping[float, Other],
        draw: Callable[[int], NetworkSample | None],
    ) -> None:
        self.unknowns: Sequence[Unknown] = ()
        self._case, self._larger, self._together = case, grown(case), together
        self._mirrors: Mapping[str, str] = {}
        self._others, self._is_hidden_seen = others, False
        self._samples: list[_Sample] = []
        self._sampled = functools.cache(lambda number: self._sample(draw(number)))

    def of(self, unknowns: Sequence[Unknown]) -> Self:
        """Returns the problem with these unknowns, of which later ones share the samples."""
        problem = copy.copy(self)
        problem.unknowns, problem._samples = unknowns, []
        # Results that mirror variables are rescaled like these variables.
        problem._mirrors = mirrored(self._case.old) if unknowns else {}
        numbers, count = len({(u.kind, u.alike) for u in unknowns}), 0
        for number in range(_MOST):
            if len(problem._samples) >= len(_FAMILIES) and count > _FOR_EACH * numbers:
                break
            if (sample := self._sampled(number)) is not None:
                problem._samples.append(sample)
                count += sum(np.size(before) for before in sample.network.before)
                for u in unknowns:
                    if u not in sample.moves:
                        sample.moves[u] = self._move(u, sample)
        return problem

    def _sample(self, drawn: NetworkSample | None) -> _Sample | None:
        if drawn is None:
            return None
        samples, variables = drawn.samples, drawn.variables
        fresh, others = (
            replace(samples, seed=samples.seed + more).variables(
                self._case.new.arguments, drawn.family, new=True
            )
            for more in (0, 500)
        )
        none = {path: _zeros(array) for path, array in fresh.items()}
        ones = {path: _zeros(array, 1) for path, array in variables.items()}
        return _Sample(
            drawn,
            self._larger(variables, fresh),
            self._larger(variables, others),
            self._larger(variables, none),
            self._larger(ones, none),
            none,
            {},
        )

    def _move(self, u: Unknown, sample: _Sample) -> Any:
        """Returns what a unit change of an unknown adds to its array."""
        growth, old = self._case.growth, sample.old
        place = growth.held[u.path].path
        if u.kind == "factor":
            return old[place]
        if u.kind == "offset":
            return old[place] + u.added * raised(u.added) * sample.added[place]
        layout, shape = growth.widths.leaf(u.path).axes[u.axis], np.shape(old[place])
        own = {x.width for x in units_of(layout)} & growth.change.keys()
        if u.kind == "mix":
            change = growth.change[next(iter(own))]
            rest = np.arange(change.new) >= len(change.sources or range(change.old))
            return old[place] * _along(rest, u.axis, len(shape))
        roles = {x.role for x in units_of(layout) if x.width in own}
        roles = roles if roles == {"incoming"} else roles - {"incoming"}
        places = np.max([units_along(layout, width, [*roles]) for width in own], 0) >= 0
        variables = sample.network.variables
        part = variables[u.path] * _along(places, u.axis, len(shape))
        return self._larger({**variables, u.path: part}, sample.none)[place]

    def with_ordered(self) -> Self | None:
        """Returns the same problem that also compares ``ordered`` arrays; None without any."""
        problem = copy.copy(self)
        problem._is_hidden_seen = True
        return problem if any(sample.network.ordered for sample in self._samples) else None

    @property
    def start(self) -> np.ndarray:
        """The first values of all unknowns: logarithms of factors, and shares of means."""
        return np.array([1.0 if u.kind == "mix" else 0.0 for u in self.unknowns])

    def depends_on_new(self) -> bool:
        """Whether outputs depend on drawn new entries, so that no factors can restore them."""
        if not self._samples or any(u.kind == "mix" for u in self.unknowns):
            return not self._samples
        return any(map(differs, apart(self.evaluated(lambda one, other: [one, other]))))

    def evaluated(self, arrays: Callable[[Arrays, Arrays], Sequence[Arrays]]) -> list[np.ndarray]:
        """Returns the differences of old parts of outputs from the network's, for each sample.

        Args:
            arrays: returns sets of arrays to evaluate, from the larger network's arrays with two
                draws of new entries.
        """
        return self._evaluated([(s, its) for s in self._samples for its in arrays(*s.drawn)])

    def dependences(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the differences of outputs between two draws of new entries, one row for each x.

        Args:
            xs: values of all unknowns: logarithms of factors, and shares of means.
        """
        ways = [(s, self._wide(s, its, x)) for x in xs for s in self._samples for its in s.drawn]
        every, count = apart(self._evaluated(ways)), len(self._samples)
        return [np.concatenate(every[n : n + count]) for n in range(0, len(every), count)]

    def residuals(self, xs: Sequence[np.ndarray], *, of_first: bool = False) -> list[np.ndarray]:
        """Returns the differences of old parts of outputs from the network's, relative to outputs.

        Args:
            xs: values of all unknowns: logarithms of factors, and shares of means.
            of_first: whether to evaluate only the first sample.

        Returns:
            A row for each x; the row holds infinities if a loop does not end.
        """
        samples = self._samples[: 1 if of_first else None]
        if not samples:
            return [np.zeros(0) for _ in xs]
        every = self._evaluated([(s, self._wide(s, s.base, x)) for x in xs for s in samples])
        count = len(samples)
        return [np.concatenate(every[n : n + count]) for n in range(0, len(every), count)]

    def _evaluated(self, ways: Sequence[tuple[_Sample, Arrays]]) -> list[np.ndarray]:
        """Returns the differences of old parts of outputs from the network's, for each way."""
        if not ways:
            return []
        try:
            watch = functools.partial(LargeEpsilons, self._others)
            arguments = [self._arguments(s, arrays) for s, arrays in ways]
            results = self._together(arguments, watch, always=self._is_hidden_seen)
        except Undecided:
            return [np.full(1, np.inf) for _ in ways]
        return [self._rows(s, its) for (s, _), its in zip(ways, results)]

    def _arguments(self, sample: _Sample, wide: Arrays) -> list[Any]:
        left = iter(sample.network.inputs)
        return [next(left) if p is None else wide[p] for p, _ in self._case.new.arguments]

    def _wide(self, sample: _Sample, arrays: Arrays, x: np.ndarray) -> dict[str, Any]:
        wide, held = dict(arrays), self._case.growth.held
        factors = {u.path: by for u, by in zip(self.unknowns, x) if u.kind == "factor"}
        for u, by in zip(self.unknowns, x):
            more = (by - 1) * np.exp(factors.get(u.path, 0.0)) if u.kind == "mix" else np.expm1(by)
            if more:
                wide[held[u.path].path] = wide[held[u.path].path] + more * sample.moves[u]
        return wide

    def _rows(self, sample: _Sample, results: Sequence[Any]) -> np.ndarray:
        pairs, rows = [], []
        for output, before in zip(self._case.outputs, sample.network.before, strict=True):
            if is_float(before) and output.path not in self._mirrors:
                pairs.append((before, old_part(results, output)))
        if self._is_hidden_seen:
            ours, theirs = sample.network.ordered, results[len(self._case.new.results) :]
            if len(ours) == len(theirs):
                pairs += [(a, b) for a, b in zip(ours, theirs) if a.shape == b.shape]
        for before, now in pairs:
            if np.shape(now) != np.shape(before):
                return np.full(1, FAR)
            finite = np.isfinite(before)
            scale = np.sqrt(np.mean(np.abs(before[finite]) ** 2)) if finite.any() else 1.0
            with np.errstate(all="ignore"):
                by = np.where(finite, now - np.where(finite, before, 0), 0) / (scale or 1.0)
            rows.append(by.ravel().view(np.float64) if by.dtype.kind == "c" else by.ravel())
        found = np.concatenate(rows) if rows else np.zeros(0)
        return np.where(np.isfinite(found), found, FAR)


def other_numbers(case: Case) -> dict[float, float]:
    """Returns constants that only the larger program has, each with the network's in its place.

    If the counterpart is not known, it is 1, as if the network multiplied by 1 there.
    """
    ours, theirs = (numbers_of(side.jaxpr) for side in (case.old, case.new))
    if len(ours) != len(theirs):  # new layers have numbers, too
        own, its = (
            dict.fromkeys(n for n in a if n not in b) for a, b in ((ours, theirs), (theirs, ours))
        )
        pairs = [*zip(its, own if len(own) == len(its) else [1.0] * len(its))]
    else:
        pairs = [
            (new, old) for new, old in zip(theirs, ours) if new not in ours and old not in theirs
        ]
    return dict(pairs)


def is_float(array: Any) -> bool:
    """Whether an array holds floats, not integers or keys."""
    return getattr(getattr(array, "dtype", None), "kind", "") in ("f", "c", "V")


def differs(by: np.ndarray) -> bool:
    """Whether a difference, relative to outputs, is larger than rounding."""
    return bool(np.any(np.abs(by) > 1e-6))


def apart(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the difference of each pair of rows; entries that are not finite count as equal."""
    both = zip(rows[::2], rows[1::2])
    return [np.where(np.maximum(a, b) < FAR, a - b, 0) for a, b in both]


def _zeros(array: Any, number: float = 0) -> Any:
    return np.full_like(array, number) if is_float(array) else array


def _along(places: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return places.reshape([-1 if a == axis else 1 for a in range(ndim)])
