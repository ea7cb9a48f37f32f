"""Layers that make categories of numbers, encode them or embed them."""

import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind
from dogwood_jax.keras_h5._kinds.weight import fixed, plain


def _embedding(config: Config, name: str | None, deterministic: bool) -> Function:
    sizes = operator.index(config["input_dim"]), operator.index(config["output_dim"])
    embed = nn.Embed(*sizes, name=name)
    return lambda x: embed(x.astype(jnp.int32))


def _discretization(config: Config) -> Function:
    boundaries = config.get("bin_boundaries")
    if boundaries is None:
        raise ValueError("boundaries that adapt() found, which are no weights, are not supported")
    if config.get("output_mode", "int") != "int" or config.get("sparse"):
        raise ValueError(f"the output_mode {config['output_mode']!r} is not supported")
    edges = jnp.asarray(np.asarray(boundaries), jnp.float32)  # JAX takes long for long lists
    return lambda x: jnp.searchsorted(edges, x.astype(jnp.float32), side="right")


def _category_encoding(config: Config) -> Function:
    count, mode = operator.index(config["num_tokens"]), config.get("output_mode", "multi_hot")
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
    weights=lambda config: [plain("embeddings", "params/embedding")],
    axes=fixed({"embeddings": "input_dim output_dim"}),
    sizes=lambda config, params: dict(zip(("input_dim", "output_dim"), params["embedding"].shape)),
    new_mask=lambda config: (lambda x: x != 0) if config.get("mask_zero") else None,
)
KINDS["Discretization"] = Kind(function=_discretization)
KINDS["CategoryEncoding"] = Kind(function=_category_encoding)
