"""Networks of the table: control flow, caches, graphs, branches."""

from typing import Any

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
    network,
    tokens,
)


@network(
    {
        "encode": grows(
            "hidden",
            5,
            "-> {encode,update}/{kernel[1],bias[0]} <- {message,update,readout}/kernel[0]",
        ),
        "encode[0]": interface("n_in", 4, "<- encode/kernel[0]"),
        "message": grows("message", 6, "-> message/{kernel[1],bias[0]} <- update/kernel[0]"),
        "message[0.2]": interface("", 2, "<- message/kernel[0]"),
        "readout": interface("out", 3, "-> readout/{kernel[1],bias[0]}"),
    }
)
def graph(n_in: int = 4, hidden: int = 5, message: int = 6, out: int = 3) -> Model:
    """Messages along edges, gathered from senders and summed by receiver, twice."""
    shapes = {
        "encode": dense(n_in, hidden),
        "message": dense(2 * hidden + 2, message),
        "update": dense(hidden + message, hidden),
        "readout": dense(hidden, out),
    }

    def apply(params: Any, nodes: Any, edges: Any, senders: Any, receivers: Any) -> Any:
        h = jnp.tanh(affine(params["encode"], nodes))
        for _ in range(2):
            m = jnp.concatenate([h[senders], h[receivers], edges], axis=-1)
            m = jax.nn.relu(affine(params["message"], m))
            m = jax.ops.segment_sum(m, receivers, num_segments=nodes.shape[0])
            h = h + jnp.tanh(affine(params["update"], jnp.concatenate([h, m], axis=-1)))
        return affine(params["readout"], jnp.sum(h, axis=0, keepdims=True))

    inputs = (data(5, n_in), data(7, 2), tokens(5, 7), tokens(5, 7)[::-1])
    return Model(apply, shapes, inputs)


@network(
    {
        "embed": grows("model", 5, "-> {embed[1],positions[1],o[2]} <- {qkv,head}[0]"),
        "embed[vocab]": interface("vocab", 9, "-> embed[0]"),
        "positions[0]": interface("longest", 6, "-> positions[0]"),
        "qkv[heads]": grows("heads", 2, "-> qkv[2] <- o[0]"),
        "qkv[head_dim]": grows("dim", 3, "<- o[1] -> qkv[3]", copies="tied"),
        "head": interface("vocab", 9, "-> head[1]"),
        "qkv[1.0]": fixed("size is 1", 1, "-> qkv[1]"),
        "qkv[1.1]": fixed("size is 1", 1, "-> qkv[1]"),
        "qkv[1.2]": fixed("size is 1", 1, "-> qkv[1]"),
    }
)
def decoding(
    vocab: int = 9, longest: int = 6, model: int = 5, heads: int = 2, dim: int = 3
) -> Model:
    """Generation with a cache: dynamic_update_slice within a scan, a mask by position."""
    shapes = {
        "embed": f64(vocab, model),
        "positions": f64(longest, model),
        "qkv": f64(model, 3, heads, dim),
        "o": f64(heads, dim, model),
        "head": f64(model, vocab),
    }

    def apply(params: Any, words: Any) -> Any:
        n, time = words.shape
        cache = jnp.zeros((2, n, time, heads, dim), params["embed"].dtype)

        def step(cache: Any, i: Any) -> Any:
            word = lax.dynamic_slice_in_dim(words, i, 1, axis=1)[:, 0]
            x = params["embed"][word] + lax.dynamic_slice_in_dim(params["positions"], i, 1, axis=0)
            fused = jnp.einsum("bm,mahd->abhd", x, params["qkv"])
            cache = lax.dynamic_update_slice_in_dim(cache, fused[1:, :, None], i, axis=2)
            scores = jnp.einsum("bhd,bshd->bhs", fused[0], cache[0])
            seen = (jnp.arange(time) <= i)[None, None]
            weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
            y = jnp.einsum("bhs,bshd->bhd", weights, cache[1])
            return cache, (x + jnp.einsum("bhd,hdm->bm", y, params["o"])) @ params["head"]

        _, logits = lax.scan(step, cache, jnp.arange(time))
        return logits

    return Model(apply, shapes, (tokens(vocab, 2, 4),))


@network(
    {
        "inner": grows("hidden", 5, "-> inner/{kernel[1],bias[0]} <- {b,a}/kernel[0]"),
        "inner[0.0]": interface("", 2, "<- inner/kernel[0]", changes=True),
        "inner[0.1]": interface("", 2, "<- inner/kernel[0]", changes=True),
        "b": grows("wide", 6, "-> {b,a,repeat}/{kernel[1],bias[0]} <- {repeat,head}/kernel[0]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def branches(n_in: int = 4, hidden: int = 5, wide: int = 6, out: int = 3) -> Model:
    """``cond``, ``switch``, ``while`` and ``select`` between layers."""
    shapes = {
        "inner": dense(n_in, hidden),
        "a": dense(hidden, wide),
        "b": dense(hidden, wide),
        "repeat": dense(wide, wide),
        "head": dense(wide, out),
    }

    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["inner"], x))
        total = jnp.sum(x)
        y = lax.cond(
            total > 0,
            lambda h: affine(params["a"], h),
            lambda h: affine(params["b"], jnp.sin(h)),
            h,
        )
        y = lax.switch(jnp.argmax(x[0, :2]), [jnp.tanh, jnp.sin, lambda y: y], y)

        def body(state: Any) -> Any:
            i, y = state
            return i + 1, jnp.tanh(affine(params["repeat"], y))

        _, y = lax.fori_loop(0, 2, lambda _, s: body(s), (0, y))
        y = jnp.where(y > 0.2, y, 0.1 * y)
        return affine(params["head"], y)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "encode": changes("dim", 3, "-> encode/{kernel[1],bias[0]} codes[1] <- decode/kernel[0]"),
        "encode[0]": interface("n_in", 4, "<- encode/kernel[0]"),
        "decode": interface("out", 2, "-> decode/{kernel[1],bias[0]}"),
        "codes[0]": changes("codes", 5, "-> codes[0]"),
    }
)
def vector_quantized(n_in: int = 4, codes: int = 5, dim: int = 3, out: int = 2) -> Model:
    """The nearest of a table of codes, with a straight-through gradient (VQ-VAE)."""
    shapes = {"encode": dense(n_in, dim), "codes": f64(codes, dim), "decode": dense(dim, out)}

    def apply(params: Any, x: Any) -> Any:
        z = affine(params["encode"], x)
        distance = jnp.sum((z[:, None] - params["codes"][None]) ** 2, axis=-1)
        chosen = params["codes"][jnp.argmin(distance, axis=-1)]
        return affine(params["decode"], z + lax.stop_gradient(chosen - z))

    return Model(apply, shapes, (data(6, n_in),))
