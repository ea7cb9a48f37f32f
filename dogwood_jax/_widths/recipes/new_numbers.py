"""New entries that are known numbers: ``with_numbers``.

Where the weights that feed new units are zero, what is computed of them alone is known. The
exponential of zero is one, so in ``1 + v - exp(v)``, as in the divergence of two normal
distributions, new entries are zero again, and a sum over them stays what it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.primitives.table import folded, keeps_numbers, primitive
from dogwood_jax._widths.recipes.reading import Along, Reading, State
from dogwood_jax._widths.values import Step, Value


def with_numbers(r: Reading, step: Step, states: Sequence[State]) -> Sequence[State]:
    """Returns the states of a step's results, with the numbers that new entries are.

    Args:
        r: the reading.
        step: the step.
        states: what its rule says. A rule need not know of numbers.
    """
    if r.filling.is_tiled:
        return states
    return [
        replace(state, along={a: _numbered(r, step, a, known) for a, known in state.along.items()})
        if state.along
        else state
        for state in states
    ]


def _numbered(r: Reading, step: Step, axis: int, known: Along) -> Along:
    """Returns what is known of new entries along an axis of a result."""
    law = primitive(step.name)
    if law.keeps or law.same:
        return known
    number = None if not law.is_of_entries or r.index in r.degrees else _computed(r, step, axis)
    if number is None or not isfinite(number):
        return Along("free") if known.rest == "number" else known
    if number == 0:
        return known if known.rest == "zero" else Along("zero")
    return Along("number", number=number)


def _computed(r: Reading, step: Step, axis: int) -> float | None:
    """Returns the number that an elementwise function makes of numbers, if it is known."""
    numbers = [_number(r, value, axis) for value in step.operands]
    if not all(map(_is_exact, numbers)):
        return None
    if step.name == "convert_element_type":
        return numbers[0] if keeps_numbers(step.params["new_dtype"]) else None
    is_power = step.name == "integer_pow"
    found = folded("pow", *numbers, step.params["y"]) if is_power else folded(step.name, *numbers)
    return float(found) if _is_exact(found) else None


def _is_exact(number: float | None) -> bool:
    """Whether a number is the same in every dtype that networks compute in, as 1 and 0.5 are."""
    return number is not None and float(np.asarray(number, jnp.bfloat16)) == number


def _number(r: Reading, value: Value, axis: int) -> float | None:
    """Returns the number that all new entries of an operand along an axis of the result are."""
    if value.number is not None or value.origin != "data":
        return value.number
    state = r.states.get(id(value))
    along = None if state is None else state.along.get(axis)
    if along is None or along.rest not in ("zero", "number"):
        return None
    return along.number
