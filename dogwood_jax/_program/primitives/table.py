"""The table of primitives: ``PRIMITIVES``, and what it says of one: ``primitive``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from dogwood_jax._program.primitives.axes import Axes
from dogwood_jax._program.primitives.control import CONTROL
from dogwood_jax._program.primitives.entries import ENTRIES
from dogwood_jax._program.primitives.moves import MOVES
from dogwood_jax._program.primitives.record import Primitive, Shape
from dogwood_jax._program.primitives.sums import SUMS

PRIMITIVES: Mapping[str, Primitive] = {**ENTRIES, **MOVES, **SUMS, **CONTROL}
_NOTHING = Primitive()


def primitive(name: str) -> Primitive:
    """Returns the record of a primitive; one that states nothing, if there is none."""
    return PRIMITIVES.get(name, _NOTHING)


def functions(holds: Callable[[Primitive], bool]) -> list[str]:
    """Returns the names of the functions of single entries for which ``holds`` is true."""
    return [name for name, record in ENTRIES.items() if holds(record)]


def axes_of(
    name: str, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape
) -> Axes | None:
    """Returns which axes of operands and result are the same; None if that is not known."""
    axes = primitive(name).axes
    return None if axes is None else axes(params, operands, result)


def is_linear(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a primitive with these parameters is linear. A cast to integers is not."""
    is_float = jnp.issubdtype(params.get("new_dtype", float), jnp.inexact)
    return primitive(name).linear and bool(is_float)
