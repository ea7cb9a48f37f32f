"""Loops and branches: how they are read. Code that evaluates programs runs them itself."""

from collections.abc import Collection, Sequence
from typing import Any

from dogwood_jax._program.dims import LAYERS, Dim, unify
from dogwood_jax._program.primitives.reading import origin_of, pick, run, together
from dogwood_jax._program.primitives.record import Primitive, describes
from dogwood_jax._program.primitives.sides import Pick, Sides
from dogwood_jax._program.subprograms import scan_counts, sub_programs
from dogwood_jax._program.values import Trace, Value


@describes("scan")
class _Scan(Primitive):
    runs = True

    def read(self, trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
        (jaxpr, closed_over), *_ = sub_programs(eqn)
        n_consts, n_carry = scan_counts(eqn)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        stacked = operands[n_consts + n_carry :]
        length = Dim(eqn.params["length"])
        slices = []
        for value in stacked:
            unify(value.dims[0], length)
            if value.origin == "parameter":
                trace.set_aside(value, 0)
                length.fix(LAYERS)
                if carry:
                    length.named("layers")
            slices.append(pick(value, range(1, value.ndim)))
        kept = _kept(jaxpr, n_consts, n_carry)
        state = _enter(trace, carry, operands, kept)
        once, trace.times = trace.times, trace.times * length.size
        results = run(trace, jaxpr, closed_over, [*consts, *state, *slices])
        trace.times = once
        state = _close(trace, state, results[:n_carry])
        rows = (Value((length, *value.dims)) for value in results[n_carry:])
        return [*state, *(_any_iteration(row, operands) for row in rows)]


class _Loop(Sides):
    """The only side of ``while``: it runs its body."""

    def count(self, eqn: Any) -> int:
        return 1

    def taken(self, *operands: Any) -> set[int]:
        return set()  # see ``Choices.goes_on``

    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        return operands  # see ``Watch.goes_on``

    def is_open(self, moving: Sequence[bool], side: int) -> bool:
        return any(moving)


@describes("while")
class _While(Primitive):
    runs = True
    sides = _Loop()

    def read(self, trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
        p = eqn.params
        n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
        cond, body = p["cond_jaxpr"], p["body_jaxpr"]
        carry = operands[n_cond + n_body :]
        consts = operands[n_cond : n_cond + n_body]
        kept = _kept(body.jaxpr, n_body, len(carry))
        state = _enter(trace, carry, operands, kept)
        run(trace, cond.jaxpr, cond.consts, [*operands[:n_cond], *state])
        results = run(trace, body.jaxpr, body.consts, [*consts, *state])
        return _close(trace, state, results)


def _enter(
    trace: Trace,
    state: Sequence[Value],
    operands: Sequence[Value],
    kept: Collection[int],
) -> list[Value]:
    """Returns the values of a loop's state that hold in every iteration: their dimensions.

    Args:
        trace: collects facts about the program.
        state: the state before the first iteration.
        operands: all operands of the loop.
        kept: places of values that no iteration changes, such as weights.
    """
    entered = []
    for place, value in enumerate(state):
        if place not in kept:
            trace.join(value, "add")
            value = _any_iteration(value, operands)
        entered.append(value)
    return entered


def _kept(jaxpr: Any, before: int, count: int) -> set[int]:
    """Returns the places of values in a loop's state that no iteration changes."""
    taken = jaxpr.invars[before : before + count]
    pairs = zip(taken, jaxpr.outvars, strict=False)
    return {place for place, (old, new) in enumerate(pairs) if old is new}


def _any_iteration(value: Value, operands: Sequence[Value]) -> Value:
    if origin_of(operands) == "constant":
        return Value(value.dims, "constant")
    return Value(value.dims, "data")


def _close(trace: Trace, before: Sequence[Value], after: Sequence[Value]) -> list[Value]:
    """Unifies a loop's state before and after an iteration; returns the state after the loop."""
    found = []
    for old, new in zip(before, after, strict=True):
        if old is new:
            found.append(old)
            continue
        for a, b in zip(old.dims, new.dims, strict=True):
            unify(a, b)
        trace.join(new, "add")
        found.append(old)
    return found


@describes("cond")
class _Cond(Primitive):
    runs = True
    sides = Pick()

    def read(self, trace: Trace, eqn: Any, which: Value, *arguments: Value) -> list[Value]:
        branches = [run(trace, b.jaxpr, b.consts, arguments) for b in eqn.params["branches"]]
        return [_chosen(trace, which, cases) for cases in zip(*branches, strict=True)]


def _chosen(trace: Trace, which: Value, cases: Sequence[Value]) -> Value:
    """Returns the value of a result that holds for every branch."""
    first, origin = cases[0], origin_of((*cases, which))
    are_weights = all(case.origin == "parameter" for case in cases)
    for case in cases:
        for a, b in zip(first.dims, case.dims, strict=True):
            unify(a, b)
        if not are_weights:
            trace.join(case, "add")
    return Value(
        first.dims,
        "parameter" if are_weights else origin,  # type: ignore[arg-type]
        together(cases, first.dims) if are_weights else (),
        leaves=frozenset().union(*(c.leaves for c in cases)) if are_weights else frozenset(),
    )
