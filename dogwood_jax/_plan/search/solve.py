"""The factors with which a larger network computes the same, as powers of ratios: ``Solver``.

Gauss-Newton on the logarithms of factors finds approximate factors. These are rounded to powers of
the ratios of sizes, and only the rounded factors are used: raw solutions depend on the samples.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.search.problem import SOLVED, Problem
from dogwood_jax._plan.search.unknowns import Unknown
from dogwood_jax._widths.layout import Units, size_of, units_of

_STEP = 1e-6  # of finite differences
_DEPENDENT = 1e-4  # a column depends on others if less of it is left, relative to its size
_ROUNDS, _STALLS = 12, 3
_GUESSED = 3  # at most this many groups get a guessed power each
_MOST_EACH = 20  # at most this many values are searched near a guess
_DAMPINGS = (1e-16, 1e-5, 1e-3, 1e-1)
_LONGEST = 0.7  # upper limit on the change of a logarithm in a step
_FARTHEST = 6.0  # upper limit on logarithms: larger old units hide new ones
# Newton and guesses are tried if slopes leave at most this share of a residual unexplained.
_LEFT, _LEFT_OF_GUESS = 0.3, 0.6
_NEAR = 0.2  # largest distance of a logarithm from a power's, relative to the smallest ratio's
_POWERS = tuple(sorted((n / 4 for n in range(-8, 9)), key=lambda p: (p * 4 % 2, abs(p))))
_FEW_POWERS = (0.0, 0.5, -0.5, 1.0, -1.0)
# The same for multiples of a half, which are read from afar: most powers are.
_HALVES, _NEAR_HALF = tuple(power for power in _POWERS if power * 2 % 1 == 0), 0.26


@dataclass(frozen=True)
class Ratio:
    """A ratio whose powers are factors.

    Attributes:
        width: the width that the ratio belongs to.
        kind: the field of ``Recipe`` for its powers, ``"powers"`` or ``"copies"``.
        logarithm: logarithm of the ratio.
        times: the logarithm divided by that of the width's own ratio.
    """

    width: str
    kind: str
    logarithm: float
    times: float = 1.0


def ratios(growth: Growth, numbers: Iterable[float], rounding: float) -> Iterator[Ratio]:
    """Yields the ratios of a growth: of sizes, of axes, of constants, and the number of copies.

    Args:
        growth: the growth.
        numbers: ratios of constants of the larger program to those of the network.
        rounding: upper limit on the rounding of a constant, relative to the constant.
    """
    own: dict[str, float] = {}
    for change in growth.changes:
        if change.new > change.old > 0:
            if change.ratio != 1:
                own[change.width] = log(change.ratio)
                yield Ratio(change.width, "powers", own[change.width])
            if change.strategy.incoming == "copy" and change.new // change.old > 1:
                yield Ratio(change.width, "copies", log(change.new // change.old))
    wholes = {
        (units.width, size_of(layout, growth.sizes) / size_of(layout))
        for leaf in growth.widths.leaves
        for layout in leaf.axes
        if not isinstance(layout, Units)
        for units in units_of(layout)
        if units.width in own
    }
    # Plain ratios of sizes come first, because widths with copies have another ratio. Then come
    # ratios of whole axes, such as a head with only some rotated units, and of constants such as
    # alpha / rank.
    others = [(name, growth.change[name].new / growth.change[name].old) for name in own]
    others += sorted(wholes) + [(width, ratio) for width in [*own][:1] for ratio in numbers]
    known = [*own.values()]
    for width, ratio in others:
        powers = [*known, *(power * other for other in known for power in (-1.0, 0.5, -0.5))]
        if all(abs(log(ratio) - power) > rounding for power in powers):
            known.append(log(ratio))
            yield Ratio(width, "powers", log(ratio), log(ratio) / own[width])


class RatioPowers:
    """The factors that are powers of ratios, the simplest ones first.

    Args:
        every: the ratios.
        powers: the powers of a single ratio.
        nearest: upper limit on the distance of a logarithm, relative to the smallest ratio's.

    Attributes:
        logarithms: the logarithms of the ratios.
    """

    def __init__(
        self, every: Sequence[Ratio], powers: Sequence[float] = _POWERS, nearest: float = _NEAR
    ) -> None:
        ways = {(0.0,) * len(every): None}
        for number, each in ((1, powers), (2, _FEW_POWERS)):
            for few in itertools.combinations(range(len(every)), number):
                for way in itertools.product(each, repeat=number):
                    chosen = dict(zip(few, way))
                    ways[tuple(chosen.get(n, 0.0) for n in range(len(every)))] = None
        self._ways = sorted(ways, key=lambda way: sum(map(abs, way)))
        self.logarithms = [ratio.logarithm for ratio in every]
        self._made = np.array(self._ways).reshape(len(self._ways), -1) @ np.array(self.logarithms)
        self._far = nearest * min(map(abs, self.logarithms), default=0.0)

    def near(self, logarithm: float) -> tuple[tuple[float, ...], float] | None:
        """Returns the nearest powers of ratios and their logarithm; None if none is near."""
        far = np.round(np.abs(logarithm - self._made), 9)
        best = int(np.argmin(far))
        if far[best] > self._far:
            return None
        return self._ways[best], float(self._made[best])


Powers = Mapping[Unknown, tuple[float, ...]]


class Solver:
    """Solves a problem for its unknowns, group by group; like layers share their values.

    Args:
        problem: returns how far outputs differ.
        groups: the unknowns, see ``unknowns``.
        every: the ratios whose powers are factors.
    """

    def __init__(
        self, problem: Problem, groups: Sequence[Sequence[Unknown]], every: Sequence[Ratio]
    ) -> None:
        self.problem, self._whole, self._ratios = problem, groups, every
        self._powers = RatioPowers(every)
        self._halves = RatioPowers(every, _HALVES, _NEAR_HALF)
        places = {u: n for n, u in enumerate(problem.unknowns)}
        # One column for each shared value.
        self._columns: list[np.ndarray] = []
        self._groups: list[list[int]] = []
        for group in groups:
            alike: dict[tuple[str, str], list[int]] = {}
            for u in group:
                alike.setdefault((u.kind, u.alike), []).append(places[u])
            self._groups.append([])
            for members in alike.values():
                self._groups[-1].append(len(self._columns))
                column = np.zeros(len(problem.unknowns))
                column[members] = 1.0
                self._columns.append(column)

    def x(self, numbers: np.ndarray) -> np.ndarray:
        return np.asarray(self.problem.start + np.array(self._columns).T @ numbers)

    def with_ordered(self) -> "Solver | None":
        """Returns a solver that also keeps values that are compared; None without any."""
        other = self.problem.with_ordered()
        return None if other is None else Solver(other, self._whole, self._ratios)

    def guess(self) -> tuple[Powers | None, float]:
        """Returns a guess that is a solution, or None, and the residual of the best guess.

        This takes a fraction of the time of ``powers``. The nearer the best guess of a start, the
        more likely it is that Newton solves it.
        """
        mixed = self._mixed()
        if mixed is None:
            return None, np.inf
        residual = self._residual(mixed)
        if self._holds(residual) or not residual.size:  # no outputs are floats
            return self._as_powers(mixed), 0.0
        groups = self._unset(mixed)
        guesses, rows = self._guesses(mixed, groups)
        for guess, row in zip(guesses, rows):
            if self._holds(row) and self._holds(self._residual(guess)):
                every = [n for group in groups for n in group]
                return self._as_powers(self._clean(guess, every)), 0.0
        return None, min((float(row @ row) for row in rows), default=np.inf)

    def powers(self) -> Powers | None:
        """Returns the power of each ratio by unknown; for a mix, the share of the mean instead.

        Returns None if no solution is found.
        """
        numbers = self._solved()
        return None if numbers is None else self._as_powers(numbers)

    def _as_powers(self, numbers: np.ndarray) -> Powers:
        every = zip(self.problem.unknowns, self.x(numbers), strict=True)
        found = ((u, value, self._powers.near(value)) for u, value in every)
        return {
            u: (float(value),) if u.kind == "mix" or near is None else near[0]
            for u, value, near in found
        }

    def _unset(self, mixed: np.ndarray) -> list[list[int]]:
        """Returns the groups of values that are not chosen with the mixes."""
        unset = ([n for n in group if not mixed[n]] for group in self._groups)
        return [group for group in unset if group]

    def _solved(self) -> np.ndarray | None:
        """Returns the values, rounded to powers; None if there is no solution."""
        found = self._mixed()
        if found is None:
            return None
        numbers, residual = found, self._residual(found)
        if self._holds(residual) or not residual.size:  # no outputs are floats
            return numbers
        basis, slopes, is_guessed = list[int](), list[np.ndarray](), False
        groups = self._unset(numbers)
        every = [n for group in groups for n in group]
        slope_of = dict(zip(every, self._slopes(numbers, residual, every).T))
        for group in groups:
            for n in group:
                if _is_independent(slope_of[n], slopes):
                    basis.append(n)
                    slopes.append(slope_of[n])
            left = _unexplained(slopes, residual)
            if left <= _LEFT_OF_GUESS and not is_guessed:
                if (guess := self._guessed(numbers, groups)) is not None:
                    return self._clean(guess, every)
                is_guessed = True
            if left > _LEFT:
                continue
            patience = _STALLS if group is groups[-1] else 1
            near = self._newton(basis, numbers, residual, np.array(slopes).T, patience)
            if near is not None:
                return self._clean(near, basis)
        # Slopes explain little of a large factor, such as an eighth of alpha / rank.
        guess = None if is_guessed else self._guessed(numbers, groups, of_one_group=True)
        return None if guess is None else self._clean(guess, every)

    def _guessed(
        self,
        numbers: np.ndarray,
        groups: Sequence[Sequence[int]],
        *,
        of_one_group: bool = False,
    ) -> np.ndarray | None:
        """Returns values for which the residual is zero, at or near the best guess; else None."""
        guesses, shown = self._guesses(numbers, groups, of_one_group=of_one_group)
        for guess, row in zip(guesses, shown):
            if self._holds(row) and self._holds(self._residual(guess)):
                return guess
        each = [n for group in self._to_guess(groups) for n in group]
        if of_one_group or not guesses or len(each) > _MOST_EACH:
            return None
        best = guesses[int(np.argmin([row @ row for row in shown]))]
        residual = self._residual(best)
        slopes = self._slopes(best, residual, each)
        kept = _independent(slopes)
        return self._newton([each[n] for n in kept], best, residual, slopes[:, kept], _STALLS)

    def _guesses(
        self,
        numbers: np.ndarray,
        groups: Sequence[Sequence[int]],
        *,
        of_one_group: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns guesses, and the residual of each in the first sample.

        A guess gives each group one power, which fits if all norms are alike. Unlike Newton, it
        also works if outputs are not smooth, for example with a choice of experts.
        """
        few = self._to_guess(groups)
        # The simplest powers first, and of these, those of earlier groups.
        ways = itertools.product(_FEW_POWERS, repeat=len(few))
        powers = sorted(
            (way for way in ways if not of_one_group or np.count_nonzero(way) == 1),
            key=lambda way: (sum(map(abs, way)), [*map(abs, way[::-1])]),
        )
        guesses = list[np.ndarray]()
        for logarithm, way in itertools.product(self._powers.logarithms[:1], powers):
            guesses.append(numbers.copy())
            for group, power in zip(few, way):
                guesses[-1][group] = power * logarithm
        return guesses, self.problem.residuals([*map(self.x, guesses)], of_first=True)

    def _to_guess(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Returns the first groups of factors, whose powers are guessed."""
        return [self._alone(group) for group in groups if not self._is_mix(group[0])][:_GUESSED]

    def _alone(self, group: Sequence[int]) -> list[int]:
        """Returns the values of a group; a scale with an offset counts only with the offset."""
        kinds = {n: self._unknown(n) for n in group}
        offsets = {u.path for u in kinds.values() if u.kind == "offset"}
        return [n for n, u in kinds.items() if u.kind == "offset" or u.path not in offsets]

    def _mixed(self) -> np.ndarray | None:
        """Returns the mixes with which outputs do not depend on drawn new entries; None if none.

        After a norm, new entries of vectors must be zero; where units are written, they must be
        means. One mix at a time is switched, as long as outputs depend less on new entries. Factors
        do not matter here.
        """
        numbers = np.zeros(len(self._columns))
        mixes = [n for n in range(numbers.size) if self._is_mix(n)]
        before = np.inf
        while mixes:
            others = [np.where(np.arange(numbers.size) == n, -1 - numbers, numbers) for n in mixes]
            every = [numbers, *others]
            found = self.problem.dependences([self.x(its) for its in every])
            if self._holds(found[0]):
                break
            after = [float(row @ row) for row in found]
            best = int(np.argmin(after))
            if best == 0 or not after[best] < before:
                return None
            numbers, before = every[best], after[best]
        return numbers

    def _residuals(self, every: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.problem.residuals([self.x(numbers) for numbers in every])

    def _residual(self, numbers: np.ndarray) -> np.ndarray:
        return self._residuals([numbers])[0]

    def _holds(self, residual: np.ndarray) -> bool:
        return bool(residual.size) and float(np.max(np.abs(residual))) < SOLVED

    def _slopes(self, at: np.ndarray, residual: np.ndarray, which: Sequence[int]) -> np.ndarray:
        moved = [at + _STEP * (np.arange(at.size) == n) for n in which]
        found = np.zeros((residual.size, len(which)))
        for place, near in enumerate(self._residuals(moved)):
            if near.size == residual.size:
                found[:, place] = (near - residual) / _STEP
        return found

    def _newton(
        self,
        basis: Sequence[int],
        numbers: np.ndarray,
        residual: np.ndarray,
        slopes: np.ndarray | None,
        patience: int,
    ) -> np.ndarray | None:
        """Returns values for which the residual is zero, rounded to powers; None if not found.

        Args:
            basis: indices of the values to solve for.
            numbers: the first values.
            residual: the residual for the first values.
            slopes: the slopes of that residual along each value in ``basis``, or None.
            patience: upper limit on successive steps that hardly reduce the residual.
        """
        stalls = 0
        for _ in range(_ROUNDS):
            before = float(residual @ residual)
            if slopes is None:
                slopes = self._slopes(numbers, residual, basis)
            left, sizes, right = np.linalg.svd(slopes, full_matrices=False)
            if not sizes.size or not sizes[0] or not np.isfinite(before):
                return None
            moved = [numbers.copy() for _ in _DAMPINGS]
            for damping, near in zip(_DAMPINGS, moved):
                damped = sizes / (sizes**2 + damping * sizes[0] ** 2)
                step = right.T @ (damped * (left.T @ -residual))
                near[[*basis]] += step * min(1.0, _LONGEST / max(float(np.max(np.abs(step))), 1e-9))
            ways = [self._read(near, by) for by in (self._powers, self._halves) for near in moved]
            read = [its for its in ways if its is not None]
            found = self._residuals([*moved, *read])
            for its, row in zip(read, found[len(moved) :]):
                if self._holds(row):
                    return its
            after = [float(r @ r) if r.size == residual.size else np.inf for r in found]
            best = int(np.argmin(after[: len(moved)]))
            if not after[best] < before or after[best] < 1e-22:
                return None
            stalls = stalls + 1 if after[best] > 0.7 * before else 0
            numbers, residual, slopes = moved[best], found[best], None
            if stalls >= patience or np.max(np.abs(numbers)) > _FARTHEST:
                return None
        return None

    def _read(self, numbers: np.ndarray, powers: RatioPowers) -> np.ndarray | None:
        """Returns values rounded to the nearest powers; None if one of them is near no power."""
        found = numbers.copy()
        for n, number in enumerate(numbers):
            if self._is_mix(n):
                found[n] = -1.0 if number < -0.5 else 0.0  # zeros, or means
            elif (near := powers.near(number)) is None:
                return None
            else:
                _, found[n] = near
        return found

    def _is_mix(self, n: int) -> bool:
        return self._unknown(n).kind == "mix"

    def _unknown(self, n: int) -> Unknown:
        """Returns the first unknown that has a value."""
        return self.problem.unknowns[int(np.argmax(self._columns[n]))]

    def _clean(self, numbers: np.ndarray, basis: Sequence[int]) -> np.ndarray:
        """Returns a solution in which later values are zero if earlier ones can replace them.

        The basis was chosen far from the solution, where more columns may be independent.
        """
        used = [n for n in basis if not self._is_mix(n)]
        if np.count_nonzero(numbers[used]) < 2:
            return numbers
        slopes = self._slopes(numbers, self._residual(numbers), used)
        kept = _independent(slopes)
        free = [place for place in range(len(used)) if place not in kept and numbers[used[place]]]
        if not free or not kept:
            return numbers
        moves, *_ = np.linalg.lstsq(slopes[:, kept], slopes[:, free], rcond=1e-12)
        clean = numbers.copy()
        clean[[used[n] for n in kept]] += moves @ numbers[[used[n] for n in free]]
        clean[[used[n] for n in free]] = 0
        read = self._read(clean, self._powers)
        return read if read is not None and self._holds(self._residual(read)) else numbers


def _independent(slopes: np.ndarray) -> list[int]:
    """Returns the indices of the columns that do not depend on earlier columns."""
    kept = list[int]()
    for place in range(slopes.shape[1]):
        if _is_independent(slopes[:, place], [*slopes[:, kept].T]):
            kept.append(place)
    return kept


def _is_independent(slope: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    size, *sizes = (float(np.linalg.norm(its)) for its in (slope, *others))
    if size <= 1e-7 * max(sizes, default=0.0) or not size:
        return False
    return _unexplained(others, slope) > _DEPENDENT


def _unexplained(slopes: Sequence[np.ndarray], residual: np.ndarray) -> float:
    """Returns the share of a residual that no combination of slopes explains."""
    size = float(np.linalg.norm(residual))
    if not slopes or not size:
        return 1.0 if size else 0.0
    matrix = np.array([slope / (np.linalg.norm(slope) or 1.0) for slope in slopes]).T
    numbers, *_ = np.linalg.lstsq(matrix, residual, rcond=1e-12)
    return float(np.linalg.norm(matrix @ numbers - residual)) / size
