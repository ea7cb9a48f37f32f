"""Networks of the table: recurrence, stacked layers, ensembles."""

from typing import Any

import flax.linen as nn
import haiku as hk
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

F64 = jnp.float64


@network(
    {
        "embed": grows(
            "embed", 5, "-> embed/embedding[1] <- OptimizedLSTMCell_0/{if,ig,ii,io}/kernel[0]"
        ),
        "embed[vocab]": interface("vocab", 9, "-> embed/embedding[0]"),
        "OptimizedLSTMCell_0/hi": grows(
            "first",
            6,
            "-> OptimizedLSTMCell_0/{hi,ho,hf,hg}/{kernel[1],bias[0]} "
            "OptimizedLSTMCell_0/{if,ig,ii,io}/kernel[1] <- "
            "OptimizedLSTMCell_0/{hi,ho,hf,hg}/kernel[0] "
            "LSTMCell_0/{ii,if,ig,io}/kernel[0]",
        ),
        "LSTMCell_0/ii": grows(
            "second",
            7,
            "-> LSTMCell_0/{ii,if,ig,io}/kernel[1] "
            "LSTMCell_0/{hi,hf,hg,ho}/{kernel[1],bias[0]} <- "
            "LSTMCell_0/{hi,hf,hg,ho}/kernel[0] head/kernel[0]",
        ),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def lstm(vocab: int = 9, embed: int = 5, first: int = 6, second: int = 7, out: int = 3) -> Model:
    """Flax's LSTMs, one with a kernel for each gate's input and one fused, run by ``nn.RNN``."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(vocab, embed, name="embed")(words)
            x = nn.RNN(nn.OptimizedLSTMCell(first, param_dtype=F64), name="fused")(x)
            x = nn.RNN(
                nn.LSTMCell(second, param_dtype=F64), reverse=True, keep_order=True, name="gates"
            )(x)
            return nn.Dense(out, name="head")(x[:, -1])

    return linen(Net(), tokens(vocab, 2, 4))


@network(
    {
        "GRUCell_0/ir": grows(
            "there",
            5,
            "-> GRUCell_0/{ir,iz,in,hn}/{kernel[1],bias[0]} GRUCell_0/{hr,hz}/kernel[1] "
            "<- GRUCell_0/{hr,hz,hn}/kernel[0] SimpleCell_0/i/kernel[0]",
        ),
        "GRUCell_0/ir[0]": interface(
            "n_in", 4, "<- GRUCell_0/{ir,iz,in}/kernel[0] GRUCell_1/{ir,iz,in}/kernel[0]"
        ),
        "GRUCell_1/ir": grows(
            "back",
            7,
            "-> GRUCell_1/{ir,iz,in,hn}/{kernel[1],bias[0]} GRUCell_1/{hr,hz}/kernel[1] "
            "<- GRUCell_1/{hr,hz,hn}/kernel[0] SimpleCell_0/i/kernel[0]",
        ),
        "SimpleCell_0/i": grows(
            "wide",
            6,
            "-> SimpleCell_0/i/{kernel[1],bias[0]} SimpleCell_0/h/kernel[1] <- "
            "SimpleCell_0/h/kernel[0] head/kernel[0]",
        ),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def gru(n_in: int = 4, there: int = 5, back: int = 7, wide: int = 6, out: int = 3) -> Model:
    """A bidirectional GRU and a simple cell on top of it."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            one = nn.RNN(nn.GRUCell(there, param_dtype=F64))
            two = nn.RNN(nn.GRUCell(back, param_dtype=F64))
            x = nn.Bidirectional(one, two)(x)
            x = nn.RNN(nn.SimpleCell(wide, param_dtype=F64), name="simple")(x)
            return nn.Dense(out, name="head")(x)

    return linen(Net(), data(2, 4, n_in))


@network(
    {
        "lstm/linear": interface(
            "hidden", 5, "-> lstm/linear/{w[1],b[0]} <- lstm/linear/w[0] head/w[0]"
        ),
        "lstm/linear[0.0]": interface("n_in", 4, "<- lstm/linear/w[0]"),
        "head": interface("out", 3, "-> head/{w[1],b[0]}"),
    }
)
def fused_gates(n_in: int = 4, hidden: int = 5, out: int = 3) -> Model:
    """Haiku's LSTM: one kernel reads x | h and makes i | g | f | o."""

    def forward(x: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            core = hk.LSTM(hidden)
            x, state = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
            return hk.Linear(out, name="head")(x), state

    net = hk.without_apply_rng(hk.transform(forward))
    x = data(4, 2, n_in)
    return Model(net.apply, jax.eval_shape(net.init, jax.random.key(0), x), (x,))


@network(
    {
        "inner": grows(
            "model",
            5,
            "-> inner/{kernel[1],bias[0]} blocks/down/{kernel[2],bias[1]} <- "
            "blocks/up/kernel[1] head/kernel[0]",
        ),
        "inner[0]": interface("n_in", 4, "<- inner/kernel[0]"),
        "blocks/up": grows(
            "hidden", 6, "-> blocks/up/{kernel[2],bias[1]} <- blocks/down/kernel[1]"
        ),
        "head": interface("out", 2, "-> head/{kernel[1],bias[0]}"),
        "blocks[layers]": fixed("a loop runs over it", 3, "-> blocks/{up,down}/{kernel,bias}[0]"),
    }
)
def stacked_layers(
    n_in: int = 4, model: int = 5, hidden: int = 6, layers: int = 3, out: int = 2
) -> Model:
    """``nn.scan`` over layers with ``nn.remat`` inside: weights with a leading layer axis."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            h = nn.gelu(nn.Dense(hidden, name="up")(x))
            return x + nn.Dense(model, name="down")(h), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(model, name="inner")(x)
            stack = nn.scan(
                nn.remat(Block),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=layers,
            )
            x, _ = stack(name="blocks")(x, None)
            return nn.Dense(out, name="head")(x)

    return linen(Net(), data(3, n_in))


@network(
    {
        "up[0]": changes("members", 3, "-> {up,down}/{kernel,bias}[0]"),
        "up[2]": grows("hidden", 5, "-> up/{kernel[2],bias[1]} <- down/kernel[1]"),
        "up[1]": interface("n_in", 4, "<- up/kernel[1]"),
        "down": interface("out", 2, "-> down/{kernel[2],bias[1]}"),
    }
)
def ensemble(members: int = 3, n_in: int = 4, hidden: int = 5, out: int = 2) -> Model:
    """Members by ``vmap`` over the parameters, averaged."""
    shapes = {"up": {"kernel": f64(members, n_in, hidden), "bias": f64(members, hidden)}}
    shapes["down"] = {"kernel": f64(members, hidden, out), "bias": f64(members, out)}

    def one(params: Any, x: Any) -> Any:
        return affine(params["down"], jnp.tanh(affine(params["up"], x)))

    def apply(params: Any, x: Any) -> Any:
        return jnp.mean(jax.vmap(one, (0, None))(params, x), axis=0)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "b": grows("state", 5, "-> {b[1],log_decay[0]} <- c[0]"),
        "b[0]": interface("n_in", 4, "<- {b,skip}[0]"),
        "c": grows("model", 6, "-> {c,skip}[1] <- head/kernel[0]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
    }
)
def state_space(n_in: int = 4, state: int = 5, model: int = 6, out: int = 3) -> Model:
    """A diagonal linear recurrence by ``lax.associative_scan`` (S5), gated."""
    shapes = {
        "log_decay": f64(state),
        "b": f64(n_in, state),
        "c": f64(state, model),
        "skip": f64(n_in, model),
        "head": dense(model, out),
    }

    def combine(one: Any, two: Any) -> Any:
        return one[0] * two[0], one[1] * two[0] + two[1]

    def apply(params: Any, x: Any) -> Any:
        decay = jnp.exp(-jax.nn.softplus(params["log_decay"]))
        u = x @ params["b"]
        decays = jnp.broadcast_to(decay[None, None], u.shape)
        _, h = lax.associative_scan(combine, (decays, u), axis=1)
        y = h @ params["c"] + x @ params["skip"]
        return affine(params["head"], jax.nn.gelu(y))

    return Model(apply, shapes, (data(2, 5, n_in),))


@network(
    {
        "up": grows("hidden", 5, "-> up/{kernel[1],bias[0]} <- down/kernel[0]"),
        "down": interface("n_in", 3, "-> down/{kernel[1],bias[0]} <- up/kernel[0]"),
        "up[0.1]": fixed("no array makes", 1, "<- up/kernel[0]"),
    }
)
def neural_ode(n_in: int = 3, hidden: int = 5, steps: int = 4) -> Model:
    """A vector field in a ``fori_loop`` of Runge-Kutta steps, differentiated through a scan."""
    shapes = {"up": dense(n_in + 1, hidden), "down": dense(hidden, n_in)}

    def field(params: Any, t: Any, y: Any) -> Any:
        time = jnp.full((y.shape[0], 1), t, y.dtype)
        return affine(
            params["down"], jnp.tanh(affine(params["up"], jnp.concatenate([y, time], -1)))
        )

    def apply(params: Any, y: Any) -> Any:
        dt = 1.0 / steps

        def step(y: Any, t: Any) -> Any:
            k1 = field(params, t, y)
            k2 = field(params, t + dt / 2, y + dt / 2 * k1)
            return y + dt * k2, None

        y, _ = lax.scan(step, y, jnp.arange(steps) * dt)
        return lax.fori_loop(0, 2, lambda i, y: y + dt * field(params, i * dt, y), y)

    return Model(apply, shapes, (data(4, n_in),))


@network(
    {
        "project[1.1]": grows("state", 3, "-> {project,log_a}[1] -> project[1]", copies="tied"),
        "project[1.0]": grows("step", 2, "-> project[1] <- step/kernel[0]"),
        "step": interface("n_in", 5, "-> step/{kernel[1],bias[0]} log_a[0] <- {project,out}[0]"),
        "out": interface("out", 4, "-> out[1]"),
    }
)
def selective_state_space(n_in: int = 5, step: int = 2, state: int = 3, out: int = 4) -> Model:
    """One projection makes step sizes | inputs | outputs of a state (Mamba)."""
    shapes = {
        "project": f64(n_in, step + 2 * state),
        "step": dense(step, n_in),
        "log_a": f64(n_in, state),
        "out": f64(n_in, out),
    }

    def apply(params: Any, x: Any) -> Any:
        dt, b, c = jnp.split(x @ params["project"], [step, step + state], axis=-1)
        dt = jax.nn.softplus(affine(params["step"], dt))
        a = -jnp.exp(params["log_a"])

        def advance(h: Any, now: Any) -> Any:
            dt, b, c, x = now
            h = jnp.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None]
            return h, h @ c

        _, y = lax.scan(advance, jnp.zeros_like(a), (dt, b, c, x))
        return y @ params["out"]

    return Model(apply, shapes, (data(6, n_in),))


@network(
    {
        "project[1.0]": grows("heads", 2, "-> project[1] {conv,log_a}[0] <- out[0]"),
        "project[1.1]": grows("dim", 3, "-> project[1] conv[0] <- out[0]"),
        "project[1.4]": grows("state", 4, "-> project[1] conv[0] -> conv[0]", copies="tied"),
        "project[0]": interface("n_in", 5, "<- project[0]"),
        "out": interface("out", 4, "-> out[1]"),
        "conv": fixed("one channel a group", 1, "-> conv[1]"),
        "conv[2]": fixed("spatial dimension", 3, "-> conv[2]"),
    }
)
def state_space_duality(
    n_in: int = 5, heads: int = 2, dim: int = 3, state: int = 4, out: int = 4
) -> Model:
    """Gates, inputs, projections of a state and step sizes in one array, convolved (Mamba 2)."""
    inner = heads * dim
    shapes = {
        "project": f64(n_in, 2 * inner + 2 * state + heads),
        "conv": f64(inner + 2 * state, 1, 3),
        "log_a": f64(heads),
        "out": f64(inner, out),
    }

    def apply(params: Any, x: Any) -> Any:
        y = x @ params["project"]
        gate, y, dt = jnp.split(y, [inner, 2 * inner + 2 * state], axis=-1)
        y = lax.conv_general_dilated(
            y[None],
            params["conv"],
            (1,),
            [(2, 0)],
            dimension_numbers=("NWC", "OIW", "NWC"),
            feature_group_count=inner + 2 * state,
        )[0]
        x, b, c = jnp.split(y, [inner, inner + state], axis=-1)
        x = x.reshape(-1, heads, dim)
        dt = jax.nn.softplus(dt)
        decay = jnp.exp(-jnp.exp(params["log_a"])[None] * dt)
        steps = (decay[:, :, None, None], jnp.einsum("th,ts,thd->thsd", dt, b, x))

        def join(one: Any, two: Any) -> Any:
            return one[0] * two[0], one[1] * two[0] + two[1]

        _, h = lax.associative_scan(join, steps)
        y = jnp.einsum("ts,thsd->thd", c, h).reshape(gate.shape)
        return (y * jax.nn.silu(gate)) @ params["out"]

    return Model(apply, shapes, (data(7, n_in),))


@network(
    {
        "k": grows("key", 3, "-> k[1] -> q[1]", copies="tied"),
        "k[0]": interface("n_in", 4, "<- {k,v,q}[0]"),
        "v": grows("value", 5, "-> v[1] <- o[0]"),
        "o": interface("out", 2, "-> o[1]"),
    }
)
def fast_weights(n_in: int = 4, key: int = 3, value: int = 5, out: int = 2) -> Model:
    """A matrix of keys and values is the carry of a scan (linear attention, decayed)."""
    shapes = {"q": f64(n_in, key), "k": f64(n_in, key), "v": f64(n_in, value), "o": f64(value, out)}

    def apply(params: Any, x: Any) -> Any:
        def step(memory: Any, x: Any) -> Any:
            memory = 0.9 * memory + (x @ params["k"])[:, None] * (x @ params["v"])[None]
            return memory, jnp.tanh((x @ params["q"]) @ memory) @ params["o"]

        memory = jnp.zeros((key, value))
        return lax.scan(step, memory, x)[1]

    return Model(apply, shapes, (data(6, n_in),))
