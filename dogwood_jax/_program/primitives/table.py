"""All primitives: to import this fills the table ``PRIMITIVES``."""

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
from dogwood_jax._program.primitives.record import PRIMITIVES

__all__ = ["PRIMITIVES"]
