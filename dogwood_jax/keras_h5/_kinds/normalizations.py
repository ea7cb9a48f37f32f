"""Normalizations, and layers that scale their input."""

import operator
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import (
    CHANNELS,
    EITHER,
    KINDS,
    Config,
    Function,
    Kind,
    Params,
    Shape,
    Weight,
)
from dogwood_jax.keras_h5._kinds.masking import handed_on
from dogwood_jax.keras_h5._kinds.weight import fixed, last_axis, plain


def _axis(config: Config) -> tuple[int, ...]:
    """Returns the axes of a normalization; configs have a number or a list."""
    axis = config.get("axis", -1)
    return (axis,) if isinstance(axis, int) else tuple(map(operator.index, axis))


def _options(config: Config, name: str | None) -> dict[str, Any]:
    """Returns the options that all normalizations with a center and a scale have."""
    return {
        "epsilon": float(config.get("epsilon", 1e-3)),
        "use_scale": config.get("scale", True),
        "use_bias": config.get("center", True),
        "use_fast_variance": False,
        "name": name,
    }


def _scale_and_bias(config: Config) -> list[Weight]:
    gamma = [plain("gamma", "params/scale")] if config.get("scale", True) else []
    beta = [plain("beta", "params/bias")] if config.get("center", True) else []
    return gamma if config.get("rms_scaling") else gamma + beta


def _channels(config: Config, params: Params) -> int | None:
    """Returns the size of the scale or bias if channels are the last axis, else ``None``."""
    arrays = [params[name] for name in ("scale", "bias") if name in params]
    last = config.get("axis", -1) in (-1, [-1], (-1,))
    return int(arrays[0].shape[-1]) if arrays and last else None


def _batch_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    if config.get("renorm") and not deterministic:
        raise ValueError("renorm is not supported in training")
    (axis,) = _axis(config)
    norm = nn.BatchNorm(
        use_running_average=deterministic,
        axis=axis,
        momentum=float(config.get("momentum", 0.99)),
        **_options(config, name),
    )

    def normalize(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        if mask is not None and not deterministic:
            raise ValueError("statistics of masked steps are not supported in training")
        y: jax.Array = norm(x)
        return y

    return normalize


def _batch_norm_weights(config: Config) -> list[Weight]:
    renorm = ("moving_stddev", "renorm_mean", "renorm_stddev") if config.get("renorm") else ()
    either = [plain("gamma_or_beta", "params/scale_or_bias")] if config.get(EITHER) else []
    return [
        *(either or _scale_and_bias(config)),
        plain("moving_mean", "batch_stats/mean", trainable=False),
        plain("moving_variance", "batch_stats/var", trainable=False),
        *(plain(name, f"batch_stats/{name}", trainable=False) for name in renorm),
    ]


def _batch_norm_axes(config: Config) -> Mapping[str, str]:
    axis = config.get("axis")
    many = isinstance(axis, list) and len(axis) > 1
    names = ("gamma", "beta", "gamma_or_beta", "moving_mean", "moving_variance")
    return {} if many else dict.fromkeys(names, "channels")


def _batch_norm_told(shapes: Mapping[str, Shape]) -> Config | None:
    both = len(shapes) == 4
    either = {EITHER: True} if len(shapes) == 3 else {}
    return {"scale": both, "center": both, **either} if len(shapes) in (2, 3, 4) else None


def _layer_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    if config.get("rms_scaling"):
        raise ValueError("rms_scaling, which differs between versions of Keras, is not supported")
    return nn.LayerNorm(
        epsilon=float(config.get("epsilon", 1e-3)),
        use_scale=config.get("scale", True),
        use_bias=config.get("center", True),
        reduction_axes=_axis(config),
        feature_axes=_axis(config),
        use_fast_variance=False,
        name=name,
    )


def _group_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    groups = operator.index(config.get("groups", 32))
    options, (axis,) = _options(config, name), _axis(config)
    before = config.get(CHANNELS)

    def normalize(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, axis, -1)
        count = grown_groups(groups, before, x.shape[-1]) if before else groups
        sizes = (None, 1) if groups == -1 else (count, None)  # -1: one for each channel
        y: jax.Array = nn.GroupNorm(*sizes, **options)(x)
        return jnp.moveaxis(y, -1, axis)

    return normalize


def grown_groups(groups: int, before: int, channels: int) -> int:
    """Returns the number of groups of a GroupNormalization that has grown to more channels.

    Warns:
        RuntimeWarning: if both more groups and larger groups are possible. More groups are chosen,
            because they leave the model's outputs as they are; only ``strategies.tile`` makes
            groups larger.

    Raises:
        ValueError: if neither is possible.

    Example:
        >>> grown_groups(4, before=8, channels=10)  # five groups of 2
        5
        >>> grown_groups(1, before=8, channels=10)
        1
    """
    if channels == before or groups == 1:
        return groups
    size = before // groups
    more, larger = channels % size == 0, channels % groups == 0
    if not more and not larger:
        raise ValueError(
            f"{channels} channels divide neither into groups of {size} nor into {groups} groups"
        )
    if more and larger and size > 1:
        warnings.warn(
            f"GroupNormalization: {channels} channels read as {channels // size} groups of "
            f"{size}, not as {groups} groups of {channels // groups}",
            RuntimeWarning,
            stacklevel=2,
        )
    return channels // size if more else groups


def _groups(config: Config, params: Params, shape: Shape, channels: int | None) -> dict[str, Any]:
    if CHANNELS not in config or config["groups"] <= 0:
        return {}
    size = shape[config.get("axis", -1)]
    return {"groups": grown_groups(config["groups"], config[CHANNELS], size)}


def _rms_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    axis = _axis(config)
    epsilon = float(config.get("epsilon", 1e-6))
    return nn.RMSNorm(epsilon=epsilon, reduction_axes=axis, feature_axes=axis, name=name)


def inverse_norm(x: Any, axis: int | tuple[int, ...]) -> Any:
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-12))


def _unit_normalization(config: Config) -> Function:
    axis = config.get("axis", -1)
    axis = axis if isinstance(axis, int) else tuple(axis)
    return lambda x: x * inverse_norm(x, axis)


class Standardize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, neither of which is learned.

    Attributes:
        axes: the axes along which each index has its own mean.
        invert: whether to apply the inverse instead.
        given: mean and variance, if the config has them.
    """

    axes: tuple[int, ...]
    invert: bool = False
    given: tuple[Any, Any] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = sorted(axis % x.ndim for axis in self.axes)
        shape = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
        if self.given is None:
            kept = tuple(x.shape[axis] for axis in axes)
            mean = self.variable("batch_stats", "mean", jnp.zeros, kept).value
            var = self.variable("batch_stats", "var", jnp.ones, kept).value
            self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        else:
            mean, var = (jnp.broadcast_to(jnp.asarray(a, x.dtype), shape) for a in self.given)
        mean = mean.reshape(shape)
        deviation = jnp.maximum(jnp.sqrt(var.reshape(shape)), 1e-7)
        return x * deviation + mean if self.invert else (x - mean) / deviation


def _normalization(config: Config, name: str | None, deterministic: bool) -> Function:
    axes = () if config.get("axis", -1) is None else _axis(config)
    given = (config["mean"], config["variance"]) if config.get("mean") is not None else None
    return Standardize(axes, bool(config.get("invert")), given, name=name)


def _normalization_weights(config: Config) -> list[Weight]:
    if config.get("mean") is not None:  # given as an argument: no weights
        return []
    return [
        plain("mean", "batch_stats/mean", trainable=False),
        plain("variance", "batch_stats/var", trainable=False),
        plain("count", "batch_stats/count", trainable=False),
    ]


class LayerScale(nn.Module):
    """A factor for each channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.ones, x.shape[-1:])
        return x * gamma.reshape((1,) * (x.ndim - 1) + gamma.shape)


def _rescaling(config: Config) -> Function:
    def rescale(x: Any) -> Any:
        return x * _constant(config["scale"], x) + _constant(config.get("offset", 0.0), x)

    _constant(config["scale"], jnp.ones(()))
    return rescale


def _constant(value: Any, x: Any) -> Any:
    """Returns a number or list of numbers of a config as an array of the dtype of ``x``."""
    value = value["config"]["value"] if isinstance(value, Mapping) else value
    return jnp.asarray(value, x.dtype)


KINDS["BatchNormalization"] = Kind(
    module=_batch_norm,
    keywords={"mask"},
    weights=_batch_norm_weights,
    axes=_batch_norm_axes,
    told=_batch_norm_told,
    reads=_channels,
    on_mask=handed_on,
)
KINDS["SyncBatchNormalization"] = Kind(
    module=_batch_norm, weights=_batch_norm_weights, told=_batch_norm_told
)
KINDS["LayerNormalization"] = Kind(
    module=_layer_norm,
    weights=_scale_and_bias,
    axes=fixed({"gamma": "...", "beta": "..."}),
    told=lambda shapes: {} if len(shapes) == 2 else None,
    reads=_channels,
    on_mask=handed_on,
)
KINDS["GroupNormalization"] = Kind(
    module=_group_norm,
    weights=_scale_and_bias,
    axes=fixed({"gamma": "channels", "beta": "channels"}),
    told=lambda shapes: {} if len(shapes) == 2 else None,
    sizes_by_input=_groups,
    reads=_channels,
)
KINDS["RMSNormalization"] = Kind(
    module=_rms_norm,
    weights=lambda config: [plain("scale", "params/scale")],
    reads=_channels,
)
KINDS["UnitNormalization"] = Kind(function=_unit_normalization)
KINDS["Normalization"] = Kind(module=_normalization, weights=_normalization_weights)
KINDS["LayerScale"] = Kind(  # of ConvNeXt, in keras.applications
    module=lambda config, name, deterministic: LayerScale(name=name),
    weights=lambda config: [plain("gamma", "params/gamma")],
    sizes=last_axis("projection_dim", "gamma"),
)
KINDS["Rescaling"] = Kind(function=_rescaling)
