"""How coarsely a network rounds: the coarsest dtype on the way to each output.

A network of float32 variables may compute in bfloat16 and return float32 again, so neither the
variables nor the outputs tell. The program does.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.program import Program, equations, sub_programs


def eps(dtype: Any) -> float:
    """The distance from one to the next larger number; zero for numbers that are not rounded."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def coarsest_dtypes(program: Program) -> dict[str, Any]:
    """Returns the coarsest dtype that each result of a program goes through, by path.

    Only what follows from the program's arguments counts: a constant of another precision, such as
    a table of positions, is the same in a larger network.
    """
    jaxpr = program.jaxpr.jaxpr
    given = [var.aval.dtype for var in jaxpr.invars]
    found = _through(jaxpr, program.jaxpr.consts, given)
    return {
        path: atom.aval.dtype if dtype is None else dtype
        for path, atom, dtype in zip(program.results, jaxpr.outvars, found, strict=True)
    }


def _through(jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """Returns the coarsest dtype of each result, or None if it follows from no argument.

    Args:
        jaxpr: the program.
        consts: its constants.
        given: the coarsest dtype that each argument has been through, or None.
    """

    def equation(eqn: Any, taken: list[Any]) -> list[Any]:
        if (program := called(eqn)) is not None:
            return _through(*program, taken)
        behind = [dtype for dtype in taken if dtype is not None]
        if not behind:
            return [None] * len(eqn.outvars)
        inner = (e for body, _ in sub_programs(eqn) for e in equations(body))
        behind += [var.aval.dtype for e in inner for var in e.outvars]
        return [max([*behind, var.aval.dtype], key=eps) for var in eqn.outvars]

    return interpret(jaxpr, consts, given, constant=lambda *_: None, equation=equation)
