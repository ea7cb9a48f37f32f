"""Dense layers."""

import math
import operator
import string
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.activations import then_activate
from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind, Params, Weight
from dogwood_jax.keras_h5._kinds.masking import handed_on
from dogwood_jax.keras_h5._kinds.quantized import (
    Quantization,
    product,
    quantization,
    quantized_weights,
    size_in,
    supported,
)
from dogwood_jax.keras_h5._kinds.weight import (
    bias,
    channels_of_kernel,
    fixed,
    kernel_and_bias,
    plain,
)


def _dense(config: Config, name: str | None, deterministic: bool) -> Function:
    units = operator.index(config["units"])
    if how := quantization(config):
        axes = "b" if config.get("use_bias", True) else None
        dense = Einsum("...a,ab->...b", (units,), axes, how, aligned=False, name=name)
        return then_activate(config, dense)
    return then_activate(config, nn.Dense(units, config.get("use_bias", True), name=name))


class Einsum(nn.Module):
    """A product of two arrays by an equation, ``"abc,cd->abd"``, and a bias along some axes.

    Attributes:
        equation: the equation; three dots stand for any axes.
        output_sizes: sizes of the last axes of the output; ``None`` for a size of the input.
        bias_axes: labels of the output axes that the bias has.
        how: the quantization, or ``None``.
        aligned: whether scales have all axes of the output, or only the last axis.
    """

    equation: str
    output_sizes: tuple[int | None, ...]
    bias_axes: str | None
    how: Quantization | None = None
    aligned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        operands, output = self.equation.replace(" ", "").split("->")
        of_x, of_kernel = operands.split(",")
        labels = output.replace("...", "")
        size_of = dict(zip(reversed(of_x.replace("...", "")), reversed(x.shape)))
        sizes = zip(reversed(labels), reversed(self.output_sizes))
        size_of |= {label: size for label, size in sizes if size is not None}
        shape = tuple(size_of[label] for label in of_kernel)
        if self.how:
            y = product(self, self.how, without_dots(self.equation, x.ndim), x, shape)
        else:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
            y = jnp.einsum(f"{operands}->{output}", x, kernel)
        if not self.bias_axes:
            return y
        first = min(map(labels.index, self.bias_axes))
        shape = tuple(size_of[n] if n in self.bias_axes else 1 for n in labels[first:])
        bias = self.param("bias", nn.initializers.zeros, shape)
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def without_dots(equation: str, rank: int) -> str:
    """Returns an equation with letters in place of the dots, for an input of this rank."""
    equation = equation.replace(" ", "")
    dots = rank - len(equation.partition(",")[0].replace("...", ""))
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    return equation.replace("...", "".join(spare[:dots]))


def _einsum_dense(config: Config, name: str | None, deterministic: bool) -> Function:
    shape = config["output_shape"]
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    how = quantization(config)
    if how and how.bits == 4 and not _columns(config):
        raise ValueError("quantized weights with no sizes in output_shape are not supported")
    einsum = Einsum(config["equation"], sizes, config["bias_axes"], how, name=name)
    return then_activate(config, einsum)


def _einsum_weights(config: Config) -> list[Weight]:
    use_bias = config["bias_axes"] if "bias_axes" in config else config.get("use_bias", True)
    biases = bias({"use_bias": bool(use_bias)})
    how, columns = supported(config), _columns(config)
    if how and (how.bits == 8 or columns):
        return quantized_weights(how, "kernel", "kernel", columns, biases)
    return [plain("kernel", "params/kernel"), *biases]


def _columns(config: Config) -> int:
    """Returns how many columns a kernel has as a matrix, 0 if the config does not determine it.

    The columns are the kernel's axes that the output also has.
    """
    operands, arrow, output = str(config.get("equation")).replace(" ", "").partition("->")
    shape = config.get("output_shape")
    sizes = [*shape] if isinstance(shape, Sequence) else [shape]
    size_of = dict(zip(reversed(output.replace("...", "")), reversed(sizes)))
    kept = [size_of.get(label) for label in operands.partition(",")[2] if label in output]
    known = [size for size in kept if isinstance(size, int)]
    return math.prod(known) if len(known) == len(kept) else 0


def _einsum_sizes(config: Config, params: Params) -> dict[str, Any]:
    """Returns the output shape with the sizes of the kernel; nothing if that is a 4-bit matrix."""
    if (how := supported(config)) and how.bits == 4:
        return {}
    operands, output = config["equation"].replace(" ", "").split("->")
    size_of = dict(zip(operands.split(",")[1], params["kernel"].shape))
    shape = config["output_shape"]
    old = [shape] if isinstance(shape, int) else list(shape)
    labels = output.replace("...", "")[-len(old) :]  # the batch axis is not among them
    new = [None if size is None else size_of.get(axis, size) for axis, size in zip(labels, old)]
    return {"output_shape": new[0] if isinstance(shape, int) else new}


def _dense_weights(config: Config) -> list[Weight]:
    if how := supported(config):
        return quantized_weights(how, "kernel", "kernel", size_in(config, "units"), bias(config))
    return kernel_and_bias(config)


def _dense_axes(config: Config) -> Mapping[str, str]:
    how = supported(config)
    axes = {"kernel": "in units", "bias": "units"}
    if how and how.bits == 4:
        axes["kernel"] = f"in {math.ceil(size_in(config, 'units') / 2)}"
    if how:
        axes["kernel_scale"] = "units" if how.block is None else "groups units"
    return axes | ({"kernel_zero": "groups units", "g_idx": "in"} if how and how.block else {})


def _dense_sizes(config: Config, params: Params) -> dict[str, Any]:
    """Returns the units; raises ``ValueError`` if Keras would expect another number of blocks."""
    rows, units = params["kernel"].shape[0], params["kernel"].shape[-1]
    how = supported(config)
    if how and params["kernel_scale"].shape != (*how.groups(rows), units):
        raise ValueError(
            f"expected scales of shape {(*how.groups(rows), units)}, one for every "
            f"{how.block or rows} rows; got {params['kernel_scale'].shape}"
        )
    return {"units": units}


KINDS["Dense"] = Kind(
    module=_dense,
    weights=_dense_weights,
    axes=_dense_axes,
    sizes=_dense_sizes,
    reads=channels_of_kernel,
    on_mask=handed_on,
)
KINDS["EinsumDense"] = Kind(
    module=_einsum_dense,
    weights=_einsum_weights,
    axes=fixed({"kernel": "...", "bias": "..."}),
    sizes=_einsum_sizes,
)
