"""Architectures of the table: transformers of text."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from architecture import Network, architecture, f32, linen
from architectures_vision import attention, mlp

WORDS = jnp.arange(10, dtype=jnp.int32).reshape(2, 5) * 7 % 11


def causal(words: Any) -> Any:
    return nn.make_causal_mask(words)


class Block(nn.Module):
    """A pre-norm block of GPT-2."""

    stream: int
    heads: int
    head_dim: int
    hidden: int

    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        attend = nn.MultiHeadDotProductAttention(
            self.heads,
            qkv_features=self.heads * self.head_dim,
            out_features=self.stream,
            name="attention",
        )
        x = x + attend(nn.LayerNorm(name="norm_a")(x), mask=mask)
        return x + mlp(nn.LayerNorm(name="norm_b")(x), self.stream, self.hidden, "mlp")


@architecture("BERT (post-norm, segments)")
def bert(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any, segments: Any) -> Any:
            x = nn.Embed(11, stream, name="words")(words)
            x = x + nn.Embed(2, stream, name="segments")(segments)
            x = x + nn.Embed(8, stream, name="positions")(jnp.arange(words.shape[1]))
            x = nn.LayerNorm(name="norm")(x)
            for i in range(layers):
                y = attention(x, stream, heads, head_dim, f"attention_{i}")
                x = nn.LayerNorm(name=f"norm_{i}_a")(x + y)
                x = nn.LayerNorm(name=f"norm_{i}_b")(x + mlp(x, stream, hidden, f"mlp_{i}"))
            return nn.Dense(3, name="head")(jnp.tanh(nn.Dense(stream, name="pooler")(x[:, 0])))

    return linen(Net(), WORDS, WORDS % 2)


@architecture("T5 (encoder and decoder, relative positions)")
def t5(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 1
) -> Network:
    class Net(nn.Module):
        def attend(self, x: Any, y: Any, bias: Any, name: str) -> Any:
            shape = (heads, head_dim)
            q, k, v = (
                nn.DenseGeneral(shape, use_bias=False, name=f"{name}_{part}")(z)
                for part, z in (("q", x), ("k", y), ("v", y))
            )
            scores = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) + bias)
            y = jnp.einsum("nhts,nshd->nthd", scores, v)
            return nn.DenseGeneral(stream, (-2, -1), use_bias=False, name=f"{name}_o")(y)

        def feed(self, x: Any, name: str) -> Any:
            x = nn.relu(nn.Dense(hidden, use_bias=False, name=f"{name}_up")(x))
            return nn.Dense(stream, use_bias=False, name=f"{name}_down")(x)

        @nn.compact
        def __call__(self, words: Any, answer: Any) -> Any:
            embed, at = nn.Embed(11, stream, name="embed"), jnp.arange(words.shape[1])
            apart = jnp.clip(at[:, None] - at[None] + 3, 0, 6)
            near = [
                nn.Embed(7, heads, name=f"near_{side}")(apart).transpose(2, 0, 1)
                for side in ("encoder", "decoder")
            ]
            later = jnp.where(at[:, None] >= at[None], 0.0, -1e9)
            x, y = embed(words), embed(answer)
            for i in range(layers):
                z = nn.RMSNorm(name=f"encoder_{i}_norm_a")(x)
                x = x + self.attend(z, z, near[0], f"encoder_{i}_self")
                x = x + self.feed(nn.RMSNorm(name=f"encoder_{i}_norm_b")(x), f"encoder_{i}_mlp")
            x = nn.RMSNorm(name="encoder_norm")(x)
            for i in range(layers):
                z = nn.RMSNorm(name=f"decoder_{i}_norm_a")(y)
                y = y + self.attend(z, z, near[1] + later, f"decoder_{i}_self")
                z = nn.RMSNorm(name=f"decoder_{i}_norm_b")(y)
                y = y + self.attend(z, x, 0.0, f"decoder_{i}_cross")
                y = y + self.feed(nn.RMSNorm(name=f"decoder_{i}_norm_c")(y), f"decoder_{i}_mlp")
            return embed.attend(nn.RMSNorm(name="decoder_norm")(y))

    return linen(Net(), WORDS, WORDS[:, ::-1])


@architecture("GPT-2 (tied embedding, learned positions)")
def gpt_2(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            embed = nn.Embed(11, stream, name="words")
            positions = nn.Embed(8, stream, name="positions")
            x = embed(words) + positions(jnp.arange(words.shape[1]))
            for i in range(layers):
                x = Block(stream, heads, head_dim, hidden, name=f"layers_{i}")(x, causal(words))
            return embed.attend(nn.LayerNorm(name="norm")(x))

    return linen(Net(), WORDS)


@architecture("GPT, its layers in a loop (nn.scan)")
def gpt_scanned(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="words")(words)
            block = Block(stream, heads, head_dim, hidden, name="layers")

            def step(block: Any, x: Any, _: None) -> Any:
                return block(x, causal(words)), None

            over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(step, length=layers, **over)(block, x, None)
            return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))

    return linen(Net(), WORDS)


@architecture("GPT, rematerialized (nn.remat)")
def gpt_remat(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="words")(words)
            for i in range(layers):
                block = nn.remat(Block)(stream, heads, head_dim, hidden, name=f"layers_{i}")
                x = block(x, causal(words))
            return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))

    return linen(Net(), WORDS)


@architecture("GPT-J (parallel branches, one norm)")
def gpt_j(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="words")(words)
            for i in range(layers):
                y = nn.LayerNorm(name=f"norm_{i}")(x)
                z = attention(y, stream, heads, head_dim, f"attention_{i}")
                x = x + z + mlp(y, stream, hidden, f"mlp_{i}")
            return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))

    return linen(Net(), WORDS)


def rotated(x: Any) -> Any:
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 100.0 ** -(jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


@architecture("Llama (rotary, grouped queries, SwiGLU)")
def llama(
    stream: int = 8,
    kv_heads: int = 2,
    groups: int = 2,
    head_dim: int = 4,
    hidden: int = 16,
    layers: int = 2,
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="embed")(words)
            for i in range(layers):
                y, heads = (
                    nn.RMSNorm(name=f"norm_{i}_a")(x),
                    (kv_heads * groups, kv_heads, kv_heads),
                )
                q, k, v = (
                    nn.DenseGeneral((n, head_dim), use_bias=False, name=f"{part}_{i}")(y)
                    for n, part in zip(heads, "qkv", strict=True)
                )
                y = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
                x = x + nn.DenseGeneral(stream, (-2, -1), use_bias=False, name=f"o_{i}")(y)
                y = nn.RMSNorm(name=f"norm_{i}_b")(x)
                gate, up = (
                    nn.Dense(hidden, use_bias=False, name=f"{n}_{i}")(y) for n in ("gate", "up")
                )
                x = x + nn.Dense(stream, use_bias=False, name=f"down_{i}")(nn.silu(gate) * up)
            return nn.Dense(11, use_bias=False, name="head")(nn.RMSNorm(name="norm")(x))

    return linen(Net(), WORDS)


@architecture("Switch (experts, top 1)")
def switch(stream: int = 8, experts: int = 3, hidden: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="embed")(words)
            for i in range(layers):
                y = nn.LayerNorm(name=f"norm_{i}")(x)
                gates = jax.nn.softmax(nn.Dense(experts, use_bias=False, name=f"router_{i}")(y))
                chosen = jax.nn.one_hot(jnp.argmax(gates, -1), experts) * gates
                start = nn.initializers.normal(0.3)
                up = self.param(f"up_{i}", start, (experts, stream, hidden))
                down = self.param(f"down_{i}", start, (experts, hidden, stream))
                h = nn.relu(jnp.einsum("ntm,emh->nteh", y, up))
                x = x + jnp.einsum("nteh,ehm,nte->ntm", h, down, chosen)
            return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))

    return linen(Net(), WORDS)


@architecture("Linear attention (kernel features)", "JAX")
def linear_attention(stream: int = 8, heads: int = 2, head_dim: int = 4) -> Network:
    shapes = {name: f32(stream, heads, head_dim) for name in "qkv"}
    shapes |= {"embed": f32(11, stream), "o": f32(heads, head_dim, stream), "head": f32(stream, 11)}

    def apply(p: Any, words: Any) -> Any:
        x = p["embed"][words]
        q, k, v = (jnp.einsum("ntm,mhd->nthd", x, p[name]) for name in "qkv")
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        sums = jnp.cumsum(jnp.einsum("nthd,nthv->nthdv", k, v), axis=1)
        over = jnp.einsum("nthd,nthd->nth", q, jnp.cumsum(k, axis=1))
        y = jnp.einsum("nthd,nthdv->nthv", q, sums) / over[..., None]
        return (x + jnp.einsum("nthv,hvm->ntm", y, p["o"])) @ p["head"]

    return Network(apply, shapes, (WORDS,))
