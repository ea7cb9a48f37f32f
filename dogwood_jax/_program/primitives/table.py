"""All primitives. Import the table from here: importing this module fills it."""

from dogwood_jax._program.primitives import (  # noqa: F401
    axis_moves,
    control,
    entries,
    lookups,
    order,
    outside,
    random_numbers,
    sums,
    windows,
)
from dogwood_jax._program.primitives.record import PRIMITIVES, axes_of, is_linear, primitive

__all__ = ["PRIMITIVES", "axes_of", "is_linear", "primitive"]
