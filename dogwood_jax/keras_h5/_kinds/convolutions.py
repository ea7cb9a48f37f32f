"""Plain, transposed, depthwise and separable convolutions."""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dogwood_jax.keras_h5._kinds.activations import then_activate
from dogwood_jax.keras_h5._kinds.kind import (
    CHANNELS,
    KERAS_1,
    KINDS,
    Config,
    Function,
    Kind,
    Params,
    Shape,
    Weight,
)
from dogwood_jax.keras_h5._kinds.masking import dropped, unknown
from dogwood_jax.keras_h5._kinds.options import channels_last, spatial
from dogwood_jax.keras_h5._kinds.weight import (
    bias,
    channels_of_kernel,
    fixed,
    kernel_and_bias,
    last_axis,
    path,
    plain,
)


class Convolution(nn.Module):
    """A convolution of any kind, channels last.

    Attributes:
        filters: number of output channels; of a depthwise convolution, for each input channel.
        kernel_size: a size for each spatial axis, as in ``strides`` and ``dilation``.
        transposed: whether it is the gradient of a convolution.
        depthwise: whether each channel is convolved separately.
        regrouped: whether the number of groups may change; the kernel determines their size.
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
    regrouped: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = channels if self.depthwise else self.groups
        if self.regrouped and self.has_variable("params", "kernel"):
            groups = _groups(channels, self.get_variable("params", "kernel"))
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
            spread = (n - 1) * stride  # distance from the first to the last input, spread out
            if self.padding == "VALID":
                size = spread + k + (max(stride - k, 0) if more is None else more)
            else:
                size = n * stride if more is None else spread + k % 2 + more
            # The padding of the convolution whose gradient this is.
            before = max(spread + k - size, 0) // 2 if self.padding == "SAME" else 0
            margins.append((k - 1 - before, size - 1 - spread + before))
        return margins


def _groups(channels: int, kernel: Any) -> int:
    """Returns the number of groups into which a kernel divides input channels."""
    each = int(kernel.shape[-2])
    if channels % each:
        raise ValueError(f"{channels} channels are no multiple of {each}, the kernel's group size")
    return channels // each


def convolution_options(config: Config, rank: int, **options: Any) -> dict[str, Any]:
    """Returns the options that the configs of all kinds of convolutions have."""
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
    groups = {"groups": config.get("groups", 1), "regrouped": CHANNELS in config}
    options = convolution_options(config, rank, **groups)
    conv = Convolution(operator.index(config["filters"]), **options, name=name)
    return then_activate(config, channels_last(config, conv))


def _conv_transpose(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    extra = config.get("output_padding")
    extra = None if extra is None else spatial(extra, rank)
    options = convolution_options(config, rank, transposed=True, output_padding=extra)
    conv = Convolution(operator.index(config["filters"]), **options, name=name)
    return then_activate(config, channels_last(config, conv))


# The axes of kernels of Keras 1, as indices into the axes of Flax, [y, x, in, out].
_ORDERS = {"th": (3, 2, 0, 1), "tf": (0, 1, 2, 3)}


def _conv_weights(config: Config) -> list[Weight]:
    """Returns the arrays of a convolution, also for the kernel layouts of Keras 1."""
    order, _, turned = str(config.get(KERAS_1, "")).partition(" ")
    if not order:
        return kernel_and_bias(config)

    def to_flax(kernel: np.ndarray) -> list[np.ndarray]:
        kernel = kernel[:, 0] if order == "1D" else kernel.transpose(np.argsort(_ORDERS[order]))
        return [_turned(kernel) if turned else kernel]

    def to_keras(kernels: Sequence[np.ndarray]) -> np.ndarray:
        kernel = _turned(kernels[0]) if turned else kernels[0]
        return kernel[:, None] if order == "1D" else kernel.transpose(_ORDERS[order])

    return [Weight("kernel", (path("params/kernel"),), to_flax, to_keras), *bias(config)]


def _turned(kernel: np.ndarray) -> np.ndarray:
    """Reverses a kernel along its spatial axes; the function is its own inverse."""
    return np.flip(kernel, axis=tuple(range(kernel.ndim - 2)))


def _conv_axes(space: str, config: Config) -> dict[str, str]:
    kernels = {"th": f"filters in {space}", "1D": f"{space} 1 in filters"}
    kernel = kernels.get(str(config.get(KERAS_1)).split()[0], f"{space} in filters")
    return {"kernel": kernel, "bias": "filters"}


def _transposed(array: np.ndarray) -> np.ndarray:
    """Swaps the channel axes of a kernel and reverses it; the function is its own inverse."""
    return _turned(np.swapaxes(array, -1, -2))


def _weights_of_transpose(config: Config) -> list[Weight]:
    kernel = Weight(
        "kernel",
        (("params", "kernel"),),
        lambda array: [_transposed(array)],
        lambda arrays: _transposed(arrays[0]),
    )
    return [kernel, *bias(config)]


def _filters(config: Config, params: Params) -> dict[str, Any]:
    """Returns the kernel's filters; marks a convolution in groups if their number has changed."""
    filters = params["kernel"].shape[-1]
    regrouped = config.get("groups", 1) > 1 and filters != config["filters"]
    return {"filters": filters, **({CHANNELS: True} if regrouped else {})}


def _groups_of_input(
    config: Config, params: Params, shape: Shape, channels: int | None
) -> dict[str, Any]:
    if config.get("groups", 1) == 1 or not params:
        return {}
    inputs = shape[1 if config.get("data_format") == "channels_first" else -1]
    return {"groups": _groups(inputs, params["kernel"])}


def _depthwise_conv(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    options = convolution_options(config, rank, depthwise=True)
    conv = Convolution(operator.index(config.get("depth_multiplier", 1)), **options, name=name)
    return then_activate(config, channels_last(config, conv))


def _depthwise_kernel(name: str, place: str, config: Config) -> Weight:
    multiplier = config.get("depth_multiplier", 1)
    return Weight(
        name,
        (path(place),),
        lambda array: [array.reshape(*array.shape[:-2], 1, -1)],
        lambda arrays: arrays[0].reshape(*arrays[0].shape[:-2], -1, multiplier),
    )


def _depthwise_weights(config: Config) -> list[Weight]:
    return [_depthwise_kernel("depthwise_kernel", "params/kernel", config), *bias(config)]


def _multiplier(
    config: Config, params: Params, shape: Shape, channels: int | None
) -> dict[str, Any]:
    """Returns output channels for each input channel; either number may have grown."""
    if not params:
        return {}
    outputs = params.get("depthwise", params)["kernel"].shape[-1]
    inputs = shape[1 if config.get("data_format") == "channels_first" else -1]
    return {"depth_multiplier": outputs // inputs}


class SeparableConv(nn.Module):
    """A depthwise convolution followed by a pointwise convolution."""

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
    return then_activate(config, channels_last(config, conv))


def _separable_weights(config: Config) -> list[Weight]:
    return [
        _depthwise_kernel("depthwise_kernel", "params/depthwise/kernel", config),
        plain("pointwise_kernel", "params/pointwise/kernel"),
        *bias(config, "params/pointwise/bias"),
    ]


for _rank, _space in ((1, "x"), (2, "y x"), (3, "z y x")):
    KINDS[f"Conv{_rank}D"] = Kind(
        module=partial(_conv, _rank),
        weights=_conv_weights,
        axes=partial(_conv_axes, _space),
        sizes=_filters,
        sizes_by_input=_groups_of_input,
        reads=channels_of_kernel,
        on_mask=dropped if _rank == 1 else unknown,
    )
    KINDS[f"Conv{_rank}DTranspose"] = Kind(
        module=partial(_conv_transpose, _rank),
        weights=_weights_of_transpose,
        axes=fixed({"kernel": f"{_space} filters in", "bias": "filters"}),
        sizes=last_axis("filters", "kernel"),
        reads=channels_of_kernel,
    )
# Names in Keras 1.
KINDS["Convolution1D"] = Kind(weights=kernel_and_bias, reads=channels_of_kernel)
KINDS["Convolution2D"] = Kind(weights=kernel_and_bias, reads=channels_of_kernel)
for _rank, _space in ((1, "x"), (2, "y x")):
    _depthwise = {"depthwise_kernel": f"{_space} in depth_multiplier"}
    _pointwise = {"pointwise_kernel": "1 " * _rank + "all filters"}
    KINDS[f"DepthwiseConv{_rank}D"] = Kind(
        module=partial(_depthwise_conv, _rank),
        weights=_depthwise_weights,
        axes=fixed({**_depthwise, "bias": "..."}),
        sizes_by_input=_multiplier,
        on_mask=dropped if _rank == 1 else unknown,
    )
    KINDS[f"SeparableConv{_rank}D"] = Kind(
        module=partial(_separable_conv, _rank),
        weights=_separable_weights,
        axes=fixed({**_depthwise, **_pointwise, "bias": "filters"}),
        sizes=last_axis("filters", "pointwise", "kernel"),
        sizes_by_input=_multiplier,
        on_mask=dropped if _rank == 1 else unknown,
    )
