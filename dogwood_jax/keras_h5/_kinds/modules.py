"""Keras's layers with weights, or with noise in training, as Flax modules; not recurrent ones.

Each is made from its Keras config, and has the variables that ``convert`` makes of the Keras
layer's weights.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.activations import activation
from dogwood_jax.keras_h5._kinds.functions import CHANNELS, Function, channels_last, spatial
from dogwood_jax.keras_h5._kinds.weight import Config

# From the config, the name and whether it is evaluated rather than trained.
Make = Callable[[Config, str | None, bool], Function]

MODULES: dict[str, Make] = {}


def _module(*classes: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        MODULES.update(dict.fromkeys(classes, make))
        return make

    return register


def _then_activate(config: Config, function: Function) -> Function:
    activate = activation(config.get("activation"))
    return lambda x: activate(function(x))


@_module("Dense")
def _dense(config: Config, name: str | None, deterministic: bool) -> Function:
    units = operator.index(config["units"])
    return _then_activate(config, nn.Dense(units, config.get("use_bias", True), name=name))


class Einsum(nn.Module):
    """A product of two arrays by an equation, ``"abc,cd->abd"``, and a bias along some axes."""

    equation: str
    output_sizes: tuple[int | None, ...]
    bias_axes: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        operands, output = self.equation.replace(" ", "").split("->")
        of_x, of_kernel = operands.split(",")
        labels = output.replace("...", "")
        size_of = dict(zip(reversed(of_x.replace("...", "")), reversed(x.shape)))
        sizes = zip(reversed(labels), reversed(self.output_sizes))
        size_of |= {label: size for label, size in sizes if size is not None}
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, tuple(size_of[label] for label in of_kernel))
        y = jnp.einsum(f"{operands}->{output}", x, kernel)
        if not self.bias_axes:
            return y
        first = min(map(labels.index, self.bias_axes))
        shape = tuple(size_of[n] if n in self.bias_axes else 1 for n in labels[first:])
        bias = self.param("bias", nn.initializers.zeros, shape)
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


@_module("EinsumDense")
def _einsum_dense(config: Config, name: str | None, deterministic: bool) -> Function:
    shape = config["output_shape"]
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    return _then_activate(config, Einsum(config["equation"], sizes, config["bias_axes"], name=name))


class Convolution(nn.Module):
    """A convolution of any kind, channels last.

    Attributes:
        filters: number of output channels; for a depthwise convolution for each input channel.
        kernel_size: one for each spatial axis, as the following.
        transposed: whether it is the gradient of a convolution.
        depthwise: whether each channel is convolved on its own.
    """

    filters: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    dilation: tuple[int, ...]
    groups: int = 1
    use_bias: bool = True
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = channels if self.depthwise else self.groups
        filters = self.filters * channels if self.depthwise else self.filters
        if self.depthwise and self.has_variable("params", "kernel"):  # perhaps of a grown model
            filters = self.get_variable("params", "kernel").shape[-1]
        shape = (*self.kernel_size, channels // groups, filters)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        letters = "DHW"[-len(self.kernel_size) :]
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,) * len(shape[:-2]) if self.transposed else self.strides,
            padding=self._margins(x.shape[1:-1]),
            lhs_dilation=self.strides if self.transposed else None,
            rhs_dilation=self.dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=groups,
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (filters,))
        return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)

    def _margins(self, sizes: Sequence[int]) -> str | list[tuple[int, int]]:
        """Returns the padding of each spatial axis."""
        extents = [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation)]
        if self.padding == "CAUSAL":
            return [(extent - 1, 0) for extent in extents]
        if not self.transposed:
            return self.padding
        margins = []
        extra = self.output_padding or (None,) * len(extents)
        for n, k, stride, more in zip(sizes, extents, self.strides, extra):
            spread = (n - 1) * stride  # distance of the first and last input, spread out
            if self.padding == "VALID":
                size = spread + k + (max(stride - k, 0) if more is None else more)
            else:
                size = n * stride if more is None else spread + k % 2 + more
            # What the convolution whose gradient this is would have padded.
            before = max(spread + k - size, 0) // 2 if self.padding == "SAME" else 0
            margins.append((k - 1 - before, size - 1 - spread + before))
        return margins


def convolution_options(config: Config, rank: int, **options: Any) -> dict[str, Any]:
    """Returns what convolutions of all kinds have in their configs."""
    padding = str(config["padding"]).upper()
    if padding not in ("SAME", "VALID", "CAUSAL"):
        raise ValueError(f"the padding {config['padding']!r} is unknown")
    return {
        "kernel_size": spatial(config["kernel_size"], rank),
        "strides": spatial(config.get("strides", 1), rank),
        "padding": padding,
        "dilation": spatial(config.get("dilation_rate", 1), rank),
        "use_bias": config.get("use_bias", True),
        **options,
    }


def _conv(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    options = convolution_options(config, rank, groups=config.get("groups", 1))
    conv = Convolution(operator.index(config["filters"]), **options, name=name)
    return _then_activate(config, channels_last(config, conv))


def _conv_transpose(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    extra = config.get("output_padding")
    extra = None if extra is None else spatial(extra, rank)
    options = convolution_options(config, rank, transposed=True, output_padding=extra)
    conv = Convolution(operator.index(config["filters"]), **options, name=name)
    return _then_activate(config, channels_last(config, conv))


def _depthwise_conv(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    options = convolution_options(config, rank, depthwise=True)
    conv = Convolution(operator.index(config.get("depth_multiplier", 1)), **options, name=name)
    return _then_activate(config, channels_last(config, conv))


class SeparableConv(nn.Module):
    """A depthwise convolution and a pointwise one."""

    filters: int
    depth_multiplier: int
    options: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {**self.options, "use_bias": False, "depthwise": True}
        x = Convolution(self.depth_multiplier, **options, name="depthwise")(x)
        one = (1,) * len(self.options["kernel_size"])
        use_bias = self.options["use_bias"]
        return Convolution(self.filters, one, one, "VALID", one, 1, use_bias, name="pointwise")(x)


def _separable_conv(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    sizes = operator.index(config["filters"]), operator.index(config.get("depth_multiplier", 1))
    conv = SeparableConv(*sizes, convolution_options(config, rank), name=name)
    return _then_activate(config, channels_last(config, conv))


def for_rank(make: Callable[..., Function], rank: int) -> Make:
    return lambda *arguments: make(rank, *arguments)


for _rank in (1, 2, 3):
    for _class, _make in {"Conv{}D": _conv, "Conv{}DTranspose": _conv_transpose}.items():
        MODULES[_class.format(_rank)] = for_rank(_make, _rank)
for _rank in (1, 2):
    for _class, _make in {
        "DepthwiseConv{}D": _depthwise_conv,
        "SeparableConv{}D": _separable_conv,
    }.items():
        MODULES[_class.format(_rank)] = for_rank(_make, _rank)


def _axis(config: Config) -> tuple[int, ...]:
    """Returns the axes of a normalization, which configs have as a number or a list."""
    axis = config.get("axis", -1)
    return (axis,) if isinstance(axis, int) else tuple(map(operator.index, axis))


@_module("BatchNormalization", "SyncBatchNormalization")
def _batch_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    if config.get("renorm") and not deterministic:
        raise ValueError("renorm is not supported in training")
    (axis,) = _axis(config)
    norm = nn.BatchNorm(
        use_running_average=deterministic,
        axis=axis,
        momentum=float(config.get("momentum", 0.99)),
        epsilon=float(config.get("epsilon", 1e-3)),
        use_scale=config.get("scale", True),
        use_bias=config.get("center", True),
        use_fast_variance=False,
        name=name,
    )

    def normalize(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        if mask is not None and not deterministic:
            raise ValueError("statistics of masked steps are not supported in training")
        y: jax.Array = norm(x)
        return y

    return normalize


@_module("LayerNormalization")
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


@_module("GroupNormalization")
def _group_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    groups = operator.index(config.get("groups", 32))
    options = {
        "epsilon": float(config.get("epsilon", 1e-3)),
        "use_scale": config.get("scale", True),
        "use_bias": config.get("center", True),
        "use_fast_variance": False,
        "name": name,
    }
    (axis,) = _axis(config)
    before = config.get(CHANNELS)

    def normalize(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, axis, -1)
        count = grown_groups(groups, before, x.shape[-1]) if before else groups
        sizes = (None, 1) if groups == -1 else (count, None)  # -1: one for each channel
        y: jax.Array = nn.GroupNorm(*sizes, **options)(x)
        return jnp.moveaxis(y, -1, axis)

    return normalize


def grown_groups(groups: int, before: int, channels: int) -> int:
    """Returns how many groups a GroupNormalization has with more channels.

    Warns:
        RuntimeWarning: if there may be more groups or larger ones. More are taken, which leave the
            model's outputs as they are; groups get larger by ``strategies.tile`` alone.

    Raises:
        ValueError: if it is neither.

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
            f"{channels} channels are neither groups of {size} nor {groups} groups, as before"
        )
    if more and larger and size > 1:
        warnings.warn(
            f"GroupNormalization: {channels} channels taken for {channels // size} groups of "
            f"{size}, not {groups} groups of {channels // groups}",
            RuntimeWarning,
            stacklevel=2,
        )
    return channels // size if more else groups


@_module("RMSNormalization")
def _rms_norm(config: Config, name: str | None, deterministic: bool) -> Function:
    axis = _axis(config)
    epsilon = float(config.get("epsilon", 1e-6))
    return nn.RMSNorm(epsilon=epsilon, reduction_axes=axis, feature_axes=axis, name=name)


class Standardize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, which are not learned.

    Attributes:
        axes: the axes that have a mean each.
        invert: whether to undo it instead.
        given: mean and variance where they are part of the config.
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


@_module("Normalization")
def _normalization(config: Config, name: str | None, deterministic: bool) -> Function:
    axes = () if config.get("axis", -1) is None else _axis(config)
    given = (config["mean"], config["variance"]) if config.get("mean") is not None else None
    return Standardize(axes, bool(config.get("invert")), given, name=name)


@_module("Embedding")
def _embedding(config: Config, name: str | None, deterministic: bool) -> Function:
    sizes = operator.index(config["input_dim"]), operator.index(config["output_dim"])
    embed = nn.Embed(*sizes, name=name)
    return lambda x: embed(x.astype(jnp.int32))


class LayerScale(nn.Module):
    """A factor for each channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.ones, x.shape[-1:])
        return x * gamma.reshape((1,) * (x.ndim - 1) + gamma.shape)


@_module("LayerScale")
def _layer_scale(config: Config, name: str | None, deterministic: bool) -> Function:
    return LayerScale(name=name)


class PReLU(nn.Module):
    """A leaky ReLU with slopes that are learned, one for all units along the shared axes."""

    shared_axes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = [1 if axis in self.shared_axes else n for axis, n in enumerate(x.shape)][1:]
        slope = self.param("negative_slope", nn.initializers.zeros, tuple(shape))
        return jnp.where(x >= 0, x, slope[None] * x)


@_module("PReLU")
def _prelu(config: Config, name: str | None, deterministic: bool) -> Function:
    return PReLU(tuple(config.get("shared_axes") or ()), name=name)


def evaluated_only(config: Config, deterministic: bool, *rates: str) -> None:
    if not deterministic and any(config.get(rate) for rate in rates):
        raise ValueError(f"{' and '.join(rates)} inside this layer is not supported in training")


@_module("Dropout")
def _dropout(config: Config, name: str | None, deterministic: bool) -> Function:
    return nn.Dropout(float(config["rate"]), deterministic=deterministic, name=name)


def _spatial_dropout(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    axes = tuple(range(1, rank + 1))
    rate = float(config["rate"])
    dropout = nn.Dropout(rate, broadcast_dims=axes, deterministic=deterministic, name=name)
    return channels_last(config, dropout)


for _rank in (1, 2, 3):
    MODULES[f"SpatialDropout{_rank}D"] = for_rank(_spatial_dropout, _rank)


@_module(
    *("AlphaDropout", "GaussianDropout", "GaussianNoise", "StochasticDepth"),
    *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration"),
    *("RandomColorJitter", "RandomContrast", "RandomElasticTransform", "RandomErasing"),
    *("RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHeight", "RandomHue"),
    *("RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation"),
    *("RandomSaturation", "RandomSharpness", "RandomShear", "RandomTranslation", "RandomWidth"),
    "RandomZoom",
)
def _noise(config: Config, name: str | None, deterministic: bool) -> Function:
    if not deterministic:
        raise ValueError("its noise is not supported in training; pass deterministic=True")
    return lambda x: x
