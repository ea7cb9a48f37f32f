"""Reading a program: its equations one by one, each by the rule of its primitive."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import concrete
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._widths.dims import Dim
from dogwood_jax._widths.rules.registry import RULES, Rule, unknown
from dogwood_jax._widths.values import Step, Trace, Value


def run(trace: Trace, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Reads every equation of a program; returns the values of its results."""
    read: list[Step] = []
    trace.programs.append(read)

    def equation(eqn: Any, operands: list[Value]) -> list[Value]:
        rule: Rule = RULES.get(eqn.primitive.name, _call)
        outside, trace.programs = trace.programs, []
        results = rule(trace, eqn, *operands)
        programs, trace.programs = trace.programs, outside
        # Fewer objects are fewer for Python's collector to follow.
        read.append(Step(eqn, operands, results, programs or (), trace.times))
        return results

    return interpret(jaxpr, consts, arguments, constant=_constant, equation=equation)


def _constant(array: Any, aval: Any) -> Value:
    """Returns what is known of a constant: its dimensions, and the number that all entries are."""
    dims = tuple(Dim(n) for n in aval.shape)
    dtype = getattr(array, "dtype", np.dtype(float))
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # a key, and what is drawn with it never changes
        return Value(dims, "constant")
    array = concrete(array)
    if array is None:
        return Value(dims, "data")
    if not dims and array.dtype.kind != "c":  # most constants; the NumPy calls below are slow
        number = float(array)
        return Value((), "constant", number=number)
    if not np.iscomplexobj(array):  # bfloat16 and the like are no numbers to NumPy
        array = array.astype(np.result_type(array, float) if array.dtype.kind in "biuf" else float)
    is_one = array.size and not np.iscomplexobj(array)
    is_one = is_one and (array.min() == array.max() or np.isnan(array).all())
    return Value(dims, "constant", number=float(array.flat[0]) if is_one else None)


def _call(trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
    """An equation without a rule: it may run one program, as that of jit or remat does."""
    if (program := called(eqn)) is not None:
        return run(trace, *program, operands)
    return unknown(trace, eqn, *operands)
