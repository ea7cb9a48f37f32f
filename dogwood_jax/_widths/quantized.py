"""Arrays of small integers, as quantized weights are.

Such an array stays as it is while other arrays beside it are trained. Its new entries are zeros,
whatever reads them, and its old entries are never multiplied by anything.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.reasons import Reason
from dogwood_jax._widths.roles import Roles
from dogwood_jax._widths.values import Trace, Value

_ZEROS = Reason(
    "new entries of arrays of small integers are zeros, so other arrays must feed its new units",
    "silent",
)
_NOT_SHARED = Reason("small integers cannot be shared out among copies", "integers")


def is_quantized(dtype: Any) -> bool:
    """Whether arrays of a dtype are taken for quantized weights: ``int8``, ``int4`` and so on."""
    return bool(jnp.issubdtype(dtype, np.signedinteger)) and jnp.dtype(dtype).itemsize == 1


def check_read(name: str, operands: Sequence[Value]) -> None:
    """Fixes the dimensions of small integers that a primitive reads otherwise than as weights.

    Integers may move, and be factors in a sum. Anything else may take them for indices or bits.
    """
    record = primitive(name)
    moves = record.keeps or record.pieces or record.joins or record.same or record.runs
    is_cast = record.is_of_entries and record.linear and record.degree is None
    for place, value in enumerate(operands):
        is_index = place > 0 and record.indexed
        if value.quantized and (is_index or not (moves or is_cast or record.contracts)):
            for dim in value.dims:
                dim.fix("its small integers are read otherwise than as quantized weights")


def note_quantized(roles: Roles, trace: Trace) -> None:
    """Notes what is special of the dimensions of small integers."""
    for spots in roles.spots.values():
        for spot in spots:
            if spot.leaf in trace.quantized:
                spot.atom.note(_ZEROS)
                if roles.of(spot) != "incoming":
                    spot.atom.note(_NOT_SHARED)
