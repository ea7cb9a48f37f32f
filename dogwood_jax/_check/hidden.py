"""Finds differences between two networks that samples hide: ``Hidden``.

Two programs may be equal on all samples although a value inside differs: the sum of all units
differs, but ``floor(sum / 1e5)`` is zero. So both evaluations are compared step by step. If an
operand differs but the results do not, the step is repeated with only this operand replaced. If the
results move in no sample, no sample shows what the difference does.

Only operands of equal shapes are compared, because the places of old entries in others are unknown.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import numpy as np

from dogwood_jax._check.evaluate import again
from dogwood_jax._check.seen import Operation
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.subprograms import Key, key_of, sub_programs

# Entries differ if they are further apart than this, relative to the largest entry of the array.
_FAR = 1e-6
# The largest move of an entry by rounding, relative to the entry.
_ROUNDING = 1e-12


class EvaluatedStep(NamedTuple):
    """An evaluated equation.

    Attributes:
        eqn: the equation.
        callers: the equations that run it.
        operands: its operands.
        results: its results.
    """

    eqn: Any
    callers: tuple[Any, ...]
    operands: Sequence[Any]
    results: Sequence[Any]


class Steps:
    """Records the steps of an evaluation."""

    def __init__(self) -> None:
        self.found: list[EvaluatedStep] = []

    def add(
        self, eqn: Any, operands: Sequence[Any], results: Sequence[Any], callers: Sequence[Any]
    ) -> None:
        if not sub_programs(eqn):
            self.found.append(EvaluatedStep(eqn, (*callers,), operands, results))


class Hidden:
    """Finds operands that differ between the networks without an effect on results."""

    def __init__(self) -> None:
        self._hidden: dict[Key, Operation] = {}
        self._visible = set[Key]()
        self._first: dict[Key, Any] = {}
        self._known: dict[tuple[int, int], bool] = {}

    def look(self, ours: Steps, theirs: Steps) -> None:
        """Records a sample; does nothing if the programs have different equations."""
        self._known = {}  # by identity, valid while the steps hold the arrays
        if names(ours) == names(theirs):
            for old, new in zip(ours.found, theirs.found, strict=True):
                self._compare(old, new)

    def operations(self) -> list[Operation]:
        """Returns the operations that hide a difference in all samples."""
        return [one for key, one in self._hidden.items() if key not in self._visible]

    def _compare(self, old: EvaluatedStep, new: EvaluatedStep) -> None:
        for place, (a, b) in enumerate(zip(old.operands, new.operands, strict=True)):
            key = (*key_of(old.eqn, old.callers), place)
            if key not in self._visible and not _is_static(old) and self._tells(a, b):
                if self._shows(old, new, place):
                    self._visible.add(key)
                elif self._depends(a, key):
                    self._hidden[key] = Operation(old.eqn, old.callers)

    def _tells(self, old: Any, new: Any) -> bool:
        """Whether floats or booleans differ; integers may, such as an index from the end."""
        return _is_array(old) and old.dtype.kind in "fcb" and self._differ(old, new)

    def _differ(self, old: Any, new: Any) -> bool:
        key = id(old), id(new)
        if key not in self._known:
            self._known[key] = differ(old, new)
        return self._known[key]

    def _depends(self, operand: Any, key: Key) -> bool:
        """Whether an operand differs between samples; if not, it depends only on sizes."""
        first = self._first.setdefault(key, operand)
        return first.shape != operand.shape or bool((first != operand).any())

    def _shows(self, old: EvaluatedStep, new: EvaluatedStep, place: int) -> bool:
        """Whether results differ, or would differ if only this operand were replaced."""
        if any(map(self._differ, old.results, new.results)):
            return True
        operands = [*old.operands]
        operands[place] = new.operands[place]
        return any(map(_moves, old.results, again(old.eqn, operands)))


def _is_static(step: EvaluatedStep) -> bool:
    """Whether an operation hides the same entries for all inputs, as a slice or ``0 * x`` does."""
    record = primitive(step.eqn.primitive.name)
    takes_some = record.stays and not (record.indexed or record.joins)
    is_constant = any(isinstance(atom, jex.Literal) for atom in step.eqn.invars)
    return takes_some or (is_constant and (record.contracts or record.powers == (1, 1)))


def names(steps: Steps) -> list[str]:
    """Returns the names of the primitives that were evaluated."""
    return [step.eqn.primitive.name for step in steps.found]


def _is_array(array: Any) -> bool:
    return isinstance(array, np.ndarray | np.generic)


def differ(old: Any, new: Any) -> bool:
    """Whether arrays of the same shape differ by more than accumulated rounding."""
    return np.shape(old) == np.shape(new) and _is_array(old) and are_apart(old, new)


def _moves(old: Any, new: Any) -> bool:
    """Whether any entry moves by more than its own rounding, even if it is small."""
    if old.dtype.kind not in "fc":
        return bool((old != new).any())
    return bool((np.isfinite(old) & ~(np.abs(new - old) <= _ROUNDING * np.abs(old))).any())


def are_apart(old: Any, new: Any) -> bool:
    """Whether arrays differ by more than accumulated rounding."""
    if old.dtype.kind not in "fc":
        return bool((old != new).any())
    by, size = np.abs(new - old), np.abs(old)
    # Most arrays are the same; a comparison with NaN is false.
    if not old.size or by.max() <= _FAR * size.max() < np.inf:
        return False
    finite = np.isfinite(size)
    bound = _FAR * np.max(np.where(finite, size, 0.0), initial=0.0)
    return bool((finite & ~(by <= bound)).any())
