"""Primitives that draw random numbers or handle their keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dogwood_jax._program.dims import Dim, atoms
from dogwood_jax._program.primitives.new_sizes import SizeOf, new_shape, shape_out
from dogwood_jax._program.primitives.reading import DRAWN, mixed, origin_of, shapes_out
from dogwood_jax._program.primitives.record import Primitive, describes
from dogwood_jax._program.values import Step, Trace, Value


@describes("random_wrap", "random_unwrap", "random_fold_in", "random_seed", "random_clone")
@describes("empty2", "create_token", "axis_index")
class _Opaque(Primitive):
    """Makes arrays whose dimensions are new, whatever the operands."""

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        shapes = [tuple(map(Dim, shape)) for shape in shapes_out(eqn)]
        if origin_of(values) == "constant":
            return [mixed(values, dims) for dims in shapes]
        return [Value(dims) for dims in shapes]


@describes("empty")
class _Empty(_Opaque):
    resized = staticmethod(new_shape)


@describes("random_split")
class _KeySplit(_Opaque):
    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        return {"shape": shape_out(step, size_of)[len(operands[0].shape) :]}


class _Bits(_Opaque):
    draws = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        results = super().read(trace, eqn, *values)
        for dim in (dim for value in results for dim in value.dims):
            dim.note(DRAWN)
        return results


@describes("rng_uniform")
class _Uniform(_Bits):
    resized = staticmethod(new_shape)


@describes("rng_bit_generator")
class _BitGenerator(_Bits):
    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        return {"shape": shape_out(step, size_of, 1)}


def bits_of(
    key: Any, *, bit_width: int, shape: Sequence[int], num_streams: int = 1, **_: Any
) -> list[np.ndarray]:
    """Returns random bits that depend on the key and on the position of each entry alone.

    JAX 0.12 draws several streams in one equation; each is a result of its own.
    """
    rank, shape = len(key.shape), (num_streams, *shape)
    words = np.asarray(jax.random.key_data(key)).astype(np.uint64)
    seeds = words.reshape((*key.shape, -1))
    bits = np.full(key.shape, 1, np.uint64)
    for word in range(seeds.shape[-1]):
        bits = _scrambled(bits * np.uint64(0x9E3779B97F4A7C15) + seeds[..., word])
    bits = bits.reshape((*key.shape, *(1,) * len(shape)))
    for axis, size in enumerate(shape):
        along = [1] * bits.ndim
        along[rank + axis] = size
        places = np.arange(1, size + 1, dtype=np.uint64).reshape(along)
        bits = _scrambled(bits * np.uint64(0x9E3779B97F4A7C15) + places)
    bits = (bits >> np.uint64(64 - bit_width)).astype(f"uint{bit_width}")
    return list(np.moveaxis(bits, rank, 0))


def _scrambled(numbers: Any) -> Any:
    """Maps 64-bit numbers to pseudo-random 64-bit numbers."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@describes("random_bits")
class _RandomBits(_Bits):
    evaluate = staticmethod(bits_of)

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        # An entry's bits depend on its place, so an axis for each width keeps those of old entries.
        dims = step.results[0].dims[len(operands[0].shape) :]
        return {"shape": tuple(size_of(atom) for dim in dims for atom in atoms(dim))}


@describes("random_gamma")
class _Gamma(Primitive):
    def read(self, trace: Trace, eqn: Any, key: Value, shape: Value) -> list[Value]:
        for dim in shape.dims:
            dim.note(DRAWN)
        return [mixed((key, shape), shape.dims)]


def random_bits_alike(key: Any, *, shape: Sequence[int], **params: Any) -> list[np.ndarray]:
    """Returns the same random bits for all entries, so that copies get equal bits."""
    streams = bits_of(key, shape=(1,) * len(shape), **params)
    return [np.broadcast_to(bits, (*key.shape, *shape)) for bits in streams]
