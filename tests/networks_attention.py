"""Networks of the table: transformers and mixtures of experts."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from networks import (
    Model,
    affine,
    changes,
    data,
    dense,
    f64,
    fixed,
    grows,
    interface,
    linen,
    network,
    tokens,
)


def rms_norm(scale: Any, x: Any) -> Any:
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return x * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def rotary(x: Any) -> Any:
    """Rotates pairs (i, i + dim / 2) of the last axis of [batch, time, heads, dim]."""
    time, half = x.shape[1], x.shape[-1] // 2
    frequency = 1 / 10_000 ** (jnp.arange(half, dtype=x.dtype) / half)
    angle = jnp.arange(time, dtype=x.dtype)[:, None] * frequency[None, :]
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def causal(scores: Any) -> Any:
    time = scores.shape[-1]
    mask = jnp.tril(jnp.ones((time, time), bool))
    return jnp.where(mask.reshape((1,) * (scores.ndim - 2) + mask.shape), scores, -1e9)


@network(
    {
        "patches": changes(
            "model",
            10,
            "-> {patches,down}/{kernel[1],bias[0]} {token,positions}[2] "
            "{norm_1,norm_2,norm}/{scale,bias}[0] attention/out/{kernel[2],bias[0]} <- "
            "attention/{query,key,value}/kernel[0] {up,head}/kernel[0]",
        ),
        "patches[0.0]": interface("", 2, "<- patches/kernel[0]"),
        "patches[0.1]": interface("", 2, "<- patches/kernel[0]"),
        "patches[0.2]": interface("channels", 3, "<- patches/kernel[0]"),
        "positions[1.1]": interface("", 2, "-> positions[1]", changes=True),
        "positions[1.2]": interface("", 2, "-> positions[1]", changes=True),
        "attention/query[heads]": grows(
            "heads",
            2,
            "-> attention/{query,key,value}/{kernel[1],bias[0]} <- attention/out/kernel[0]",
        ),
        "attention/query[head_dim]": changes(
            "",
            3,
            "-> attention/query/{kernel[2],bias[1]} -> attention/key/{kernel[2],bias[1]}",
        ),
        "attention/value[value_dim]": grows(
            "", 3, "-> attention/value/{kernel[2],bias[1]} <- attention/out/kernel[1]"
        ),
        "up": grows("hidden", 7, "-> up/{kernel[1],bias[0]} <- down/kernel[0]"),
        "head": interface("out", 5, "-> head/{kernel[1],bias[0]}"),
        "token[0]": fixed("because its size is 1", 1, "-> token[0]"),
        "token[1]": fixed("size is 1", 1, "-> {token,positions}[1]"),
        "positions[0]": fixed("because its size is 1", 1, "-> positions[0]"),
    }
)
def vit(
    patch: int = 2,
    channels: int = 3,
    model: int = 10,
    heads: int = 2,
    hidden: int = 7,
    out: int = 5,
) -> Model:
    """Patches by reshapes, a class token, learned positions, LayerNorm, Flax's attention."""

    class Vit(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            n, h, w, c = x.shape
            x = x.reshape(n, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
            x = nn.Dense(model, name="patches")(x.reshape(n, -1, patch * patch * c))
            token = self.param("token", nn.initializers.zeros, (1, 1, model))
            x = jnp.concatenate([jnp.tile(token, (n, 1, 1)), x], axis=1)
            x = x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], model))
            y = nn.LayerNorm(name="norm_1")(x)
            x = x + nn.MultiHeadDotProductAttention(
                heads, qkv_features=3 * heads, out_features=model, name="attention"
            )(y, y)
            y = nn.gelu(nn.Dense(hidden, name="up")(nn.LayerNorm(name="norm_2")(x)))
            x = x + nn.Dense(model, name="down")(y)
            return nn.Dense(out, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])

    return linen(Vit(), data(2, 4, 4, channels))


@network(
    {
        "embed": changes(
            "model",
            6,
            "-> {norm_1,norm_2,norm}/scale[0] {o,down}[1] <- {q,k,v,gate,up}[0] <> embed[1]",
        ),
        "embed[vocab]": interface("vocab", 11, "-> embed[0]"),
        "q[kv_heads]": grows("kv", 3, "-> {q,k,v}[1] <- o[0]"),
        "q[head_dim]": changes("dim", 4, "-> k[1] -> q[1]"),
        "q[groups]": grows("groups", 2, "-> q[1] <- o[0]"),
        "v[value_dim]": grows("value", 7, "-> v[1] <- o[0]"),
        "gate": grows("hidden", 5, "-> {gate,up}[1] <- down[0]"),
    }
)
def llama(
    vocab: int = 11,
    model: int = 6,
    kv: int = 3,
    groups: int = 2,
    dim: int = 8,
    value: int = 7,
    hidden: int = 5,
) -> Model:
    """Grouped queries, rotary positions, RMSNorm, gated MLP, tied embedding."""
    shapes = {
        "embed": f64(vocab, model),
        "norm_1": {"scale": f64(model)},
        "q": f64(model, kv * groups * dim),
        "k": f64(model, kv * dim),
        "v": f64(model, kv * value),
        "o": f64(kv * groups * value, model),
        "norm_2": {"scale": f64(model)},
        "gate": f64(model, hidden),
        "up": f64(model, hidden),
        "down": f64(hidden, model),
        "norm": {"scale": f64(model)},
    }

    def apply(params: Any, words: Any) -> Any:
        x = params["embed"][words]
        n, time = words.shape
        h = rms_norm(params["norm_1"]["scale"], x)
        q = rotary((h @ params["q"]).reshape(n, time, kv * groups, dim))
        k = rotary((h @ params["k"]).reshape(n, time, kv, dim))
        v = (h @ params["v"]).reshape(n, time, kv, value)
        q = q.reshape(n, time, kv, groups, dim)
        scores = causal(jnp.einsum("btkgd,bskd->bkgts", q, k) / jnp.sqrt(dim))
        y = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores), v)
        x = x + y.reshape(n, time, -1) @ params["o"]
        h = rms_norm(params["norm_2"]["scale"], x)
        x = x + (jax.nn.silu(h @ params["gate"]) * (h @ params["up"])) @ params["down"]
        return rms_norm(params["norm"]["scale"], x) @ params["embed"].T

    return Model(apply, shapes, (tokens(vocab, 2, 5),))


@network(
    {
        "q[heads]": grows("heads", 3, "-> q[1] <- o[0]"),
        "q[head_dim]": changes("dim", 4, "-> q[2] -> k[1]"),
        "q[0]": interface("n_in", 5, "<- {q,k,v}[0]"),
        "v": grows("value", 7, "-> v[1] <- o[1]"),
        "o": interface("out", 6, "-> o[2]"),
    }
)
def multi_query(n_in: int = 5, heads: int = 3, dim: int = 4, value: int = 7, out: int = 6) -> Model:
    """One key and value head for all queries; keys and values repeated by ``jnp.repeat``."""
    shapes = {"q": f64(n_in, heads, dim), "k": f64(n_in, dim), "v": f64(n_in, value)}
    shapes["o"] = f64(heads, value, out)

    def apply(params: Any, x: Any) -> Any:
        q = jnp.einsum("btm,mhd->bhtd", x, params["q"])
        k = jnp.repeat((x @ params["k"])[:, None], heads, axis=1)
        scores = jax.nn.softmax(causal(jnp.einsum("bhtd,bhsd->bhts", q, k) * dim**-0.5))
        y = jnp.einsum("bhts,bsv->bthv", scores, x @ params["v"])
        return jnp.einsum("bthv,hvm->btm", y, params["o"])

    return Model(apply, shapes, (data(2, 4, n_in),))


@network(
    {
        "a[heads]": grows("a", 3, "-> a/{kernel[1],bias[0]} <- a_out/kernel[0]"),
        "a[head_dim]": changes(
            "dim",
            4,
            "-> a/{kernel[1],bias[0]} -> a/{kernel[1],bias[0]} <- a_out/kernel[0]",
        ),
        "a_out": interface("n_in", 5, "-> {a_out,b_out}/{kernel[1],bias[0]} <- {a,b,c}/kernel[0]"),
        "b[heads]": grows("b", 2, "-> b/{kernel[1],bias[0]} <- b_out/kernel[0]"),
        "b[head_dim]": changes(
            "dim",
            4,
            "-> b/{kernel[1],bias[0]} -> b/{kernel[1],bias[0]} <- b_out/kernel[0]",
        ),
        "c[heads]": grows("c", 6, "-> c/{kernel[1],bias[0]} <- c_out/kernel[0]"),
        "c[head_dim]": changes("dim", 4, "-> c/{kernel[1],bias[0]} -> c/{kernel[1],bias[0]}"),
        "c[value_dim]": grows("value", 9, "-> c/{kernel[1],bias[0]} <- c_out/kernel[0]"),
        "c_out": interface("out", 7, "-> c_out/{kernel[1],bias[0]}"),
    }
)
def fused_qkv(
    n_in: int = 5, a: int = 3, b: int = 2, c: int = 6, dim: int = 4, value: int = 9, out: int = 7
) -> Model:
    """Fused projections in both orders, (3, heads, dim) and (heads, 3, dim), and q | k | v."""
    shapes = {
        "a": dense(n_in, 3 * a * dim),
        "a_out": dense(a * dim, n_in),
        "b": dense(n_in, 3 * b * dim),
        "b_out": dense(b * dim, n_in),
        "c": dense(n_in, c * (2 * dim + value)),
        "c_out": dense(c * value, out),
    }

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / jnp.sqrt(dim).astype(q.dtype)
        y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
        return y.reshape(*y.shape[:2], -1)

    def apply(params: Any, x: Any) -> Any:
        n, time, _ = x.shape
        fused = affine(params["a"], x).reshape(n, time, 3, a, dim)
        x = x + affine(params["a_out"], attend(*(fused[:, :, i] for i in range(3))))
        fused = affine(params["b"], x).reshape(n, time, b, 3, dim)
        x = x + affine(params["b_out"], attend(*(fused[:, :, :, i] for i in range(3))))
        parts = jnp.split(affine(params["c"], x), [c * dim, 2 * c * dim], axis=-1)
        q, k, v = (part.reshape(n, time, c, -1) for part in parts)
        return affine(params["c_out"], attend(q, k, v))

    return Model(apply, shapes, (data(2, 3, n_in),))


@network(
    {
        "q[kv_heads]": grows("kv", 2, "-> {q,k,v}[1] <- o[0]"),
        "q[groups]": grows("groups", 2, "-> q[1] <- o[0]"),
        "q[head_dim]": changes("dim", 6, "-> {q[2],q_scale[0],k_scale[0]} -> k[2]"),
        "q[0]": interface("n_in", 5, "<- {q,k,v}[0]"),
        "v[value_dim]": grows("dim", 6, "-> v[2] <- o[1]"),
        "o": interface("out", 3, "-> o[2]"),
    }
)
def library_attention(
    n_in: int = 5, kv: int = 2, groups: int = 2, dim: int = 6, out: int = 3
) -> Model:
    """``jax.nn.dot_product_attention`` with grouped queries, a mask and a QK-norm."""
    heads = kv * groups
    shapes = {"q": f64(n_in, heads, dim), "k": f64(n_in, kv, dim), "v": f64(n_in, kv, dim)}
    shapes |= {"o": f64(heads, dim, out), "q_scale": f64(dim), "k_scale": f64(dim)}

    def apply(params: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[name]) for name in "qkv")
        q, k = rms_norm(params["q_scale"], q), rms_norm(params["k_scale"], k)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return jnp.einsum("bthd,hdm->btm", y, params["o"])

    return Model(apply, shapes, (data(2, 4, n_in),))


@network(
    {
        "embed": grows("n", 4, "-> {embed,positions}[1] <- o[0]"),
        "embed[vocab]": interface("vocab", 7, "-> embed[0]"),
        "positions[0]": interface("longest", 6, "-> positions[0]"),
        "o": interface("out", 2, "-> o[1]"),
    }
)
def embedded_one_by_one(n: int = 4, vocab: int = 7, longest: int = 6, out: int = 2) -> Model:
    """Rows that are looked up one by one under ``vmap``, as Equinox does."""

    def apply(params: Any, ids: Any) -> Any:
        rows = jax.vmap(lambda i: params["embed"][i])(ids)
        positions = jax.vmap(lambda i: params["positions"][i])(jnp.arange(len(ids)))
        return jnp.tanh(rows + positions) @ params["o"]

    shapes = {"embed": f64(vocab, n), "positions": f64(longest, n), "o": f64(n, out)}
    return Model(apply, shapes, (tokens(vocab, 5),))


@network(
    {
        "qkv[heads]": grows("heads", 2, "-> {qkv[2],bias[1]} <- o[0]"),
        "qkv[head_dim]": grows("dim", 3, "<- o[1] -> qkv[3]", copies="tied"),
        "qkv[1]": interface("n_in", 5, "<- qkv[1]"),
        "o": interface("out", 4, "-> o[2]"),
        "qkv[0.0]": fixed("size is 1", 1, "-> qkv[0]"),
        "qkv[0.1]": fixed("size is 1", 1, "-> qkv[0]"),
        "qkv[0.2]": fixed("size is 1", 1, "-> qkv[0]"),
        "bias[0]": fixed("indexed by positions", 7, "-> bias[0]"),
    }
)
def relative_positions(n_in: int = 5, heads: int = 2, dim: int = 3, out: int = 4) -> Model:
    """A bias by relative position, looked up in a table of buckets (T5, Swin)."""
    shapes = {"qkv": f64(3, n_in, heads, dim), "bias": f64(7, heads), "o": f64(heads, dim, out)}

    def apply(params: Any, x: Any) -> Any:
        fused = jnp.einsum("btm,amhd->abthd", x, params["qkv"])
        q, k, v = (fused[i] for i in range(3))
        time = jnp.arange(x.shape[1])
        bias = params["bias"][time[:, None] - time[None, :] + 3]
        scores = jnp.einsum("bthd,bshd->bhts", q, k) + bias.transpose(2, 0, 1)[None]
        y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
        return jnp.einsum("bthd,hdm->btm", y, params["o"])

    return Model(apply, shapes, (data(2, 4, n_in),))


@network(
    {
        "encode": changes(
            "encode",
            7,
            "-> encode/{kernel[1],bias[0]} <- cross/{key,value}/kernel[0]",
        ),
        "encode[0]": interface("n_in", 4, "<- encode/kernel[0]"),
        "decode": grows(
            "decode",
            6,
            "-> {decode,down}/{kernel[1],bias[0]} cross/out/{kernel[2],bias[0]} <- "
            "cross/query/kernel[0] {up,head}/kernel[0]",
        ),
        "decode[0]": interface("n_in", 4, "<- decode/kernel[0]"),
        "cross/query[heads]": grows(
            "heads", 2, "-> cross/{query,key,value}/{kernel[1],bias[0]} <- cross/out/kernel[0]"
        ),
        "cross/query[head_dim]": changes(
            "",
            3,
            "-> cross/query/{kernel[2],bias[1]} -> cross/key/{kernel[2],bias[1]}",
        ),
        "cross/value[value_dim]": grows(
            "", 3, "-> cross/value/{kernel[2],bias[1]} <- cross/out/kernel[1]"
        ),
        "up": grows("hidden", 5, "-> up/{kernel[1],bias[0]} <- down/kernel[0]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def encoder_decoder(
    n_in: int = 4, encode: int = 7, decode: int = 6, heads: int = 2, hidden: int = 5, out: int = 3
) -> Model:
    """Cross-attention, dropout in train mode, sinusoidal positions."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, y: Any) -> Any:
            drop = nn.Dropout(0.5, deterministic=False)
            x = nn.Dense(encode, name="encode")(x)
            time = jnp.arange(x.shape[1], dtype=x.dtype)[:, None]
            wave = time / 100 ** (jnp.arange(encode, dtype=x.dtype)[None, :] / encode)
            x = x + jnp.sin(wave)[None]
            y = nn.Dense(decode, name="decode")(y)
            attend = nn.MultiHeadDotProductAttention(
                heads, dropout_rate=0.1, deterministic=False, qkv_features=3 * heads, name="cross"
            )
            y = y + attend(y, x)
            y = y + nn.Dense(decode, name="down")(drop(nn.relu(nn.Dense(hidden, name="up")(y))))
            return nn.Dense(out, name="head")(y)

    rngs = {"dropout": jax.random.key(2)}
    return linen(Net(), data(2, 5, n_in), data(2, 3, n_in, seed=1), rngs=rngs)


@network(
    {
        "t_up": grows("mix", 6, "-> t_up/{kernel[1],bias[0]} <- t_down/kernel[0]"),
        "t_down": interface(
            "tokens_in", 4, "-> t_down/{kernel[1],bias[0]} <- t_up/kernel[0]", changes=True
        ),
        "c_up": grows("hidden", 7, "-> c_up/{kernel[1],bias[0]} <- c_down/kernel[0]"),
        "c_down": interface(
            "channels", 5, "-> c_down/{kernel[1],bias[0]} <- {c_up,head}/kernel[0]"
        ),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def mixer(
    tokens_in: int = 4, channels: int = 5, mix: int = 6, hidden: int = 7, out: int = 3
) -> Model:
    """The token axis goes through Dense layers in the place of channels."""
    shapes = {
        "t_up": dense(tokens_in, mix),
        "t_down": dense(mix, tokens_in),
        "c_up": dense(channels, hidden),
        "c_down": dense(hidden, channels),
        "head": dense(channels, out),
    }

    def apply(params: Any, x: Any) -> Any:
        y = jax.nn.gelu(affine(params["t_up"], x.swapaxes(1, 2)))
        x = x + affine(params["t_down"], y).swapaxes(1, 2)
        x = x + affine(params["c_down"], jax.nn.gelu(affine(params["c_up"], x)))
        return affine(params["head"], jnp.mean(x, axis=1))

    return Model(apply, shapes, (data(2, tokens_in, channels),))


@network(
    {
        "inner": grows(
            "model", 6, "-> inner/{kernel[1],bias[0]} down[2] <- {router[0],up[1]} head/kernel[0]"
        ),
        "inner[0]": interface("n_in", 5, "<- inner/kernel[0]"),
        "router": changes("experts", 4, "-> router[1]"),
        "up[0]": grows("slots", 9, "-> {up,up_bias,down}[0]", copies="exactly once"),
        "up[2]": grows("hidden", 7, "-> {up[2],up_bias[1]} <- down[1]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def experts_by_one_hot(
    n_in: int = 5, model: int = 6, experts: int = 4, slots: int = 9, hidden: int = 7, out: int = 3
) -> Model:
    """Top-2 routing by one-hot dispatch (GShard), experts as a leading axis."""
    shapes = {
        "inner": dense(n_in, model),
        "router": f64(model, experts),
        "up": f64(slots, model, hidden),
        "up_bias": f64(slots, hidden),
        "down": f64(slots, hidden, model),
        "head": dense(model, out),
    }

    def apply(params: Any, x: Any) -> Any:
        x = jnp.tanh(affine(params["inner"], x))
        weights, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
        one_hot = jax.nn.one_hot(chosen, slots, dtype=x.dtype)
        combine = jnp.einsum("tk,tke->te", weights, one_hot)
        h = jnp.einsum("tm,emh->teh", x, params["up"]) + params["up_bias"][None]
        y = jnp.einsum("teh,ehm->tem", jax.nn.relu(h), params["down"])
        x = x + jnp.einsum("tem,te->tm", y, combine)
        return affine(params["head"], x)

    return Model(apply, shapes, (data(6, n_in),))


@network(
    {
        "inner": grows(
            "model", 6, "-> inner/{kernel[1],bias[0]} down[2] <- {router[0],up[1]} head/kernel[0]"
        ),
        "inner[0]": interface("n_in", 5, "<- inner/kernel[0]"),
        "router": changes("experts", 3, "-> router[1]"),
        "up": grows("hidden", 7, "-> up[2] <- down[1]"),
        "head": interface("out", 4, "-> head/{kernel[1],bias[0]}"),
        "up[0]": fixed("indexed by positions", 3, "-> {up,down}[0]"),
    }
)
def experts_by_ragged_dot(
    n_in: int = 5, model: int = 6, experts: int = 3, hidden: int = 7, out: int = 4
) -> Model:
    """Top-1 routing: tokens sorted by expert, ragged products, scattered back."""
    shapes = {
        "inner": dense(n_in, model),
        "router": f64(model, experts),
        "up": f64(experts, model, hidden),
        "down": f64(experts, hidden, model),
        "head": dense(model, out),
    }

    def apply(params: Any, x: Any) -> Any:
        x = jnp.tanh(affine(params["inner"], x))
        scores = jax.nn.softmax(x @ params["router"])
        expert = jnp.argmax(scores, axis=-1)
        order = jnp.argsort(expert)
        sizes = jnp.bincount(expert, length=experts)
        h = jax.nn.silu(lax.ragged_dot(x[order], params["up"], sizes))
        y = lax.ragged_dot(h, params["down"], sizes)
        y = jnp.zeros_like(y).at[order].set(y) * jnp.max(scores, axis=-1, keepdims=True)
        return affine(params["head"], x + y)

    return Model(apply, shapes, (data(6, n_in),))


@network(
    {
        "qkv[heads]": grows("heads", 2, "-> qkv/{kernel[1],bias[0]} <- o/kernel[0]"),
        "qkv[head_dim]": grows(
            "dim",
            3,
            "-> qkv/{kernel[1],bias[0]} -> qkv/{kernel[1],bias[0]} <- o/kernel[0]",
            copies="tied",
        ),
        "qkv[0]": interface("n_in", 4, "<- qkv/kernel[0]"),
        "o": interface("out", 5, "-> o/{kernel[1],bias[0]}"),
    }
)
def windows(n_in: int = 4, heads: int = 2, dim: int = 3, out: int = 5) -> Model:
    """Windows and heads merged into the batch axis and split again (Swin)."""
    inner = heads * dim
    shapes = {"qkv": dense(n_in, 3 * inner), "o": dense(inner, out)}

    def apply(params: Any, x: Any) -> Any:
        n, time, _ = x.shape
        x = jnp.roll(x, -1, axis=1)
        x = x.reshape(n * time // 2, 2, -1)
        fused = affine(params["qkv"], x).reshape(-1, 2, 3, heads, dim)
        q, k, v = (fused[:, :, i].transpose(0, 2, 1, 3).reshape(-1, 2, dim) for i in range(3))
        scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k))
        y = jnp.einsum("bts,bsd->btd", scores, v).reshape(-1, heads, 2, dim)
        y = y.transpose(0, 2, 1, 3).reshape(n, time, inner)
        return affine(params["o"], jnp.roll(y, 1, axis=1))

    return Model(apply, shapes, (data(2, 4, n_in),))


@network(
    {
        "qk[heads]": grows("heads", 2, "-> {qk,v}[1] <- o[0]"),
        "qk[head_dim]": grows("dim", 3, "-> qk[1] -> qk[1]"),
        "v[value_dim]": grows("value", 5, "-> v[1] <- o[0]"),
        "qk[0]": interface("n_in", 4, "<- {qk,v}[0]"),
        "o": interface("out", 5, "-> o[1]"),
    }
)
def unscaled_attention(
    n_in: int = 4, heads: int = 2, dim: int = 3, value: int = 5, out: int = 5
) -> Model:
    """Queries and keys from one array, whose product is not scaled (T5)."""
    shapes = {"qk": f64(n_in, 2 * heads * dim), "v": f64(n_in, heads * value)}
    shapes["o"] = f64(heads * value, out)

    def apply(params: Any, x: Any) -> Any:
        n, time, _ = x.shape
        q, k = jnp.split(x @ params["qk"], 2, axis=-1)
        q, k, v = (y.reshape(n, time, heads, -1) for y in (q, k, x @ params["v"]))
        scores = jax.nn.softmax(causal(jnp.einsum("bthd,bshd->bhts", q, k)))
        y = jnp.einsum("bhts,bshd->bthd", scores, v)
        return y.reshape(n, time, -1) @ params["o"]

    return Model(apply, shapes, (data(2, 4, n_in),))


@network(
    {
        "q[heads]": grows("heads", 2, "-> {q,k,v}[1] <- o[0]"),
        "v[value_dim]": grows("value", 5, "-> v[2] <- o[1]"),
        "q[head_dim]": grows("dim", 3, "-> q[2] -> k[2]"),
        "q[0]": interface("n_in", 4, "<- {q,k,v}[0]"),
        "o": interface("out", 5, "-> o[2]"),
    }
)
def capped_attention(
    n_in: int = 4, heads: int = 2, dim: int = 3, value: int = 5, out: int = 5
) -> Model:
    """Scores that tanh keeps within bounds, as in Gemma 2: their softmax is still positive."""
    shapes = {name: f64(n_in, heads, dim) for name in "qk"}
    shapes |= {"v": f64(n_in, heads, value), "o": f64(heads, value, out)}

    def apply(params: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[name]) for name in "qkv")
        scores = jnp.tanh(jnp.einsum("bthd,bshd->bhts", q, k) / 50) * 50
        time = x.shape[1]
        mask = jnp.tril(jnp.ones((time, time), bool))[None, None]
        weights = jax.nn.softmax(jnp.where(mask, scores, -2.3819763e38))
        return jnp.einsum("bhts,bshd,hdm->btm", weights, v, params["o"])

    return Model(apply, shapes, (data(2, 4, n_in),))
