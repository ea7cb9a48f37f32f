"""Architectures of the table: Flax NNX, Equinox and Haiku."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from architecture import KEY, Module, Network, architecture, data
from architectures_language import WORDS
from flax import nnx


def module(make: Callable[[nnx.Rngs], nnx.Module], *inputs: Any) -> Module:
    return Module(nnx.eval_shape(lambda: make(nnx.Rngs(0))), inputs)


@architecture("MLP, NNX", "Flax NNX")
def nnx_mlp(hidden: int = 16, layers: int = 2) -> Module:
    def make(rngs: nnx.Rngs) -> nnx.Module:
        sizes = [8, *[hidden] * layers]
        stack = [
            part
            for a, b in zip(sizes, sizes[1:])
            for part in (nnx.Linear(a, b, rngs=rngs), nnx.relu)
        ]
        return nnx.Sequential(*stack, nnx.Linear(hidden, 5, rngs=rngs))

    return module(make, data(4, 8))


@architecture("CNN with BatchNorm and Dropout, NNX", "Flax NNX")
def nnx_cnn(channels: int = 4, hidden: int = 8) -> Module:
    class Cnn(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, channels, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(channels, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.hidden = nnx.Linear(16 * channels, hidden, rngs=rngs)
            self.head = nnx.Linear(hidden, 5, rngs=rngs)
            self.eval()

        def __call__(self, x: Any) -> Any:
            x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
            return self.head(self.drop(nnx.relu(self.hidden(x.reshape(len(x), -1)))))

    return module(Cnn, data(2, 8, 8, 3))


@architecture("GPT, NNX", "Flax NNX")
def nnx_gpt(stream: int = 8, heads: int = 2, hidden: int = 16, layers: int = 2) -> Module:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.norm_a = nnx.LayerNorm(stream, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                heads, stream, qkv_features=4 * heads, decode=False, rngs=rngs
            )
            self.norm_b = nnx.LayerNorm(stream, rngs=rngs)
            self.up = nnx.Linear(stream, hidden, rngs=rngs)
            self.down = nnx.Linear(hidden, stream, rngs=rngs)

        def __call__(self, x: Any, mask: Any) -> Any:
            x = x + self.attention(self.norm_a(x), mask=mask)
            return x + self.down(nnx.gelu(self.up(self.norm_b(x))))

    class Gpt(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Embed(11, stream, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(layers)])
            self.norm = nnx.LayerNorm(stream, rngs=rngs)
            self.head = nnx.Linear(stream, 11, rngs=rngs)

        def __call__(self, words: Any) -> Any:
            x, mask = self.embed(words), nnx.make_causal_mask(words)
            for block in self.blocks:
                x = block(x, mask)
            return self.head(self.norm(x))

    return module(Gpt, WORDS)


@architecture("GRU, NNX", "Flax NNX")
def nnx_gru(hidden: int = 8) -> Module:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.rnn = nnx.RNN(nnx.GRUCell(4, hidden, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(hidden, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(self.rnn(x)[:, -1])

    return module(Net, data(2, 6, 4))


def equinox(make: Callable[..., Any], *inputs: Any) -> Network:
    """A module of Equinox, which takes one example."""

    def apply(module: Any, *inputs: Any) -> Any:
        return jax.vmap(module)(*inputs)

    return Network(apply, eqx.filter_eval_shape(make, KEY), inputs, eqx.filter_jit)


@architecture("MLP, Equinox", "Equinox")
def equinox_mlp(hidden: int = 16, layers: int = 2) -> Network:
    return equinox(lambda key: eqx.nn.MLP(8, 5, hidden, layers, key=key), data(4, 8))


@architecture("CNN, Equinox", "Equinox")
def equinox_cnn(first: int = 4, second: int = 6, hidden: int = 8) -> Network:
    def make(key: Any) -> Any:
        keys = jax.random.split(key, 4)
        return eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, first, 3, key=keys[0]),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Conv2d(first, second, 2, key=keys[1]),
                eqx.nn.GroupNorm(2, second),
                eqx.nn.Lambda(lambda x: jax.nn.relu(x).ravel()),
                eqx.nn.Linear(4 * second, hidden, key=keys[2]),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Linear(hidden, 5, key=keys[3]),
            ]
        )

    return equinox(make, data(2, 3, 8, 8))


@architecture("GRU, Equinox", "Equinox")
def equinox_gru(hidden: int = 8) -> Network:
    class Net(eqx.Module):
        cell: eqx.nn.GRUCell
        head: eqx.nn.Linear

        def __call__(self, xs: Any) -> Any:
            def step(h: Any, x: Any) -> Any:
                return self.cell(x, h), None

            h, _ = jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), xs)
            return self.head(h)

    def make(key: Any) -> Any:
        return Net(eqx.nn.GRUCell(4, hidden, key=key), eqx.nn.Linear(hidden, 3, key=key))

    return equinox(make, data(2, 6, 4))


@architecture("ViT block, Equinox", "Equinox")
def equinox_vit(stream: int = 8, heads: int = 2, hidden: int = 16) -> Network:
    class Net(eqx.Module):
        patches: Any
        norms: Any
        attention: Any
        mlp: Any
        head: Any

        def __call__(self, x: Any) -> Any:
            x = self.patches(x).reshape(stream, -1).T
            y = jax.vmap(self.norms[0])(x)
            x = x + self.attention(y, y, y)
            x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
            return self.head(x.mean(0))

    def make(key: Any) -> Any:
        a, b, c, d = jax.random.split(key, 4)
        attention = eqx.nn.MultiheadAttention(heads, stream, qk_size=4, vo_size=4, key=b)
        return Net(
            eqx.nn.Conv2d(3, stream, 4, 4, key=a),
            [eqx.nn.LayerNorm(stream), eqx.nn.LayerNorm(stream)],
            attention,
            eqx.nn.MLP(stream, stream, hidden, 1, jax.nn.gelu, key=c),
            eqx.nn.Linear(stream, 5, key=d),
        )

    return equinox(make, data(2, 3, 8, 8))


def haiku(forward: Callable[..., Any], *inputs: Any) -> Network:
    """A function of Haiku; its variables are parameters and state."""
    net = hk.without_apply_rng(hk.transform_with_state(forward))
    shapes = jax.eval_shape(net.init, KEY, *inputs)

    def apply(variables: Any, *inputs: Any) -> Any:
        return net.apply(*variables, *inputs)[0]

    return Network(apply, list(shapes), inputs)


@architecture("MLP, Haiku", "Haiku")
def haiku_mlp(hidden: int = 16, layers: int = 2) -> Network:
    return haiku(lambda x: hk.nets.MLP([*[hidden] * layers, 5])(x), data(4, 8))


@architecture("ResNet block, Haiku", "Haiku")
def haiku_resnet(channels: int = 4, layers: int = 2) -> Network:
    def forward(x: Any) -> Any:
        def norm(x: Any, name: str) -> Any:
            return hk.BatchNorm(True, True, 0.9, name=name)(x, is_training=hk.running_init())

        x = jax.nn.relu(norm(hk.Conv2D(channels, 3, name="stem")(x), "stem_norm"))
        for i in range(layers):
            y = jax.nn.relu(norm(hk.Conv2D(channels, 3, name=f"a_{i}")(x), f"norm_a_{i}"))
            x = jax.nn.relu(x + norm(hk.Conv2D(channels, 3, name=f"b_{i}")(y), f"norm_b_{i}"))
        return hk.Linear(5, name="head")(x.mean((1, 2)))

    return haiku(forward, data(2, 8, 8, 3))


@architecture("Transformer, Haiku", "Haiku")
def haiku_transformer(
    stream: int = 8, heads: int = 2, hidden: int = 16, layers: int = 2
) -> Network:
    def forward(words: Any) -> Any:
        x = hk.Embed(11, stream, name="embed")(words)
        start = hk.initializers.VarianceScaling(1.0)
        mask = jnp.tril(jnp.ones((1, 1, 5, 5)))
        for i in range(layers):
            y = hk.LayerNorm(-1, True, True, name=f"norm_a_{i}")(x)
            attend = hk.MultiHeadAttention(
                heads, 4, model_size=stream, w_init=start, name=f"attention_{i}"
            )
            x = x + attend(y, y, y, mask=mask)
            y = hk.LayerNorm(-1, True, True, name=f"norm_b_{i}")(x)
            y = jax.nn.gelu(hk.Linear(hidden, name=f"up_{i}")(y))
            x = x + hk.Linear(stream, name=f"down_{i}")(y)
        return hk.Linear(11, name="head")(hk.LayerNorm(-1, True, True, name="norm")(x))

    return haiku(forward, WORDS)


@architecture("LSTM, Haiku", "Haiku")
def haiku_lstm(hidden: int = 8) -> Network:
    def forward(x: Any) -> Any:
        cell = hk.LSTM(hidden, name="cell")
        y, _ = hk.dynamic_unroll(cell, x, cell.initial_state(x.shape[1]))
        return hk.Linear(3, name="head")(y[-1])

    return haiku(forward, data(6, 2, 4))
