"""Forces sides of choices that no sample takes: ``Choices``.

Examples are a branch of a ``cond`` that no sample runs, a mask that is zero in all samples, and
``relu(sum - 1e5)``. Samples do not show a side that they do not take. So both networks are forced
to take it wherever the choice is made, and their outputs are compared again.

An operation that depends only on sizes and constants is no choice, because no input changes it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dogwood_jax._check.seen import BRANCHES, Operation, numbers_in
from dogwood_jax._program.dims import Dim
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.subprograms import Key, key_of, scan_counts, sub_programs


@dataclass(frozen=True)
class Chosen:
    """The number of experts that a program chooses, and where the program uses this number.

    Attributes:
        count: the number.
        dims: dimensions of this size.
        steps: steps that compute with the number.
    """

    count: int
    dims: frozenset[Dim]
    steps: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class RouterChoice:
    """The number of experts that a router chooses before and after a growth.

    Attributes:
        width: name of the width of its logits.
        ours: the choice of the network.
        theirs: the choice of the larger program as it is; the same as ``ours`` if there is none.
        new: the number of experts that the larger program must choose.
    """

    width: str
    ours: Chosen
    theirs: Chosen
    new: int

    def few(self, experts: int, fewer: int) -> tuple[int, int]:
        """Returns the numbers of chosen experts before and after, if there are fewer experts.

        Args:
            experts: the number of experts in the network.
            fewer: the number of experts in the smaller sizes.
        """
        old = self.ours.count
        small = old if fewer == experts else fewer if old == experts else min(old, fewer // 2)
        return small, small * self.new // old


def dims_of(pairs: Iterable[tuple[Chosen, int]]) -> dict[Dim, int]:
    """Returns new sizes of dimensions, for choices with their new numbers of chosen experts."""
    return {dim: count for chosen, count in pairs for dim in chosen.dims}


def factors_of(pairs: Iterable[tuple[Chosen, int]]) -> Mapping[Key, float]:
    """Returns factors on the numbers of chosen experts, by key of the step that uses them."""
    return {step: n / chosen.count for chosen, n in pairs for step in chosen.steps}


# A forced loop runs its body at least this often. The second round shows the first one's results.
FORCED_ROUNDS = 2
# If there are more sides, those in one line of code, as of many layers, are taken together.
_MANY = 16

_Run = Callable[[Any, Sequence[bool]], list[bool]]


class ObservedChoice(NamedTuple):
    """A choice of a program.

    Attributes:
        operation: the equation that chooses.
        sides: the number of its sides.
        taken: the sides that samples take.
    """

    operation: Operation
    sides: int
    taken: set[int]


class Choices:
    """The choices of a program, in the order of evaluation.

    Attributes:
        found: each choice, by the ``key_of`` its equation.
    """

    def __init__(self) -> None:
        self.found: dict[Key, ObservedChoice] = {}

    def look(self, eqn: Any, operands: Sequence[Any], callers: Sequence[Any]) -> None:
        """Records an equation before it is evaluated, see ``Watch``."""
        if (sides := primitive(eqn.primitive.name).sides) is None:
            return
        if eqn.primitive.name in BRANCHES:
            if not (eqn.primitive.name == "cond" or _is_choice(eqn, operands)):
                return
        elif eqn.primitive.name != "while" and not _is_float(eqn.outvars[0].aval):
            return
        key = key_of(eqn, callers)
        if (choice := self.found.get(key)) is None:
            choice = ObservedChoice(Operation(eqn, (*callers,)), sides.count(eqn), set())
            self.found[key] = choice
        if len(choice.taken) < choice.sides:
            last = choice.sides - 1  # JAX clamps the index of a branch
            choice.taken.update(min(max(side, 0), last) for side in sides.taken(*operands))

    def goes_on(self, eqn: Any, callers: Sequence[Any], goes_on: bool) -> None:
        """Records that a loop runs its body, if it does."""
        if goes_on:
            self.found[key_of(eqn, callers)].taken.add(0)

    def names(self) -> list[str]:
        """Returns the names of the primitives."""
        return [choice.operation.eqn.primitive.name for choice in self.found.values()]

    def untaken(self, jaxpr: Any) -> list[tuple[Operation, dict[int, int]]]:
        """Returns the sides that no sample takes: an operation, and sides by place in ``found``.

        Args:
            jaxpr: the program, a ``ClosedJaxpr``.
        """
        if all(len(choice.taken) == choice.sides for choice in self.found.values()):
            return []
        moving, sides = _moving(jaxpr), list[tuple[Operation, dict[int, int]]]()
        for place, (key, choice) in enumerate(self.found.items()):
            of = primitive(choice.operation.eqn.primitive.name).sides
            assert of is not None
            for side in range(choice.sides):
                if side not in choice.taken and of.is_open(moving.get(key, ()), side):
                    sides.append((choice.operation, {place: side}))
        if len(sides) <= _MANY:
            return sides
        lines: dict[tuple[str, int], tuple[Operation, dict[int, int]]] = {}
        for operation, where in sides:
            (side,) = where.values()
            lines.setdefault((f"{operation}", side), (operation, {}))[1].update(where)
        return [*lines.values()]


def forced(eqn: Any, operands: Sequence[Any], side: int) -> Sequence[Any]:
    """Returns operands with which an equation takes a side."""
    sides = primitive(eqn.primitive.name).sides
    assert sides is not None
    return sides.forced([*operands], side)


def _is_choice(eqn: Any, operands: Sequence[Any]) -> bool:
    """Whether a comparison is between floats, or between integers and a nonzero constant.

    Comparisons of integers with zero come from indexing an array.
    """
    if all(getattr(one, "dtype", None) == np.float64 for one in operands):
        return True
    return any(np.ndim(number) == 0 and number != 0 for number in numbers_in(eqn))


def _is_float(aval: Any) -> bool:
    return bool(jnp.issubdtype(getattr(aval, "dtype", np.int32), jnp.inexact))


def _moving(jaxpr: Any) -> Mapping[Key, list[bool]]:
    """Returns for each equation which operands depend on arguments of the program.

    For a ``while`` loop, the only boolean tells whether its end depends on them.
    """
    found: dict[Key, list[bool]] = {}
    callers: list[Any] = []

    def run(closed: Any, operands: Sequence[bool]) -> list[bool]:
        program, consts = closed
        return interpret(program, consts, operands, constant=lambda *_: False, equation=equation)

    def equation(eqn: Any, operands: list[bool]) -> Sequence[bool]:
        callers.append(eqn)
        results, decides = _of_inner(eqn, operands, run)
        callers.pop()
        known = found.setdefault(key_of(eqn, callers), [False] * len(decides))
        known[:] = map(max, known, decides)
        return results

    run((jaxpr.jaxpr, jaxpr.consts), [True] * len(jaxpr.in_avals))
    return found


def _of_inner(eqn: Any, operands: list[bool], run: _Run) -> tuple[list[bool], list[bool]]:
    """Returns which results and which deciding operands of an equation depend on arguments."""
    name = eqn.primitive.name
    if (program := called(eqn)) is not None:
        return run(program, operands), operands
    if name == "cond":
        sides = [run(program, operands[1:]) for program in sub_programs(eqn)]
        return [operands[0] or any(each) for each in zip(*sides, strict=True)], operands
    if name == "scan":
        first, count = scan_counts(eqn)
        state, rows = operands[first : first + count], operands[first + count :]
        (body,) = sub_programs(eqn)
        results = _settled(body, operands[:first], state, rows, run)
        return results, [False]
    if name == "while":
        question, body = (
            (eqn.params[name].jaxpr, eqn.params[name].consts)
            for name in ("cond_jaxpr", "body_jaxpr")
        )
        first, last = (
            eqn.params["cond_nconsts"],
            eqn.params["cond_nconsts"] + eqn.params["body_nconsts"],
        )
        state = _settled(body, operands[first:last], operands[last:], [], run)
        (ends,) = run(question, [*operands[:first], *state])
        return [ends or each for each in state], [ends]
    return [any(operands)] * len(eqn.outvars), operands


def _settled(
    body: Any, consts: list[bool], state: list[bool], rows: list[bool], run: _Run
) -> list[bool]:
    """Returns which results of a loop depend on arguments; repeats the body until none is added."""
    while True:
        results = run(body, [*consts, *state, *rows])
        after = [*map(max, state, results)]
        if after == state:
            return [*state, *results[len(state) :]]
        state = after
