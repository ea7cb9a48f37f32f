"""Finds and rewrites programs inside of equations, and lists what a program contains."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from dogwood_jax._base.trees import struct
from dogwood_jax._program.primitives.record import PRIMITIVES

# The ``id`` of an equation and of the equations that run it, see ``key_of``.
Key = tuple[int, ...]


def within(eqn: Any, rewritten: Callable[[Any], Any], known: dict[int, Any]) -> Any:
    """Returns an equation whose inner programs are rewritten.

    Args:
        eqn: the equation.
        rewritten: takes a program and returns the new one, or the same object for no change.
        known: the new programs of the programs rewritten so far, by the ``id`` of the old ones.
    """
    if _runs_nothing(eqn) or not any(map(has_program, eqn.params.values())):
        return eqn

    def one(value: Any) -> Any:
        if isinstance(value, _SEVERAL):
            items = [one(item) for item in value]
            same = all(a is b for a, b in zip(items, value))
            return value if same else type(value)(items)
        if not isinstance(value, _PROGRAMS):
            return value
        if id(value) not in known:
            closed = value if isinstance(value, jex.ClosedJaxpr) else None
            inner = closed.jaxpr if closed else value
            other = rewritten(inner)
            if other is inner:
                known[id(value)] = value
            else:
                known[id(value)] = jex.ClosedJaxpr(other, closed.consts) if closed else other
        return known[id(value)]

    params = {name: one(value) for name, value in eqn.params.items()}
    same = all(params[name] is eqn.params[name] for name in params)
    return eqn if same else eqn.replace(params=params)


_PROGRAMS = jex.ClosedJaxpr, jex.Jaxpr
_SEVERAL = tuple, list


def has_program(value: Any) -> bool:
    """Whether an equation's parameter is a program or holds programs."""
    if isinstance(value, _SEVERAL):
        return any(isinstance(item, _PROGRAMS) for item in value)
    return isinstance(value, _PROGRAMS)


def _runs_nothing(eqn: Any) -> bool:
    """Whether the table of primitives knows that an equation runs no program, as most do."""
    record = PRIMITIVES.get(eqn.primitive.name)
    return record is not None and not record.runs


def sub_programs(eqn: Any) -> list[tuple[Any, Sequence[Any]]]:
    """Returns the programs among an equation's parameters, with their constants."""
    if _runs_nothing(eqn):
        return []
    found: list[tuple[Any, Sequence[Any]]] = []
    for name in sorted(eqn.params):
        value = eqn.params[name]
        for item in value if isinstance(value, _SEVERAL) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append((item.jaxpr, item.consts))
            elif isinstance(item, jex.Jaxpr):
                found.append((item, ()))
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a program and of all programs in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for program, _ in sub_programs(eqn):
            yield from equations(program)


def key_of(eqn: Any, callers: Sequence[Any]) -> Key:
    """Returns a key of an equation, different for each chain of equations that runs it."""
    return (*map(id, callers), id(eqn))


def every_constant(jaxpr: jex.ClosedJaxpr, take: Callable[[Any, Any], None]) -> None:
    """Calls a function with each constant of a program and of all programs in it, and its aval."""
    pending: list[tuple[Any, Sequence[Any]]] = [(jaxpr.jaxpr, jaxpr.consts)]
    seen = set()
    while pending:
        program, consts = pending.pop()
        if id(program) in seen:
            continue
        seen.add(id(program))
        for var, const in zip(program.constvars, consts):
            take(const, var.aval)
        for eqn in program.eqns:
            for atom in eqn.invars:
                if isinstance(atom, jex.Literal):
                    take(atom.val, atom.aval)
            pending += sub_programs(eqn)


def numbers_of(jaxpr: jex.ClosedJaxpr) -> list[float]:
    """Returns the scalar floats among a program's constants, in a fixed order."""
    found: list[float] = []

    def constant(array: Any, aval: Any) -> None:
        if not aval.shape and jnp.issubdtype(aval.dtype, jnp.floating):
            found.append(float(array))

    every_constant(jaxpr, constant)
    return found


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Returns the number of constants and the number of carried values of a scan's operands."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # jax 0.12 and later
    return len(consts), len(carry)


def computed_by(function: Callable[..., Any], eqn: Any) -> Any:
    """Returns an equation that runs a function instead of what ``eqn`` computes."""
    operands = [struct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
    results = [struct(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
    program = jax.make_jaxpr(function)(*operands)
    like = jax.jit(lambda *_: [jnp.zeros(result.shape, result.dtype) for result in results])
    (call,) = jax.make_jaxpr(like)(*operands).jaxpr.eqns
    params = call.params | {"jaxpr": program}
    return call.replace(
        invars=eqn.invars, outvars=eqn.outvars, params=params, source_info=eqn.source_info
    )


def entries(jaxpr: Any) -> Iterator[int]:
    """Yields the number of entries of each array of a program."""
    for eqn in equations(jaxpr.jaxpr):
        for var in eqn.outvars:
            yield prod(getattr(var.aval, "shape", ()))
    yield from (prod(getattr(aval, "shape", ())) for aval in jaxpr.in_avals)
