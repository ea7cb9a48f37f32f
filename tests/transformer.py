"""A decoder as large as wanted, written by hand: its function, and the shapes of its weights."""

from typing import Any

import jax
import jax.numpy as jnp

HEAD_DIM = 64
TOKENS = jax.ShapeDtypeStruct((1, 8), jnp.int32)


def shapes(depth: int, width: int, heads: int, mlp: int, vocabulary: int) -> dict[str, Any]:
    """Returns the shapes of the weights, float32."""

    def weights(**sizes: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}

    blocks = {
        f"block_{i}": weights(
            norm_1=(width,),
            **dict.fromkeys(("query", "key", "value"), (width, heads, HEAD_DIM)),
            out=(heads, HEAD_DIM, width),
            norm_2=(width,),
            up=(width, mlp),
            down=(mlp, width),
        )
        for i in range(depth)
    }
    return blocks | weights(embedding=(vocabulary, width), norm=(width,))


def apply(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Returns the logits of what follows each token, ``[n, time, vocabulary]``."""
    x = params["embedding"][tokens]
    for name in [name for name in params if name.startswith("block")]:
        block = params[name]
        h = _norm(x, block["norm_1"])
        heads = (jnp.einsum("nti,ihd->nthd", h, block[part]) for part in ("query", "key", "value"))
        values = jax.nn.dot_product_attention(*heads, is_causal=True)
        x += jnp.einsum("nthd,hdi->nti", values, block["out"])
        h = _norm(x, block["norm_2"])
        x += jax.nn.gelu(h @ block["up"]) @ block["down"]
    return _norm(x, params["norm"]) @ params["embedding"].T


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    mean = jnp.mean(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(mean + 1e-6) * scale[None, None]
