"""Whether JAX has 64 bits for a number, as the thread that computes says."""

from contextlib import AbstractContextManager
from typing import Any

import jax


def cut_short(path: str, dtype: Any) -> list[str]:
    """Returns the problem of an array that JAX would make one of fewer bits, if it would."""
    if jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return []
    return [
        f"{path}: is {dtype}, which JAX would cut short; "
        "set jax.config.update('jax_enable_x64', True) first"
    ]


def in_64_bits(on: bool = True) -> AbstractContextManager[Any]:
    """Returns a context in which JAX has 64 bits or has not, whatever the thread's settings are."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)  # type: ignore[no-any-return]
    from jax import experimental  # before JAX 0.8

    return experimental.enable_x64(on)  # type: ignore[attr-defined,no-any-return]
