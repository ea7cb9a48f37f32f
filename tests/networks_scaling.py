"""Networks that compute with the size of a width, for the tests of recipes.

Each takes the size that grows, ``n``, and the epsilon of its norms. Epsilons are large here, so
that a wrong one shows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Model, affine, data, dense, f64, linen, tokens

EPSILON = 3e-3
Builder = Callable[..., Model]


def weighted(shapes: Any, apply: Callable[..., Any], *inputs: Any) -> Model:
    return Model(apply, shapes, inputs)


def causal(scores: Any) -> Any:
    time = scores.shape[-1]
    mask = jnp.tril(jnp.ones((time, time), bool))[None, None]
    return jnp.where(mask, scores, jnp.finfo(scores.dtype).min)


def row(vector: Any, ndim: int) -> Any:
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def layer_norm(norm: Any, x: Any, epsilon: float, fast: bool = False) -> Any:
    mean = jnp.mean(x, -1, keepdims=True)
    if fast:
        variance = jnp.maximum(jnp.mean(x * x, -1, keepdims=True) - mean**2, 0)
    else:
        variance = jnp.var(x, -1, keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + epsilon)
    return y * row(norm["scale"], x.ndim) + row(norm["bias"], x.ndim)


def rms_norm(scale: Any, x: Any, epsilon: float) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * row(scale, x.ndim)


def attend(params: Any, x: Any, score: Callable[[Any, Any], Any]) -> Any:
    """Attention with projections [model, heads, head_dim]."""
    q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[name]) for name in "qkv")
    k = k + params["k_bias"][None, None]
    weights = jax.nn.softmax(causal(score(q, k)))
    return jnp.einsum("bhts,bshd,hdm->btm", weights, v, params["o"])


def attention_shapes(model: int, heads: int, dim: int) -> dict[str, Any]:
    projections = {name: f64(model, heads, dim) for name in "qk"}
    return (
        projections
        | {"v": f64(model, heads, 3), "o": f64(heads, 3, model)}
        | {"k_bias": f64(heads, dim)}
    )


def scores(scale: Callable[[int], float], where: str = "scores") -> Builder:
    """Attention by hand, with its scale on the scores, on the queries, or on both factors."""

    def build(n: int = 11, epsilon: float = 0) -> Model:
        def score(q: Any, k: Any) -> Any:
            factor = scale(q.shape[-1])
            if where in ("queries", "both"):
                q = q * factor
            if where == "both":
                k = k * factor
            s = jnp.einsum("bthd,bshd->bhts", q, k)
            return s * factor if where == "scores" else s

        shapes = attention_shapes(5, 3, n)
        return weighted(shapes, lambda p, x: attend(p, x, score), data(2, 7, 5))

    return build


def flax_attention(n: int = 4, epsilon: float = 0) -> Model:
    attention = nn.MultiHeadDotProductAttention(3, qkv_features=3 * n, name="attention")
    return linen(attention, data(2, 7, 5))


def library_attention(n: int = 4, epsilon: float = 0) -> Model:
    def apply(params: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[name]) for name in "qkv")
        y = jax.nn.dot_product_attention(q, k, v)
        return jnp.einsum("bthd,hdm->btm", y, params["o"])

    shapes = {"q": f64(5, 3, n), "k": f64(5, 3, n), "v": f64(5, 3, n), "o": f64(3, n, 2)}
    return weighted(shapes, apply, data(2, 7, 5))


def keys_as_values(n: int = 6, epsilon: float = 0) -> Model:
    """The scale of the keys is undone in the output projection."""

    def apply(params: Any, x: Any) -> Any:
        q, k = x @ params["q"], x @ params["k"]
        return jax.nn.softmax(q @ k.swapaxes(1, 2) * n**-0.5) @ k @ params["o"]

    return weighted({"q": f64(5, n), "k": f64(5, n), "o": f64(n, 2)}, apply, data(2, 7, 5))


def summed_scores(n: int = 11, epsilon: float = 0) -> Model:
    """Scores as a sum of products in the place of a contraction."""

    def score(q: Any, k: Any) -> Any:
        s = (q[:, :, None] * k[:, None]).sum(-1) * q.shape[-1] ** -0.5
        return s.transpose(0, 3, 1, 2)

    shapes = attention_shapes(5, 3, n)
    return weighted(shapes, lambda p, x: attend(p, x, score), data(2, 7, 5))


def fused_attention(n: int = 6, epsilon: float = 0) -> Model:
    """Queries and keys from one kernel: if new units of both were zero, neither would learn."""

    def apply(params: Any, x: Any) -> Any:
        q, k, v = jnp.moveaxis(jnp.einsum("btm,mchd->btchd", x, params["qkv"]), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5)
        return jnp.einsum("bhts,bshd,hdm->btm", weights, v, params["o"])

    shapes = {"qkv": f64(5, 3, 2, n), "o": f64(2, n, 4)}
    return weighted(shapes, apply, data(2, 7, 5))


def fused_projection(n: int = 6, epsilon: float = 0) -> Model:
    """Queries, keys and values side by side, ``q | k | v``: only the keys are rescaled."""

    def apply(params: Any, x: Any) -> Any:
        qkv = affine(params["qkv"], x).reshape(2, 7, 3, 2, -1)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q * q.shape[-1] ** -0.5, k))
        return jnp.einsum("bhts,bshd,hdm->btm", weights, v, params["o"])

    shapes = {"qkv": dense(5, 3 * 2 * n), "o": f64(2, n, 4)}
    return weighted(shapes, apply, data(2, 7, 5))


class Block(nn.Module):
    """A transformer block, its norms before or after the layers."""

    norm: Callable[..., Any]
    post: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        def residual(x: Any, norm: Any, layer: Callable[[Any], Any]) -> Any:
            return norm(x + layer(x)) if self.post else x + layer(norm(x))

        model = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=6, out_features=model)
        x = residual(
            x, self.norm(), lambda y: attention(y, mask=nn.make_causal_mask(jnp.ones(y.shape[:2])))
        )
        up, down = nn.Dense(7), nn.Dense(model)
        return residual(x, self.norm(), lambda y: down(nn.gelu(up(y))))


def transformer(
    norm: Any = nn.LayerNorm,
    post: bool = False,
    tied: bool = False,
    scale: bool = False,
    **options: Any,
) -> Builder:
    """A small language model."""

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        make = functools.partial(norm, epsilon=epsilon, **options)

        class Net(nn.Module):
            @nn.compact
            def __call__(self, words: Any) -> Any:
                embed = nn.Embed(11, n)
                x = embed(words) * (n**0.5 if scale else 1)
                x = x + self.param("positions", nn.initializers.normal(), (1, 5, n))
                x = Block(make, post)(x)
                x = make()(x)
                return embed.attend(x) if tied else nn.Dense(9)(x)

        return linen(Net(), tokens(11, 3, 5))

    return build


def scanned(n: int = 6, epsilon: float = EPSILON) -> Model:
    """Blocks with stacked parameters under a scan, rematerialized."""
    make = functools.partial(nn.LayerNorm, epsilon=epsilon)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> tuple[Any, None]:
            return nn.remat(Block)(make)(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, n)(words)
            scan = nn.scan(
                Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = scan()(x, None)
            return nn.Dense(9)(make()(x))

    return linen(Net(), tokens(11, 3, 5))


def llama(tied: bool, learned: str = "scale", post: bool = False) -> Builder:
    """RMSNorm and SwiGLU, without rotary embeddings; the norm's scale is w, 1 + w, or one.

    With ``post``, there is another norm behind each branch.
    """

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        shapes: dict[str, Any] = {"embed": f64(11, n), "attention": attention_shapes(n, 2, 3)}
        shapes |= {"gate": f64(n, 7), "up": f64(n, 7), "down": f64(7, n)}
        if learned:
            shapes |= {f"norm_{i}": f64(n) for i in range(5 if post else 3)}
        if not tied:
            shapes["head"] = f64(n, 9)

        def apply(params: Any, words: Any) -> Any:
            def norm(i: int, x: Any) -> Any:
                w = params[f"norm_{i}"] if learned else jnp.ones(n)
                return rms_norm(1 + w if learned == "1 + scale" else w, x, epsilon)

            x = params["embed"][words]
            x = x * n**0.5 if learned == "1 + scale" else x  # as Gemma does
            score = lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k)  # noqa: E731
            y = attend(params["attention"], norm(0, x), score)
            x = x + (norm(3, y) if post else y)
            y = norm(1, x)
            y = (jax.nn.silu(y @ params["gate"]) * (y @ params["up"])) @ params["down"]
            x = x + (norm(4, y) if post else y)
            y = norm(2, x)
            return y @ params["embed"].T if tied else y @ params["head"]

        return weighted(shapes, apply, tokens(11, 3, 5))

    return build


def scanned_gemma(n: int = 6, epsilon: float = EPSILON) -> Model:
    """Norms with scales 1 + w before and behind each of three layers, under a scan; tied."""

    def apply(params: Any, words: Any) -> Any:
        def norm(w: Any, x: Any) -> Any:
            return rms_norm(1 + w, x, epsilon)

        def layer(x: Any, p: Any) -> tuple[Any, None]:
            y = jnp.tanh(norm(p["before"], x) @ p["up"]) @ p["down"]
            return x + norm(p["behind"], y), None

        x = params["embed"][words] * n**0.5
        x, _ = jax.lax.scan(layer, x, params["layers"])
        return norm(params["norm"], x) @ params["embed"].T

    norms = {"before": f64(3, n), "behind": f64(3, n)}
    layers = {"up": f64(3, n, 7), "down": f64(3, 7, n)} | norms
    shapes = {"embed": f64(11, n), "layers": layers, "norm": f64(n)}
    return weighted(shapes, apply, tokens(11, 3, 5))


def stacked_experts(n: int = 6, epsilon: float = EPSILON) -> Model:
    """A stream that experts write, their outputs stacked and summed with weights."""

    def apply(params: Any, x: Any) -> Any:
        x = x @ params["write"]
        y = rms_norm(params["norm"], x, epsilon)
        outputs = jnp.stack([jax.nn.silu(y @ up) @ down for up, down in params["experts"]], 1)
        x = x + jnp.einsum("te,ted->td", jax.nn.softmax(y @ params["router"]), outputs)
        return rms_norm(params["norm"], x, epsilon) @ params["head"]

    shapes = {"write": f64(4, n), "norm": f64(n), "experts": [(f64(n, 7), f64(7, n))] * 3}
    return weighted(shapes | {"router": f64(n, 3), "head": f64(n, 3)}, apply, data(5, 4))


def sorted_experts(n: int = 6, epsilon: float = EPSILON) -> Model:
    """A stream that experts write: tokens are sorted by expert, and multiplied in groups."""

    def apply(params: Any, x: Any) -> Any:
        x = x @ params["write"]
        y = rms_norm(params["norm"], x, epsilon)
        weights, chosen = jax.lax.top_k(jax.nn.softmax(y @ params["router"]), 2)
        order = jnp.argsort(chosen.ravel())
        counts = jnp.bincount(chosen.ravel(), length=3)
        hidden = jax.lax.ragged_dot(y[order // 2], params["up"], counts)
        outputs = jax.lax.ragged_dot(jax.nn.silu(hidden), params["down"], counts)
        outputs = outputs * weights.ravel()[order][:, None]
        x = x + jnp.zeros_like(x).at[order // 2].add(outputs)
        return rms_norm(params["norm"], x, epsilon) @ params["head"]

    shapes = {"write": f64(4, n), "norm": f64(n), "up": f64(3, n, 7), "down": f64(3, 7, n)}
    return weighted(shapes | {"router": f64(n, 3), "head": f64(n, 3)}, apply, data(5, 4))


def read_twice(n: int = 6, epsilon: float = EPSILON) -> Model:
    """A norm's scale is 1 + w, and w is read without the 1, too: no multiple of it suits both."""

    def apply(params: Any, x: Any) -> Any:
        x = affine(params["write"], x)
        y = rms_norm(1 + params["w"], x, epsilon) + row(params["w"], x.ndim)
        return affine(params["head"], y)

    shapes = {"write": dense(4, n), "w": f64(n), "head": dense(n, 3)}
    return weighted(shapes, apply, data(5, 4))


def stream(norm: Callable[..., Any], **more: Any) -> Builder:
    """A stream written twice and read behind a norm; leaves of size n are the norm's."""

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        shapes = {"write": dense(4, n), "up": dense(n, 7), "down": dense(7, n), "head": dense(n, 3)}
        shapes |= {name: f64(n) for name in more}

        def apply(params: Any, x: Any) -> Any:
            x = affine(params["write"], x)
            x = x + affine(params["down"], jnp.tanh(affine(params["up"], norm(params, x, epsilon))))
            return affine(params["head"], norm(params, x, epsilon))

        return weighted(shapes, apply, data(5, 4))

    return build


def unusual_stream(n: int = 6, epsilon: float = EPSILON) -> Model:
    """A stream that a factor writes, mixed by a Fourier transform, and read without a norm.

    A branch attends to a normalized array, before which there are no data. Another one is zero.
    """
    vectors = ("number", "real", "imaginary", "scale", "bias", "scale_of", "bias_of")
    shapes = {name: f64(n) for name in vectors} | {"latents": f64(3, n)}
    shapes |= {"key": dense(n, 4), "up": dense(n, 7), "down": dense(7, n), "head": dense(n, 3)}
    shapes |= {"mix": dense(n, n)}

    def apply(params: Any, x: Any, queries: Any) -> Any:
        x = x[:, None] * params["number"][None]
        norm = {"scale": params["scale_of"], "bias": params["bias_of"]}
        keys = affine(params["key"], layer_norm(norm, params["latents"], epsilon))
        x = x + jax.nn.softmax(queries @ keys.T) @ params["latents"] + 0.0 * x
        x = x + affine(params["mix"], x)
        filter = params["real"] + 1j * params["imaginary"]
        y = jnp.fft.rfft(layer_norm(params, x, epsilon), axis=0) * filter[None]
        y = affine(params["up"], jnp.fft.irfft(y, n=5, axis=0))
        return affine(params["head"], x + affine(params["down"], jnp.tanh(y)))

    return weighted(shapes, apply, data(5), data(5, 4))


def layer_scale(scanned: bool = False) -> Builder:
    """LayerNorm before two branches whose outputs are scaled, as in a ViT that is very deep."""

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        def layer(x: Any, p: Any) -> Any:
            y = jax.nn.relu(affine(p["up"], layer_norm(p["norm"], x, epsilon)))
            x = x + (affine(p["mid"], y) + y @ p["skip"]) * row(p["scale"], x.ndim)
            return x + row(p["gain"], x.ndim) * affine(p["mix"], layer_norm(p["norm"], x, epsilon))

        def apply(params: Any, x: Any) -> Any:
            x = affine(params["write"], x)
            if scanned:
                x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
            else:
                for p in params["layers"]:
                    x = layer(x, p)
            return affine(params["head"], layer_norm(params["norm"], x, epsilon))

        norm = {"scale": f64(n), "bias": f64(n)}
        one = {"norm": norm, "up": dense(n, 7), "mid": dense(7, n), "skip": f64(7, n)}
        one |= {"scale": f64(n), "gain": f64(n), "mix": dense(n, n)}
        layers = jax.tree.map(lambda leaf: f64(2, *leaf.shape), one) if scanned else [one]
        shapes = {"write": dense(4, n), "layers": layers, "norm": norm, "head": dense(n, 3)}
        return weighted(shapes, apply, data(5, 4))

    return build


def scaled_sum(twice: bool = False) -> Builder:
    """A sum with a bias in each layer, times a number that follows from what is summed over."""

    def build(n: int = 6, epsilon: float = 0) -> Model:
        def layer(x: Any, p: Any) -> Any:
            h = jnp.tanh(x @ p["up"])
            y = x + (h @ p["down"] + p["bias"][None]) * h.shape[-1] ** -0.5
            return y + p["bias"][None] if twice else y, None

        shapes = {"up": f64(2, 3, n), "down": f64(2, n, 3), "bias": f64(2, 3)}
        return weighted(shapes, lambda p, x: jax.lax.scan(layer, x, p)[0], data(4, 3))

    return build


def unit_norm(params: Any, x: Any, epsilon: float) -> Any:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def scale_norm(params: Any, x: Any, epsilon: float) -> Any:
    """Of length sqrt(n), however it is written."""
    squares = jnp.sum(x**2, -1, keepdims=True)
    return (
        row(params["g"], x.ndim) * x * (x.shape[-1] ** 0.5) / jnp.maximum(jnp.sqrt(squares), 1e-6)
    )


def softmaxed(params: Any, x: Any, epsilon: float) -> Any:
    return jax.nn.softmax(x)


def slow_layer_norm(params: Any, x: Any, epsilon: float) -> Any:
    return layer_norm(params, x, epsilon)


def fast_layer_norm(params: Any, x: Any, epsilon: float) -> Any:
    return layer_norm(params, x, epsilon, fast=True)


def bare_layer_norm(params: Any, x: Any, epsilon: float) -> Any:
    return jax.nn.standardize(x, epsilon=epsilon)


def hidden(*layers: str) -> Builder:
    """A hidden layer, with norms and activations in some order."""
    activations = {"relu": jax.nn.relu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        shapes = {"a": dense(4, n), "b": dense(n, 3), "scale": f64(n), "bias": f64(n)}

        def apply(params: Any, x: Any) -> Any:
            x = affine(params["a"], x)
            for layer in layers:
                is_norm = layer == "norm"
                x = layer_norm(params, x, epsilon) if is_norm else activations[layer](x)
            return affine(params["b"], x)

        return weighted(shapes, apply, data(5, 4))

    return build


def equinox_norm(n: int = 6, epsilon: float = EPSILON) -> Model:
    eqx = pytest.importorskip("equinox", reason="a test of Equinox's LayerNorm")

    class Net(eqx.Module):
        write: Any
        norm: Any
        head: Any

        def __call__(self, x: Any) -> Any:
            return jax.vmap(lambda x: self.head(self.norm(self.write(x))))(x)

    keys = jax.random.split(jax.random.key(0))
    net = Net(
        eqx.nn.Linear(4, n, key=keys[0]),
        eqx.nn.LayerNorm(n, epsilon),
        eqx.nn.Linear(n, 3, key=keys[1]),
    )
    arrays, static = eqx.partition(net, eqx.is_array)
    shapes = jax.tree.map(lambda x: f64(*x.shape), arrays)
    return Model(lambda p, x: eqx.combine(p, static)(x), shapes, (data(5, 4),))


def haiku_norm(kind: str) -> Builder:
    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        hk = pytest.importorskip("haiku", reason="a test of Haiku's norms")

        def forward(x: Any) -> Any:
            with jax.numpy_rank_promotion("allow"):
                if kind == "layer":
                    norm = hk.LayerNorm(-1, True, True, eps=epsilon, name="norm")
                else:
                    norm = hk.RMSNorm(-1, eps=epsilon, name="norm")
                x = hk.Linear(n, name="write")(x)
                x = x + hk.Linear(n, name="down")(jax.nn.relu(hk.Linear(7, name="up")(norm(x))))
                return hk.Linear(3, name="head")(norm(x))

        net = hk.without_apply_rng(hk.transform(forward))
        x = data(5, 4)
        return weighted(jax.eval_shape(net.init, jax.random.key(0), x), net.apply, x)

    return build


def vit(n: int = 6, epsilon: float = EPSILON) -> Model:
    """Patches, a class token, learned positions; the head reads the token."""
    make = functools.partial(nn.LayerNorm, epsilon=epsilon)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, images: Any) -> Any:
            x = nn.Conv(n, (2, 2), (2, 2), name="patches")(images)
            x = x.reshape(x.shape[0], -1, n)
            token = self.param("token", nn.initializers.normal(), (1, 1, n))
            x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
            x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], n))
            return nn.Dense(5)(make()(Block(make)(x))[:, 0])

    return linen(Net(), data(3, 4, 6, 2))


def mixed(
    norm: str, low: Any, scaled: bool, n: int = 8, head_dim: int = 4, layers: int = 1
) -> Model:
    """A decoder in mixed precision: weights in float32, products of arrays in a narrower dtype.

    Norms and softmax are computed in single precision, which is double precision if ``low`` is.
    """
    high = jnp.promote_types(jnp.float32, low)

    def normalize(p: Any, x: Any) -> Any:
        x = x.astype(high)
        if norm == "rms":
            return rms_norm(p["scale"], x, EPSILON).astype(low)
        return layer_norm(p, x, EPSILON).astype(low)

    def product(terms: str, x: Any, w: Any) -> Any:
        return jnp.einsum(terms, x, w.astype(low), preferred_element_type=high).astype(low)

    def apply(p: Any, t: Any) -> Any:
        x = p["embed"].astype(low)[t]
        if scaled:
            x = x * jnp.asarray(np.sqrt(x.shape[-1]), low)
        for layer in p["layers"]:
            h = normalize(layer["norm"], x)
            q, k, v = (product("btm,mhd->bthd", h, layer[name]) for name in "qkv")
            q = q * jnp.asarray(q.shape[-1] ** -0.5, low)
            s = causal(jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=high))
            weights = jax.nn.softmax(s).astype(low)
            x = x + product("bthd,hdm->btm", jnp.einsum("bhts,bshd->bthd", weights, v), layer["o"])
        x = normalize(p["last"], x)
        return jnp.einsum("btm,vm->btv", x, p["embed"].astype(low)).astype(high)

    def f32(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32 if low == jnp.bfloat16 else low)

    heads = {name: f32(n, 2, head_dim) for name in "qk"} | {"v": f32(n, 2, 3), "o": f32(2, 3, n)}
    last = {"scale": f32(n)} | ({} if norm == "rms" else {"bias": f32(n)})
    shapes = {"embed": f32(11, n), "last": last, "layers": [heads | {"norm": last}] * layers}
    return weighted(shapes, apply, tokens(11, 2, 5))


# What grows ---------------------------------------------------------------------------------------


# New units that are zero, or copies ---------------------------------------------------------------


def divergence(shift: float = 0, unit_rows: bool = False) -> Builder:
    """A variational autoencoder: codes with noise, and how far they are from normal ones."""

    def build(n: int = 6, epsilon: float = 0) -> Model:
        def apply(params: Any, x: Any, noise: Any) -> Any:
            mean, log = affine(params["mean"], x), affine(params["log"], x)
            codes = mean + jnp.exp(log / 2) * noise
            kernel = params["read"]
            if unit_rows:
                kernel = kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)
            distance = -0.5 * jnp.sum(1 + log - (mean - shift) ** 2 - jnp.exp(log), -1)
            return jnp.tanh(codes @ kernel) + distance[:, None]

        shapes = {"mean": dense(4, n), "log": dense(4, n), "read": f64(n, 3)}
        return weighted(shapes, apply, data(3, 4), data(3, 1, seed=1))

    return build


def factorization_machine(n: int = 6, epsilon: float = 0) -> Model:
    """Embeddings times each other in pairs, beside layers that multiply them by what they make."""

    def apply(params: Any, ids: Any) -> Any:
        e = params["embed"][ids]
        pairs = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(-1)
        flat = e.reshape(len(ids), -1)
        crossed = flat * affine(params["cross"], flat) + flat
        return affine(params["deep"], crossed) + pairs[:, None]

    shapes = {"embed": f64(10, n), "cross": dense(3 * n, 3 * n), "deep": dense(3 * n, 2)}
    return weighted(shapes, apply, tokens(10, 5, 3))


def demodulated(n: int = 6, epsilon: float = EPSILON) -> Model:
    """Kernels for each example, of unit length: one convolution in groups, as StyleGAN2 has it."""

    def apply(params: Any, style: Any, x: Any) -> Any:
        scale = affine(params["style"], style)
        kernels = params["kernel"][None] * scale[:, None, None, :, None]
        squares = (kernels**2).sum((1, 2, 3), keepdims=True)
        kernels = kernels * jax.lax.rsqrt(squares + epsilon)

        def convolve(x: Any, kernel: Any) -> Any:
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers
            )[0]

        return jax.vmap(convolve)(affine(params["write"], x), kernels)

    shapes = {"style": dense(4, n), "write": dense(2, n), "kernel": f64(3, 3, n, 5)}
    return weighted(shapes, apply, data(2, 4), data(2, 3, 3, 2, seed=1))


def capsules(n: int = 6, epsilon: float = EPSILON) -> Model:
    """Vectors that are squashed to a length below one."""

    def squash(x: Any) -> Any:
        square = jnp.sum(x * x, -1, keepdims=True)
        return square / (1 + square) * x * jax.lax.rsqrt(square + epsilon)

    def apply(params: Any, x: Any) -> Any:
        votes = jnp.einsum("bid,idjo->bijo", squash(affine(params["write"], x)), params["votes"])
        return squash(jnp.einsum("bij,bijo->bjo", jnp.full((2, 3, 2), 1 / 3), votes))

    shapes = {"write": dense(4, n), "votes": f64(3, n, 2, 5)}
    return weighted(shapes, apply, data(2, 3, 4))


def towers(n: int = 6, epsilon: float = EPSILON) -> Model:
    """Two vectors of unit length are only multiplied with each other, as in CLIP."""

    def apply(params: Any, x: Any, y: Any) -> Any:
        a, b = affine(params["one"], x), affine(params["other"], y)
        a, b = (v * jax.lax.rsqrt((v * v).sum(-1, keepdims=True) + epsilon) for v in (a, b))
        return a @ b.T

    return weighted({"one": dense(4, n), "other": dense(3, n)}, apply, data(5, 4), data(5, 3))


def latents(joint: bool = False) -> Builder:
    """Normalized latents, and others from the same kernel; ``joint``, also normalized together."""

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        def apply(params: Any, x: Any) -> Any:
            written = affine(params["write"], x)
            own, beside = jnp.split(written, [n], -1)
            out = jnp.tanh(rms_norm(params["g"], own, epsilon) @ params["up"])
            if joint:
                norm = jnp.sqrt((written * written).sum(-1, keepdims=True))
                own, beside = own / norm, beside / norm
                out = out + own @ params["down"]
            return out + jnp.tanh(beside @ params["beside"])

        shapes = {"write": dense(4, n + 3), "g": f64(n), "up": f64(n, 2), "beside": f64(3, 2)}
        shapes |= {"down": f64(n, 2)} if joint else {}
        return weighted(shapes, apply, data(5, 4))

    return build


def relative_scores(n: int = 6, epsilon: float = 0) -> Model:
    """Scores of queries with keys and with positions, scaled together, as in Transformer-XL."""

    def apply(params: Any, x: Any) -> Any:
        q, k, positions = x @ params["q"], x @ params["k"], data(5, 3) @ params["r"]
        content = jnp.einsum("btd,bsd->bts", q + row(params["u"], 3), k)
        position = jnp.einsum("btd,sd->bts", q + row(params["v"], 3), positions)
        weights = jax.nn.softmax((content + position) / np.sqrt(n))
        return jnp.einsum("bts,bsd->btd", weights, x @ params["o"])

    shapes = {"q": f64(4, n), "k": f64(4, n), "r": f64(3, n), "u": f64(n), "v": f64(n)}
    return weighted(shapes | {"o": f64(4, 3)}, apply, data(2, 5, 4))


def norm_of_all_heads(n: int = 3, epsilon: float = EPSILON) -> Model:
    """Queries of all heads under one norm, as in OLMo 2; all heads share a mask."""

    def apply(params: Any, x: Any) -> Any:
        q = rms_norm(params["g"], x @ params["q"], epsilon)
        scores = jnp.einsum("bthd,bsd->bhts", q.reshape(*q.shape[:2], -1, 2), x @ params["k"])
        out = jnp.einsum("bhts,bsd->bthd", jax.nn.softmax(causal(scores)), x @ params["v"])
        return jnp.einsum("bthd,hdm->btm", out, params["o"])

    shapes = {"q": f64(4, 2 * n), "k": f64(4, 2), "v": f64(4, 2), "g": f64(2 * n)}
    return weighted(shapes | {"o": f64(n, 2, 3)}, apply, data(2, 5, 4))


def learned_queries(skip: bool, spread: bool = False) -> Builder:
    """Queries of their own under a norm; with a ``skip``, what they find is added to them."""

    def build(n: int = 6, epsilon: float = EPSILON) -> Model:
        def apply(params: Any, x: Any) -> Any:
            q = jnp.broadcast_to(params["queries"], (2, 3, n)) if spread else params["queries"]
            asked = layer_norm(params["norm"], q, epsilon) @ params["q"]
            found = jax.nn.softmax(asked @ (x @ params["k"]).mT) @ (x @ params["v"])
            out = q[None] + found @ params["o"] if skip else found
            return layer_norm(params["last"], out, epsilon) @ params["read"] if skip else out

        shapes = {"queries": f64(3, n), "norm": {"scale": f64(n), "bias": f64(n)}}
        shapes |= {"q": f64(n, 4), "k": f64(4, 4), "v": f64(4, 3)}
        after = {"o": f64(3, n), "last": shapes["norm"], "read": f64(n, 2)} if skip else {}
        return weighted(shapes | after, apply, data(2, 5, 4))

    return build


def ensemble(n: int = 6, epsilon: float = 0) -> Model:
    """The least of several estimates, as of critics."""

    def apply(params: Any, x: Any) -> Any:
        hidden = jnp.tanh(jnp.einsum("bi,nih->nbh", x, params["read"]))
        return jnp.einsum("nbh,nh->nb", hidden, params["write"]).min(0)

    return weighted({"read": f64(n, 4, 3), "write": f64(n, 3)}, apply, data(5, 4))


def codebook(told: bool = False) -> Builder:
    """The code that is closest to each vector; ``told``, its number besides."""

    def build(n: int = 6, epsilon: float = 0) -> Model:
        def apply(params: Any, x: Any) -> Any:
            z, codes = affine(params["write"], x), params["codes"]
            distances = (z**2).sum(-1, keepdims=True) - 2 * z @ codes.T + (codes**2).sum(-1)[None]
            closest = distances.argmin(-1)
            found = z + jax.lax.stop_gradient(codes[closest] - z)
            return affine(params["read"], found) + (closest[:, None] if told else 0)

        shapes = {"write": dense(4, 3), "codes": f64(n, 3), "read": dense(3, 2)}
        return weighted(shapes, apply, data(7, 4))

    return build


@dataclasses.dataclass(frozen=True)
class Case:
    """A network whose size grows by a recipe, to sizes, along a place where it occurs."""

    build: Builder
    place: tuple[str, int]
    strategy: str
    sizes: tuple[int, ...]
    also: tuple[tuple[str, int], ...] = ()  # what the larger configuration makes larger besides
    tolerance: float = 1e-12


ANY = (7, 15)  # with a rest beside one copy, and beside two
MULTIPLES = (18,)
KERNEL = ("Embed_0/embedding", 1)

CASES = {
    "scores": Case(scores(lambda n: n**-0.5), ("q", 2), "zero_outgoing", (13,)),
    "queries": Case(scores(lambda n: 1 / np.sqrt(n), "queries"), ("k", 2), "zero_outgoing", (13,)),
    "both factors": Case(scores(lambda n: n**-0.25, "both"), ("k", 2), "zero_outgoing", (13,)),
    "mup": Case(scores(lambda n: 1 / n), ("k", 2), "zero_outgoing", (13,)),
    "summed scores": Case(summed_scores, ("k", 2), "zero_outgoing", (13,)),
    "flax attention": Case(
        flax_attention,
        ("query/kernel", 2),
        "zero_outgoing",
        (6,),
        (("value/kernel", 2),),
    ),
    "keys as values": Case(keys_as_values, ("k", 1), "zero_outgoing", (8,)),
    # JAX computes this softmax in single precision.
    "library attention": Case(library_attention, ("k", 2), "zero_outgoing", (8,), tolerance=1e-5),
    "queries and keys from one kernel": Case(fused_attention, ("qkv", 3), "tile", MULTIPLES),
    "keys beside queries": Case(fused_projection, ("o", 1), "zero_outgoing", (8,)),
    "pre-norm": Case(transformer(), KERNEL, "tile", (15,)),
    "pre-norm, tied": Case(transformer(tied=True), KERNEL, "tile", (15, 18)),
    "post-norm, tied": Case(transformer(post=True, tied=True), KERNEL, "tile", MULTIPLES),
    "pre-norm, embeddings times sqrt(n)": Case(transformer(scale=True), KERNEL, "tile", (15,)),
    "post-norm": Case(transformer(post=True), KERNEL, "tile", MULTIPLES),
    # Its 9 units are the square of head_dim, so that 1 / sqrt(3) is also 9 ** -0.25.
    "square": Case(lambda n=9, epsilon=EPSILON: transformer()(n, epsilon), KERNEL, "tile", (13,)),
    "scanned": Case(scanned, KERNEL, "tile", (15,)),
    "vit": Case(vit, ("patches/kernel", 3), "tile", (15,)),
    "rms post-norm, tied": Case(
        transformer(nn.RMSNorm, post=True, tied=True), KERNEL, "zero_incoming", (15,)
    ),
    "rms, embeddings times sqrt(n)": Case(
        transformer(nn.RMSNorm, tied=True, scale=True), KERNEL, "zero_incoming", (15,)
    ),
    "llama": Case(llama(tied=False), ("embed", 1), "zero_incoming", (15,)),
    "llama, tied": Case(llama(tied=True), ("embed", 1), "zero_incoming", (15,)),
    "gemma": Case(llama(tied=True, learned="1 + scale"), ("embed", 1), "zero_incoming", (15,)),
    "gemma, norms behind branches": Case(
        llama(tied=True, learned="1 + scale", post=True), ("embed", 1), "zero_incoming", (15,)
    ),
    "gemma, scanned": Case(scanned_gemma, ("embed", 1), "zero_incoming", (15,)),
    "stacked experts": Case(stacked_experts, ("write", 1), "zero_incoming", (15,)),
    "sorted experts": Case(sorted_experts, ("write", 1), "zero_incoming", (15,)),
    "scale read with and without 1": Case(read_twice, ("write/bias", 0), "tile", MULTIPLES),
    "rms, norms without scale": Case(
        llama(tied=False, learned=""), ("embed", 1), "zero_incoming", (15,)
    ),
    "unit norm": Case(stream(unit_norm), ("write/bias", 0), "zero_incoming", ANY),
    "scale norm": Case(stream(scale_norm, g=1), ("write/bias", 0), "zero_incoming", ANY),
    "rms by tiles": Case(
        stream(lambda p, x, e: rms_norm(p["g"], x, e), g=1), ("write/bias", 0), "tile", MULTIPLES
    ),
    "unusual": Case(unusual_stream, ("latents", 1), "tile", ANY),
    "sum with a bias": Case(scaled_sum(), ("down", 1), "zero_outgoing", (9,)),
    "layer scale": Case(layer_scale(), ("write/bias", 0), "tile", (7,)),
    "layer scale, scanned": Case(layer_scale(scanned=True), ("write/bias", 0), "tile", (15,)),
    "softmax": Case(stream(softmaxed), ("write/bias", 0), "tile", MULTIPLES),
    "by hand": Case(stream(slow_layer_norm, scale=1, bias=1), ("write/bias", 0), "tile", ANY),
    "by hand, fast": Case(stream(fast_layer_norm, scale=1, bias=1), ("write/bias", 0), "tile", ANY),
    "standardized": Case(stream(bare_layer_norm), ("write/bias", 0), "tile", ANY),
    "norm, relu": Case(hidden("norm", "relu"), ("a/bias", 0), "tile", ANY),
    "relu, norm": Case(hidden("relu", "norm"), ("a/bias", 0), "tile", MULTIPLES),
    "gelu, norm": Case(hidden("gelu", "norm"), ("a/bias", 0), "tile", MULTIPLES),
    "norm, norm": Case(hidden("norm", "norm"), ("a/bias", 0), "tile", MULTIPLES),
    "equinox": Case(equinox_norm, ("write/weight", 0), "tile", (15,)),
    "haiku": Case(haiku_norm("layer"), ("write/w", 1), "tile", (15,)),
    "haiku rms": Case(haiku_norm("rms"), ("write/w", 1), "zero_incoming", (15,)),
    "divergence": Case(divergence(), ("read", 0), "zero_incoming", (9,)),
    "factorization machine": Case(factorization_machine, ("embed", 1), "zero_incoming", (9,)),
    "demodulated": Case(demodulated, ("kernel", 2), "zero_outgoing", (9,)),
    "capsules": Case(capsules, ("votes", 1), "zero_incoming", (9,)),
    "towers": Case(towers, ("one/bias", 0), "zeros", (9,)),
    "relative scores": Case(relative_scores, ("q", 1), "zero_outgoing", (8,)),
    "latents beside others": Case(latents(), ("g", 0), "zero_incoming", ANY),
    "norm of all heads": Case(norm_of_all_heads, ("o", 0), "zero_incoming", (5,)),
    "learned queries": Case(learned_queries(skip=False, spread=True), ("queries", 1), "tile", ANY),
    "learned queries, skip": Case(learned_queries(skip=True), ("queries", 1), "tile", ANY),
    "ensemble": Case(ensemble, ("read", 0), "replicate", (8,)),
    "codebook": Case(codebook(), ("codes", 0), "replicate", (8,)),
}
