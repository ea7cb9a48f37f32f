"""Arrays of small integers, as quantized weights are.

Such an array stays as it is while other arrays beside it are trained. Its new entries are zeros,
whatever reads them, and its old entries are never multiplied by anything.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._widths.reasons import Reason
from dogwood_jax._widths.roles import Roles
from dogwood_jax._widths.values import Trace

_ZEROS = Reason(
    "new entries of arrays of small integers are zeros, so other arrays must feed its new units",
    "silent",
)
_NOT_SHARED = Reason("small integers cannot be shared out among copies", "integers")


def is_quantized(dtype: Any) -> bool:
    """Whether arrays of a dtype are taken for quantized weights: ``int8``, ``int4`` and so on."""
    return bool(jnp.issubdtype(dtype, np.signedinteger)) and jnp.dtype(dtype).itemsize == 1


def note_quantized(roles: Roles, trace: Trace) -> None:
    """Notes what is special of the dimensions of small integers."""
    for spots in roles.spots.values():
        for spot in spots:
            if spot.leaf in trace.quantized:
                spot.atom.note(_ZEROS)
                if roles.of(spot) != "incoming":
                    spot.atom.note(_NOT_SHARED)
