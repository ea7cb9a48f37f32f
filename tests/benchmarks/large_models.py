"""Llama-3 405B and DeepSeek-V3 671B as plain functions of their arrays, one layer after another."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _norm(x: Any, scale: Any) -> Any:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5) * scale


def _rotary(x: Any, theta: float) -> Any:
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles)[None, :, None, :], jnp.cos(angles)[None, :, None, :]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _causal(scores: Any, axes: int) -> Any:
    length = scores.shape[-1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    return jax.nn.softmax(jnp.where(mask[(None,) * axes], scores, -1e30), -1)


def _mlp(p: Any, x: Any) -> Any:
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def _grouped_attention(p: Any, x: Any) -> Any:
    q = _rotary(jnp.einsum("btd,dhk->bthk", x, p["q"]), 500000.0)
    k = _rotary(jnp.einsum("btd,dgk->btgk", x, p["k"]), 500000.0)
    v = jnp.einsum("btd,dgk->btgk", x, p["v"])
    batch, length, heads, head_dim = q.shape
    q = q.reshape(batch, length, k.shape[2], heads // k.shape[2], head_dim)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q, k) / jnp.sqrt(head_dim).astype(x.dtype)
    read = jnp.einsum("bgrts,bsgk->btgrk", _causal(scores, 3), v)
    return jnp.einsum("bthk,hkd->btd", read.reshape(batch, length, heads, head_dim), p["o"])


def llama(params: Any, tokens: Any) -> Any:
    x = params["embed"][tokens]
    for p in params["layers"]:
        x = x + _grouped_attention(p["attention"], _norm(x, p["attention_norm"]))
        x = x + _mlp(p["mlp"], _norm(x, p["mlp_norm"]))
    return _norm(x, params["norm"]) @ params["head"]


def _latent_attention(p: Any, x: Any) -> Any:
    rank, nope = p["kv_norm"].shape[0], p["kv_b"].shape[-1] - p["o"].shape[1]
    q = jnp.einsum("btr,rhk->bthk", _norm(x @ p["q_a"], p["q_norm"]), p["q_b"])
    compressed = x @ p["kv_a"]
    latent = _norm(compressed[..., :rank], p["kv_norm"])
    kv = jnp.einsum("btr,rhk->bthk", latent, p["kv_b"])
    k_rotary = _rotary(compressed[..., None, rank:], 10000.0)[:, :, 0]
    scores = jnp.einsum("bthk,bshk->bhts", q[..., :nope], kv[..., :nope])
    scores += jnp.einsum("bthk,bsk->bhts", _rotary(q[..., nope:], 10000.0), k_rotary)
    weights = _causal(scores / jnp.sqrt(q.shape[-1]).astype(x.dtype), 2)
    return jnp.einsum(
        "bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", weights, kv[..., nope:]), p["o"]
    )


def _experts(p: Any, x: Any) -> Any:
    scores = jax.nn.sigmoid(x @ p["router"])
    _, chosen = lax.top_k(scores + p["bias"], 8)
    gates = jnp.take_along_axis(scores, chosen, -1)
    gates = gates / jnp.sum(gates, -1, keepdims=True) * 2.5
    weights = jax.nn.one_hot(chosen, scores.shape[-1], dtype=x.dtype) * gates[..., None]
    e = p["experts"]
    gate, up = (jnp.einsum("btd,edf->btef", x, e[name]) for name in ("gate", "up"))
    outputs = jnp.einsum("btef,efd->bted", jax.nn.silu(gate) * up, e["down"])
    return jnp.einsum("bted,bte->btd", outputs, jnp.sum(weights, -2)) + _mlp(p["shared"], x)


def deepseek(params: Any, tokens: Any) -> Any:
    x = params["embed"][tokens]
    for p in params["layers"]:
        x = x + _latent_attention(p["attention"], _norm(x, p["attention_norm"]))
        y = _norm(x, p["mlp_norm"])
        x = x + (_experts(p["moe"], y) if "moe" in p else _mlp(p["mlp"], y))
    return _norm(x, params["norm"]) @ params["head"]


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def _of_mlp(width: int, hidden: int) -> dict[str, Any]:
    up = _array(width, hidden)
    return {"gate": up, "up": up, "down": _array(hidden, width)}


def llama_405b(layers: int = 126) -> dict[str, Any]:
    width, heads, groups, head_dim, words = 16384, 128, 8, 128, 128256
    layer = {
        "attention": {
            "q": _array(width, heads, head_dim),
            "k": _array(width, groups, head_dim),
            "v": _array(width, groups, head_dim),
            "o": _array(heads, head_dim, width),
        },
        "attention_norm": _array(width),
        "mlp_norm": _array(width),
        "mlp": _of_mlp(width, 53248),
    }
    return {
        "embed": _array(words, width),
        "layers": [layer] * layers,
        "norm": _array(width),
        "head": _array(width, words),
    }


def deepseek_v3(layers: int = 61) -> dict[str, Any]:
    width, heads, words, experts = 7168, 128, 129280, 256
    layer = {
        "attention": {
            "q_a": _array(width, 1536),
            "q_norm": _array(1536),
            "q_b": _array(1536, heads, 128 + 64),
            "kv_a": _array(width, 512 + 64),
            "kv_norm": _array(512),
            "kv_b": _array(512, heads, 128 + 128),
            "o": _array(heads, 128, width),
        },
        "attention_norm": _array(width),
        "mlp_norm": _array(width),
    }
    up = _array(experts, width, 2048)
    mixture = {
        "router": _array(width, experts),
        "bias": _array(experts),
        "shared": _of_mlp(width, 2048),
        "experts": {"gate": up, "up": up, "down": _array(experts, 2048, width)},
    }
    dense = layer | {"mlp": _of_mlp(width, 18432)}
    return {
        "embed": _array(words, width),
        "layers": [dense] * 3 + [layer | {"moe": mixture}] * (layers - 3),
        "norm": _array(width),
        "head": _array(width, words),
    }
