"""Keras's layers that resize images, cut them out, or change them in training only."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.functions import Function, channels_last, spatial
from dogwood_jax.keras_h5._kinds.weight import Config

# Keras outside TensorFlow had another bilinear interpolation; it is renamed on reading.
BILINEAR_2_3 = "bilinear of Keras 2.3"

_METHODS = {
    "nearest": "nearest",
    "bilinear": "linear",
    "bicubic": "cubic",
    "lanczos3": "lanczos3",
    "lanczos5": "lanczos5",
}


def _method(config: Config, default: str) -> str:
    name = config.get("interpolation", default)
    if name not in _METHODS:
        raise ValueError(f"the interpolation {name!r} is not supported")
    return _METHODS[name]


def _to(x: jax.Array, height: int, width: int, method: str, antialias: bool = False) -> jax.Array:
    """Resizes images ``[..., height, width, channel]``."""
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    shape = (*x.shape[:-3], height, width, x.shape[-1])
    resized: jax.Array = jax.image.resize(x, shape, method, antialias=antialias)
    return resized


def _resizing(config: Config) -> Function:
    for option in ("crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        if config.get(option):
            raise ValueError(f"{option} is not supported")
    sizes = operator.index(config["height"]), operator.index(config["width"])
    method, antialias = _method(config, "bilinear"), bool(config.get("antialias"))
    return channels_last(config, lambda x: _to(x, *sizes, method, antialias))


def _center_crop(config: Config) -> Function:
    sizes = operator.index(config["height"]), operator.index(config["width"])

    def crop(x: jax.Array) -> jax.Array:
        rows, columns = (n - size for n, size in zip(x.shape[-3:-1], sizes))
        if min(rows, columns) < 0:
            raise ValueError(
                f"an image smaller than {sizes}, which Keras resizes, is not supported"
            )
        top, left = rows // 2, columns // 2
        return x[..., top : top + sizes[0], left : left + sizes[1], :]

    return channels_last(config, crop)


def _up_sampling(config: Config) -> Function:
    sizes = spatial(config["size"], 2)
    if config.get("interpolation") == BILINEAR_2_3:
        return channels_last(config, lambda x: _stretched(_stretched(x, 1, sizes[0]), 2, sizes[1]))
    method = _method(config, "nearest")

    def enlarge(x: jax.Array) -> jax.Array:
        if method != "nearest":
            return _to(x, x.shape[1] * sizes[0], x.shape[2] * sizes[1], method)
        return jnp.repeat(jnp.repeat(x, sizes[0], axis=1), sizes[1], axis=2)

    return channels_last(config, enlarge)


def _stretched(x: jax.Array, axis: int, times: int) -> jax.Array:
    """Puts what was at i to ``times * i``, and in between what is in between."""
    below, part = divmod(jnp.arange(x.shape[axis] * times), times)
    part = jnp.expand_dims((part / times).astype(x.dtype), [a for a in range(x.ndim) if a != axis])
    first, second = (jnp.take(x, at, axis, mode="clip") for at in (below, below + 1))
    return first + (second - first) * part


def _discretization(config: Config) -> Function:
    boundaries = config.get("bin_boundaries")
    if boundaries is None:
        raise ValueError("boundaries that adapt() found, which are no weights, are not supported")
    if config.get("output_mode", "int") != "int" or config.get("sparse"):
        raise ValueError(f"the output_mode {config['output_mode']!r} is not supported")
    edges = jnp.asarray(np.asarray(boundaries), jnp.float32)  # JAX takes long for long lists
    return lambda x: jnp.searchsorted(edges, x.astype(jnp.float32), side="right")


def _category_encoding(config: Config) -> Function:
    count, mode = operator.index(config["num_tokens"]), config.get("output_mode", "multi_hot")
    if mode not in ("one_hot", "multi_hot", "count") or config.get("sparse"):
        raise ValueError(f"the output_mode {mode!r} is not supported")

    def encode(x: Any) -> Any:
        hot = jax.nn.one_hot(x.astype(jnp.int32), count)
        if mode == "one_hot":
            return hot[..., 0, :] if x.ndim > 1 and x.shape[-1] == 1 else hot
        if x.ndim == 1:
            return hot
        return jnp.max(hot, axis=-2) if mode == "multi_hot" else jnp.sum(hot, axis=-2)

    return encode


IMAGES: dict[str, Callable[[Config], Function]] = {
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
    "UpSampling2D": _up_sampling,
    "Discretization": _discretization,
    "CategoryEncoding": _category_encoding,
}
