"""Runs a network on a sample, observed by a watch: ``run``, ``Watch``.

A watch nudges numbers, and records what operations compute.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._check.choices import FORCED_ROUNDS, Choices, forced
from dogwood_jax._check.claim import Side
from dogwood_jax._check.evaluate import evaluate
from dogwood_jax._check.hidden import Steps
from dogwood_jax._check.samples import SampleFamily
from dogwood_jax._check.seen import Seen
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.subprograms import Key, key_of

# The size of a nudge, relative to the number.
NUDGE = 1e-15


class Watch:
    """Nudges the numbers of a program, and records its evaluation and how large ids may be.

    Args:
        nudge: the relative size of the nudge of every number.
        seed: seed of its random signs.
        rounded: constants that only one of two programs has, with the epsilon of their dtype. They
            are nudged by their rounding in this dtype, because 1 / 768 and 1 / 1024 round
            differently. All occurrences of a constant get the same nudge.
        instead: other values of constants, by the bytes of the constant.
        seen: records which sides of operations are seen.
        is_alike: whether random bits are the same for all entries of an array.
        steps: records the steps of the evaluation.
        choices: records which sides of choices are taken.
        forced: sides of choices that are taken for any operands, by key of the equation.
    """

    def __init__(
        self,
        nudge: float = 0.0,
        seed: int = 0,
        rounded: Mapping[bytes, float] = MappingProxyType({}),
        instead: Mapping[bytes, np.ndarray] = MappingProxyType({}),
        seen: Seen | None = None,
        is_alike: bool = False,
        steps: Steps | None = None,
        choices: Choices | None = None,
        forced: Mapping[Key, int] | None = None,
    ) -> None:
        self._nudge, self._rng = nudge, np.random.default_rng(seed)
        self._rounded, self._instead, self._seen = rounded, instead, seen
        self._steps, self._choices = steps, choices
        self._forced = forced or {}
        self._stays = not (nudge or rounded or instead)
        self._signs = dict[bytes, np.ndarray]()
        self.is_alike = is_alike
        self.last: int | None = None  # the largest index of the smallest table
        self.compared: set[int] = set()

    def nudged(self, array: Any) -> Any:
        """Returns an array with nudged numbers; whole numbers, as in a mask, stay exact."""
        if not self._nudge or not isinstance(array, np.ndarray) or array.dtype.kind not in "fc":
            return array
        signs = self._rng.integers(2, size=array.shape) * 2 - 1
        return np.where(array == np.rint(array), array, array * (1 + self._nudge * signs))

    def number(self, array: np.ndarray) -> np.ndarray:
        """Returns the value to use for a constant of the program."""
        if self._stays:
            return array
        number = array.tobytes()
        if number in self._instead:
            return self._instead[number].reshape(array.shape)
        if number in self._rounded:
            if number not in self._signs:
                self._signs[number] = self._rng.integers(2, size=array.shape) * 2 - 1
            return np.asarray(array * (1 + self._rounded[number] / 2 * self._signs[number]))
        # Exact numbers such as 0.5 are not nudged: half of n - 1 is the place of a median.
        return array if _is_exact(array) else np.asarray(self.nudged(array))

    def results(
        self, eqn: Any, operands: Sequence[Any], results: Sequence[Any], callers: Sequence[Any]
    ) -> None:
        """Records the results of an equation."""
        if self._steps is not None:
            self._steps.add(eqn, operands, results, callers)

    def equation(self, eqn: Any, operands: list[Any], callers: Sequence[Any]) -> list[Any]:
        """Records an equation, and returns the operands to evaluate it with.

        Args:
            eqn: the equation.
            operands: its operands.
            callers: the equations that run it, such as a ``jit``, the outermost first.
        """
        if self._seen is not None:
            self._seen.look(eqn, operands, callers)
        if self._choices is not None:
            self._choices.look(eqn, operands, callers)
        if primitive(eqn.primitive.name).compares:
            self.compared |= {*_numbers_compared(operands)}
        if eqn.primitive.name == "gather":
            self._look_up(eqn, operands)
        side = self._forced.get(key_of(eqn, callers)) if self._forced else None
        return operands if side is None else [*forced(eqn, operands, side)]

    def goes_on(self, eqn: Any, callers: Sequence[Any], goes_on: bool, rounds: int) -> bool:
        """Returns whether a loop runs its body again after this many rounds."""
        if self._choices is not None:
            self._choices.goes_on(eqn, callers, goes_on)
        return goes_on or (rounds < FORCED_ROUNDS and key_of(eqn, callers) in self._forced)

    def _look_up(self, eqn: Any, operands: Sequence[Any]) -> None:
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        for place, axis in enumerate(numbers.start_index_map):
            last = operands[0].shape[axis] - sizes[axis]
            ids = operands[1][..., place]
            if ids.size and ids.max() > last:
                self.last = max(last if self.last is None else min(last, self.last), 0)


def _is_exact(array: np.ndarray) -> bool:
    """Whether an array is a single number that every float dtype holds exactly."""
    is_float = array.size == 1 and array.dtype.kind == "f"
    return is_float and bool(np.all(array.astype(jnp.bfloat16).astype(array.dtype) == array))


def _numbers_compared(operands: Sequence[Any]) -> Iterator[int]:
    """Yields the integers that operands are compared with, and their neighbors."""
    for operand in operands:
        if isinstance(operand, np.ndarray) and operand.dtype.kind in "iu" and operand.size:
            first = int(operand.flat[0])
            if abs(first) < 1 << 20 and (operand.size == 1 or (operand == first).all()):
                yield from (number for number in (first - 1, first, first + 1) if number >= 0)


@dataclass(frozen=True)
class Drawn:
    """A sample, with the variables and inputs of both networks, and their outputs.

    Attributes:
        family: the kind of sample.
        variables: the network's variables.
        inputs: its inputs.
        old: its outputs.
        wide: the larger network's variables.
        larger: its inputs.
        new: its outputs, once they are known.
    """

    family: SampleFamily
    variables: dict[str, Any]
    inputs: list[Any]
    old: list[Any]
    wide: dict[str, Any]
    larger: list[Any]
    new: list[Any] = field(default_factory=list)


def run(side: Side, variables: Mapping[str, Any], inputs: Sequence[Any], watch: Any) -> Any:
    """Returns a network's outputs for variables and inputs, evaluated under a watch."""
    left = iter(inputs)
    arguments = [next(left) if path is None else variables[path] for path, _ in side.arguments]
    if isinstance(watch, Watch):
        arguments = [watch.nudged(argument) for argument in arguments]
    return evaluate(side.jaxpr, arguments, watch, side.draws)
