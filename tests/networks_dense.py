"""Networks of the table: Dense layers, embeddings and ways to make weights."""

import dataclasses
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
)


@network(
    {
        "up": grows("hidden", 7, "-> up/{kernel[1],bias[0]} <- wide/kernel[0]"),
        "up[0]": interface("n_in", 3, "<- up/kernel[0]"),
        "wide": grows("wide", 11, "-> wide/{kernel[1],bias[0]} <- head/kernel[0]"),
        "head": interface("out", 2, "-> head/{kernel[1],bias[0]}"),
    }
)
def mlp(n_in: int = 3, hidden: int = 7, wide: int = 11, out: int = 2) -> Model:
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Dense(hidden, name="up")(x))
            x = nn.gelu(nn.Dense(wide, name="wide")(x))
            return nn.Dense(out, name="head")(x)

    return linen(Mlp(), data(5, n_in))


@network(
    {
        "a": grows("a", 4, "-> a/{kernel[1],bias[0]} <- {b,skip}/kernel[0]"),
        "a[0]": interface("n_in", 4, "<- a/kernel[0]"),
        "b": grows("b", 4, "-> b/{kernel[1],bias[0]} <- c/kernel[0]"),
        "c": grows("c", 4, "-> {c,skip}/{kernel[1],bias[0]} <- head/kernel[0]"),
        "head": interface("n_in", 4, "-> head/{kernel[1],bias[0]}"),
    }
)
def all_of_size_4(n_in: int = 4, a: int = 4, b: int = 4, c: int = 4) -> Model:
    """Every size collides: only use tells the widths apart."""
    shapes = {"a": dense(n_in, a), "b": dense(a, b), "c": dense(b, c), "skip": dense(a, c)}
    shapes["head"] = dense(c, n_in)

    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["a"], x))
        y = jnp.tanh(affine(params["b"], h))
        y = affine(params["c"], y) + affine(params["skip"], h)
        return affine(params["head"], jnp.tanh(y))

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "split[1]": grows(
            "heads", 3, "-> split/{kernel[1],bias[0]} mix/{kernel,bias}[0] <- merge/kernel[0]"
        ),
        "split[2]": grows("dim", 7, "-> split/{kernel[2],bias[1]} <- mix/kernel[1]"),
        "split[0]": interface("n_in", 5, "<- split/kernel[0]"),
        "mix": grows("value", 6, "-> mix/{kernel[2],bias[1]} <- merge/kernel[1]"),
        "merge": interface("out", 2, "-> merge/{kernel[2],bias[0]}"),
    }
)
def dense_general(
    n_in: int = 5, heads: int = 3, dim: int = 7, value: int = 6, out: int = 2
) -> Model:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            h = nn.tanh(nn.DenseGeneral((heads, dim), name="split")(x))
            h = nn.Einsum((heads, dim, value), "bhd,hde->bhe", name="mix")(h)
            return nn.DenseGeneral(out, axis=(-2, -1), name="merge")(jnp.sin(h))

    return linen(Net(), data(4, n_in))


@network(
    {
        "inner": grows("hidden", 6, "-> inner/{kernel[1],bias[0]} <- fused/kernel[0]"),
        "inner[0]": interface("n_in", 5, "<- inner/kernel[0]"),
        "fused": grows("gate", 7, "-> fused/{kernel[1],bias[0]} <- down/kernel[0]"),
        "down": interface("out", 3, "-> down/{kernel[1],bias[0]}"),
    }
)
def gated_mlp(n_in: int = 5, hidden: int = 6, gate: int = 7, out: int = 3) -> Model:
    """Gates fused along the last axis: value | gate, and split by ``jnp.split``."""
    shapes = {
        "inner": dense(n_in, hidden),
        "fused": dense(hidden, 2 * gate),
        "down": dense(gate, out),
    }

    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["inner"], x))
        value, gates = jnp.split(affine(params["fused"], h), 2, axis=-1)
        return affine(params["down"], value * jax.nn.silu(gates))

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "a": grows("a", 2, "-> a/{kernel[1],bias[0]} <- {b,c,head}/kernel[0]"),
        "a[0]": interface("n_in", 5, "<- {a,b,c,head}/kernel[0]"),
        "b": grows("b", 3, "-> b/{kernel[1],bias[0]} <- {c,head}/kernel[0]"),
        "c": grows("c", 4, "-> c/{kernel[1],bias[0]} <- head/kernel[0]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def dense_concat(n_in: int = 5, a: int = 2, b: int = 3, c: int = 4, out: int = 3) -> Model:
    """Every layer reads the concatenation of all before it, newest first."""
    shapes = {
        "a": dense(n_in, a),
        "b": dense(a + n_in, b),
        "c": dense(b + a + n_in, c),
        "head": dense(c + b + a + n_in, out),
    }

    def apply(params: Any, x: Any) -> Any:
        for name in ("a", "b", "c"):
            x = jnp.concatenate([jnp.tanh(affine(params[name], x)), x], axis=-1)
        return affine(params["head"], x)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "a": grows("a", 6, "-> a/{kernel[1],bias[0]} <- one/kernel[0]"),
        "a[0]": interface("n_in", 5, "<- a/kernel[0]"),
        "one": grows("one", 1, "-> one/{kernel[1],bias[0]} <- b/kernel[0]"),
        "b": grows("b", 7, "-> b/{kernel[1],bias[0]} <- out/kernel[0]"),
        "out": fixed("size is 1", 1, "-> out/{kernel[1],bias[0]}"),
    }
)
def width_1(n_in: int = 5, a: int = 6, one: int = 1, b: int = 7, out: int = 1) -> Model:
    """A bottleneck of one unit, and an output of one unit that is squeezed away."""
    shapes = {"a": dense(n_in, a), "one": dense(a, one), "b": dense(one, b), "out": dense(b, out)}

    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["a"], x))
        h = jnp.tanh(affine(params["one"], h))
        h = jnp.tanh(affine(params["b"], h))
        return affine(params["out"], h)[:, 0]

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "up": grows("hidden", 6, "-> up/{kernel[1],bias[2]} <- down/kernel[0]"),
        "up/kernel[0]": interface("n_in", 5, "<- {up,gate}/kernel[0]"),
        "token[1]": interface("", 3, "-> token[1]"),
        "down": interface("out", 2, "-> down/{kernel[1],bias[0]}"),
        "up[0]": fixed("because its size is 1", 1, "-> up/bias[0]"),
        "up[1]": fixed("because its size is 1", 1, "-> up/bias[1]"),
        "gate": fixed("because its size is 1", 1, "-> gate/{kernel[1],bias[0]}"),
        "token[0]": fixed("because its size is 1", 1, "-> token[0]"),
        "token[2]": fixed("because its size is 1", 1, "-> token[2]"),
    }
)
def implicit_broadcasting(n_in: int = 5, hidden: int = 6, out: int = 2) -> Model:
    """Axes of size 1 beside longer ones: a gate of one unit, a bias of shape (1, 1, hidden)."""
    shapes = {"up": {"kernel": f64(n_in, hidden), "bias": f64(1, 1, hidden)}}
    shapes |= {"gate": dense(n_in, 1), "token": f64(1, 3, 1), "down": dense(hidden, out)}

    def apply(params: Any, x: Any) -> Any:
        h = jnp.einsum("btd,dh->bth", x, params["up"]["kernel"]) + params["up"]["bias"]
        gate = jax.nn.sigmoid(affine(params["gate"], x))
        return affine(params["down"], jnp.sin(h * gate + params["token"]))

    return Model(apply, shapes, (data(4, 3, n_in),))


@network(
    {
        "a[0]": interface("n_in", 2, "<> a/kernel[0]", changes=True),
        "a": grows("hidden", 6, "-> a/bias[0] <> a/kernel[1] b/kernel[0]"),
        "b": grows("wide", 5, "-> b/bias[0] <> b/kernel[1] c/kernel[0]"),
        "c": fixed("size is 1", 1, "-> c/bias[0] <> c/kernel[1]"),
    }
)
def pinn(n_in: int = 2, hidden: int = 6, wide: int = 5) -> Model:
    """Derivatives of the network with respect to its inputs, within the loss, and its gradient."""
    shapes = {"a": dense(n_in, hidden), "b": dense(hidden, wide), "c": dense(wide, 1)}

    def u(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["a"], x))
        h = jnp.tanh(affine(params["b"], h))
        return affine(params["c"], h)[0]

    def loss(params: Any, points: Any) -> Any:
        def residual(x: Any) -> Any:
            laplacian = jnp.trace(jax.hessian(u, argnums=1)(params, x))
            return laplacian + jnp.sin(u(params, x))

        return jnp.mean(jax.vmap(residual)(points) ** 2)

    return Model(jax.value_and_grad(loss), shapes, (data(4, n_in),))


@network(
    {
        "enc": grows("enc", 6, "-> enc/{kernel[1],bias[0]} <- {mean,log_var}/kernel[0]"),
        "out": interface("n_in", 5, "-> out/{kernel[1],bias[0]} <- enc/kernel[0]", changes=True),
        "mean": changes(
            "latent",
            3,
            "-> {mean,log_var}/{kernel[1],bias[0]} <- dec/kernel[0]",
        ),
        "dec": grows("dec", 7, "-> dec/{kernel[1],bias[0]} <- out/kernel[0]"),
    }
)
def vae(n_in: int = 5, enc: int = 6, latent: int = 3, dec: int = 7) -> Model:
    """Random numbers inside apply, of the shape of a width, and a loss with a KL term."""
    shapes = {"enc": dense(n_in, enc), "mean": dense(enc, latent), "log_var": dense(enc, latent)}
    shapes |= {"dec": dense(latent, dec), "out": dense(dec, n_in)}

    def apply(params: Any, x: Any, key: Any) -> Any:
        h = jnp.tanh(affine(params["enc"], x))
        mean, log_var = affine(params["mean"], h), affine(params["log_var"], h)
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape, mean.dtype)
        out = affine(params["out"], jnp.tanh(affine(params["dec"], z)))
        kl = 0.5 * jnp.sum(jnp.exp(log_var) + mean**2 - 1 - log_var, axis=-1)
        return jnp.sum((out - x) ** 2, axis=-1) + kl

    return Model(apply, shapes, (data(4, n_in), jax.random.key(1)))


@network(
    {
        "0/up": grows("a", 5, "-> 0/up/{kernel[1],bias[0]} <- 0/{log,shift}/kernel[0]"),
        "1/up": grows("b", 4, "-> 1/up/{kernel[1],bias[0]} <- 1/{log,shift}/kernel[0]"),
        "0/up[0]": fixed("reversed", 3, "<- 0/up/kernel[0] 1/up/kernel[0]"),
        "0/log": fixed(
            "reversed", 3, "-> 0/{log,shift}/{kernel[1],bias[0]} 1/{log,shift}/{kernel[1],bias[0]}"
        ),
    }
)
def coupling_flow(n_in: int = 6, a: int = 5, b: int = 4) -> Model:
    """Affine coupling layers with a reversal between them, and the log-determinant."""
    half = n_in // 2
    shapes = [
        {"up": dense(half, n), "shift": dense(n, half), "log": dense(n, half)} for n in (a, b)
    ]

    def apply(params: Any, x: Any) -> Any:
        log_det = jnp.zeros(x.shape[0])
        for layer in params:
            kept, moved = x[:, :half], x[:, half:]
            h = jnp.tanh(affine(layer["up"], kept))
            log = jnp.tanh(affine(layer["log"], h))
            moved = moved * jnp.exp(log) + affine(layer["shift"], h)
            log_det = log_det + jnp.sum(log, axis=-1)
            x = jnp.concatenate([kept, moved], axis=-1)[:, ::-1]
        return x, log_det

    return Model(apply, shapes, (data(4, n_in),))


@dataclasses.dataclass
class Layers:
    """Parameters in a dataclass: a list of pairs and one array."""

    layers: list[Any]
    scale: Any


jax.tree_util.register_dataclass(Layers, ["layers", "scale"], [])


@network(
    {
        "layers/0": grows("a", 6, "-> layers/0/{0,1}[0] <- layers/1/0[1]"),
        "layers/0/0[1]": interface("n_in", 5, "<- layers/0/0[1]"),
        "layers/1": grows("b", 7, "-> layers/1/{0,1}[0] scale[0] <- layers/2/0[1]"),
        "layers/2": interface("out", 3, "-> layers/2/{0,1}[0]"),
        "layers/0[1]": fixed("because its size is 1", 1, "-> layers/0/1[1]"),
        "layers/1[1]": fixed("because its size is 1", 1, "-> layers/1/1[1]"),
        "layers/2[1]": fixed("because its size is 1", 1, "-> layers/2/1[1]"),
    }
)
def handwritten(n_in: int = 5, a: int = 6, b: int = 7, out: int = 3) -> Model:
    """A list of (weights, biases) in a dataclass, biases as columns: weights are (out, in)."""
    sizes = [n_in, a, b, out]
    layers = [(f64(o, i), f64(o, 1)) for i, o in zip(sizes[:-1], sizes[1:])]

    def apply(params: Any, x: Any) -> Any:
        x = x.T
        for w, bias in params.layers[:-1]:
            x = jnp.tanh(w @ x + bias)
        w, bias = params.layers[-1]
        return (w @ (x * params.scale[:, None]) + bias).T

    return Model(apply, Layers(layers, f64(b)), (data(4, n_in),))


@network(
    {
        "a": grows("a", 5, "-> a/{kernel[1],bias[0]} <- {b,c}/kernel[0]"),
        "a[0.0]": interface("", 2, "<- a/kernel[0]", changes=True),
        "a[0.1]": interface("", 4, "<- a/kernel[0]", changes=True),
        "b": grows("b", 3, "-> {b,c}/{kernel[1],bias[0]} <- out/kernel[0]"),
        "out": interface("out", 4, "-> out/{kernel[1],bias[0]}"),
    }
)
def shape_operations(n_in: int = 6, a: int = 5, b: int = 3, out: int = 4) -> Model:
    """Stack, unstack, tile, pad, flips, cumulative sums, sorts and selections beside the width."""
    shapes = {"a": dense(n_in, a), "b": dense(a, b), "c": dense(a, b), "out": dense(3 * b, out)}

    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(affine(params["a"], x))
        first, second = affine(params["b"], h), affine(params["c"], h)
        both = jnp.stack([first, second], axis=1)
        both = jnp.pad(both, ((0, 0), (1, 1), (0, 0)))
        both = jnp.flip(jnp.cumsum(both, axis=1), axis=1)
        both = jnp.sort(both, axis=0)
        one, two, three, _ = (jnp.squeeze(p, 1) for p in jnp.split(both, 4, axis=1))
        picked = jnp.where(one > 0, two, jnp.tile(three[:1], (x.shape[0], 1)))
        top, where = lax.top_k(jnp.sum(x, axis=0), 2)
        picked = jnp.clip(picked, -1, 1) * top[0] + jnp.argmax(x[:, :2], axis=-1, keepdims=True)
        return affine(params["out"], jnp.concatenate([picked, jnp.abs(one), two * three], -1))

    return Model(apply, shapes, (data(5, n_in),))


@network(
    {
        "up": grows("hidden", 4, "-> up[1] <- mix[1]"),
        "up[0]": interface("n_in", 5, "<- up[0]"),
        "mix": grows("wide", 7, "-> mix[2] <- down/kernel[0]"),
        "down": interface("out", 2, "-> down/{kernel[1],bias[0]}"),
        "mix[0]": fixed("Fourier", 3, "-> mix[0]"),
    }
)
def complex_and_fourier(
    n_in: int = 5, hidden: int = 4, wide: int = 7, modes: int = 3, out: int = 2
) -> Model:
    """Complex parameters, a Fourier transform over positions (FNet), real and imaginary parts."""
    up = jax.ShapeDtypeStruct((n_in, hidden), jnp.complex128)
    mix = jax.ShapeDtypeStruct((modes, hidden, wide), jnp.complex128)
    shapes = {"up": up, "mix": mix, "down": dense(2 * wide, out)}

    def apply(params: Any, x: Any) -> Any:
        h = x.astype(jnp.complex128) @ params["up"]
        h = jnp.fft.fft(h, axis=1)[:, :modes]
        h = jnp.einsum("bmh,mhk->bmk", h, params["mix"])
        h = jnp.fft.ifft(h, n=6, axis=1)
        return affine(params["down"], jnp.concatenate([h.real, jnp.tanh(h.imag)], axis=-1))

    return Model(apply, shapes, (data(2, 6, n_in),))
