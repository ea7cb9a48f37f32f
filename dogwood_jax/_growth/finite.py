"""Checks arrays for NaN and infinities: ``is_finite`` and ``not_finite``."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import is_array, is_traced

_STEP = 1 << 20  # entries checked at a time, to bound the memory
_ALL_ONES = {"float16": 0x7C00, "bfloat16": 0x7F80}  # exponent bits, all set in NaN and infinities


def is_finite(array: np.ndarray) -> bool:
    """Whether an array is free of NaN and infinities."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    flat = array.reshape(-1)
    parts = (flat[start : start + _STEP] for start in range(0, flat.size, _STEP))
    with np.errstate(all="ignore"):  # isfinite of bfloat16 warns of NaN
        return all(_is_finite(part) for part in parts)


def _is_finite(part: np.ndarray) -> bool:
    # A finite sum of squares proves that all entries are finite, in half the time. The sum of large
    # entries may overflow.
    if part.dtype in (np.float32, np.float64) and np.isfinite(np.dot(part, part)):
        return True
    # NumPy checks half-precision entries one by one; a check of their bits is vectorized.
    if part.dtype.isnative and (exponent := _ALL_ONES.get(part.dtype.name)) is not None:
        return not bool(((part.view(np.uint16) & exponent) == exponent).any())
    return bool(np.isfinite(part).all())


def refusal_of_not_finite(path: str, where: str = "") -> str:
    """Returns the refusal of an array that is not finite, with the next step."""
    return (
        f"{path}: holds NaN or infinities{where}, so outputs could change: 0 * NaN is NaN; grow "
        "finite weights, such as those of an earlier checkpoint"
    )


def not_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Returns the paths of arrays that hold NaN or infinities.

    Each array is read once, on its own devices; none is gathered. Arrays without values, such as
    tracers, count as finite.
    """
    found = {
        path: _found(array)
        for path, array in arrays.items()
        if is_array(array) and not is_traced(array) and not isinstance(array, jax.ShapeDtypeStruct)
        if jnp.issubdtype(array.dtype, jnp.inexact)
    }
    return [path for path, finite in jax.device_get(found).items() if not finite]


def _found(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return is_finite(np.asarray(array))
    if not array.is_fully_addressable or any(d.platform != "cpu" for d in array.devices()):
        return _all_finite(array)
    # NumPy reads a CPU's memory without a copy and needs no compilation.
    shards = (shard for shard in array.addressable_shards if shard.replica_id == 0)
    return all(is_finite(np.asarray(shard.data)) for shard in shards)


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
