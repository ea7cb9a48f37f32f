"""Where differences between two networks get lost: ``Hidden``.

Two programs may be equal on all samples because something hides where they differ: the sum of all
units differs, but ``relu(sum - 1e5)`` is zero. So both evaluations are compared step by step. Where
an operand differs and what is computed of it does not, the operand of the network is replaced by
that of the larger one. If nothing moves in any sample, no sample shows what the difference does.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import numpy as np

from dogwood_jax._judge.evaluate import Undecided, again, evaluate
from dogwood_jax._judge.seen import Operation
from dogwood_jax._program.inner import sub_programs

# By how much an entry differs, relative to the largest of its array.
_FAR = 1e-6
# By how much rounding may move an entry, relative to the entry.
_ROUNDING = 1e-12
# What these leave out, they leave out for all inputs.
_STATIC = frozenset(("slice", "split"))
# So do these where they multiply by a number of the program.
_PRODUCTS = frozenset(("mul", "dot_general", "conv_general_dilated"))
# What these compute of floats has pieces.
_DISCRETE = frozenset(("floor", "ceil", "round", "sign"))
# So many places of old entries are tried for one array.
_MOST = 8


class Step(NamedTuple):
    """An equation as it was evaluated.

    Attributes:
        eqn: the equation.
        callers: the equations that run it.
        operands: its operands. Those of a branch or a loop are what each side would compute.
        results: what it has computed; None for a branch or a loop.
        taken: the side that it took.
    """

    eqn: Any
    callers: tuple[Any, ...]
    operands: Sequence[Any]
    results: Sequence[Any] | None
    taken: int = 0


class Steps:
    """Writes down an evaluation."""

    def __init__(self) -> None:
        self.found: list[Step] = []

    def add(self, eqn: Any, operands: Sequence[Any], results: Any, callers: Sequence[Any]) -> None:
        name = eqn.primitive.name
        if name == "cond":
            branches = eqn.params["branches"]
            taken = min(max(int(operands[0]), 0), len(branches) - 1)
            sides = [
                results if n == taken else _computed(branch, operands[1:])
                for n, branch in enumerate(branches)
            ]
            self.found.append(Step(eqn, (*callers,), sides, None, taken))
        elif name == "while":
            p = eqn.params
            first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
            state = operands[second:]
            runs = _computed(p["cond_jaxpr"], [*operands[:first], *state])
            if runs is not None and not runs[0]:
                body = _computed(p["body_jaxpr"], [*operands[first:second], *state])
                self.found.append(Step(eqn, (*callers,), [results, body], None, 0))
            else:
                self.found.append(Step(eqn, (*callers,), [None, results], None, 1))
        elif not sub_programs(eqn):
            self.found.append(Step(eqn, (*callers,), [*operands], [*results]))


def _computed(program: Any, operands: Sequence[Any]) -> Any:
    try:
        return evaluate(program, operands)
    except Undecided:
        return None


class Hidden:
    """Operands that differ between both networks where nothing is seen of it.

    Args:
        places: where old entries may be along axes whose size changes, by both sizes.
    """

    def __init__(self, places: Mapping[tuple[int, int], Sequence[np.ndarray]]) -> None:
        self._places = places
        self._hidden: dict[tuple[int, ...], Operation] = {}
        self._visible = set[tuple[int, ...]]()
        self._unlike: dict[tuple[int, ...], Operation] = {}
        self._taken = set[tuple[int, ...]]()
        self._first: dict[tuple[int, ...], Any] = {}
        self._values: dict[tuple[int, ...], set[Any]] = {}

    def look(self, ours: Steps, theirs: Steps) -> None:
        """Takes notice of a sample; nothing, if both programs have other equations."""
        if _names(ours) == _names(theirs):
            for old, new in zip(ours.found, theirs.found, strict=True):
                self._compare(old, new)

    def operations(self) -> list[Operation]:
        """Returns the operations that hide a difference in all samples."""
        left = [one for key, one in self._hidden.items() if key not in self._visible]
        return left + [one for key, one in self._unlike.items() if key not in self._taken]

    def _compare(self, old: Step, new: Step) -> None:
        self._compare_new_entries(old, new)
        for place, (a, b) in enumerate(zip(old.operands, new.operands, strict=True)):
            key = (*map(id, old.callers), id(old.eqn), place)
            if key in self._visible:
                continue
            if old.results is None and place == old.taken:
                self._visible.add(key)
            elif old.results is None:
                if a is not None and b is not None and any(map(self._tells, a, b)):
                    self._hidden[key] = Operation(old.eqn, old.callers)
            elif not _is_static(old) and self._tells(a, b):
                if self._shows(old, new, place) or self._varies(old, key):
                    self._visible.add(key)
                elif self._depends(a, key):
                    self._hidden[key] = Operation(old.eqn, old.callers)

    def _compare_new_entries(self, old: Step, new: Step) -> None:
        """Compares new entries of a side that is not taken with those of the side that is.

        New units may be silent because they are zero, or because they copy old ones.
        """
        if old.results is None:
            sides, taken = new.operands, {old.taken}
        elif old.eqn.primitive.name == "select_n":
            which, *cases = new.operands
            sides, taken = [[case] for case in cases], {*np.unique(which).astype(int).tolist()}
        else:
            return
        for place, side in enumerate(sides):
            key = (*map(id, old.callers), id(old.eqn), place)
            if place in taken:
                self._taken.add(key)
            elif key not in self._taken and side is not None and len(taken) == 1:
                its = sides[min(taken)] or ()
                olds = (old.results or old.operands[old.taken]) or ()
                if any(map(self._is_unlike, olds, its, side)):
                    self._unlike[key] = Operation(old.eqn, old.callers)

    def _is_unlike(self, old: Any, new: Any, other: Any) -> bool:
        """Whether new entries are zero or copies in one array, and not so in another one."""
        if not (_is_array(old) and _is_array(new) and old.dtype.kind in "fc"):
            return False
        if len(old.shape) != len(new.shape) or new.shape != np.shape(other):
            return False
        for axis, sizes in enumerate(zip(old.shape, new.shape, strict=True)):
            for places in self._places.get(sizes, ()):
                its, others = np.moveaxis(new, axis, 0), np.moveaxis(other, axis, 0)
                added = np.setdiff1d(np.arange(sizes[1]), places)
                if not its[added].any() and its[places].any(axis=tuple(range(1, its.ndim))).all():
                    return bool(others[added].any())
                known: dict[bytes, list[int]] = {}
                for place in places:
                    known.setdefault(its[place].tobytes(), []).append(place)
                sources = [known.get(its[place].tobytes(), []) for place in added]
                if all(len(found) == 1 for found in sources):
                    copied = others[[found[0] for found in sources]]
                    return _are_apart(copied, others[added])
        return False

    def _depends(self, operand: Any, key: tuple[int, ...]) -> bool:
        """Whether an operand was another one in another sample. Else it follows from sizes."""
        first = self._first.setdefault(key, operand)
        return first.shape != operand.shape or bool((first != operand).any())

    def _shows(self, old: Step, new: Step, place: int) -> bool:
        """Whether results differ, or would if only this operand did."""
        assert old.results is not None and new.results is not None
        if any(map(self._differ, old.results, new.results)):
            return True
        operands = [*old.operands]
        operands[place] = next(self._old_entries(old.operands[place], new.operands[place]))
        return any(map(_moves, old.results, again(old.eqn, operands)))

    def _varies(self, old: Step, key: tuple[int, ...]) -> bool:
        """Whether something discrete is computed, as by a comparison, and is not always the same.

        Then its pieces are seen. Where they end is where both networks say, or outputs differ.
        """
        name, result = old.eqn.primitive.name, (old.results or [None])[0]
        if result is None or not _is_array(result):
            return False
        if result.dtype.kind in "fc" and name not in _DISCRETE:
            return False
        self._values.setdefault(key, set()).update(np.unique(result).tolist())
        return len(self._values[key]) > 1

    def _tells(self, old: Any, new: Any) -> bool:
        """Whether floats or booleans differ. Integers do where they index an axis from its end."""
        return _is_array(old) and old.dtype.kind in "fcb" and self._differ(old, new)

    def _differ(self, old: Any, new: Any) -> bool:
        if not (_is_array(old) and _is_array(new)):
            return False
        candidates = [*self._old_entries(old, new)]
        return bool(candidates) and all(_are_apart(old, one) for one in candidates)

    def _old_entries(self, old: Any, new: Any) -> Iterator[Any]:
        """Yields what may be the old entries of an array of the larger network."""
        shape, larger = np.shape(old), np.shape(new)
        if shape == larger:
            yield new
        elif len(shape) == len(larger) and all(a <= b for a, b in zip(shape, larger, strict=True)):
            axes = [self._places.get(sizes, [np.arange(sizes[0])]) for sizes in zip(shape, larger)]
            for places in itertools.islice(itertools.product(*axes), _MOST):
                yield new[np.ix_(*places)]


def _is_static(step: Step) -> bool:
    """Whether an operation hides the same of all inputs, as a product with zero does."""
    name = step.eqn.primitive.name
    is_constant = any(isinstance(atom, jex.Literal) for atom in step.eqn.invars)
    return name in _STATIC or (name in _PRODUCTS and is_constant)


def _names(steps: Steps) -> list[str]:
    return [step.eqn.primitive.name for step in steps.found]


def _is_array(array: Any) -> bool:
    return isinstance(array, np.ndarray | np.generic)


def _moves(old: Any, new: Any) -> bool:
    """Whether any entry moves by more than rounding, small ones among large ones, too."""
    if old.dtype.kind not in "fc":
        return bool((old != new).any())
    with np.errstate(all="ignore"):
        return bool((np.isfinite(old) & ~(np.abs(new - old) <= _ROUNDING * np.abs(old))).any())


def _are_apart(old: Any, new: Any) -> bool:
    if old.dtype.kind not in "fc":
        return bool((old != new).any())
    with np.errstate(all="ignore"):
        size = np.abs(old)
        finite = np.isfinite(size)
        bound = _FAR * np.max(np.where(finite, size, 0.0), initial=0.0)
        return bool((finite & ~(np.abs(new - old) <= bound)).any())
