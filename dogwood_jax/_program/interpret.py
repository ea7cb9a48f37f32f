"""The only loop over programs: ``interpret``; what equations run: ``called``, ``evaluated``.

A program is analyzed in several ways, for example to find which of its dimensions are the same.
Each analysis is a *domain*: a kind of value, and a function that takes the values of an equation's
operands and returns the values of its results.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.extend.core as jex

from dogwood_jax._program.primitives.record import primitive
from dogwood_jax._program.subprograms import sub_programs

V = TypeVar("V")


def interpret(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[V],
    *,
    constant: Callable[[Any, Any], V],
    equation: Callable[[Any, list[V]], Sequence[V]],
    known: dict[Any, V] | None = None,
) -> list[V]:
    """Reads every equation of a program; returns the values of its results.

    Args:
        jaxpr: the program.
        consts: its constants.
        arguments: the value of each argument.
        constant: takes a constant of the program, and its shape and dtype; returns its value.
        equation: takes an equation and the values of its operands; returns the values of its
            results.
        known: a dict to which the value of each variable is added.
    """
    known = {} if known is None else known

    def read(atoms: Sequence[Any]) -> list[V]:
        return [
            constant(atom.val, atom.aval) if isinstance(atom, jex.Literal) else known[atom]
            for atom in atoms
        ]

    for var, const in zip(jaxpr.constvars, consts, strict=True):
        known[var] = constant(const, var.aval)
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        results = equation(eqn, read(eqn.invars))
        known.update(zip(eqn.outvars, results, strict=True))
    return read(jaxpr.outvars)


def called(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Returns the program that an equation runs once on its operands, with its constants.

    ``jit``, ``remat`` and custom derivatives are such equations. They are recognized by their
    shapes, not by their names, because later versions of JAX may add others. Returns None for any
    other equation.
    """
    programs = sub_programs(eqn)
    if len(programs) != 1 or primitive(eqn.primitive.name).runs:
        return None
    jaxpr, consts = programs[0]
    is_call = _shapes(jaxpr.invars) == _shapes(eqn.invars)
    return (jaxpr, consts) if is_call and _shapes(jaxpr.outvars) == _shapes(eqn.outvars) else None


def evaluated(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the arrays that an equation computes from the arrays of its operands."""
    results = eqn.primitive.bind(*operands, **eqn.params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _shapes(atoms: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(getattr(atom.aval, "shape", ())) for atom in atoms]
