"""Quantized weights of Keras 3: integers with scales.

A layer with 8 bits also rounds its inputs: it multiplies integers by integers, and divides by both
scales. In a layer with 4 bits, each block of rows has a scale and a zero point, and only weights
are rounded. Files hold two of its integers in a byte; variables hold one in an ``int8``.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.kind import Config, Weight
from dogwood_jax.keras_h5._kinds.weight import plain

_POLICIES = re.compile("Quantized(Float8)?DTypePolicy|(Int4|GPTQ|AWQ)DTypePolicy")

_COMPUTED = ("Dense", "EinsumDense", "Embedding")


@dataclass(frozen=True)
class Rounding:
    """The integers to which Keras rounds inputs, after multiplying them by a scale.

    Attributes:
        smallest, largest: the range of integers; the largest absolute input becomes ``largest``.
        epsilon: added to the largest absolute input, to avoid a division by zero.
    """

    smallest: int = -127
    largest: int = 127
    epsilon: float = 1e-7


@dataclass(frozen=True)
class Quantization:
    """The quantization with which Keras computes a layer.

    Attributes:
        bits: bits of each weight, 8 or 4.
        block: number of rows that share a scale and a zero point; ``None`` if all rows share a
            scale, without a zero point.
        rounding: rounding of inputs; ``None`` if they are not rounded.
    """

    bits: int
    block: int | None
    rounding: Rounding | None

    def groups(self, rows: int) -> tuple[int, ...]:
        """Returns the axis of scales with one scale for each block; ``()`` without blocks."""
        return () if self.block is None else (math.ceil(rows / self.block),)


def refusal(class_name: str | None, config: Config, arrays: Iterable[Any] = ()) -> str | None:
    """Returns why the quantized weights of a layer are not supported; ``None`` if they are.

    Args:
        class_name: the layer's class.
        config: its config, which lacks the layers that the layer itself makes.
        arrays: its arrays, which show whether such inner layers are quantized.
    """
    if class_name not in _COMPUTED:
        # In TimeDistributed, Keras calls a quantized layer without its scales.
        inside = config.get("layer")
        policies = str(config.get("dtype")), str(inside) if isinstance(inside, Mapping) else ""
        found = any(map(_POLICIES.search, policies)) or any(a.dtype == "int8" for a in arrays)
        return "quantized weights are not supported in this class of layers" if found else None
    try:
        quantization(config)
    except ValueError as error:
        return str(error)
    return None


def quantization(config: Config) -> Quantization | None:
    """Returns the quantization of a layer, ``None`` if there is none.

    Raises:
        ValueError: if the quantization is not supported.
    """
    policy: Any = config.get("dtype")
    if not _POLICIES.search(str(policy)):
        return None
    try:
        return _described(policy, config)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError("quantized weights with this dtype policy are not supported") from error


def _described(policy: Config, config: Config) -> Quantization:
    mode = policy["config"].get("mode", policy["class_name"])
    if mode != "int8" and not re.fullmatch(r"int4/(-1|[1-9]\d*)", mode):
        older = "; quantize the model with Keras 3.14 or later, which packs them in another way"
        why = older if mode == "int4" else ""
        raise ValueError(f"quantized weights of mode {mode!r} are not supported{why}")
    if config.get("lora_rank"):
        raise ValueError("quantized weights with LoRA are not supported")
    if mode == "int8":
        return Quantization(8, None, _rounding(config, Rounding()))
    described = config.get("quantization_config") or {"config": {}}
    block = described["config"].get("block_size", int(mode.removeprefix("int4/")))
    if block in (None, -1):
        return Quantization(4, None, _rounding(config, None))
    if operator.index(block) < 1:
        raise ValueError(f"quantized weights in blocks of {block} are not supported")
    return Quantization(4, block, _rounding(config, None))


def _rounding(config: Config, default: Rounding | None) -> Rounding | None:
    described = config.get("quantization_config")
    if described is None:
        return default
    quantizer = described["config"]["activation_quantizer"]
    if quantizer is None:
        return None
    options = quantizer["config"]
    if quantizer["class_name"] != "AbsMaxQuantizer" or options["output_dtype"] != "int8":
        raise ValueError(f"inputs quantized by {quantizer['class_name']} are not supported")
    smallest, largest = map(operator.index, options["value_range"])
    return Rounding(smallest, largest, float(options["epsilon"]))


def supported(config: Config) -> Quantization | None:
    """Returns the quantization of a layer, ``None`` if there is none or it is not supported."""
    try:
        return quantization(config)
    except ValueError:
        return None


def size_in(config: Config, key: str) -> int:
    """Returns a size in a config, 0 if the config has none."""
    size = config.get(key)
    return size if isinstance(size, int) else 0


# Arrays in files and in variables.


def quantized_weights(
    how: Quantization, name: str, place: str, width: int, others: Sequence[Weight] = ()
) -> list[Weight]:
    """Returns the arrays of a layer, in the order in which Keras stores them.

    Args:
        how: the quantization of the layer.
        name: the name of the integers in Keras.
        place: their name in Flax.
        width: number of integers in a row.
        others: weights that are not quantized; they come directly after the integers.
    """
    unpack, pack = (_unpacked(width), _packed) if how.bits == 4 else (_same, _checked)
    zero = f"{name}_zero", f"{place}_zero"
    in_blocks = [
        Weight(zero[0], (("params", zero[1]),), to_keras=_checked),
        plain("g_idx", "params/g_idx"),
    ]
    fixed = [
        Weight(name, (("params", place),), unpack, pack),
        plain(f"{name}_scale", f"params/{place}_scale"),
        *(in_blocks if how.block is not None else []),
    ]
    first, *rest = (replace(weight, quantized=True) for weight in fixed)
    return [first, *others, *rest]


def _same(array: np.ndarray) -> Sequence[np.ndarray]:
    return [array]


def _checked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the integers; raises unless they have the dtype that Keras reads."""
    if arrays[0].dtype != np.int8:
        raise ValueError(f"expected quantized weights of int8, got {arrays[0].dtype}")
    return arrays[0]


def _unpacked(width: int) -> Callable[[np.ndarray], Sequence[np.ndarray]]:
    def unpack(array: np.ndarray) -> Sequence[np.ndarray]:
        if array.dtype != np.int8 or array.shape[-1] != math.ceil(width / 2):
            raise ValueError(f"expected {width} integers in {math.ceil(width / 2)} bytes")
        halves = np.stack([array & 15, (array >> 4) & 15], axis=-1)
        return [((halves ^ 8) - 8).reshape(*array.shape[:-1], -1)[..., :width]]

    return unpack


def _packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    integers = _checked(arrays)
    if integers.size and not -8 <= integers.min() <= integers.max() <= 7:
        raise ValueError(
            f"expected quantized weights from -8 to 7, got {integers.min()} to {integers.max()}"
        )
    even = np.zeros((*integers.shape[:-1], integers.shape[-1] % 2), np.int8)
    integers = np.concatenate([integers, even], axis=-1)
    return (integers[..., ::2] & 15) | (integers[..., 1::2] << 4)


# Computation.


def product(
    module: nn.Module, how: Quantization, equation: str, x: jax.Array, shape: Sequence[int]
) -> jax.Array:
    """Computes the product of rounded arrays, by an equation without dots.

    Args:
        module: the module with the variables.
        how: the quantization.
        equation: such as ``"abc,cd->abd"``.
        x: the first operand.
        shape: the shape of the second operand.
    """
    operands, output = equation.split("->")
    of_x, of_kernel = operands.split(",")
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    rounded, by = x, jnp.ones((), x.dtype)
    if how.rounding:
        summed = tuple(axis for axis, label in enumerate(of_x) if label not in output)
        rounded, by = _rounded(x, summed, how.rounding)
        by = _as_in(output, of_x, by)
    if how.bits == 4:
        kernel = _dequantized(module, how, of_kernel, output, shape).astype(x.dtype)
        return jnp.einsum(equation, rounded.astype(x.dtype), kernel) / by
    size_of = dict(zip(of_kernel, shape))
    kernel = module.param("kernel", nn.initializers.zeros, tuple(shape), jnp.int8)
    scale_shape = tuple(size_of.get(label, 1) for label in output)
    if not getattr(module, "aligned", True):
        scale_shape = scale_shape[-1:]
    scale = module.param("kernel_scale", nn.initializers.ones, scale_shape)
    scale = scale.reshape((1,) * (len(output) - scale.ndim) + scale.shape)
    if how.rounding:
        y = jnp.einsum(equation, rounded, kernel, preferred_element_type=jnp.int32)
        return y.astype(x.dtype) / (by * scale)
    return jnp.einsum(equation, x, kernel.astype(x.dtype)) / scale


def _rounded(
    x: jax.Array, axes: tuple[int, ...], rounding: Rounding
) -> tuple[jax.Array, jax.Array]:
    """Returns integers, and the scale by which the inputs were multiplied."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = rounding.largest / (largest + rounding.epsilon)
    integers = jnp.clip(jnp.round(x * scale), rounding.smallest, rounding.largest)
    return integers.astype(jnp.int8), scale


def _as_in(output: str, labels: str, scale: jax.Array) -> jax.Array:
    """Arranges the axes of a scale as in the output of a product."""
    kept = [label for label in labels if label in output]
    scale = scale.reshape([scale.shape[labels.index(label)] for label in kept])
    scale = scale.transpose([kept.index(label) for label in output if label in kept])
    return jnp.expand_dims(scale, [i for i, label in enumerate(output) if label not in kept])


def _dequantized(
    module: nn.Module, how: Quantization, labels: str, output: str, shape: Sequence[int]
) -> jax.Array:
    """Returns the floats of a 4-bit kernel, which is stored as a matrix, in the kernel's shape."""
    rows = math.prod(size for label, size in zip(labels, shape) if label not in output)
    columns = math.prod(size for label, size in zip(labels, shape) if label in output)
    kernel = module.param("kernel", nn.initializers.zeros, (rows, columns), jnp.int8)
    scale_shape = (*how.groups(rows), columns)
    scale = module.param("kernel_scale", nn.initializers.ones, scale_shape)
    if how.block is None:
        return (kernel.astype(scale.dtype) / scale[None]).reshape(shape)
    zero = module.param("kernel_zero", nn.initializers.zeros, scale_shape, jnp.int8)
    index = module.param("g_idx", _blocks(how.block), (rows,)).astype(jnp.int32)
    moved = kernel.astype(scale.dtype) - jnp.take(zero, index, axis=0).astype(scale.dtype)
    return (moved * jnp.take(scale, index, axis=0)).reshape(shape)


def _blocks(block: int) -> Callable[..., jax.Array]:
    """Returns an initializer for the index of the block of each row."""
    return lambda key, shape: jnp.asarray(np.arange(*shape) // block, jnp.float32)


class QuantizedEmbed(nn.Module):
    """An embedding with a table of integers.

    Attributes:
        sizes: the number of categories, and the size of their vectors.
        how: the quantization of the table; each vector has its own scales.
    """

    sizes: tuple[int, int]
    how: Quantization

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        index = x.astype(jnp.int32)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        table = self.param("embedding", zeros, self.sizes, jnp.int8)
        scale_shape = (self.sizes[0], *self.how.groups(self.sizes[1]))
        scale = jnp.take(self.param("embedding_scale", ones, scale_shape), index, axis=0)
        vectors = jnp.take(table, index, axis=0).astype(scale.dtype)
        if self.how.block is None:
            return vectors / scale[..., None]
        zero = jnp.take(self.param("embedding_zero", zeros, scale_shape, jnp.int8), index, axis=0)
        group = self.param("g_idx", _blocks(self.how.block), self.sizes[1:]).astype(jnp.int32)
        moved = vectors - jnp.take(zero, group, axis=-1).astype(scale.dtype)
        return moved * jnp.take(scale, group, axis=-1)
