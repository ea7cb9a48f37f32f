"""Inserting layers that compute the identity."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from networks import data, fill, tokens

import dogwood_jax as dw

Dense = functools.partial(nn.Dense, param_dtype=jnp.float64)
Conv = functools.partial(nn.Conv, param_dtype=jnp.float64)
LayerNorm = functools.partial(nn.LayerNorm, param_dtype=jnp.float64)
BatchNorm = functools.partial(nn.BatchNorm, param_dtype=jnp.float64, use_running_average=True)
Attention = functools.partial(nn.MultiHeadDotProductAttention, param_dtype=jnp.float64)


def mlp(*sizes, activation=nn.relu):
    """Layers called dense_0, dense_1, ... with an activation between them."""

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, size in enumerate(sizes):
                x = Dense(size, name=f"dense_{i}")(activation(x) if i else x)
            return x

    return Mlp()


def sequential(*sizes, activation=nn.relu):
    layers = [layer for size in sizes for layer in (Dense(size), activation)]
    return nn.Sequential(layers[:-1])


class Named(nn.Module):
    """Layers with names of their own."""

    names: tuple = ("a", "out")

    @nn.compact
    def __call__(self, x):
        for name in self.names[:-1]:
            x = nn.relu(Dense(5, name=name)(x))
        return Dense(3, name=self.names[-1])(x)


class Cnn(nn.Module):
    blocks: int = 1
    padding: str = "SAME"
    strides: int = 1
    kernel: tuple = (3, 5)
    training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm(name="norm")(Conv(4, (3, 3), name="conv")(x)))
        for i in range(1, self.blocks):
            x = Conv(4, self.kernel, self.strides, self.padding, name=f"conv_{i}")(x)
            norm = BatchNorm(name=f"norm_{i}", use_running_average=not self.training)
            x = nn.relu(norm(x))
        return Dense(3, name="head")(x.mean((1, 2)))


class PooledCnn(nn.Module):
    """A convolution behind a pooling; depthwise and dilated ones."""

    deep: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu6(Conv(4, (3, 3), name="conv")(x)), (2, 2), (2, 2), "SAME")
        if self.deep:
            x = nn.relu6(Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
            x = nn.relu6(Conv(4, (3, 3), feature_group_count=2, name="grouped")(x))
            x = nn.relu6(Conv(4, (3, 3), kernel_dilation=2, name="dilated")(x))
        return Dense(3, name="head")(x.reshape(x.shape[0], -1))


class Bottleneck(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(BatchNorm()(Conv(self.features, (3, 3), use_bias=False)(x)))
        y = BatchNorm()(Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = Conv(self.features, (1, 1), name="project")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    stages: tuple = (1, 1)

    @nn.compact
    def __call__(self, x):
        for i, blocks in enumerate(self.stages):
            for _ in range(blocks):
                x = Bottleneck(3 + i)(x)
        return Dense(4)(x.mean((1, 2)))


class Block(nn.Module):
    """A pre-LN transformer block; post-LN for comparison."""

    post: bool = False

    @nn.compact
    def __call__(self, x, _=None):
        y = LayerNorm(name="norm_1")(x)
        mask = nn.make_causal_mask(x[..., 0])
        x = x + Attention(2, name="attention")(y, y, mask=mask)
        y = nn.gelu(Dense(10, name="up")(LayerNorm(name="norm_2")(x)))
        x = x + Dense(x.shape[-1], name="down")(y)
        return (LayerNorm(name="norm_3")(x) if self.post else x), None


class Transformer(nn.Module):
    layers: int = 1
    scan: bool = False
    post: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(7, 6, param_dtype=jnp.float64)(words) * self.scale
        if self.scan:
            axes, rngs = {"params": 0}, {"params": True}
            stack = nn.scan(
                nn.remat(Block), variable_axes=axes, split_rngs=rngs, length=self.layers
            )
            x, _ = stack(name="blocks")(x, None)
        else:
            for i in range(self.layers):
                x, _ = Block(name=f"block_{i}", post=self.post)(x)
        return Dense(7, name="head")(LayerNorm(name="norm")(x))


VECTOR = data(5, 4)
IMAGE = data(5, 8, 8, 2)
WORDS = tokens(7, 2, 5)

# A network, a deeper one, an input, and the new arrays that must get a gradient.
LINEN = {
    "sequential": (
        sequential(5, 3),
        sequential(5, 5, 5, 3),
        VECTOR,
        "layers_2/kernel layers_2/bias layers_4/kernel",
    ),
    "numbered": (mlp(5, 3), mlp(5, 5, 3), VECTOR, "dense_1/kernel dense_1/bias"),
    "named": (Named(), Named(("a", "b", "out")), VECTOR, "b/kernel b/bias"),
    "bounded": (
        mlp(5, 3, activation=nn.relu6),
        mlp(5, 5, 3, activation=nn.relu6),
        VECTOR,
        "dense_1/kernel",
    ),
    "linear": (
        mlp(5, 3, activation=lambda x: x),
        mlp(5, 5, 3, activation=lambda x: x),
        VECTOR,
        "dense_1/kernel",
    ),
    "batch norm": (
        Cnn(),
        Cnn(2),
        IMAGE,
        "conv_1/kernel norm_1/scale norm_1/bias",
    ),
    "convolutions": (
        PooledCnn(),
        PooledCnn(True),
        IMAGE,
        "depthwise/kernel grouped/kernel dilated/kernel",
    ),
    "residual": (
        ResNet(),
        ResNet((2, 3)),
        IMAGE,
        "Bottleneck_1/BatchNorm_1/scale Bottleneck_3/BatchNorm_1/scale "
        "Bottleneck_4/BatchNorm_1/scale",
    ),
    "transformer": (
        Transformer(),
        Transformer(3),
        WORDS,
        "block_1/attention/out/kernel block_1/down/kernel block_2/down/kernel",
    ),
    "stacked": (
        Transformer(2, scan=True),
        Transformer(4, scan=True),
        WORDS,
        "blocks/attention/out/kernel blocks/down/kernel",
    ),
}


def shapes_of(module, x):
    return jax.eval_shape(module.init, jax.random.key(0), x)


def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)))


def learning(module, x, weights):
    """Returns a compiled function of variables: outputs, and the gradient of a weighted sum."""

    def loss(params, others):
        out = module.apply(others | {"params": params}, x)
        return jnp.sum(weights * out), out

    @jax.jit
    def run(variables):
        others = {k: v for k, v in variables.items() if k != "params"}
        gradient, out = jax.grad(loss, has_aux=True)(variables["params"], others)
        return out, gradient

    return run


@pytest.mark.parametrize("name", LINEN)
def test_deeper_networks_compute_the_same_and_their_new_layers_learn(name):
    old, new, x, paths = LINEN[name]
    variables, target = fill(shapes_of(old, x), 0), shapes_of(new, x)
    expected = jax.jit(old.apply)(variables, x)
    run = learning(new, x, data(*expected.shape, seed=9))
    for options in ({}, {"copy": True, "interleave": True}):
        deeper = dw.deepen(
            variables,
            target,
            apply=old.apply,
            target_apply=new.apply,
            inputs=(x,),
            key=jax.random.key(1),
            **options,
        )
        assert jax.tree.map(jnp.shape, deeper) == jax.tree.map(jnp.shape, target)
        out, gradient = run(deeper)
        assert relative(expected, out) <= 1e-12
        for path in paths.split():
            leaf = functools.reduce(lambda tree, key: tree[key], path.split("/"), gradient)
            leaves = leaf if name == "stacked" else [leaf]  # every layer of a stack
            assert all(jnp.abs(leaf).max() > 1e-6 for leaf in leaves), path
