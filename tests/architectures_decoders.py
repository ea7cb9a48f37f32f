"""Architectures of the table: the families of ``dw.decoder``, Hugging Face's language models."""

import functools
from typing import Any

import jax.numpy as jnp
from architecture import Network, architecture
from decoders import CONFIGS, TOKENS

from dogwood_jax import decoder


def family(config: dict[str, Any], **changes: int) -> Network:
    options = decoder.options_of({**config, **changes})
    apply = functools.partial(decoder.apply, options)
    tokens = jnp.asarray(TOKENS, jnp.int32)
    return Network(apply, decoder.shapes(options, jnp.float32), (tokens,))


def enter(name: str) -> None:
    """Enters a family; Mixtral and Qwen 3 MoE have experts besides."""
    config = CONFIGS[name] | {"hidden_size": 8, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}

    def dense(
        hidden_size: int = 8,
        intermediate_size: int = 16,
        num_attention_heads: int = 2,
        layers: int = 2,
    ) -> Network:
        return family(
            config,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            moe_intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            num_hidden_layers=layers,
        )

    architecture(name, "Hugging Face")(dense)


for name in CONFIGS:
    if " " not in name:  # a family, not one of its variants
        enter(name)
