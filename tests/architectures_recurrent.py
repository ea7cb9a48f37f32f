"""Architectures of the table: recurrent networks and state-space models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from architecture import Network, architecture, data, f32, linen
from architectures_language import WORDS

SERIES = (2, 6, 4)


@architecture("LSTM language model")
def lstm(embed: int = 6, hidden: int = 8) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, embed, name="embed")(words)
            x = nn.RNN(nn.OptimizedLSTMCell(hidden, name="cell"), name="rnn")(x)
            return nn.Dense(11, name="head")(x)

    return linen(Net(), WORDS)


@architecture("GRU")
def gru(hidden: int = 8) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.RNN(nn.GRUCell(hidden, name="cell"), name="rnn")(x)
            return nn.Dense(3, name="head")(x[:, -1])

    return linen(Net(), data(*SERIES))


@architecture("Bidirectional LSTM")
def bidirectional(there: int = 8, back: int = 6) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            rnns = (
                nn.RNN(nn.LSTMCell(size, name=f"{name}_cell"), name=name)
                for name, size in (("there", there), ("back", back))
            )
            return nn.Dense(3, name="head")(nn.Bidirectional(*rnns, name="both")(x))

    return linen(Net(), data(*SERIES))


@architecture("Sequence to sequence (GRU, additive attention)")
def seq2seq(encoder: int = 6, decoder: int = 8, scores: int = 5) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, y: Any) -> Any:
            x = nn.RNN(nn.GRUCell(encoder, name="encoder_cell"), name="encoder")(x)
            y = nn.RNN(nn.GRUCell(decoder, name="decoder_cell"), name="decoder")(y)
            keys = nn.Dense(scores, use_bias=False, name="keys")(x)
            queries = nn.Dense(scores, name="queries")(y)
            sums = nn.Dense(1, use_bias=False, name="score")(
                jnp.tanh(queries[:, :, None] + keys[:, None])
            )
            context = jnp.einsum("nts,nsm->ntm", jax.nn.softmax(sums[..., 0]), x)
            return nn.Dense(3, name="head")(jnp.concatenate([y, context], axis=-1))

    return linen(Net(), data(*SERIES), data(2, 3, 4, seed=1))


@architecture("Convolutional LSTM")
def conv_lstm(channels: int = 4) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            cell = nn.ConvLSTMCell(channels, (3, 3), name="cell")
            x = nn.RNN(cell, name="rnn")(x)
            return nn.Conv(1, (1, 1), name="head")(x[:, -1])

    return linen(Net(), data(2, 3, 4, 4, 2))


@architecture("Minimal RNN (lax.scan)", "JAX")
def minimal_rnn(hidden: int = 8) -> Network:
    shapes = {"in": f32(4, hidden), "to": f32(hidden, hidden), "bias": f32(hidden)}
    shapes["out"] = f32(hidden, 3)

    def apply(p: Any, x: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = jnp.tanh(x @ p["in"] + h @ p["to"] + p["bias"])
            return h, h @ p["out"]

        start = jnp.zeros((len(x), len(p["bias"])))
        return jax.lax.scan(step, start, x.swapaxes(0, 1))[1]

    return Network(apply, shapes, (data(*SERIES),))


@architecture("S4D (diagonal, as a convolution)", "JAX")
def s4d(stream: int = 6, state: int = 4, hidden: int = 8) -> Network:
    shapes = {"log_dt": f32(stream), "log_a": f32(stream, state), "a_imag": f32(stream, state)}
    shapes |= {"c": f32(stream, state, 2), "d": f32(stream), "in": f32(4, stream)}
    shapes |= {"up": f32(stream, hidden), "down": f32(hidden, 3)}

    def apply(p: Any, x: Any) -> Any:
        u, time = x @ p["in"], x.shape[1]
        a = -jnp.exp(p["log_a"]) + 1j * p["a_imag"]
        step = a * jnp.exp(p["log_dt"])[:, None]
        c = (p["c"][..., 0] + 1j * p["c"][..., 1]) * (jnp.exp(step) - 1) / a
        powers = jnp.exp(step[..., None] * jnp.arange(time))
        kernel = 2 * jnp.einsum("ms,mst->mt", c, powers).real
        over = jnp.fft.rfft(kernel, 2 * time) * jnp.fft.rfft(u.swapaxes(1, 2), 2 * time)
        y = jnp.fft.irfft(over, 2 * time)[..., :time].swapaxes(1, 2) + u * p["d"]
        return jax.nn.gelu(jax.nn.gelu(y) @ p["up"]) @ p["down"]

    return Network(apply, shapes, (data(*SERIES),))


@architecture("LRU (complex, associative scan)", "JAX")
def lru(stream: int = 6, state: int = 4) -> Network:
    shapes = {"in": f32(4, stream), "nu_log": f32(state), "theta_log": f32(state)}
    shapes |= {f"{name}_{part}": f32(state, stream) for name in "b" for part in ("re", "im")}
    shapes |= {f"c_{part}": f32(stream, state) for part in ("re", "im")}
    shapes |= {"d": f32(stream), "out": f32(stream, 3)}

    def apply(p: Any, x: Any) -> Any:
        u = x @ p["in"]
        a = jnp.exp(-jnp.exp(p["nu_log"]) + 1j * jnp.exp(p["theta_log"]))
        b = (p["b_re"] + 1j * p["b_im"]) * jnp.sqrt(1 - jnp.abs(a) ** 2)[:, None]
        inputs = jnp.einsum("ntm,sm->nts", u.astype(b.dtype), b)

        def combined(one: Any, two: Any) -> Any:
            return one[0] * two[0], two[0] * one[1] + two[1]

        start = jnp.broadcast_to(a, inputs.shape)
        _, h = jax.lax.associative_scan(combined, (start, inputs), axis=1)
        y = jnp.einsum("nts,ms->ntm", h, p["c_re"] + 1j * p["c_im"]).real + u * p["d"]
        return jax.nn.gelu(y) @ p["out"]

    return Network(apply, shapes, (data(*SERIES),))


@architecture("Mamba (selective state space)")
def mamba(
    stream: int = 6, inner: int = 8, state: int = 4, rank: int = 2, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="embed")(words)
            for i in range(layers):
                x = x + self.block(nn.RMSNorm(name=f"norm_{i}")(x), i)
            return nn.Dense(11, name="head")(nn.RMSNorm(name="norm")(x))

        def block(self, x: Any, i: int) -> Any:
            x, gate = jnp.split(nn.Dense(2 * inner, use_bias=False, name=f"in_{i}")(x), 2, -1)
            conv = {"padding": "CAUSAL", "feature_group_count": inner, "name": f"conv_{i}"}
            x = nn.silu(nn.Conv(inner, (3,), **conv)(x))
            parts = nn.Dense(rank + 2 * state, use_bias=False, name=f"x_{i}")(x)
            dt, b, c = jnp.split(parts, [rank, rank + state], axis=-1)
            dt = nn.softplus(nn.Dense(inner, name=f"dt_{i}")(dt))
            a = -jnp.exp(self.param(f"a_log_{i}", nn.initializers.normal(1), (inner, state)))
            d = self.param(f"d_{i}", nn.initializers.ones, (inner,))

            def step(h: Any, at: Any) -> Any:
                x, dt, b, c = at
                h = jnp.exp(dt[..., None] * a) * h + (dt * x)[..., None] * b[:, None]
                return h, jnp.einsum("nis,ns->ni", h, c)

            start = jnp.zeros((len(x), inner, state))
            _, y = jax.lax.scan(step, start, [z.swapaxes(0, 1) for z in (x, dt, b, c)])
            y = (y.swapaxes(0, 1) + x * d) * nn.silu(gate)
            return nn.Dense(stream, use_bias=False, name=f"out_{i}")(y)

    return linen(Net(), WORDS)


@architecture("RWKV (time mixing, token shift)")
def rwkv(stream: int = 6, hidden: int = 12, layers: int = 2) -> Network:
    class Net(nn.Module):
        def vector(self, name: str) -> Any:
            return self.param(name, nn.initializers.normal(0.5), (stream,))

        def mixed(self, x: Any, name: str) -> Any:
            share = nn.sigmoid(self.vector(f"mix_{name}"))
            before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            return x * share + before * (1 - share)

        def dense(self, size: int, name: str, x: Any) -> Any:
            return nn.Dense(size, use_bias=False, name=name)(x)

        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, stream, name="embed")(words)
            for i in range(layers):
                y = nn.LayerNorm(name=f"norm_{i}_a")(x)
                k, v, r = (self.dense(stream, f"{n}_{i}", self.mixed(y, f"{n}_{i}")) for n in "kvr")
                decay, first = -jnp.exp(self.vector(f"decay_{i}")), self.vector(f"first_{i}")

                def step(sums: Any, at: Any, decay: Any = decay, first: Any = first) -> Any:
                    (a, b), (k, v) = sums, at
                    y = (a + jnp.exp(first + k) * v) / (b + jnp.exp(first + k))
                    a, b = (jnp.exp(decay) * z for z in (a, b))
                    return (a + jnp.exp(k) * v, b + jnp.exp(k)), y

                zeros = jnp.zeros_like(k[:, 0])
                _, y = jax.lax.scan(step, (zeros, zeros), (k.swapaxes(0, 1), v.swapaxes(0, 1)))
                x = x + self.dense(stream, f"o_{i}", nn.sigmoid(r) * y.swapaxes(0, 1))
                y = nn.LayerNorm(name=f"norm_{i}_b")(x)
                h = nn.relu(self.dense(hidden, f"up_{i}", self.mixed(y, f"up_{i}"))) ** 2
                x = x + self.dense(stream, f"down_{i}", h)
            return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))

    return linen(Net(), WORDS)
