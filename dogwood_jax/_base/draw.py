"""Random numbers for new weights, at the speed of writing them.

Initial weights need values without visible pattern, but not a cryptographic generator. JAX's own
generator takes longer for a large array than all the rest of growing it, to run and to compile. So
it draws only two words, a seed. From the seed an integer hash makes a word for each row and each
column of the array. An entry is the hash of the sum of its row's word and its column's word. These
few elementwise operations fuse into the write, whatever the sharding.

Reference:
    The hash is lowbias32, found by Chris Wellons, 2018, Prospecting for Hash Functions.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import count
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Shifts and factors of the hash, and what separates seeds: multiples of the golden ratio.
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
_APART = 0x9E3779B9
# Entries that NumPy makes at a time, which stay in a processor's cache.
_STEP = 1 << 17


def seeds(seed: Array) -> Iterator[Array]:
    """Yields as many independent seeds as are needed, each two words, from one of them."""
    for index in count(1):
        yield _hash(seed + jnp.uint32(index * _APART % 2**32))


# Traced once for each shape, which networks of many layers repeat.
@functools.partial(jax.jit, static_argnames=("shape", "dtype", "limit", "axis"))
def uniform(
    seed: Array,
    shape: tuple[int, ...],
    dtype: Any,
    limit: float,
    axis: int = 0,
    places: Array | None = None,
) -> Array:
    """Returns uniform random numbers between ``-limit`` and ``limit``.

    Args:
        seed: two random words, ``uint32[2]``.
        shape: shape of the array.
        dtype: its floating or complex dtype; complex numbers are uniform in both parts.
        limit: the largest magnitude, in each part.
        axis: along which only some places are drawn.
        places: these places, ``[count]``; None for all. Each has the numbers that it has among all.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = jnp.finfo(dtype).dtype  # type: ignore[no-untyped-call]
        both = uniform(seed, (2, *shape), part, limit, axis + 1, places)
        return lax.complex(both[0], both[1])
    # Rows and columns: the leading and the trailing axes, split where both are few.
    split = _split(shape)
    sides = [_numbered(shape[:split], axis, places), _numbered(shape[split:], axis - split, places)]
    words = [_hash(numbers + word) for numbers, word in zip(sides, (seed[0], seed[1]), strict=True)]
    drawn = (*words[0].shape, *words[1].shape)
    rows = lax.broadcast_in_dim(words[0], drawn, tuple(range(split)))
    columns = lax.broadcast_in_dim(words[1], drawn, tuple(range(split, len(shape))))
    # Read as signed integers, random words are centred on zero.
    numbers = lax.bitcast_convert_type(_hash(rows + columns), jnp.int32)
    wide = numbers.astype(jnp.promote_types(dtype, jnp.float32))
    return lax.convert_element_type(wide * (limit * 2.0**-31), dtype)


def _split(shape: tuple[int, ...]) -> int:
    """Returns how many axes number the rows; the others number the columns."""
    return min(range(len(shape) + 1), key=lambda axis: prod(shape[:axis]) + prod(shape[axis:]))


def _numbered(shape: tuple[int, ...], axis: int, places: Array | None) -> Array:
    """Returns the number of each entry in row-major order, perhaps only at places of one axis."""
    if places is None or not 0 <= axis < len(shape):
        return lax.iota(jnp.uint32, prod(shape)).reshape(shape)
    inner = prod(shape[axis + 1 :])
    before, after = lax.iota(jnp.uint32, prod(shape[:axis])), lax.iota(jnp.uint32, inner)
    rows = before[:, None] * jnp.uint32(shape[axis]) + places.astype(jnp.uint32)[None]
    numbers: Array = rows[:, :, None] * jnp.uint32(inner) + after[None, None]
    return numbers.reshape((*shape[:axis], places.size, *shape[axis + 1 :]))


_KEY_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


def dtype_named(name: str) -> Any:
    """Returns a dtype by its name, those of PRNG keys among them."""
    return _key_like(_key_impl(name)).dtype if name.startswith("key<") else jnp.dtype(name)


def random_keys(seed: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns PRNG keys of this dtype from two random words."""
    return jax.random.split(jax.random.key(seed[0], impl=_key_impl(str(dtype))), shape)


def _key_impl(name: str) -> str:
    for impl in _KEY_IMPLS:
        if str(_key_like(impl).dtype) == name:
            return impl
    raise ValueError(f"{name}: no PRNG keys of JAX; expected one of {_KEY_IMPLS}")


def _key_like(impl: str) -> Any:
    return jax.eval_shape(functools.partial(jax.random.key, impl=impl), 0)


def _hash(words: Array) -> Array:
    """Mixes words so that each bit of the result depends on all bits of the word."""
    for shift, factor in _ROUNDS:
        words = (words ^ (words >> jnp.uint32(shift))) * jnp.uint32(factor)
    return lax.bitwise_xor(words, words >> jnp.uint32(16))


# The same by NumPy, where nothing has to be compiled ----------------------------------------------


def seed_at(seed: np.ndarray, place: int) -> np.ndarray:
    """Returns the seed that ``seeds`` yields at this place, beginning with 0."""
    words: np.ndarray = seed + np.uint32((place + 1) * _APART % 2**32)
    _hash_here(words, np.empty_like(words))
    return words


def draw_into(
    target: np.ndarray,
    seed: np.ndarray,
    shape: tuple[int, ...],
    limit: float,
    places: Sequence[np.ndarray],
    order: Sequence[int],
) -> None:
    """Writes what ``uniform`` draws at some places, bit for bit.

    Args:
        target: where the numbers are written; float16, bfloat16, float32, float64 or complex.
        seed: two random words, ``uint32[2]``.
        shape: shape of the whole array.
        limit: the largest magnitude, in each part of complex numbers.
        places: the places along each axis of the whole array.
        order: the axes of the whole array, as they lie in ``target``.
    """
    if target.dtype.kind == "c":
        later = (0, *(axis + 1 for axis in order))
        for number, part in enumerate((target.real, target.imag)):
            both = np.array([number]), *places
            draw_into(part[None], seed, (2, *shape), limit, both, later)
        return
    split = _split(shape)
    words = list[np.ndarray]()
    for word, axes in zip(seed, (range(split), range(split, len(shape))), strict=True):
        numbers = np.zeros([1] * len(shape), int)
        for axis in axes:
            inner = prod(shape[axis + 1 : axes.stop])
            along = [-1 if other == axis else 1 for other in range(len(shape))]
            numbers = numbers + (places[axis] * inner).reshape(along)
        side = numbers.astype(np.uint32) + word
        _hash_here(side, np.empty_like(side))
        words.append(np.broadcast_to(side.transpose(order), target.shape))
    wide = _wide(target.dtype)
    scale = wide.type(limit * 2.0**-31)
    memory = np.empty((2, min(_STEP, target.size)), np.uint32), np.empty(_STEP, wide)
    for block in _blocks(target.shape):
        shape = target[block].shape
        drawn, spare, numbers = (a[: prod(shape)].reshape(shape) for a in (*memory[0], memory[1]))
        np.add(words[0][block], words[1][block], out=drawn)
        _hash_here(drawn, spare)
        # Read as signed integers, random words are centred on zero.
        np.multiply(drawn.view(np.int32), scale, out=numbers, dtype=wide, casting="unsafe")
        target[block] = numbers


def scale_into(target: np.ndarray, array: np.ndarray, factor: float) -> bool:
    """Writes a floating array times a factor, rounded as XLA rounds it; all are finite.

    Returns:
        Whether it is done: XLA may take numbers below the normal ones for zeros, so they are left
        to it.
    """
    number = _wide(array.dtype).type(factor)
    with np.errstate(over="ignore"):
        for block in _blocks(array.shape):
            old = array[block].astype(number.dtype, copy=False)
            new = old * number
            if not (_are_normal(old) and _are_normal(new)):
                return False
            target[block] = new
    return True


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the dtype in which numbers of a floating dtype are computed."""
    return np.dtype(np.promote_types(np.float32, dtype) if dtype.kind == "f" else np.float32)


def _are_normal(numbers: np.ndarray) -> bool:
    """Whether each of some float32 or float64 numbers is zero, or so large that it is normal."""
    bits = numbers.view(f"u{numbers.itemsize}")
    magnitudes = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    magnitudes -= bits.dtype.type(1)  # zeros become the largest ones
    smallest = np.finfo(numbers.dtype).tiny.view(bits.dtype)
    return not magnitudes.size or bool(magnitudes.min() >= smallest - bits.dtype.type(1))


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yields blocks of an array of at most some entries, in row-major order."""
    if not shape:
        yield ()
        return
    inner = prod(shape[1:])
    if inner > _STEP:
        rest = [*_blocks(shape[1:])]
        yield from ((slice(i, i + 1), *block) for i in range(shape[0]) for block in rest)
        return
    step = _STEP // max(inner, 1)
    yield from ((slice(start, start + step),) for start in range(0, shape[0], step))


def _hash_here(words: np.ndarray, spare: np.ndarray) -> None:
    """Mixes words as ``_hash`` does, in place."""
    for shift, factor in _ROUNDS:
        np.right_shift(words, np.uint32(shift), out=spare)
        np.bitwise_xor(words, spare, out=words)
        np.multiply(words, np.uint32(factor), out=words)
    np.right_shift(words, np.uint32(16), out=spare)
    np.bitwise_xor(words, spare, out=words)
