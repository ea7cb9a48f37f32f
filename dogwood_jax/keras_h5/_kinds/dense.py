"""Dense layers."""

import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.activations import then_activate
from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind, Params, Weight
from dogwood_jax.keras_h5._kinds.masking import handed_on
from dogwood_jax.keras_h5._kinds.weight import (
    bias,
    channels_of_kernel,
    fixed,
    kernel_and_bias,
    last_axis,
    plain,
)


def _dense(config: Config, name: str | None, deterministic: bool) -> Function:
    units = operator.index(config["units"])
    return then_activate(config, nn.Dense(units, config.get("use_bias", True), name=name))


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


def _einsum_dense(config: Config, name: str | None, deterministic: bool) -> Function:
    shape = config["output_shape"]
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    return then_activate(config, Einsum(config["equation"], sizes, config["bias_axes"], name=name))


def _einsum_weights(config: Config) -> list[Weight]:
    use_bias = config["bias_axes"] if "bias_axes" in config else config.get("use_bias", True)
    return [plain("kernel", "params/kernel"), *bias({"use_bias": bool(use_bias)})]


def _einsum_sizes(config: Config, params: Params) -> dict[str, Any]:
    """Output axes that the kernel has too are as long as there."""
    operands, output = config["equation"].replace(" ", "").split("->")
    size_of = dict(zip(operands.split(",")[1], params["kernel"].shape))
    shape = config["output_shape"]
    old = [shape] if isinstance(shape, int) else list(shape)
    labels = output.replace("...", "")[-len(old) :]  # the batch axis is not among them
    new = [None if size is None else size_of.get(axis, size) for axis, size in zip(labels, old)]
    return {"output_shape": new[0] if isinstance(shape, int) else new}


KINDS["Dense"] = Kind(
    module=_dense,
    weights=kernel_and_bias,
    axes=fixed({"kernel": "in units", "bias": "units"}),
    sizes=last_axis("units", "kernel"),
    reads=channels_of_kernel,
    on_mask=handed_on,
)
KINDS["EinsumDense"] = Kind(
    module=_einsum_dense,
    weights=_einsum_weights,
    axes=fixed({"kernel": "...", "bias": "..."}),
    sizes=_einsum_sizes,
)
