"""Random values for new weights, at the speed of writing them.

Initial weights need values without visible pattern, but not a cryptographic generator. For a large
array, JAX's own generator takes longer than the rest of its growth, to run and to compile. It
therefore draws only two words, a seed. An integer hash turns the seed into a word for each row and
each column of the array. An entry is the hash of the sum of its row's word and its column's word.
These few elementwise operations fuse into the write, whatever the sharding.

Reference:
    The hash is lowbias32, found by Chris Wellons, 2018, Prospecting for Hash Functions.
"""

import functools
from collections.abc import Iterator
from itertools import count
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Shifts and factors of the hash, and the step between seeds: 2**32 divided by the golden ratio.
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
_APART = 0x9E3779B9


def seeds(seed: Array) -> Iterator[Array]:
    """Yields independent seeds without end, two words each, derived from one seed."""
    for index in count(1):
        yield _hash(seed + jnp.uint32(index * _APART % 2**32))


# jit traces once for each shape. Networks of many layers repeat the same shapes.
@functools.partial(jax.jit, static_argnames=("shape", "dtype", "limit", "axis"))
def uniform(
    seed: Array,
    shape: tuple[int, ...],
    dtype: Any,
    limit: float,
    axis: int = 0,
    places: Array | None = None,
) -> Array:
    """Returns uniform random values between ``-limit`` and ``limit``.

    Args:
        seed: two random words, ``uint32[2]``.
        shape: shape of the full array.
        dtype: its floating or complex dtype; complex values are uniform in both parts.
        limit: the largest magnitude, in each part.
        axis: the axis along which ``places`` are drawn.
        places: positions along ``axis``, ``[count]``; None for all. Their values are the same as in
            the full array.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = jnp.finfo(dtype).dtype  # type: ignore[no-untyped-call]
        both = uniform(seed, (2, *shape), part, limit, axis + 1, places)
        return lax.complex(both[0], both[1])
    # Rows are the leading axes, columns the trailing axes, split so that there are few of both.
    split = _split(shape)
    sides = [_numbered(shape[:split], axis, places), _numbered(shape[split:], axis - split, places)]
    words = [_hash(numbers + word) for numbers, word in zip(sides, (seed[0], seed[1]), strict=True)]
    drawn = (*words[0].shape, *words[1].shape)
    rows = lax.broadcast_in_dim(words[0], drawn, tuple(range(split)))
    columns = lax.broadcast_in_dim(words[1], drawn, tuple(range(split, len(shape))))
    # As signed integers, random words are centred on zero.
    numbers = lax.bitcast_convert_type(_hash(rows + columns), jnp.int32)
    wide = numbers.astype(dtype if jnp.dtype(dtype).itemsize > 4 else jnp.float32)
    return lax.convert_element_type(wide * (limit * 2.0**-31), dtype)


def _split(shape: tuple[int, ...]) -> int:
    """Returns how many leading axes index the rows; the other axes index the columns."""
    return min(range(len(shape) + 1), key=lambda axis: prod(shape[:axis]) + prod(shape[axis:]))


def _numbered(shape: tuple[int, ...], axis: int, places: Array | None) -> Array:
    """Returns the row-major index of each entry, or only of entries at some places of one axis."""
    if places is None or not 0 <= axis < len(shape):
        return lax.iota(jnp.uint32, prod(shape)).reshape(shape)
    inner = prod(shape[axis + 1 :])
    before, after = lax.iota(jnp.uint32, prod(shape[:axis])), lax.iota(jnp.uint32, inner)
    rows = before[:, None] * jnp.uint32(shape[axis]) + places.astype(jnp.uint32)[None]
    numbers: Array = rows[:, :, None] * jnp.uint32(inner) + after[None, None]
    return numbers.reshape((*shape[:axis], places.size, *shape[axis + 1 :]))


_KEY_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


def dtype_named(name: str) -> Any:
    """Returns a dtype by its name, including dtypes of PRNG keys."""
    return _key_like(_key_impl(name)).dtype if name.startswith("key<") else jnp.dtype(name)


def random_keys(seed: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns PRNG keys of this dtype, derived from the first word of a seed."""
    return jax.random.split(jax.random.key(seed[0], impl=_key_impl(str(dtype))), shape)


def _key_impl(name: str) -> str:
    for impl in _KEY_IMPLS:
        if str(_key_like(impl).dtype) == name:
            return impl
    raise ValueError(f"{name}: not a dtype of PRNG keys; expected one of {_KEY_IMPLS}")


def _key_like(impl: str) -> Any:
    return jax.eval_shape(functools.partial(jax.random.key, impl=impl), 0)


def _hash(words: Array) -> Array:
    """Returns words hashed so that each bit of the result depends on all bits of the word."""
    for shift, factor in _ROUNDS:
        words = (words ^ (words >> jnp.uint32(shift))) * jnp.uint32(factor)
    return lax.bitwise_xor(words, words >> jnp.uint32(16))
