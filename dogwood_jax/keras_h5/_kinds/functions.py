"""Functions that order arrays, sum them up in parts, transform them or bend their entries.

Options come from configs: lists of numbers in place of tuples. ``operations`` says what Keras calls
these functions.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import Function


def sizes(value: Any) -> Any:
    """Returns an axis or size, or several of them."""
    return tuple(map(operator.index, value)) if isinstance(value, list | tuple) else value


# Order, sums up to a place, and segments.


def roll(x: Any, shift: Any, axis: Any = None) -> Any:
    return jnp.roll(x, sizes(shift), sizes(axis))


def flip(x: Any, axis: Any = None) -> Any:
    return jnp.flip(x, sizes(axis))


def cumsum(x: Any, axis: Any = None) -> Any:
    return jnp.cumsum(x, axis)


def cumprod(x: Any, axis: Any = None) -> Any:
    return jnp.cumprod(x, axis)


def argsort(x: Any, axis: Any = -1) -> Any:
    return jnp.argsort(x, axis).astype(jnp.int32)


def top_k(x: Any, k: Any = 1, ordered: Any = True) -> Any:
    return jax.lax.top_k(x, operator.index(k))


def unstack(x: Any, num: Any = None, axis: Any = 0) -> Any:
    return [jnp.squeeze(one, axis) for one in jnp.split(x, x.shape[axis], axis)]


def take_along_axis(x: Any, indices: Any, axis: Any = None) -> Any:
    return jnp.take_along_axis(x, jnp.asarray(indices), axis)


def segments(reduce: Function) -> Function:
    """Reduces the rows of each segment to one; without ``num_segments`` their count is data."""

    def reduced(x: Any, ids: Any, num_segments: Any) -> Any:
        if num_segments is None:
            raise ValueError("num_segments is not given; how many there are is not known before")
        return reduce(x, jnp.asarray(ids), operator.index(num_segments))

    return reduced


# Sums of products.


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    y = jnp.asarray(y)
    return jnp.tensordot(x, y, [sizes(a) for a in axes] if isinstance(axes, list | tuple) else axes)


def average(x: Any, axis: Any = None, weights: Any = None) -> Any:
    return jnp.average(x, sizes(axis), weights)


def fft(transform: Function) -> Function:
    """Transforms complex numbers, which are pairs of real arrays."""

    def transformed(pair: Sequence[Any]) -> Any:
        real, imaginary = pair
        result = transform(jax.lax.complex(real, imaginary))
        return jnp.real(result), jnp.imag(result)

    return transformed


# Activations and norms.


def elu(x: Any, alpha: Any = 1.0) -> Any:
    return jax.nn.elu(x, alpha)


def squareplus(x: Any, b: Any = 4) -> Any:
    return (x + jnp.sqrt(x * x + b)) / 2


def soft_shrink(x: Any, threshold: Any = 0.5) -> Any:
    return jnp.sign(x) * jax.nn.relu(jnp.abs(x) - threshold)


def hard_shrink(x: Any, threshold: Any = 0.5) -> Any:
    return jnp.where(jnp.abs(x) > threshold, x, 0)
