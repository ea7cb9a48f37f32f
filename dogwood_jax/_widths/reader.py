"""Reading a program: its equations one by one, each by the rule of its primitive."""

from collections.abc import Sequence
from typing import Any

from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._widths.rules.registry import RULES, Rule, unknown
from dogwood_jax._widths.values import Reading, Trace, Value, constant


def run(trace: Trace, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Reads every equation of a program; returns the values of its results."""
    reading = Reading(jaxpr, trace.times)
    trace.programs.append(reading)

    def equation(eqn: Any, operands: list[Value]) -> list[Value]:
        rule: Rule = RULES.get(eqn.primitive.name, _call)
        outside, trace.programs = trace.programs, []
        results = rule(trace, eqn, *operands)
        if trace.programs:
            reading.inside[id(eqn)] = trace.programs
        trace.programs = outside
        return results

    return interpret(
        jaxpr, consts, arguments, constant=constant, equation=equation, known=reading.known
    )


def _call(trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
    """An equation without a rule: it may run one program, as that of jit or remat does."""
    if (program := called(eqn)) is not None:
        return run(trace, *program, operands)
    return unknown(trace, eqn, *operands)
