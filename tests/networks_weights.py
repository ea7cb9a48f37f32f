"""Networks of the table: embeddings and ways to make weights."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from networks import (
    Model,
    affine,
    changes,
    data,
    dense,
    f64,
    grows,
    interface,
    linen,
    network,
    tokens,
)


@network(
    {
        "up/a": grows("rank", 2, "-> up/a[1] <- up/b[0]"),
        "up[0]": interface("n_in", 5, "<- up/{a,kernel}[0]"),
        "up": grows("hidden", 6, "-> up/{b[1],kernel[1],bias[0]} <- down/kernel[0]"),
        "down": interface("out", 3, "-> down/{kernel[1],bias[0]}"),
    }
)
def low_rank(n_in: int = 5, hidden: int = 6, rank: int = 2, out: int = 3) -> Model:
    """A frozen kernel with a low-rank update A @ B, multiplied out before it is used."""
    shapes = {"up": {**dense(n_in, hidden), "a": f64(n_in, rank), "b": f64(rank, hidden)}}
    shapes["down"] = dense(hidden, out)

    def apply(params: Any, x: Any) -> Any:
        up = params["up"]
        kernel = up["kernel"] + 0.5 * up["a"] @ up["b"]
        h = jnp.sin(affine({"kernel": kernel, "bias": up["bias"]}, x))
        return affine(params["down"], h)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "a": grows("hidden", 6, "-> a/{v[1],g_scale[0],bias[0]} <- b/v[0]", copies="exactly once"),
        "a[0]": interface("n_in", 5, "<- a/v[0]"),
        "b": grows("wide", 7, "-> b/{v[1],g_scale[0],bias[0]} <- c/v[0]", copies="exactly once"),
        "c": interface("out", 3, "-> c/{v[1],g_scale[0],bias[0]}"),
    }
)
def weight_norm(n_in: int = 5, hidden: int = 6, wide: int = 7, out: int = 3) -> Model:
    """Directions and magnitudes: ``g * v / |v|`` with the norm over the inputs of each unit."""
    shapes = {
        name: {"v": f64(i, o), "g_scale": f64(o), "bias": f64(o)}
        for name, i, o in (("a", n_in, hidden), ("b", hidden, wide), ("c", wide, out))
    }

    def apply(params: Any, x: Any) -> Any:
        for name in ("a", "b", "c"):
            v, g = params[name]["v"], params[name]["g_scale"]
            norm = jnp.sqrt(jnp.sum(v * v, axis=0, keepdims=True))
            x = affine({"kernel": v / norm * g[None], "bias": params[name]["bias"]}, x)
            x = jnp.tanh(x)
        return x

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "a": changes(
            "hidden",
            6,
            "-> a/{kernel[1],bias[0]} <- b/kernel[0]",
        ),
        "a[0]": interface("n_in", 5, "<- a/kernel[0]", changes=True),
        "b": grows("wide", 7, "-> b/{kernel[1],bias[0]} <- c/kernel[0]"),
        "c": interface("out", 3, "-> c/{kernel[1],bias[0]}"),
    }
)
def weight_standardized(n_in: int = 5, hidden: int = 6, wide: int = 7, out: int = 3) -> Model:
    """Kernels standardized over the inputs of each unit, so that only the first can gain units."""
    shapes = {"a": dense(n_in, hidden), "b": dense(hidden, wide), "c": dense(wide, out)}

    def apply(params: Any, x: Any) -> Any:
        for name in ("a", "b"):
            kernel = params[name]["kernel"]
            kernel = kernel - jnp.mean(kernel, axis=0, keepdims=True)
            kernel = kernel / jnp.sqrt(jnp.var(kernel, axis=0, keepdims=True) + 1e-3)
            x = jnp.tanh(affine({**params[name], "kernel": kernel}, x))
        return affine(params["c"], x)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "up": grows(
            "hidden",
            6,
            "-> up/{kernel[1],log_scale[0],mask[1],bias[0]} down/mask[0] <- down/kernel[0]",
        ),
        "up[0]": interface("n_in", 5, "-> up/mask[0] <- up/kernel[0]"),
        "down": interface("out", 3, "-> down/{kernel[1],mask[1],bias[0]}"),
    }
)
def masked_weights(n_in: int = 5, hidden: int = 6, out: int = 3) -> Model:
    """Masks that are variables of their own, as pruning keeps them, floats and positive scales."""
    shapes = {"up": {**dense(n_in, hidden), "mask": f64(n_in, hidden), "log_scale": f64(hidden)}}
    shapes["down"] = {**dense(hidden, out), "mask": f64(hidden, out)}

    def apply(params: Any, x: Any) -> Any:
        up, down = params["up"], params["down"]
        kernel = up["kernel"] * up["mask"] * jnp.exp(up["log_scale"])[None, :]
        h = jax.nn.softplus(affine({**up, "kernel": kernel}, x))
        return affine({**down, "kernel": down["kernel"] * (down["mask"] > 0)}, h)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "up": changes("hidden", 7, "-> up/{kernel[1],bias[0]} <- down/kernel[0]"),
        "up[0]": interface("n_in", 4, "<- up/kernel[0]", changes=True),
        "down": interface("n_in", 4, "-> down/{kernel[1],bias[0]}", changes=True),
    }
)
def made(n_in: int = 4, hidden: int = 7, out: int = 3) -> Model:
    """An autoregressive network: masks inside apply depend on the number of units."""
    shapes = {"up": dense(n_in, hidden), "down": dense(hidden, n_in)}

    def apply(params: Any, x: Any) -> Any:
        degrees = jnp.arange(hidden) % (n_in - 1)
        into = jnp.arange(n_in)[:, None] <= degrees[None, :]
        out_of = degrees[:, None] < jnp.arange(n_in)[None, :]
        up = {**params["up"], "kernel": params["up"]["kernel"] * into}
        down = {**params["down"], "kernel": params["down"]["kernel"] * out_of}
        return affine(down, jnp.tanh(affine(up, x)))

    return Model(apply, shapes, (data(5, n_in),))


@network(
    {
        "embed": grows("model", 6, "-> embed[1] <- project/kernel[0]"),
        "embed[vocab]": interface("vocab", 11, "-> embed[0]"),
        "project": grows(
            "hidden", 7, "-> project/{kernel[1],bias[0]} {kinds,one_hot}[1] <- head/kernel[0]"
        ),
        "kinds[vocab]": interface("kinds", 4, "-> kinds[0]"),
        "one_hot": interface("classes", 5, "-> one_hot[0]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def embedding(
    vocab: int = 11, model: int = 6, hidden: int = 7, kinds: int = 4, classes: int = 5, out: int = 3
) -> Model:
    """An embedding looked up, a factorisation of it, and one looked up by one-hot vectors."""
    shapes = {
        "embed": f64(vocab, model),
        "project": dense(model, hidden),
        "kinds": f64(kinds, hidden),
        "one_hot": f64(classes, hidden),
        "head": dense(hidden, out),
    }

    def apply(params: Any, words: Any, kind: Any) -> Any:
        x = affine(params["project"], params["embed"][words])
        x = x + jnp.take(params["kinds"], kind, axis=0)
        x = x + jax.nn.one_hot(kind, classes, dtype=x.dtype) @ params["one_hot"]
        return affine(params["head"], jnp.tanh(x))

    return Model(apply, shapes, (tokens(vocab, 3, 4), tokens(4, 3, 4)))


@network(
    {
        "embed": grows(
            "model",
            6,
            "-> down/{kernel[1],bias[0]} <- up/kernel[0] <> embed/embedding[1]",
            copies="tied",
        ),
        "embed[vocab]": interface("vocab", 11, "-> embed/embedding[0]"),
        "up": grows("hidden", 7, "-> up/{kernel[1],bias[0]} <- down/kernel[0]"),
    }
)
def tied_embedding(vocab: int = 11, model: int = 6, hidden: int = 7) -> Model:
    """The embedding is the head as well; Flax's own ``attend``, with a final bias."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            embed = nn.Embed(vocab, model, name="embed")
            x = embed(words)
            x = x + nn.Dense(model, name="down")(nn.relu(nn.Dense(hidden, name="up")(x)))
            return embed.attend(x)

    return linen(Net(), tokens(vocab, 2, 5))


@network(
    {
        "a": changes("a", 6, "-> a/{kernel[1],bias[0]} <- b/kernel[0]"),
        "a[0]": interface("n_in", 5, "<- a/kernel[0]", changes=True),
        "b": changes("b", 7, "-> b/{kernel[1],bias[0]} <- c/kernel[0]"),
        "c": interface("out", 3, "-> c/{kernel[1],bias[0]}"),
    }
)
def scaled_by_width(n_in: int = 5, a: int = 6, b: int = 7, out: int = 3) -> Model:
    """Constants computed from the width: a mean-field output and an equalized learning rate."""
    shapes = {"a": dense(n_in, a), "b": dense(a, b), "c": dense(b, out)}

    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["a"], x))
        b = params["b"]
        h = jnp.tanh(affine({**b, "kernel": b["kernel"] / jnp.sqrt(b["kernel"].shape[0])}, h))
        return affine(params["c"], h) / h.shape[-1]

    return Model(apply, shapes, (data(4, n_in),))
