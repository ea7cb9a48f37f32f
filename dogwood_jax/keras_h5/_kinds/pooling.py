"""Pooling over windows and over whole arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind
from dogwood_jax.keras_h5._kinds.masking import dropped, unknown
from dogwood_jax.keras_h5._kinds.options import channels_last, spatial


def _pooling(pool: Callable[..., Any], rank: int, config: Config) -> Function:
    window = spatial(config["pool_size"], rank)
    strides = spatial(config["strides"], rank) if config.get("strides") is not None else window
    padding = _padding(config)
    return channels_last(config, lambda x: pool(x, window, strides=strides, padding=padding))


def _padding(config: Config) -> str:
    padding = str(config["padding"]).upper()
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"the padding {config['padding']!r} is unknown")
    return padding


def _average_pool(x: Any, window: tuple[int, ...], **options: Any) -> Any:
    """Returns the mean of each window, without padding."""
    pool: Any = nn.pool  # untyped
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    total, counts = (pool(a, 0.0, jax.lax.add, window, **options) for a in (x, ones))
    return total / counts


def _global_pooling(pool: Callable[..., Any], rank: int, config: Config) -> Function:
    axes = tuple(range(1, rank + 1))
    keepdims = bool(config.get("keepdims", False))
    pooled = channels_last(config, lambda x: pool(x, axis=axes, keepdims=keepdims))

    def masked(x: Any, mask: Any = None) -> Any:
        if mask is None:
            return pooled(x)
        counts = jnp.mean(mask, axis=1, dtype=x.dtype)
        steps = jnp.expand_dims(mask, 1 if config.get("data_format") == "channels_first" else 2)
        y = pooled(jnp.where(steps, x, 0))
        return y / counts.reshape(-1, *(1,) * (y.ndim - 1))

    return masked


def _adaptive_pooling(pool: Callable[..., Any], rank: int, config: Config) -> Function:
    """Pools over as many windows as the config has; neighbours may overlap."""
    sizes = spatial(config["output_size"], rank)

    def pooled(x: Any) -> Any:
        for axis, count in enumerate(sizes, 1):
            n = x.shape[axis]
            windows = [
                jax.lax.slice_in_dim(x, i * n // count, -(-(i + 1) * n // count), axis=axis)
                for i in range(count)
            ]
            x = jnp.stack([pool(window, axis=axis) for window in windows], axis=axis)
        return x

    return channels_last(config, pooled)


for _rank in (1, 2, 3):
    _on_mask = dropped if _rank == 1 else unknown
    for _class, _pool in (("Max", nn.max_pool), ("Average", _average_pool)):
        KINDS[f"{_class}Pooling{_rank}D"] = Kind(
            function=partial(_pooling, _pool, _rank), passes_channels=True, on_mask=_on_mask
        )
    for _class, _reduce in (("Max", jnp.max), ("Average", jnp.mean)):
        KINDS[f"Adaptive{_class}Pooling{_rank}D"] = Kind(
            function=partial(_adaptive_pooling, _reduce, _rank), passes_channels=True
        )
    KINDS[f"GlobalMaxPooling{_rank}D"] = Kind(
        function=partial(_global_pooling, jnp.max, _rank),
        passes_channels=True,
        on_mask=_on_mask,
    )
    KINDS[f"GlobalAveragePooling{_rank}D"] = Kind(
        function=partial(_global_pooling, jnp.mean, _rank),
        passes_channels=True,
        keywords={"mask"} if _rank == 1 else (),
        on_mask=_on_mask,
        takes_masks="first" if _rank == 1 else None,
    )
