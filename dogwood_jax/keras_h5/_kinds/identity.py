"""Layers that return their input: inputs, masking, and in evaluation dropout and noise."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind
from dogwood_jax.keras_h5._kinds.masking import handed_on, unknown
from dogwood_jax.keras_h5._kinds.options import channels_last


def _input(config: Config) -> Function:
    if config.get("dtype") == "string":  # the caller passes the vocabulary's output
        return lambda x: x
    dtype = jnp.dtype(config.get("dtype") or "float32")

    def cast(x: Any) -> Any:
        """Converts integers to floats if the model has floats, as Keras does."""
        x = jnp.asarray(x)
        floats = jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floats else x

    return cast


def _masking(config: Config) -> Function:
    value = float(config.get("mask_value", 0.0))
    return lambda x: x * jnp.any(x != value, axis=-1, keepdims=True)


def _dropout(config: Config, name: str | None, deterministic: bool) -> Function:
    return nn.Dropout(float(config["rate"]), deterministic=deterministic, name=name)


def _spatial_dropout(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    axes = tuple(range(1, rank + 1))
    rate = float(config["rate"])
    dropout = nn.Dropout(rate, broadcast_dims=axes, deterministic=deterministic, name=name)
    return channels_last(config, dropout)


def _noise(config: Config, name: str | None, deterministic: bool) -> Function:
    if not deterministic:
        raise ValueError("its noise is not supported in training; pass deterministic=True")
    return lambda x: x


_IMAGES = (
    *("StochasticDepth", "AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness"),
    *("RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomElasticTransform"),
    *("RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHeight"),
    *("RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation"),
    *("RandomSaturation", "RandomSharpness", "RandomShear", "RandomTranslation", "RandomWidth"),
    "RandomZoom",
)


KINDS["InputLayer"] = Kind(
    function=_input,
    counted=lambda config: (
        -1,
        (config.get("batch_shape") or config.get("batch_input_shape") or [None])[-1],
    ),
)
KINDS["Identity"] = Kind(function=lambda config: lambda x: x)
KINDS["ActivityRegularization"] = Kind(
    function=lambda config: lambda x: x, passes_channels=True, on_mask=handed_on
)
KINDS["Masking"] = Kind(
    function=_masking,
    new_mask=lambda config: lambda x: jnp.any(x != config.get("mask_value", 0.0), axis=-1),
)
KINDS["Dropout"] = Kind(module=_dropout, passes_channels=True, on_mask=handed_on)
for _rank in (1, 2, 3):
    KINDS[f"SpatialDropout{_rank}D"] = Kind(
        module=partial(_spatial_dropout, _rank),
        passes_channels=True,
        on_mask=handed_on if _rank == 1 else unknown,
    )
for _class in ("AlphaDropout", "GaussianDropout", "GaussianNoise"):
    KINDS[_class] = Kind(module=_noise, passes_channels=True, on_mask=handed_on)
KINDS.update(dict.fromkeys(_IMAGES, Kind(module=_noise)))
