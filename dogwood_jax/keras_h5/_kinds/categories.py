"""Layers that convert numbers to categories, and encode or embed categories."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.kind import (
    CHANNELS,
    KINDS,
    Config,
    Function,
    Kind,
    Params,
    Shape,
    Weight,
)
from dogwood_jax.keras_h5._kinds.quantized import (
    QuantizedEmbed,
    quantization,
    quantized_weights,
    size_in,
    supported,
)
from dogwood_jax.keras_h5._kinds.weight import fixed, plain


def _embedding(config: Config, name: str | None, deterministic: bool) -> Function:
    sizes = operator.index(config["input_dim"]), operator.index(config["output_dim"])
    if how := quantization(config):
        return QuantizedEmbed(sizes, how, name=name)
    embed = nn.Embed(*sizes, name=name)
    return lambda x: embed(x.astype(jnp.int32))


def _embedding_weights(config: Config) -> list[Weight]:
    if how := supported(config):
        return quantized_weights(how, "embeddings", "embedding", size_in(config, "output_dim"))
    return [plain("embeddings", "params/embedding")]


def _embedding_axes(config: Config) -> Mapping[str, str]:
    how = supported(config)
    if how is None:
        return {"embeddings": "input_dim output_dim"}
    size = size_in(config, "output_dim")
    groups = "".join(f" {count}" for count in how.groups(size))
    width = "output_dim" if how.bits == 8 else math.ceil(size / 2)
    axes = {"embeddings": f"input_dim {width}", "embeddings_scale": f"input_dim{groups}"}
    if how.block is not None:
        axes |= {"embeddings_zero": f"input_dim{groups}", "g_idx": "output_dim"}
    return axes


class ReversibleEmbedding(nn.Module):
    """An embedding that also scores each category for a vector, by the same or another table.

    Attributes:
        sizes: the number of categories, and the size of their vectors.
        tied: whether the scores use the same table.
        cap: the bound on the scores, applied by a tanh; ``None`` for no bound.
    """

    sizes: tuple[int, int]
    tied: bool = True
    cap: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, reverse: bool = False) -> jax.Array:
        init = nn.initializers.lecun_normal()
        table = self.param("embedding", init, self.sizes)
        back = table.T
        if not self.tied:
            shape = self.sizes[::-1]
            if self.has_variable("params", "reverse_embedding"):
                shape = self.get_variable("params", "reverse_embedding").shape
            if shape != back.shape:
                raise ValueError(
                    f"expected a table of shape {back.shape} on the way back, because Keras has "
                    f"one input_dim and one output_dim for both tables; found {shape}"
                )
            back = self.param("reverse_embedding", init, shape)
        if not reverse:
            return jnp.take(table, x.astype(jnp.int32), axis=0)
        y = jnp.matmul(x, back)
        return y if self.cap is None else jnp.tanh(y / self.cap) * self.cap


def _reversible(config: Config, name: str | None, deterministic: bool) -> Function:
    if config.get("mask_zero"):
        raise ValueError("mask_zero=True is not supported")
    if config.get("reverse_dtype") not in (None, "float32"):
        raise ValueError(f"the reverse_dtype {config['reverse_dtype']!r} is not supported")
    sizes = operator.index(config["input_dim"]), operator.index(config["output_dim"])
    cap = config.get("logit_soft_cap")
    return ReversibleEmbedding(sizes, bool(config.get("tie_weights", True)), cap, name=name)


def _reversible_weights(config: Config) -> list[Weight]:
    back = [plain("reverse_embeddings", "params/reverse_embedding")]
    tied = config.get("tie_weights", True)
    return [plain("embeddings", "params/embedding"), *([] if tied else back)]


def _reversible_told(shapes: Mapping[str, Shape]) -> Config | None:
    there, back = shapes.get("0", ()), shapes.get("1")
    if len(there) != 2 or len(shapes) > 2 or back not in (None, there[::-1]):
        return None
    return {"tie_weights": back is None}


def _table_sizes(config: Config, params: Params) -> dict[str, Any]:
    return dict(zip(("input_dim", "output_dim"), params["embedding"].shape))


def _discretization(config: Config) -> Function:
    boundaries = config.get("bin_boundaries")
    if boundaries is None:
        raise ValueError("boundaries from adapt() are not supported, because they are not weights")
    if config.get("output_mode", "int") != "int" or config.get("sparse"):
        raise ValueError(f"the output_mode {config['output_mode']!r} is not supported")
    edges = jnp.asarray(np.asarray(boundaries), jnp.float32)  # JAX takes long for long lists
    return lambda x: jnp.searchsorted(edges, x.astype(jnp.float32), side="right")


def _category_encoding(config: Config) -> Function:
    count = operator.index(config.get(CHANNELS, config["num_tokens"]))
    mode = config.get("output_mode", "multi_hot")
    if mode not in ("one_hot", "multi_hot", "count") or config.get("sparse"):
        raise ValueError(f"the output_mode {mode!r} is not supported")

    def encode(x: Any) -> Any:
        hot = jax.nn.one_hot(x.astype(jnp.int32), count)
        if mode == "one_hot":
            return hot[..., 0, :] if x.ndim > 1 and x.shape[-1] == 1 else hot
        if x.ndim == 1:
            return hot
        return jnp.max(hot, axis=-2) if mode == "multi_hot" else jnp.sum(hot, axis=-2)

    return encode


KINDS["Embedding"] = Kind(
    module=_embedding,
    weights=_embedding_weights,
    axes=_embedding_axes,
    sizes=_table_sizes,
    new_mask=lambda config: (lambda x: x != 0) if config.get("mask_zero") else None,
)
KINDS["ReversibleEmbedding"] = Kind(
    module=_reversible,
    keywords={"reverse"},
    weights=_reversible_weights,
    axes=fixed(
        {"embeddings": "input_dim output_dim", "reverse_embeddings": "output_dim input_dim"}
    ),
    told=_reversible_told,
    sizes=_table_sizes,
)
KINDS["Discretization"] = Kind(function=_discretization)
KINDS["CategoryEncoding"] = Kind(
    function=_category_encoding,
    sizes_by_input=lambda config, params, shape, channels: {
        "num_tokens": channels or config["num_tokens"]
    },
    counted=lambda config: (-1, config["num_tokens"]),
)
