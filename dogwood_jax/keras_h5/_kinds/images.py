"""Layers that resize, pad or crop images and sequences."""

import operator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind
from dogwood_jax.keras_h5._kinds.masking import dropped, forgotten, unknown
from dogwood_jax.keras_h5._kinds.options import channels_last, spatial


def _margins(value: Any, rank: int) -> list[tuple[int, int]]:
    """Returns the entries to pad or crop before and after each spatial axis."""
    pairs = (value,) * rank if rank == 1 or isinstance(value, int) else tuple(value)
    if len(pairs) != rank:
        raise ValueError(f"expected {rank} values, got {value!r}")
    return [tuple(spatial(pair, 2)) for pair in pairs]  # type: ignore[misc]


def _zero_padding(rank: int, config: Config) -> Function:
    margins = [(0, 0), *_margins(config["padding"], rank), (0, 0)]
    return channels_last(config, lambda x: jnp.pad(x, margins))


def _cropping(rank: int, config: Config) -> Function:
    margins = _margins(config["cropping"], rank)

    def crop(x: Any) -> Any:
        slices = [slice(a, n - b) for (a, b), n in zip(margins, x.shape[1:])]
        return x[(slice(None), *slices)]

    return channels_last(config, crop)


# Before Keras 2.4, outside TensorFlow, bilinear was different; it gets this name on reading.
BILINEAR_2_3 = "bilinear of Keras 2.3"

_METHODS = {name: name for name in ("nearest", "lanczos3", "lanczos5")}
_METHODS |= {"bilinear": "linear", "bicubic": "cubic"}


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


def _up_sampling(rank: int, config: Config) -> Function:
    sizes = spatial(config["size"], rank)
    options = config if rank == 2 else {}
    if options.get("interpolation") == BILINEAR_2_3:
        return channels_last(config, lambda x: _stretched(_stretched(x, 1, sizes[0]), 2, sizes[1]))
    method = _method(options, "nearest")

    def enlarge(x: jax.Array) -> jax.Array:
        if method != "nearest":
            return _to(x, x.shape[1] * sizes[0], x.shape[2] * sizes[1], method)
        for axis, size in enumerate(sizes, 1):
            x = jnp.repeat(x, size, axis=axis)
        return x

    return channels_last(config, enlarge)


def _stretched(x: jax.Array, axis: int, times: int) -> jax.Array:
    """Moves entry i to ``times * i``, and interpolates linearly in between."""
    below, part = divmod(jnp.arange(x.shape[axis] * times), times)
    part = jnp.expand_dims((part / times).astype(x.dtype), [a for a in range(x.ndim) if a != axis])
    first, second = (jnp.take(x, at, axis, mode="clip") for at in (below, below + 1))
    return first + (second - first) * part


def _cut_to_ratio(x: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the largest part in the middle of images that has the ratio of these sizes."""
    rows, columns = x.shape[-3:-1]
    kept = min(rows, int(columns * height / width)), min(columns, int(rows * width / height))
    top, left = ((n - m) // 2 for n, m in zip((rows, columns), kept))
    return x[..., top : top + max(kept[0], 1), left : left + max(kept[1], 1), :]


def _resized(config: Config, height: int, width: int) -> Function:
    """Returns a function that resizes images with channels last."""
    if config.get("pad_to_aspect_ratio"):
        raise ValueError("pad_to_aspect_ratio is not supported")
    method, antialias = _method(config, "bilinear"), bool(config.get("antialias"))
    cut = _cut_to_ratio if config.get("crop_to_aspect_ratio") else lambda x, height, width: x
    return lambda x: _to(cut(x, height, width), height, width, method, antialias)


def _resizing(config: Config) -> Function:
    sizes = operator.index(config["height"]), operator.index(config["width"])
    return channels_last(config, _resized(config, *sizes))


def resize(config: Config) -> Function:
    """Returns the operation that resizes images ``[..., height, width, channel]``."""
    resized = _resized(config, *spatial(config["size"], 2))
    if config.get("data_format") != "channels_first":
        return resized
    return lambda x: jnp.moveaxis(resized(jnp.moveaxis(x, -3, -1)), -1, -3)


# In evaluation nothing is random: Keras 3.8 and later return the image itself, Keras up to 3.5 a
# resized image. Layers of older versions get these names on reading.
RANDOM_CROP_3_5, RANDOM_CROP_3_7 = "RandomCrop of Keras 3.5", "RandomCrop of Keras 3.7"


def _random_crop(config: Config, name: str | None, deterministic: bool) -> Function:
    if not deterministic:
        raise ValueError("its crops are not supported in training; pass deterministic=True")
    return lambda x: x


def _random_crop_3_5(config: Config, name: str | None, deterministic: bool) -> Function:
    _random_crop(config, name, deterministic)
    return _resizing({**config, "crop_to_aspect_ratio": True})


def _random_crop_3_7(config: Config, name: str | None, deterministic: bool) -> Function:
    raise ValueError("crops of Keras 3.6 and 3.7 are not supported; save the model in Keras 3.8")


def _block_size(config: Config) -> int:
    if config.get("data_format") == "channels_first":  # backends of Keras differ
        raise ValueError("the data_format 'channels_first' is not supported")
    return operator.index(config["block_size"])


def depth_to_space(config: Config) -> Function:
    """Returns the operation that moves channels into blocks of larger images."""
    size = _block_size(config)

    def blocks(x: Any) -> Any:
        n, height, width, channels = x.shape
        x = x.reshape(n, height, width, size, size, channels // size**2)
        return jnp.swapaxes(x, 2, 3).reshape(n, height * size, width * size, -1)

    return blocks


def space_to_depth(config: Config) -> Function:
    """Returns the operation that moves blocks of images into channels."""
    size = _block_size(config)

    def stacked(x: Any) -> Any:
        n, height, width, channels = x.shape
        x = x.reshape(n, height // size, size, width // size, size, channels)
        return jnp.swapaxes(x, 2, 3).reshape(n, height // size, width // size, -1)

    return stacked


def _center_crop(config: Config) -> Function:
    sizes = operator.index(config["height"]), operator.index(config["width"])

    def crop(x: jax.Array) -> jax.Array:
        rows, columns = (n - size for n, size in zip(x.shape[-3:-1], sizes))
        if min(rows, columns) < 0:
            return _to(_cut_to_ratio(x, *sizes), *sizes, "linear")
        top, left = rows // 2, columns // 2
        return x[..., top : top + sizes[0], left : left + sizes[1], :]

    return channels_last(config, crop)


for _rank in (1, 2, 3):
    _on_mask = dropped if _rank == 1 else unknown
    for _class, _make in (
        ("ZeroPadding", _zero_padding),
        ("Cropping", _cropping),
        ("UpSampling", _up_sampling),
    ):
        KINDS[f"{_class}{_rank}D"] = Kind(
            function=partial(_make, _rank), passes_channels=True, on_mask=_on_mask
        )
KINDS["Resizing"] = Kind(function=_resizing)
KINDS["ops.Resize"], KINDS["ops.DepthToSpace"], KINDS["ops.SpaceToDepth"] = (
    Kind(function=make, keywords=None, on_mask=forgotten)
    for make in (resize, depth_to_space, space_to_depth)
)
KINDS["RandomCrop"] = Kind(module=_random_crop)
KINDS[RANDOM_CROP_3_5] = Kind(module=_random_crop_3_5)
KINDS[RANDOM_CROP_3_7] = Kind(module=_random_crop_3_7)
KINDS["CenterCrop"] = Kind(function=_center_crop)
