"""Decides by evaluation whether a growth keeps a network's outputs: ``check``.

Both networks are evaluated on random numbers in float64. The larger network's variables come from
``grow``, so the check covers the plan and its execution. It relies on no rule about primitives.

Rounding grows with depth. So the network is evaluated again with every number nudged by 1e-15. An
entry differs if the growth moves it more than 30 times as far as the nudge does.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.bits import in_64_bits
from dogwood_jax._base.meshes import without_mesh
from dogwood_jax._base.trees import struct
from dogwood_jax._check.cause import first_not_finite, first_to_differ
from dogwood_jax._check.choices import Choices
from dogwood_jax._check.claim import Case, ComparedOutput, Side
from dogwood_jax._check.evaluate import Undecided, evaluate, widest, with_last, words
from dogwood_jax._check.gradients import Sample, check_gradients, gradients_of
from dogwood_jax._check.hidden import Hidden, Steps, are_apart
from dogwood_jax._check.run import NUDGE, Drawn, Watch, run
from dogwood_jax._check.samples import (
    BEYOND,
    COMPARED,
    FAMILIES,
    FLAGS,
    LARGE,
    MODES,
    OF_WEIGHTS,
    SCALES,
    SIGNED,
    SMALL,
    ZERO_ROW,
    SampleFamily,
    Samples,
    kinds_of,
    merged_units,
    opposed_units,
)
from dogwood_jax._check.seen import BRANCHES, Seen, differing, rounding_in
from dogwood_jax._check.twins import copied_widths
from dogwood_jax._growth.draws import by_initializers
from dogwood_jax._growth.finite import not_finite
from dogwood_jax._growth.grown import grown as arrays_of_larger
from dogwood_jax._growth.grown import without_choices
from dogwood_jax._growth.growth import Growth
from dogwood_jax._program.subprograms import Key, entries, equations, every_constant, key_of

# The growth may move an entry at most this many times as far as the nudge does.
TIMES = 30.0
# The same factor for nudges of constants that are rounded in a narrow dtype.
_TIMES_ROUNDED = 3.0
# The largest move of an entry by rounding alone, relative to the entry.
_ROUNDING = 1e-11
# An entry that the nudge moves by more than this, relative to the entry, is not compared.
_UNSTEADY = 1e-6
# Smaller numbers count as zero.
_SMALLEST = 1e-290
# Upper limit on values recorded per evaluation of both networks.
_WRITTEN_DOWN = 20_000_000
# Programs with at most this many equations are fast, so they get twice as many samples.
_LONG = 200
# Number of samples with ids beyond tables: several, because units may be silent in some.
_IDS = 3
# Upper limits on ids, tried in turn if the network is not finite for larger ids.
_SMALL_IDS = 3, 1
# If fewer samples count, another sample with usual new weights is added.
_FEW = 4
# Number of further samples in which new units may get their first gradient.
_MORE = 12


@dataclass(frozen=True)
class Mismatch:
    """A sample in which both networks differ.

    Attributes:
        path: the path of the output.
        family: the kind of sample.
        place: the index of the entry in the output.
        old: the network's value.
        new: the larger network's value.
        cause: the operation that makes the networks differ, as text; empty if unknown.
    """

    path: str
    family: SampleFamily
    place: tuple[int, ...]
    old: complex
    new: complex
    cause: str = ""


@dataclass(frozen=True)
class Verdict:
    """The result of evaluating a claim.

    Attributes:
        samples: the number of samples that counted.
        difference: a sample in which the networks differ, or None.
        largest: the largest difference of an entry, relative to the entry.
        unshown: the paths of outputs that no sample has shown.
        problem: a difference between the programs that no sample shows, or None.
        gradients: a problem with gradients, such as one that is not finite, or None.
        unseen: operations of the network with sides that no sample has shown.
        rounding: casts and precisions that only one of the programs has.
        copied: the widths of which new units are copies, and stay copies in training.
    """

    samples: int = 0
    difference: Mismatch | None = None
    largest: float = 0.0
    unshown: tuple[str, ...] = ()
    problem: str | None = None
    gradients: str | None = None
    unseen: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()

    @property
    def is_shown(self) -> bool:
        """Whether the claim is shown to be true."""
        speaks_against = self.difference or self.problem or self.gradients or self.unshown
        return self.samples > 0 and not speaks_against

    @property
    def is_unfit(self) -> bool:
        """Whether the check may succeed with other values in new layers."""
        found = self.difference
        return bool(self.gradients) or (found is not None and not np.isfinite(found.new))


@np.errstate(all="ignore")  # once, because entering it takes longer than most comparisons
def check(case: Case) -> Verdict:
    """Evaluates both networks on samples, and returns the verdict.

    Old entries get the same random bits in both networks, but copies get other bits, such as
    another dropout mask. If the networks differ, they are compared again with the same bits for all
    entries.

    Args:
        case: the claim.
    """
    draws = _draws(case.old.jaxpr)
    if draws:
        case = replace(case, old=_with_draws(case.old), new=_with_draws(case.new))
    verdict = _Comparison(case).verdict()
    if verdict.difference and draws:
        again = _Comparison(case, is_alike=True).verdict()
        if again.is_shown:
            return replace(again, unseen=(*again.unseen, "random numbers that differ by entry"))
    return verdict


def _families(case: Case) -> Sequence[SampleFamily]:
    """Returns the kinds of samples; ids beyond tables only if no input or output grows.

    In a long program without floats or booleans among its inputs, usual kinds that differ only by
    these are left out.
    """
    widths = case.growth.widths
    is_closed = not any(widths[change.width].interface for change in case.growth.changes)
    is_new = bool(case.growth.inserted)
    is_zero = is_new or any(
        change.strategy.incoming == "zero"
        or any(place.role == "both" for place in widths[change.width].occurrences)
        for change in case.growth.changes
    )
    growing = (place for c in case.growth.changes for place in widths[c.width].occurrences)
    network = widths.network
    is_compared = network is not None and any(dim.ordered for dim in network.dims(growing))
    # Copied experts compute the same, but in these samples, rounding decides between equal logits.
    is_compared &= not any(change.strategy.is_gated for change in case.growth.changes)
    more = [*([LARGE] if is_new else []), *(SIGNED if is_zero or is_compared else [])]
    more += COMPARED if is_compared else []
    count = sum(1 for _ in equations(case.new.jaxpr.jaxpr))
    usual: Sequence[SampleFamily] = 2 * FAMILIES
    if count > _LONG:
        inputs = (array for path, array in case.old.arguments if path is None)
        has_numbers = any(_is_float(array) or array.dtype == np.bool_ for array in inputs)
        usual = FAMILIES if has_numbers else OF_WEIGHTS
    more += [SCALES] if "ones" in kinds_of(case.growth).values() else []
    return (*usual, *more, *FLAGS, *(_IDS * [BEYOND] if case.has_ids and is_closed else []))


def _can_be_written_down(case: Case) -> bool:
    """Whether all values that both networks compute fit in memory at once."""
    return sum(sum(entries(side.jaxpr)) for side in (case.old, case.new)) <= _WRITTEN_DOWN


class _Keys(Watch):
    """Records the keys that draw random numbers in an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[Key, list[bytes]] = {}

    def equation(self, eqn: Any, operands: list[Any], callers: Sequence[Any]) -> list[Any]:
        if eqn.primitive.name == "random_bits":
            self.words.setdefault(key_of(eqn, callers), []).append(words(operands[0]))
        return operands


def _with_draws(side: Side) -> Side:
    """Returns a network with its ``draws``: equations whose keys no key of the caller changes.

    Integer arguments count as keys of the caller, because a key may be made from a seed.
    """
    first, found = None, list[dict[Key, list[bytes]]]()
    for samples in (Samples({}, seed=seed) for seed in range(2)):
        variables = samples.variables(side.arguments, FAMILIES[0])
        inputs = samples.inputs(side.arguments, FAMILIES[0])
        first = first or (variables, inputs)
        floats, its_floats = first
        variables = {path: _float_of(floats[path], a) for path, a in variables.items()}
        keys = _Keys()
        with contextlib.suppress(Undecided):
            run(side, variables, [*map(_float_of, its_floats, inputs)], keys)
        found.append(keys.words)
    same = (key for key, words in found[0].items() if found[1].get(key) == words)
    return replace(side, draws=frozenset(same))


def _float_of(array: Any, other: Any) -> Any:
    """Returns ``array`` if it holds floats, else ``other``."""
    is_float = isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "fc"
    return array if is_float else other


def _draws(jaxpr: Any) -> bool:
    return any(eqn.primitive.name == "random_bits" for eqn in equations(jaxpr.jaxpr))


class _Comparison:
    """Compares both networks, one sample after another.

    Args:
        case: the claim.
        is_alike: whether random bits are the same for all entries of an array.

    Attributes:
        counted: the samples that counted.
    """

    def __init__(self, case: Case, *, is_alike: bool = False) -> None:
        self._case, self._is_alike = case, is_alike
        self._larger, self._rounded = grown(case), rounded_in_one(case)
        self._others = _other_constants(case)
        self._alike = max([_UNSTEADY, *(4 * eps for eps in self._rounded.values())])
        self._samples, self.counted = samples_of(case), list[Drawn]()
        self._largest, self._shown = 0.0, set[str]()
        self._zero, self._jumping = set[str](), set[str]()
        # A reduced model may not reach a position that the program compares with, so integers
        # count. If a table grows, samples lack the new ids, so some sides cannot be seen.
        has_integers = case.is_reduced and _last_id(case.growth) is None
        self._ours, self._theirs, self._hidden = Seen(has_integers), Seen(has_integers), Hidden()
        self._choices, self._its_choices = Choices(), Choices()
        is_written = _can_be_written_down(case)
        self._steps: Steps | None = Steps() if is_written else None
        self._its_steps: Steps | None = Steps() if is_written else None

    def verdict(self) -> Verdict:
        """Returns the verdict of all samples."""
        for number, family in enumerate(self._families()):
            if (found := self._mismatch(number, family)) is not None:
                return Verdict(len(self.counted), found)
        paths = dict.fromkeys(output.path for output in self._case.outputs)
        self._shown |= self._zero - self._jumping
        unshown = tuple(path for path in paths if path not in self._shown)
        if unshown or not self.counted:
            return Verdict(len(self.counted), None, self._largest, unshown)
        problem, sides = self._problem(), (self._case.old, self._case.new)
        ours, theirs = (rounding_in(side.jaxpr) for side in sides)
        gradients, copied = (None, ()) if problem else self._gradients()
        return Verdict(
            len(self.counted),
            None,
            self._largest,
            problem=problem,
            gradients=gradients,
            copied=copied,
            unseen=tuple(dict.fromkeys(map(str, self._ours.unseen()))),
            rounding=tuple(sorted(ours ^ theirs)),
        )

    def _families(self) -> Iterator[SampleFamily]:
        is_gated = any(change.strategy.is_gated for change in self._case.growth.changes)
        for family in _families(self._case):
            if not (is_gated and family.old == 1e3):  # saturated gates are equal
                yield family
        if len(self.counted) < _FEW:
            yield SMALL

    def _mismatch(self, number: int, family: SampleFamily) -> Mismatch | None:
        """Evaluates both networks on a sample; returns their first difference, or None."""
        case, is_alike = self._case, self._is_alike
        found = finite(
            case,
            replace(self._samples, seed=number),
            family,
            is_alike,
            seen=self._ours,
            steps=self._steps,
            choices=self._choices,
        )
        if found is None:
            return None
        drawn, variables, inputs, old = found
        if family not in (BEYOND, SCALES, *SIGNED, *COMPARED, *FLAGS):
            self._samples = drawn
        try:
            fresh = drawn.variables(case.new.arguments, family, new=True)
            wide = self._larger(variables, fresh)
            its_inputs = larger_inputs(case, inputs, drawn, family)
            watch = Watch(
                seen=self._theirs,
                is_alike=is_alike,
                steps=self._its_steps,
                choices=self._its_choices,
            )
            new = run(case.new, wide, its_inputs, watch)
            near, rounding = self._nudged(number, variables, inputs, old, new)
        except Undecided:
            return None
        self.counted.append(Drawn(family, variables, inputs, old, wide, its_inputs, new))
        for output in case.outputs:
            before, after = old[output.old], old_part(new, output)
            if not are_alike(before, after):
                return Mismatch(output.path, family, (), np.nan, np.nan)
            moved = 0.0 if rounding is None else np.abs(rounding[output.old] - before)
            place = self._differs(output, before, near[output.old], after, moved, fresh, number)
            if place is not None:
                pair = complex(before[place]), complex(after[place])
                return Mismatch(output.path, family, place, *pair, self._cause(pair[1]))
        if self._steps is not None and self._its_steps is not None:
            self._hidden.look(self._steps, self._its_steps)
            self._its_steps.found.clear()
        return None

    def _nudged(
        self,
        number: int,
        variables: dict[str, Any],
        inputs: list[Any],
        old: list[Any],
        new: list[Any],
    ) -> tuple[list[Any], list[Any] | None]:
        """Returns the network's outputs with nudged numbers, and with rounded constants, too.

        If no entry differs by more than rounding, the outputs themselves are returned: nothing has
        to be explained, which takes a third of the time.
        """
        pairs = ((old[output.old], old_part(new, output)) for output in self._case.outputs)
        if all(are_alike(a, b) and not compared(a, a, b, 0.0)[1].any() for a, b in pairs):
            return old, None
        watch = Watch(NUDGE, number, is_alike=self._is_alike)
        near = run(self._case.old, variables, inputs, watch)
        if not self._rounded:
            return near, None
        watch = Watch(NUDGE, number, self._rounded, is_alike=self._is_alike)
        return near, run(self._case.old, variables, inputs, watch)

    def _differs(
        self,
        output: ComparedOutput,
        before: Any,
        nudged: Any,
        after: Any,
        moved: Any,
        fresh: dict[str, Any],
        number: int,
    ) -> tuple[int, ...] | None:
        """Returns the index of the first entry that differs, or None; records what was shown.

        Args:
            output: the output.
            before: its value in the network.
            nudged: its value in the network with nudged numbers.
            after: the old entries of its value in the larger network.
            moved: how far the rounding of constants moves its entries.
            fresh: new entries of the larger network.
            number: the number of the sample.
        """
        counts, differs, relative = compared(before, nudged, after, moved)
        numbers, are_near = _numbers_alike(before, after, self._alike, moved)
        is_steady = counts & are_near
        if differs.any():  # perhaps only by the rounding of large terms that cancel
            sample = self.counted[-1]
            every = rounding_of(self._case, self._larger, sample, fresh, number, self._is_alike)
            more = old_part([np.zeros(0)] * output.new + [every[output.new]], output)
            _, differs, _ = compared(before, nudged, after, moved + more)
        if not differs.any() and self._others:  # not by rounding, but by the value of a constant
            _, apart, _ = compared(before, nudged, after, 0.0)
            if apart.any() and self._is_by_others(output, before, nudged, after):
                differs = apart
        if differs.any():
            return _first(differs)
        if counts.any():
            self._largest = max(self._largest, float(relative[counts].max()))
            # If other entries jump when numbers are nudged, zeros do not show the output.
            (self._shown if np.any(is_steady) else self._zero).add(output.path)
        if np.any(numbers & ~is_steady):
            self._jumping.add(output.path)
        return None

    def _is_by_others(self, output: ComparedOutput, before: Any, nudged: Any, after: Any) -> bool:
        """Whether the network computes this output with one of the larger program's constants."""
        sample = self.counted[-1]
        for number, other in self._others.items():
            watch = Watch(instead={number: other}, is_alike=self._is_alike)
            moved = run(self._case.old, sample.variables, sample.inputs, watch)[output.old]
            if not compared(moved, moved + (nudged - before), after, 0.0)[1].any():
                return True
        return False

    def _cause(self, after: complex) -> str:
        """Returns the operation that makes the networks differ, as text; empty if unknown."""
        if not np.isfinite(after):
            return first_not_finite(self._case.old, self._case.new, self.counted[-1])
        steps, its_steps = self._steps, self._its_steps
        return first_to_differ(steps, its_steps) if steps and its_steps else ""

    def _problem(self) -> str | None:
        """Returns a difference between the programs that no sample shows, or None."""
        case, choices, its_choices = self._case, self._choices, self._its_choices
        problem = _unseen_difference(case, self.counted, self._ours, self._theirs)
        if problem is None and (operations := self._hidden.operations()):
            problem = f"an operand of {operations[0]} differs, and no sample shows what it does"
        problem = problem or _by_force(case, self.counted[0], choices, its_choices, self._is_alike)
        unseen = self._ours.unseen()
        branches = [one for one in unseen if one.eqn.primitive.name in BRANCHES]
        growth, is_other = case.growth, choices.names() != its_choices.names()
        are_new = not growth.inserted and all(change.sources is None for change in growth.changes)
        if branches and is_other and are_new:  # copies take the sides of old units
            problem = problem or f"no sample shows all sides of {branches[0]}"
        return problem

    def _gradients(self) -> tuple[str | None, tuple[str, ...]]:
        """Returns a problem with gradients, or None; and the widths whose new units stay copies."""
        case, samples, larger, is_alike = self._case, self._samples, self._larger, self._is_alike
        if paths := not_finite(by_initializers(case.growth.maps)):
            return f"{', '.join(paths)}: the strategy's initializer returns NaN or infinity", ()
        after = gradients_of(case.new)
        if after is None:
            return None, ()
        seen = [
            (one.family, one.variables, one.wide, one.inputs, one.larger) for one in self.counted
        ]
        edges = [*seen[:2], *_at_edges(case, samples, larger, is_alike)]
        more = itertools.chain(seen[2:], _more(case, samples, larger, is_alike))
        if problem := check_gradients(case, after, edges, more):
            return problem, ()
        every = itertools.chain(seen[:1], _more(case, samples, larger, is_alike))
        return None, tuple(copied_widths(case, after, (each[2::2] for each in every)))


def _first(differs: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(differs)[0])


def spot(path: str, place: Sequence[int]) -> str:
    """Returns the name of an output entry in errors, such as ``logits[0, 1]``."""
    return f"{path or 'its output'}{[*place] if place else ''}"


def samples_of(case: Case) -> Samples:
    """Returns the ``Samples`` that draw arguments of both networks."""
    return Samples(
        kinds_of(case.growth),
        more=_compared_with(case),
        last=_last_id(case.growth),
        merged=merged_units(case.growth),
        opposed=opposed_units(case.growth),
    )


def rounding_of(
    case: Case, larger: Any, sample: Drawn, fresh: dict[str, Any], seed: int, is_alike: bool
) -> list[Any]:
    """Returns how far rounding moves each result of the larger network.

    The network's variables and the inputs are nudged, and the variables grow again, so units whose
    effects cancel still cancel. Constants of new layers move by the rounding of single precision,
    because they are computed from constants of the program.
    """
    moved = [np.zeros(np.shape(result)) for result in sample.new]
    constants = [e.path for e in case.growth.inserted if e.fill and e.fill.kind == "constant"]
    numbers = rounded_in_one(case)
    for again in range(3):
        watch = Watch(NUDGE, seed + 100 * (again + 1))
        variables = {path: watch.nudged(array) for path, array in sample.variables.items()}
        wide = larger(variables, fresh)
        inputs = [watch.nudged(array) for array in sample.larger]
        near = run(case.new, wide, inputs, Watch(is_alike=is_alike))
        for path in constants:
            wide[path] = wide[path] * (1 + _eps(np.float32) / 2 * (-1) ** again)
        watch = Watch(seed=again, rounded=numbers, is_alike=is_alike)
        rounded = run(case.new, wide, inputs, watch) if constants or numbers else near
        for n, result in enumerate(sample.new):
            if isinstance(result, np.ndarray) and result.dtype.kind in "fc":
                with np.errstate(all="ignore"):
                    by = TIMES * np.abs(near[n] - result) + _TIMES_ROUNDED * np.abs(
                        rounded[n] - near[n]
                    )
                most = np.max(np.where(np.isfinite(by), by, 0.0), initial=0.0)
                moved[n] = np.maximum(moved[n], most)  # some entries move less by luck
    return moved


def old_part(results: Sequence[Any], output: ComparedOutput) -> Any:
    """Returns the old entries of an output of the larger network."""
    found = results[output.new]
    for axis, places in enumerate(output.places):
        if places is not None:
            found = np.take(found, places, axis)
    return found


def _more(case: Case, samples: Samples, larger: Any, is_alike: bool) -> Iterator[Sample]:
    """Yields more samples: variables of both networks, and inputs of both."""
    for number in range(_MORE):
        yield from _sample(
            case, replace(samples, seed=1000 + number), FAMILIES[0], larger, is_alike
        )


def _at_edges(case: Case, samples: Samples, larger: Any, is_alike: bool) -> Iterator[Sample]:
    """Yields a sample with hidden rows of zeros, and one with relus that return zero."""
    for family in (ZERO_ROW, SIGNED[1]):
        yield from _sample(case, samples, family, larger, is_alike)


def _sample(
    case: Case, samples: Samples, family: SampleFamily, larger: Any, is_alike: bool
) -> Iterator[Sample]:
    """Yields a sample of the family if the network is finite for one."""
    found = finite(case, samples, family, is_alike)
    if found is not None:
        samples, variables, inputs, _ = found
        fresh = samples.variables(case.new.arguments, family, new=True)
        wide = larger(variables, fresh)
        yield family, variables, wide, inputs, larger_inputs(case, inputs, samples, family)


def _unseen_difference(
    case: Case,
    samples: Sequence[Drawn],
    ours: Seen,
    theirs: Seen,
) -> str | None:
    """Returns a part of only one of the programs that no sample shows, or None.

    Args:
        case: the claim.
        samples: the samples.
        ours: the sides that were seen of the network.
        theirs: the sides that were seen of the larger network.
    """
    if case.is_resized:
        return None
    if not case.growth.inserted:  # new layers have operations of their own
        for whose, operation in [
            *(("larger program", one) for one in theirs.only_in(ours)),
            *(("network", one) for one in ours.only_in(theirs)),
        ]:
            return f"only the {whose} has {operation}, and no sample shows all its sides"
    gone = [*differing(case.new.jaxpr, case.old.jaxpr)]
    new = [*differing(case.old.jaxpr, case.new.jaxpr)]
    for number, what in gone:
        if not any(_matters(case.old, s.variables, s.inputs, s.old, number) for s in samples):
            return f"only the network has {what}, and no sample shows what it does"
    for number, what in new if gone or not case.growth.inserted else ():
        if not any(_matters(case.new, s.wide, s.larger, s.new, number) for s in samples):
            return f"only the larger program has {what}, and no sample shows what it does"
    return None


def _by_force(
    case: Case, sample: Drawn, ours: Choices, theirs: Choices, is_alike: bool
) -> str | None:
    """Returns a difference of the networks if both take a side that no sample takes, or None.

    Args:
        case: the claim.
        sample: a sample.
        ours: the choices of the network.
        theirs: the choices of the larger network.
        is_alike: see ``Watch``.
    """
    if ours.names() != theirs.names():
        return None
    keys, its_keys = [*ours.found], [*theirs.found]
    for operation, sides in ours.untaken(case.old.jaxpr):
        forced = {keys[place]: side for place, side in sides.items()}
        its_forced = {its_keys[place]: side for place, side in sides.items()}
        watch = Watch(is_alike=is_alike, forced=its_forced)
        try:
            watches = [Watch(n, is_alike=is_alike, forced=forced) for n in (0.0, NUDGE)]
            old, near = (run(case.old, sample.variables, sample.inputs, one) for one in watches)
            new = run(case.new, sample.wide, sample.larger, watch)
        except Undecided:
            continue
        for output in case.outputs:
            before, after = old[output.old], old_part(new, output)
            _, differs, _ = compared(before, near[output.old], after, 0.0)
            if differs.any() and before.dtype.kind in "fc":  # a bias before a norm has no gradient
                noise = _ROUNDING * max(map(_largest, old), default=0.0)
                differs &= ~(np.abs(after - before) <= noise)
            if differs.any() and are_apart(before, after):
                place = _first(differs)
                return (
                    f"{spot(output.path, place)} becomes {after[place]:.8g} instead of "
                    f"{before[place]:.8g} if {operation} takes a side that no sample takes"
                )
    return None


def _largest(array: Any) -> float:
    """Returns the largest finite number of an output."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fc":
        return 0.0
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def _matters(
    side: Side, variables: Mapping[str, Any], inputs: Sequence[Any], old: Any, number: bytes
) -> bool:
    """Whether results of a program change if one of its constants changes."""
    was = np.frombuffer(number)
    for times in (1.1, 3.0):  # a number that is rounded to an integer may not move by a tenth
        instead = {number: np.where(was == 0, 0.1, was * times)}
        try:
            moved = run(side, variables, inputs, Watch(instead=instead))
        except Undecided:
            return True
        if _differ(old, moved):
            return True
    return False


def _differ(old: Sequence[Any], moved: Sequence[Any]) -> bool:
    pairs = zip(old, moved, strict=True)
    return any(
        isinstance(a, np.ndarray) and not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        for a, b in pairs
    )


def _compared_with(case: Case) -> frozenset[int]:
    """Returns the integer constants that either program compares with by ``==`` or ``!=``."""
    found = set[int]()
    for side in (case.old, case.new):
        for eqn in equations(side.jaxpr.jaxpr):
            if eqn.primitive.name in ("eq", "ne"):
                numbers = (getattr(atom, "val", None) for atom in eqn.invars)
                found |= {int(n) for n in numbers if n is not None and _is_small_integer(n)}
    return frozenset(found)


def _is_small_integer(number: Any) -> bool:
    dtype = getattr(number, "dtype", None)
    is_whole = isinstance(number, int) or (dtype is not None and jnp.issubdtype(dtype, jnp.integer))
    return is_whole and np.ndim(number) == 0 and abs(int(number)) < 1 << 20


def _last_id(growth: Growth) -> int | None:
    """Returns the largest id that samples may hold if inputs or outputs grow, None for any."""
    known = [change.old for change in growth.changes if growth.widths[change.width].interface]
    return max(min(known) - 1, 0) if known else None


def rounded_in_one(case: Case) -> dict[bytes, float]:
    """Returns the rounded constants of only one program, each with the epsilon of its dtype."""
    ours, its = _numbers(case.old.jaxpr), _numbers(case.new.jaxpr)
    found = ours.keys() ^ its.keys()
    if all(len(number) == 8 and _is_whole(np.frombuffer(number)[0]) for number in found):
        return {}  # whole numbers, such as sizes, are exact, and so is infinity
    return {number: (ours | its)[number] for number in found}


def _other_constants(case: Case) -> dict[bytes, np.ndarray]:
    """Returns narrow constants of the network that differ by more than rounding in the other.

    Returns:
        The constant at the same place of the larger program, by the bytes of the network's.
    """
    ours, its = (_narrow_constants(side.jaxpr) for side in (case.old, case.new))
    found: dict[bytes, np.ndarray] = {}
    for (a, eps), (b, _) in zip(ours, its, strict=True) if len(ours) == len(its) else ():
        if a.shape == b.shape and np.any(np.abs(b - a) > eps * np.abs(a)):
            found.setdefault(a.tobytes(), b)
    return found


def _is_whole(number: np.float64) -> bool:
    return bool(np.rint(number) == number)


def _numbers(jaxpr: Any) -> dict[bytes, float]:
    """Returns the constants of a program in narrow dtypes, each with the epsilon of its dtype."""
    return {array.tobytes(): eps for array, eps in _narrow_constants(jaxpr)}


def _narrow_constants(jaxpr: Any) -> Sequence[tuple[np.ndarray, float]]:
    """Returns the constants in narrow dtypes as float64, with the epsilon of their dtype."""
    found: list[tuple[np.ndarray, float]] = []

    def constant(array: Any, aval: Any) -> None:
        if jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.itemsize < 8:
            found.append((np.asarray(array).astype(np.float64), _eps(aval.dtype)))

    every_constant(jaxpr, constant)
    return found


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def are_alike(old: Any, new: Any) -> bool:
    """Whether two arrays have the same shape, and both or neither are complex."""
    return np.shape(old) == np.shape(new) and np.iscomplexobj(old) == np.iscomplexobj(new)


def _numbers_alike(old: Any, new: Any, share: float, moved: Any) -> tuple[Any, Any]:
    """Returns which entries are finite and not zero, and which of them are nearly the same."""
    if not isinstance(old, np.ndarray | np.generic):  # keys
        return (np.zeros(np.shape(old), bool),) * 2
    with np.errstate(all="ignore"):
        numbers = np.isfinite(old) & (old != 0)
        if old.dtype.kind not in "fc":
            return numbers, numbers & (old == new)
        return numbers, numbers & (np.abs(new - old) <= share * np.abs(old) + 4 * moved)


def compared(old: Any, near: Any, new: Any, rounding: Any) -> tuple[Any, Any, Any]:
    """Returns which entries count, which differ, and by how much, relative to the entry.

    Args:
        old: an output of the network.
        near: the same output with every number nudged.
        new: the same output of the larger network.
        rounding: how far the rounding of constants moves the output.
    """
    with np.errstate(all="ignore"):
        if not isinstance(old, np.ndarray | np.generic):  # keys, which are never compared
            nothing = np.zeros(np.shape(old), bool)
            return nothing, nothing, np.zeros(nothing.shape)
        if old.dtype.kind not in "fc":
            counts = np.asarray(old == near)
            return counts, np.asarray(counts & (old != new)), np.zeros(old.shape)
        finite = np.isfinite(old) & np.isfinite(near)
        size, moved = np.abs(old), np.abs(near - old)
        steady = finite & ((moved <= _UNSTEADY * size) | (size < _SMALLEST))
        by = np.abs(new - old)
        bound = TIMES * moved + 4 * rounding + _ROUNDING * size + _SMALLEST
        differs = steady & ~(by <= bound)
        # Infinite entries, as in a mask, must stay the same.
        differs |= np.isinf(old) & (old == near) & (old != new)
        relative = np.where(steady & (size > 0), by / np.where(size > 0, size, 1), 0.0)
        return steady, np.asarray(differs), relative


def finite(
    case: Case,
    samples: Samples,
    family: SampleFamily,
    is_alike: bool = False,
    *,
    seen: Seen | None = None,
    steps: Steps | None = None,
    choices: Choices | None = None,
) -> tuple[Samples, dict[str, Any], list[Any], list[Any]] | None:
    """Returns a sample for which the network is finite, with its outputs; None if there is none."""
    modes = MODES[MODES.index(samples.mode) :]
    # If a deep network overflows, smaller weights are tried before other modes.
    scales = dict.fromkeys((family, replace(family, old="fan")))
    # If a table is read at minus an id, or at twice the id, it has entries for few ids only.
    most = samples.last or samples.ids
    lasts = [samples.last, *(n for n in _SMALL_IDS if case.has_ids and n < most)]
    for mode, last, weights in itertools.product(modes, lasts, scales):
        samples, old = replace(samples, mode=mode, last=last), None
        for _ in range(4):
            variables = samples.variables(case.old.arguments, weights)
            inputs = samples.inputs(case.old.arguments, family)
            watch = Watch(seen=seen, is_alike=is_alike, steps=steps, choices=choices)
            if steps is not None:
                steps.found.clear()
            try:
                old = run(case.old, variables, inputs, watch)
            except Undecided:
                old = None
                break
            if family is BEYOND:
                break
            known = [last for last in (samples.last, watch.last) if last is not None]
            last, more = min(known, default=None), samples.more | watch.compared
            if not case.has_ids or (last, more) == (samples.last, samples.more):
                break
            samples = replace(samples, last=last, more=more)
        else:
            continue
        if old is None:
            continue
        if family is BEYOND or all(_is_finite(old[output.old]) for output in case.outputs):
            return samples, variables, inputs, old
    return None


def _is_finite(array: Any) -> bool:
    if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind not in "fc":
        return True
    return not bool(np.isnan(array).any()) and bool(np.isfinite(array).any() or not array.size)


def larger_inputs(
    case: Case, inputs: Sequence[Any], samples: Samples, family: SampleFamily
) -> list[Any]:
    """Returns inputs of the larger network that contain the network's inputs."""
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
    """Returns ``grow`` as a function of NumPy arrays by path: old arrays and new entries."""
    growth = replace(without_choices(case.growth), structure=None)
    old = {path: _wide(array) for path, array in case.old.arguments if path is not None}
    new = {path: _wide(array) for path, array in case.new.arguments if path is not None}
    with jax.ensure_compile_time_eval():  # even if jit traces the caller
        zeros = jax.device_put(np.zeros(2, np.uint32))  # ``jnp.zeros`` compiles a program
        key = jax.random.wrap_key_data(zeros, impl="threefry2x32")

    def arrays(variables: dict[str, Any], fresh: dict[str, Any], key: Any) -> dict[str, Any]:
        found = arrays_of_larger(variables, growth, key=key, fresh=fresh)
        return {path: found[path] for path in new}

    with in_64_bits(), without_mesh():  # factors are not rounded
        jaxpr = with_last(jax.make_jaxpr(arrays)(old, new, key), key)
    paths = sorted(new)

    def larger(variables: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
        arguments = [*(variables[p] for p in sorted(old)), *(fresh[p] for p in sorted(new))]
        return dict(zip(paths, evaluate(jaxpr, arguments), strict=True))

    return larger


def _wide(array: Any) -> Any:
    return struct(array.shape, widest(array.dtype) if _is_float(array) else array.dtype)


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))
