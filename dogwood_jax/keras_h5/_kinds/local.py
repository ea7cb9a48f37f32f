"""LocallyConnected and ConvLSTM layers, which Flax does not have."""

import math
import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.activations import Activation, activation, then_activate
from dogwood_jax.keras_h5._kinds.convolutions import convolution_options
from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind, Weight
from dogwood_jax.keras_h5._kinds.options import channels_last, evaluated_only, spatial
from dogwood_jax.keras_h5._kinds.weight import kernel_and_bias, last_axis, plain


class LocallyConnected(nn.Module):
    """A convolution with its own kernel at every place.

    The kernel is ``[place, window * in, out]``, with places and windows row by row.
    """

    filters: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], self.window, self.strides)]
        pieces = [
            x[
                (
                    slice(None),
                    *(slice(i, i + s * (n - 1) + 1, s) for i, s, n in zip(at, self.strides, sizes)),
                )
            ]
            for at in np.ndindex(*self.window)
        ]
        x = jnp.concatenate(pieces, axis=-1)
        x = x.reshape(len(x), math.prod(sizes), -1)
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (*x.shape[1:], self.filters))
        y = jnp.einsum("bpi,pio->bpo", x, kernel)
        y = y.reshape(len(x), *sizes, self.filters)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (*sizes, self.filters))[None]


def _locally_connected(
    rank: int, config: Config, name: str | None, deterministic: bool
) -> Function:
    if config.get("implementation", 1) != 1 or config.get("padding", "valid") != "valid":
        raise ValueError("implementations other than 1 are not supported")
    layer = LocallyConnected(
        operator.index(config["filters"]),
        spatial(config["kernel_size"], rank),
        spatial(config.get("strides", 1), rank),
        config.get("use_bias", True),
        name=name,
    )
    return then_activate(config, channels_last(config, layer))


class ConvLSTM(nn.Module):
    """An LSTM whose products are convolutions; gates are i, f, c, o side by side.

    Attributes:
        filters: number of channels of the state.
        options: sizes, strides, padding, dilation and bias of the convolution of inputs.
        flags: options of recurrent layers, such as ``return_sequences``.
        channels_first: whether arrays are ``[batch, step, channel, ...]``.
    """

    filters: int
    options: Mapping[str, Any]
    activation: Activation
    gate: Activation
    flags: Mapping[str, bool]
    channels_first: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        if self.channels_first:
            x = jnp.moveaxis(x, 2, -1)
        window, init = self.options["kernel_size"], nn.initializers.lecun_normal()
        gates = 4 * self.filters
        kernel = self.param("kernel", init, (*window, x.shape[-1], gates))
        recurrent = self.param("recurrent_kernel", init, (*window, self.filters, gates))
        strides, padding = self.options["strides"], self.options["padding"]
        of_inputs = _convolved(
            x.reshape(-1, *x.shape[2:]), kernel, strides, padding, self.options["dilation"]
        )
        if self.options["use_bias"]:
            bias = self.param("bias", nn.initializers.zeros, (gates,))
            of_inputs = of_inputs + bias.reshape((1,) * (of_inputs.ndim - 1) + (-1,))
        steps = jnp.moveaxis(of_inputs.reshape(*x.shape[:2], *of_inputs.shape[1:]), 1, 0)
        zeros = jnp.zeros((*steps.shape[1:-1], self.filters), steps.dtype)
        ones = (1,) * len(window)

        def step(carry: Any, now: jax.Array) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(now + _convolved(h, recurrent, ones, "SAME", ones), 4, axis=-1)
            c = self.gate(f) * c + self.gate(i) * self.activation(g)
            h = self.gate(o) * self.activation(c)
            return (h, c), h

        (h, c), hs = jax.lax.scan(step, (zeros, zeros), steps, reverse=self.flags["go_backwards"])
        if self.flags["go_backwards"]:
            hs = hs[::-1]
        y = jnp.moveaxis(hs, 0, 1) if self.flags["return_sequences"] else h
        if self.channels_first:
            y = jnp.moveaxis(y, -1, 2 if self.flags["return_sequences"] else 1)
            h, c = (jnp.moveaxis(state, -1, 1) for state in (h, c))
        return (y, h, c) if self.flags["return_state"] else y


def _convolved(x: Any, kernel: Any, strides: Any, padding: str, dilation: Any) -> jax.Array:
    letters = "DHW"[-(x.ndim - 2) :]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers
    )


def _conv_lstm(rank: int, config: Config, name: str | None, deterministic: bool) -> Function:
    evaluated_only(config, deterministic, "dropout", "recurrent_dropout")
    flags = ("go_backwards", "return_sequences", "return_state")
    return ConvLSTM(
        operator.index(config["filters"]),
        convolution_options(config, rank),
        activation(config["activation"]),
        activation(config["recurrent_activation"]),
        {flag: bool(config.get(flag)) for flag in flags},
        config.get("data_format") == "channels_first",
        name=name,
    )


def _conv_lstm_weights(config: Config) -> list[Weight]:
    names = ("kernel", "recurrent_kernel", "bias")[: 3 if config.get("use_bias", True) else 2]
    return [plain(f"cell/{name}", f"params/{name}") for name in names]


for _rank in (1, 2):
    KINDS[f"LocallyConnected{_rank}D"] = Kind(
        module=partial(_locally_connected, _rank),
        weights=kernel_and_bias,
        sizes=last_axis("filters", "kernel"),
    )
for _rank in (1, 2, 3):
    KINDS[f"ConvLSTM{_rank}D"] = Kind(
        module=partial(_conv_lstm, _rank),
        weights=_conv_lstm_weights,
        sizes=lambda config, params: {"filters": params["kernel"].shape[-1] // 4},
    )
