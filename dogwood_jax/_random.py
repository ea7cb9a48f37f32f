"""Random numbers for new weights, at the speed of writing them.

Initial weights need values without visible pattern, but not a cryptographic generator, and the
counter-based one of JAX takes longer for a large array than all the rest of growing it. So JAX's
generator draws 32 random bits for each row and for each column, and every entry mixes the sum of
its row's and its column's bits with an integer hash: a few elementwise operations that XLA fuses
into the write, whatever the sharding.

Reference:
    The hash is lowbias32, found by Chris Wellons, 2018, Prospecting for Hash Functions.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def uniform(key: Array, shape: tuple[int, ...], dtype: Any, limit: float) -> Array:
    """Returns uniform random numbers between ``-limit`` and ``limit``.

    Args:
        key: PRNG key.
        shape: shape of the array.
        dtype: its floating or complex dtype; complex numbers are uniform in both parts.
        limit: the largest magnitude, in each part.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        real, imaginary = jax.random.split(key)
        part = jnp.finfo(dtype).dtype  # type: ignore[no-untyped-call]
        return lax.complex(
            uniform(real, shape, part, limit), uniform(imaginary, shape, part, limit)
        )
    # Rows and columns: the leading and the trailing axes, split where both are few.
    split = min(range(len(shape) + 1), key=lambda axis: prod(shape[:axis]) + prod(shape[axis:]))
    row_key, column_key = jax.random.split(key)
    rows = jax.random.bits(row_key, (*shape[:split], *(1 for _ in shape[split:])), jnp.uint32)
    columns = jax.random.bits(column_key, (*(1 for _ in shape[:split]), *shape[split:]), jnp.uint32)
    bits = _hash(rows + columns)
    # The upper half of the range is as good as its negative: read as signed, bits are centred.
    numbers = lax.bitcast_convert_type(bits, jnp.int32).astype(
        jnp.promote_types(dtype, jnp.float32)
    )
    return lax.convert_element_type(numbers * (limit * 2.0**-31), dtype)


def _hash(bits: Array) -> Array:
    """Mixes 32 bits so that each bit of the result depends on all of them."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return bits ^ (bits >> jnp.uint32(16))
