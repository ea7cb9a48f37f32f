"""How coarsely a network rounds: the coarsest dtype on the way to each output.

A network of float32 variables may compute in bfloat16 and return float32 again, so neither the
variables nor the outputs tell. The program does.
"""

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp

from dogwood_jax._depth.identity import CALLS
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
    found = _through(jaxpr, [var.aval.dtype for var in jaxpr.invars])
    return {
        path: atom.aval.dtype if dtype is None else dtype
        for path, atom, dtype in zip(program.results, jaxpr.outvars, found, strict=True)
    }


def _through(jaxpr: Any, given: Sequence[Any]) -> list[Any]:
    """Returns the coarsest dtype of each result, or None if it follows from no argument.

    Args:
        jaxpr: the program.
        given: the coarsest dtype that each argument has been through, or None.
    """
    known = dict(zip(jaxpr.invars, given, strict=True))

    def read(atoms: Sequence[Any]) -> list[Any]:
        return [None if isinstance(atom, jex.Literal) else known.get(atom) for atom in atoms]

    for eqn in jaxpr.eqns:
        taken, programs = read(eqn.invars), sub_programs(eqn)
        if eqn.primitive.name in CALLS and programs:
            made = _through(programs[0][0], taken)
        elif behind := [dtype for dtype in taken if dtype is not None]:
            inner = (e for program, _ in programs for e in equations(program))
            behind += [var.aval.dtype for e in inner for var in e.outvars]
            made = [max([*behind, var.aval.dtype], key=eps) for var in eqn.outvars]
        else:
            continue
        known |= dict(zip(eqn.outvars, made, strict=True))
    return read(jaxpr.outvars)
