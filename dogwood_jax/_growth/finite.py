"""Whether arrays are free of NaN and infinities: ``is_finite`` and ``not_finite``."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import is_array, is_traced

_STEP = 1 << 20  # entries at a time, which take no memory to speak of
_ALL_ONES = {"float16": 0x7C00, "bfloat16": 0x7F80}  # the exponent of what is not finite


def is_finite(array: np.ndarray) -> bool:
    """Whether an array is free of NaN and infinities."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    flat = array.reshape(-1)
    parts = (flat[start : start + _STEP] for start in range(0, flat.size, _STEP))
    with np.errstate(all="ignore"):  # bfloat16 warns of what it is asked about
        return all(_is_finite(part) for part in parts)


def _is_finite(part: np.ndarray) -> bool:
    # A sum of squares is read twice as fast, and finite if all are; large numbers overflow.
    if part.dtype in (np.float32, np.float64) and np.isfinite(np.dot(part, part)):
        return True
    # NumPy asks half precision number by number; its bits tell at once.
    if part.dtype.isnative and (exponent := _ALL_ONES.get(part.dtype.name)) is not None:
        return not bool(((part.view(np.uint16) & exponent) == exponent).any())
    return bool(np.isfinite(part).all())


def refusal_of_not_finite(path: str, where: str = "") -> str:
    """Returns why an array that is not finite cannot grow, and what to do."""
    return (
        f"{path}: holds NaN or infinities{where}, so outputs could change: 0 * NaN is NaN; grow "
        "weights that are finite, such as those of an earlier checkpoint"
    )


def not_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Returns which arrays hold NaN or infinities, by path.

    Each array is read once, where it lies: none is gathered from several devices. Arrays without
    values, as within ``jax.jit``, count as finite.
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
    # NumPy sees a CPU's memory as it is, and does not have to be compiled.
    shards = (shard for shard in array.addressable_shards if shard.replica_id == 0)
    return all(is_finite(np.asarray(shard.data)) for shard in shards)


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
