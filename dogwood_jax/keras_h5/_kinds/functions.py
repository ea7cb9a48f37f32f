"""Keras's layers without weights: each is made, from its config, into a function of arrays.

Arrays have the batch first and, unless ``data_format`` says otherwise, channels last.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds import activations
from dogwood_jax.keras_h5._kinds.weight import Config

Function = Callable[..., Any]

# In configs of modules, beside what Keras has there: for a Reshape how many channels are read, for
# a GroupNormalization how many there were before the model grew.
CHANNELS = "channels, says dogwood_jax"

# In configs, beside what Keras has there, where the version of Keras decides:
# - "ignored": the layer knows of no masks
# - "all": of a sum, what the masks of all inputs agree on counts
# - "computed": in a product or extreme, what is masked does not count
# - "held": of a Bidirectional layer, a masked step has the output of the step before
# - "taken": attention takes the masks off its inputs, for layers that are called later
MASKS = "masks, says dogwood_jax"

FUNCTIONS: dict[str, Callable[[Config], Function]] = dict(activations.LAYERS)


def _function(*classes: str) -> Callable[[Callable[[Config], Function]], Any]:
    def register(make: Callable[[Config], Function]) -> Any:
        FUNCTIONS.update(dict.fromkeys(classes, make))
        return make

    return register


def channels_last(config: Config, function: Function) -> Function:
    """Returns a function that computes with channels last, for arrays as the config has them."""
    data_format = config.get("data_format") or "channels_last"
    if data_format not in ("channels_first", "channels_last"):
        raise ValueError(f"the data_format {data_format!r} is unknown")
    if data_format == "channels_last":
        return function

    def moved(x: Any) -> Any:
        y = function(jnp.moveaxis(x, 1, -1))
        return jnp.moveaxis(y, -1, 1) if y.ndim == x.ndim else y

    return moved


def spatial(value: Any, rank: int) -> tuple[int, ...]:
    """Returns one size for each spatial axis."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or not all(isinstance(size, int) for size in values):
        raise ValueError(f"expected {rank} sizes, got {value!r}")
    return values


# Shapes


@_function("Flatten")
def _flatten(config: Config) -> Function:
    def flatten(x: Any) -> Any:
        if config.get("data_format") == "channels_first" and x.ndim > 2:
            x = jnp.moveaxis(x, 1, -1)
        return x.reshape(x.shape[0], -1)

    return flatten


@_function("Reshape")
def _reshape(config: Config) -> Function:
    shape = tuple(map(operator.index, config["target_shape"]))
    channels = config.get(CHANNELS)
    return lambda x: x.reshape(x.shape[0], *reshape_target(x.shape[1:], shape, channels))


def reshape_target(
    sizes: Sequence[int], target: Sequence[int], channels: int | None
) -> tuple[int, ...]:
    """Returns the shape that a Reshape makes, without the batch.

    Args:
        sizes: the shape of its input, without the batch.
        target: the shape in its config, in which one size may be -1.
        channels: the size of the last axis that is read, if known.

    Raises:
        ValueError: if it is not known which axis has grown.

    Example:
        >>> reshape_target((24,), (1, 1, 12), None)
        (1, 1, 24)
        >>> reshape_target((784,), (7, 7, 8), 16)
        (7, 7, 16)
    """
    target = tuple(target)
    if channels is not None and target and target[-1] not in (-1, channels):
        grown = (*target[:-1], channels)
        if -1 in grown or math.prod(grown) == math.prod(sizes):
            return grown
    count, wanted = math.prod(sizes), math.prod(target)
    if -1 in target or count == wanted:
        return target
    longer = [axis for axis, size in enumerate(target) if size > 1]
    if len(longer) == 1:
        return tuple(count if axis in longer else size for axis, size in enumerate(target))
    raise ValueError(
        f"Reshape: which axis of {target} has grown for inputs of shape {tuple(sizes)} is not known"
    )


@_function("Permute")
def _permute(config: Config) -> Function:
    axes = (0, *map(operator.index, config["dims"]))
    return lambda x: jnp.transpose(x, axes)


@_function("RepeatVector")
def _repeat_vector(config: Config) -> Function:
    n = operator.index(config["n"])
    return lambda x: jnp.repeat(x[:, None], n, axis=1)


# Space


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


def _average_pool(x: Any, window: tuple[int, ...], **options: Any) -> Any:
    """The mean of each window, in which padding does not count."""
    pool: Any = nn.pool  # untyped
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    total, counts = (pool(a, 0.0, jax.lax.add, window, **options) for a in (x, ones))
    return total / counts


_POOLS: Mapping[str, Callable[..., Any]] = {"Max": nn.max_pool, "Average": _average_pool}
_GLOBAL_POOLS: Mapping[str, Callable[..., Any]] = {"Max": jnp.max, "Average": jnp.mean}
for _rank in (1, 2, 3):
    for _kind, _pool in _POOLS.items():
        FUNCTIONS[f"{_kind}Pooling{_rank}D"] = functools.partial(_pooling, _pool, _rank)
    for _kind, _pool in _GLOBAL_POOLS.items():
        FUNCTIONS[f"Global{_kind}Pooling{_rank}D"] = functools.partial(
            _global_pooling, _pool, _rank
        )


def _margins(value: Any, rank: int) -> list[tuple[int, int]]:
    """Returns what a padding or cropping adds or removes before and after each spatial axis."""
    pairs = (value,) if rank == 1 else spatial_values(value, rank)
    return [tuple(spatial(pair, 2)) for pair in pairs]  # type: ignore[misc]


def spatial_values(value: Any, rank: int) -> Sequence[Any]:
    """Returns one value for each spatial axis."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"expected {rank} values, got {value!r}")
    return values


def _zero_padding(rank: int, config: Config) -> Function:
    margins = [(0, 0), *_margins(config["padding"], rank), (0, 0)]
    return channels_last(config, lambda x: jnp.pad(x, margins))


def _cropping(rank: int, config: Config) -> Function:
    margins = _margins(config["cropping"], rank)

    def crop(x: Any) -> Any:
        slices = [slice(a, n - b) for (a, b), n in zip(margins, x.shape[1:])]
        return x[(slice(None), *slices)]

    return channels_last(config, crop)


def _up_sampling(rank: int, config: Config) -> Function:
    sizes = spatial(config["size"], rank)

    def repeat(x: Any) -> Any:
        for axis, size in enumerate(sizes, 1):
            x = jnp.repeat(x, size, axis=axis)
        return x

    return channels_last(config, repeat)


for _rank in (1, 2, 3):
    FUNCTIONS[f"ZeroPadding{_rank}D"] = functools.partial(_zero_padding, _rank)
    FUNCTIONS[f"Cropping{_rank}D"] = functools.partial(_cropping, _rank)
for _rank in (1, 3):  # UpSampling2D has interpolations: see _images
    FUNCTIONS[f"UpSampling{_rank}D"] = functools.partial(_up_sampling, _rank)


# Merging


def _aligned(xs: Sequence[Any]) -> list[Any]:
    """Keras broadcasts arrays of lower rank after their batch axis."""
    rank = max(x.ndim for x in xs)
    return [x.reshape(x.shape[0], *(1,) * (rank - x.ndim), *x.shape[1:]) for x in xs]


def _fold(combine: Callable[[Any, Any], Any]) -> Callable[[Config], Function]:
    return lambda config: lambda xs: functools.reduce(combine, _aligned(xs))


def _product(xs: Sequence[Any], masks: Sequence[Any]) -> Any:
    """A product in which masked factors do not count; zero where none counts."""
    factors = [x if m is None else jnp.where(m[..., None], x, 1) for x, m in zip(xs, masks)]
    product = functools.reduce(jnp.multiply, factors)
    if any(mask is None for mask in masks):
        return product
    return jnp.where(functools.reduce(jnp.logical_or, masks)[..., None], product, 0)


def _extreme(combine: Callable[[Any, Any], Any], xs: Sequence[Any], masks: Sequence[Any]) -> Any:
    """A maximum or minimum in which what is masked does not count."""
    (y, seen), *others = zip(xs, masks)
    for x, mask in others:
        x = x if mask is None else jnp.where(mask[..., None], x, y)
        y = combine(y if seen is None else jnp.where(seen[..., None], y, x), x)
        seen = None if seen is None or mask is None else seen | mask
    return y


def _masked(combine: Callable[[Any, Any], Any], masked: Function) -> Callable[[Config], Function]:
    def merge(xs: Sequence[Any], masks: Sequence[Any] | None = None) -> Any:
        return functools.reduce(combine, _aligned(xs)) if masks is None else masked(xs, masks)

    return lambda config: merge


FUNCTIONS |= {
    "Add": _fold(jnp.add),
    "Subtract": _fold(jnp.subtract),
    "Multiply": _masked(jnp.multiply, _product),
    "Maximum": _masked(jnp.maximum, functools.partial(_extreme, jnp.maximum)),
    "Minimum": _masked(jnp.minimum, functools.partial(_extreme, jnp.minimum)),
    "Average": lambda config: lambda xs: functools.reduce(jnp.add, _aligned(xs)) / len(xs),
}


@_function("Concatenate")
def _concatenate(config: Config) -> Function:
    axis = operator.index(config.get("axis", -1))
    return lambda xs: jnp.concatenate(xs, axis=axis)


@_function("Dot")
def _dot(config: Config) -> Function:
    axes = spatial(config["axes"], 2)

    def dot(xs: Sequence[Any]) -> Any:
        x, y = xs
        if config.get("normalize"):
            x, y = (a * _inverse_norm(a, axis) for a, axis in zip((x, y), axes))
        x, y = (jnp.moveaxis(a, axis, -1) for a, axis in zip((x, y), axes))
        rows, columns = x.shape[1:-1], y.shape[1:-1]
        x, y = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (x, y))
        product = jnp.einsum("bik,bjk->bij", x, y)
        return product.reshape(product.shape[0], *((rows + columns) or (1,)))

    return dot


def _inverse_norm(x: Any, axis: int | tuple[int, ...]) -> Any:
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-12))


# Numbers


@_function("Masking")
def _masking(config: Config) -> Function:
    value = float(config.get("mask_value", 0.0))
    return lambda x: x * jnp.any(x != value, axis=-1, keepdims=True)


@_function("Rescaling")
def _rescaling(config: Config) -> Function:
    def rescale(x: Any) -> Any:
        return x * _constant(config["scale"], x) + _constant(config.get("offset", 0.0), x)

    _constant(config["scale"], jnp.ones(()))
    return rescale


def _constant(value: Any, x: Any) -> Any:
    """Returns a number of a config, or list of numbers, as an array for computing with ``x``."""
    value = value["config"]["value"] if isinstance(value, Mapping) else value
    return jnp.asarray(value, x.dtype)


@_function("UnitNormalization")
def _unit_normalization(config: Config) -> Function:
    axis = config.get("axis", -1)
    axis = axis if isinstance(axis, int) else tuple(axis)
    return lambda x: x * _inverse_norm(x, axis)


@_function("InputLayer")
def _input(config: Config) -> Function:
    dtype = jnp.dtype(config.get("dtype") or "float32")

    def cast(x: Any) -> Any:
        """Makes integers floats where the model has floats, as Keras does."""
        x = jnp.asarray(x)
        floats = jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floats else x

    return cast


@_function("Identity", "ActivityRegularization")
def _identity(config: Config) -> Function:
    return lambda x: x
