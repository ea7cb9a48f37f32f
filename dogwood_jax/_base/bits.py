"""The 64-bit mode of JAX, which each thread may set for itself."""

from contextlib import AbstractContextManager
from typing import Any

import jax


def cut_short(path: str, dtype: Any) -> list[str]:
    """Returns a problem if JAX would convert an array of this dtype to fewer bits, else nothing."""
    if jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return []
    return [
        f"{path}: is {dtype}, which JAX would convert to fewer bits; "
        "set jax.config.update('jax_enable_x64', True) first"
    ]


def in_64_bits(on: bool = True) -> AbstractContextManager[Any]:
    """Returns a context with 64-bit values on or off, whatever the thread's settings are."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)  # type: ignore[no-any-return]
    from jax import experimental  # before JAX 0.8

    return experimental.enable_x64(on)  # type: ignore[attr-defined,no-any-return]
