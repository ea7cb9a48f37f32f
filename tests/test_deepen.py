"""Inserting layers that compute the identity."""

import functools
import pickle

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import data, f64, fill, tokens

import dogwood_jax as dw
from dogwood_jax._deepen import insertions
from dogwood_jax._insert import insert

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
    """Convolutions of every kind behind a pooling."""

    deep: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu6(Conv(4, (3, 3), name="conv")(x)), (2, 2), (2, 2), "SAME")
        if self.deep:
            x = nn.relu6(Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
            x = nn.relu6(Conv(4, (3, 3), feature_group_count=2, name="grouped")(x))
            x = nn.relu6(Conv(4, (3, 3), kernel_dilation=2, name="dilated")(x))
            x = nn.relu6(Conv(4, (2, 4), name="even")(x))
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
    attend: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        if self.attend:
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
            x, _ = stack(name="blocks", attend=False)(x, None)
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
        "depthwise/kernel grouped/kernel dilated/kernel even/kernel",
    ),
    "residual": (
        ResNet(),
        ResNet((2, 2)),
        IMAGE,
        "Bottleneck_1/BatchNorm_1/scale Bottleneck_3/BatchNorm_1/scale",
    ),
    "transformer": (
        Transformer(),
        Transformer(2),
        WORDS,
        "block_1/attention/out/kernel block_1/down/kernel",
    ),
    "stacked": (
        Transformer(2, scan=True),
        Transformer(4, scan=True),
        WORDS,
        "blocks/down/kernel blocks/down/bias",
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


# Programs written by hand: what the old network is, what the deeper one, and what is filled in.


def square(*names):
    return {name: f64(4, 4) for name in names}


def chain(*names):
    def apply(params, x):
        for name in names:
            x = jax.nn.relu(x @ params[name])
        return x

    return apply


def before_last(layer):
    """A layer, then the last matrix."""
    return lambda p, x: layer(p, x) @ p["a"]


def loop(*, scale=1.0, reverse=False, indexed=False, collect=False, dtype=jnp.float64):
    """A scan over stacked residual layers."""

    def apply(p, x):
        def body(x, layer):
            w, i = layer
            y = (jnp.tanh(x).astype(dtype) @ w).astype(x.dtype)
            return x + y * (1 if i is None else i), x if collect else None

        index = jnp.arange(len(p["w"]), dtype=x.dtype) if indexed else None
        stack = p["w"].astype(dtype), index
        x, seen = lax.scan(body, x * scale, stack, reverse=reverse)
        return (x, seen) if collect else x

    return apply


def unrolled_loop(p, x):
    return lax.fori_loop(0, len(p["w"]), lambda i, x: x + jnp.tanh(x) @ p["w"][i], x)


def recurrent(p, x):
    h, _ = lax.scan(lambda h, x: (jnp.tanh(h @ p["u"] + x), None), jnp.zeros(4), x)
    return h @ p["a"]


def doubling(p, x):
    return lax.while_loop(lambda x: jnp.sum(jnp.abs(x)) < 99, lambda x: x * 2 + jnp.sin(x), x)


def branching(p, x):
    return lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x)


def branching_inside(p, x):
    return lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x + jnp.tanh(x) @ p["b"])


def residual(p, x):
    return x + jnp.tanh(x) @ p["b"]


def normalized(p, x, epsilon=1e-6):
    return x + x @ (p["b"] * lax.rsqrt(jnp.sum(p["b"] ** 2) + epsilon))


def dropped(p, x):
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return x + jnp.where(kept, jnp.tanh(x) @ p["b"] / 0.5, 0)


def reduced(axis, f=jnp.sin):
    """A sum with a program of its own."""
    return lambda x: lax.reduce(x, 0.0, lambda a, b: a + f(b), (axis,))[None]


def same(p, x):
    return x


def scaled_branch(p, x):
    return x + p["g"].reshape(1, 1) * jnp.tanh(x @ p["b"])


def stack(n):
    return {"w": f64(n, 4, 4)}


ACCEPTED = {
    "multiplied": (same, lambda p, x: x * (1 + x @ p["b"]), square("b"), {"b": 0.0}),
    "scaled": (same, scaled_branch, square("b") | {"g": f64()}, {"g": 0.0}),
    "normalized": (same, normalized, square("b"), {"b": 0.0}),
    "dropped": (same, dropped, square("b"), {"b": 0.0}),
}

BY_HAND = {
    name: (before_last(old), square("a"), before_last(new), square("a") | shapes, fills)
    for name, (old, new, shapes, fills) in ACCEPTED.items()
} | {
    "used twice": (
        chain("a", "b"),
        square("a", "b"),
        chain("a", "c", "b", "c"),
        square("a", "b", "c"),
        {"c": "identity"},
    ),
    "never used": (
        chain("a"),
        square("a"),
        chain("a"),
        square("a", "c"),
        {},
    ),
    "before a loop": (
        lambda p, x: recurrent(p, jax.nn.relu(x)),
        square("a", "u"),
        lambda p, x: recurrent(p, jax.nn.relu(jax.nn.relu(x) @ p["c"])),
        square("a", "u", "c"),
        {"c": "identity"},
    ),
    "before a reduction": (
        lambda p, x: reduced(0)(x) @ p["a"],
        square("a"),
        lambda p, x: reduced(0)(residual(p, x)) @ p["a"],
        square("a", "b"),
        {"b": 0.0},
    ),
    "before while": (
        doubling,
        square("a"),
        lambda p, x: doubling(p, residual(p, x)),
        square("a", "b"),
        {"b": 0.0},
    ),
    "before cond": (
        branching,
        square("a"),
        lambda p, x: branching(p, residual(p, x)),
        square("a", "b"),
        {"b": 0.0},
    ),
    "inside cond": (branching, square("a"), branching_inside, square("a", "b"), {"b": 0.0}),
    "stack": (loop(), stack(2), loop(), stack(3), {"w": 0.0}),
    "reversed stack": (loop(reverse=True), stack(2), loop(reverse=True), stack(5), {"w": 0.0}),
    "converted stack": (
        loop(dtype=jnp.float32),
        stack(2),
        loop(dtype=jnp.float32),
        stack(3),
        {"w": 0.0},
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_programs_written_by_hand(name):
    old, shapes, new, target, fills = BY_HAND[name]
    found = insertions(old, shapes, new, target, VECTOR)
    filled = {i.path: i.value if i.fill == "constant" else i.fill for i in found}
    assert {path: fill for path, fill in filled.items() if fill != "free"} == fills
    variables = fill(shapes, 1)
    deeper = insert(variables, found, fill(target, 2))
    difference = dw.compare(old, variables, new, deeper, VECTOR)
    assert difference.relative <= 1e-12


ACTIVATIONS = {
    "tanh": r"dense_1: tanh follows it, and tanh\(tanh\(x\)\) is not tanh\(x\)",
    "silu": r"dense_1: silu follows it, and silu\(silu\(x\)\) is not silu\(x\)",
    "gelu": "dense_1: .* follows it",
    "leaky_relu": "dense_1: leaky_relu follows it",
    "softmax": "dense_1: .* follows it",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_not_idempotent_is_refused(name):
    nets = [mlp(*sizes, activation=getattr(jax.nn, name)) for sizes in ((5, 3), (5, 5, 3))]
    with pytest.raises(ValueError, match=ACTIVATIONS[name]):
        refused(*nets, VECTOR)


def refused(old, new, x):
    dw.deepen(
        shapes_of(old, x),
        shapes_of(new, x),
        apply=old.apply,
        target_apply=new.apply,
        inputs=(x,),
        copy=True,
    )


REFUSED = {
    "not square": (mlp(5, 3), mlp(5, 7, 3), VECTOR, r"dense_1/kernel: has shape \(5, 3\)"),
    "between": (
        Named(("a", "out")),
        Named(("a", "b", "c")),
        VECTOR,
        "params/out/kernel: not in the target",
    ),
    "strided": (Cnn(), Cnn(2, strides=2), IMAGE, r"conv_1/kernel of shape \(3, 5, 4, 4\)"),
    "unpadded": (Cnn(), Cnn(2, padding="VALID"), IMAGE, "conv_1/kernel"),
    "circular": (Cnn(), Cnn(2, padding="CIRCULAR"), IMAGE, "norm_1: "),
    "post-LN": (Transformer(1, post=True), Transformer(2, post=True), WORDS, "block_1/norm_3"),
    "scaled": (Transformer(1), Transformer(2, scale=0.5), WORDS, "is not"),
    "scaled stack": (
        Transformer(2, scan=True),
        Transformer(4, scan=True, scale=2.0),
        WORDS,
        "is not",
    ),
    "shallower": (Transformer(2), Transformer(1), WORDS, "block_1/down/kernel: not in the target"),
    "shallower stack": (
        Transformer(3, scan=True),
        Transformer(2, scan=True),
        WORDS,
        r"blocks/down/kernel: has shape \(3, 10, 6\), in the target \(2, 10, 6\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_proved_is_refused(name):
    old, new, x, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        refused(old, new, x)


def strided(p, x):
    dims = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x[None], p["b"], (2,), "VALID", dimension_numbers=dims)[0]


REFUSED_BY_HAND = {
    "subtracted": (
        before_last(same),
        square("a"),
        before_last(lambda p, x: x @ p["b"] - x),
        square("a", "b"),
    ),
    "negative": (
        before_last(same),
        square("a"),
        before_last(lambda p, x: jax.nn.relu(x @ p["b"])),
        square("a", "b"),
    ),
    "strided": (
        lambda p, x: x.max(0, keepdims=True) @ p["a"],
        square("a"),
        lambda p, x: strided(p, x).max(0, keepdims=True) @ p["a"],
        square("a") | {"b": f64(1, 4, 4)},
    ),
    "another axis": (
        lambda p, x: reduced(0)(x) @ p["a"],
        square("a"),
        lambda p, x: reduced(1)(residual(p, x)) @ p["a"],
        square("a", "b"),
    ),
    "another program": (
        lambda p, x: reduced(0)(x) @ p["a"],
        square("a"),
        lambda p, x: reduced(0, jnp.cos)(residual(p, x)) @ p["a"],
        square("a", "b"),
    ),
    "another branch": (
        branching,
        square("a"),
        lambda p, x: lax.cond(x.sum() > 0, lambda: residual(p, x) @ p["a"] * 2, lambda: x),
        square("a", "b"),
    ),
    "swapped": (chain("a", "b"), square("a", "b"), chain("b", "a", "c"), square("a", "b", "c")),
    "another constant": (
        lambda p, x: x @ p["a"] + 1.0,
        square("a"),
        lambda p, x: residual(p, x) @ p["a"] + 2.0,
        square("a", "b"),
    ),
    "gated": (
        before_last(same),
        square("a"),
        before_last(lambda p, x: x * jax.nn.sigmoid(x @ p["b"])),
        square("a", "b"),
    ),
    "no pole": (
        before_last(same),
        square("a"),
        before_last(lambda p, x: normalized(p, x, 0.0)),
        square("a", "b"),
    ),
    "infinite": (
        before_last(same),
        square("a"),
        before_last(lambda p, x: x + p["b"] * jnp.inf @ jnp.ones((4, 4))),
        square("a", "b"),
    ),
    "lower precision": (
        chain("a"),
        square("a"),
        lambda p, x: chain("a", "b")(p, x.astype(jnp.float32)).astype(jnp.float64),
        square("a", "b"),
    ),
    "outputs": (chain("a"), square("a"), lambda p, x: (chain("a")(p, x), x), square("a")),
    "order of layers": (loop(), stack(2), loop(reverse=True), stack(3)),
    "counted layers": (loop(indexed=True), stack(2), loop(indexed=True), stack(3)),
    "collected layers": (loop(collect=True), stack(2), loop(collect=True), stack(3)),
    "indexed stack": (unrolled_loop, stack(2), unrolled_loop, stack(3)),
}


@pytest.mark.parametrize("name", REFUSED_BY_HAND)
def test_programs_written_by_hand_that_are_refused(name):
    with pytest.raises(ValueError, match="cannot show"):
        insertions(*REFUSED_BY_HAND[name], VECTOR[:4])
    with pytest.raises(ValueError, match="cannot show"):
        insertions(*REFUSED_BY_HAND[name], VECTOR[:4], wider=True)


# Names --------------------------------------------------------------------------------------------


def test_numbered_layers_keep_their_order_unless_they_are_named():
    old, new = chain("l_1", "l_2"), chain("l_2", "l_3", "l_4")
    shapes = square("l_1", "l_2"), square("l_2", "l_3", "l_4")
    found = insertions(old, shapes[0], new, shapes[1], VECTOR)
    assert [str(i) for i in found] == [
        "l_2: moved from l_1",
        "l_3: moved from l_2",
        "l_4: identity",
    ]
    rename = {"l_1": "l_2", "l_2": "l_4"}
    found = insertions(old, shapes[0], new, shapes[1], VECTOR, rename=rename)
    assert [str(i) for i in found] == [
        "l_2: moved from l_1",
        "l_3: identity",
        "l_4: moved from l_2",
    ]
    with pytest.raises(ValueError, match="rename: the network has no 'l_9'") as error:
        rename = {"l_9": "l_2", "l_2": "l_8"}
        insertions(old, shapes[0], new, shapes[1], VECTOR, rename=rename)
    assert "rename: l_8 is not in the target" in str(error.value)


def test_layers_keep_their_names_among_many():
    names = [f"l_{i}" for i in range(16)]
    old, new = (
        lambda p, x, names=names: chain(*names)(p, jax.nn.relu(x)) for names in (names[10:], names)
    )
    found = insertions(old, square(*names[10:]), new, square(*names), VECTOR)
    assert sorted(i.path for i in found) == sorted(names[:10])
    assert {i.fill for i in found} == {"identity"}


def test_modules_can_be_renamed_without_their_collection():
    old, new = Named(("a", "out")), Named(("a", "b", "last"))
    found = insertions(
        old.apply,
        shapes_of(old, VECTOR),
        new.apply,
        shapes_of(new, VECTOR),
        VECTOR,
        rename={"out": "last"},
    )
    assert [str(i) for i in found] == [
        "params/b/bias: 0",
        "params/b/kernel: identity",
        "params/last/bias: moved from params/out/bias",
        "params/last/kernel: moved from params/out/kernel",
    ]


def test_copies_are_of_the_closest_whole_layer():
    old, new = ResNet((2, 1)), ResNet((3, 2))
    found = insertions(
        old.apply, shapes_of(old, IMAGE), new.apply, shapes_of(new, IMAGE), IMAGE, copy=True
    )
    fills = {i.path: (i.fill, i.source) for i in found}
    kernel = "params/Bottleneck_{}/Conv_0/kernel"
    assert fills[kernel.format(2)] == ("copy", kernel.format(1))
    assert fills[kernel.format(3)] == ("moved", kernel.format(2))
    # The one before it also projects its input, to another number of channels.
    assert fills[kernel.format(4)] == ("free", None)
    mean = "batch_stats/Bottleneck_{}/BatchNorm_0/mean"
    assert fills[mean.format(2)] == ("copy", mean.format(1))
    assert fills[mean.format(4)] == ("free", None)


def test_layers_by_name():
    first, last = ({"kernel": data(*n), "bias": data(n[1])} for n in ((4, 5), (5, 3)))
    params = {"first": first, "last": last, "conv": {"kernel": data(3, 3, 2, 6)}}
    names = {"second": "first", "third": "second", "conv_2": "conv"}
    deeper = dw.deepen({"params": params}, layers=names)["params"]
    assert list(deeper) == ["first", "second", "third", "last", "conv", "conv_2"]

    def apply(params, *order):
        x = VECTOR
        for name in order:
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        return x

    expected = apply(params, "first", "last")
    assert (apply(deeper, "first", "second", "third", "last") == expected).all()
    image = data(1, 5, 5, 6)
    convolve = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    same = convolve(image, deeper["conv_2"]["kernel"], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert (same == image).all()


def test_layers_by_name_are_proved_where_the_networks_are_given():
    def network(activation):
        def apply(params, x):
            for name in params:
                x = activation(x @ params[name]["kernel"])
            return x

        return apply

    params = {"a": {"kernel": data(4, 5)}}
    options = {"layers": {"b": "a"}, "inputs": (VECTOR,)}
    relu, tanh = network(jax.nn.relu), network(jnp.tanh)
    deeper = dw.deepen(params, apply=relu, target_apply=relu, **options)
    assert (relu(deeper, VECTOR) == relu(params, VECTOR)).all()
    with pytest.raises(ValueError, match="b: tanh follows it"):
        dw.deepen(params, apply=tanh, target_apply=tanh, **options)


def test_errors_of_layers_by_name_are_listed():
    params = {
        "a": {"kernel": data(4, 5)},
        "norm": {"scale": data(5)},
        "m": {"a": {"kernel": IMAGE}},
    }
    names = {"b": "aa", "c": "norm", "norm": "a", "d": "m/a"}
    with pytest.raises(ValueError, match="b|aa: no layer 'aa'; the closest are \\['a'") as error:
        dw.deepen(params, layers=names)
    for words in ("norm: expected a kernel", "norm: is there already", "d: must be in the same"):
        assert words in str(error.value)


# Values -------------------------------------------------------------------------------------------


def test_equinox_modules_take_the_structure_of_the_target():
    class Cnn(eqx.Module):
        layers: list

        def __init__(self, depth, key):
            channels = [2] + depth * [4]
            self.layers = [
                eqx.nn.Conv2d(a, b, 3, padding=1, key=key)
                for a, b in zip(channels, channels[1:], strict=False)
            ]

        def __call__(self, x):
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            return x

    def apply(module, x):
        return jax.vmap(module)(x)

    run = eqx.filter_jit(apply)
    cases = [
        (lambda n, key: eqx.nn.MLP(4, 3, 5, n, key=key), VECTOR),
        (Cnn, IMAGE.transpose(0, 3, 1, 2)),
    ]
    for make, x in cases:
        shapes = [eqx.filter_eval_shape(make, depth, jax.random.key(0)) for depth in (1, 2)]
        old, target = fill(shapes[0], 0), fill(shapes[1], 1)
        deeper = dw.deepen(old, target, apply=apply, target_apply=apply, inputs=(x,))
        assert jax.tree.structure(deeper) == jax.tree.structure(target)
        assert relative(run(old, x), run(deeper, x)) <= 1e-6


def test_free_values_are_those_of_the_target_or_drawn_at_its_scale():
    old, new, x = Gated(1), Gated(2), data(2, 5, 6)
    variables, shapes = fill(shapes_of(old, x), 0), shapes_of(new, x)
    deepen = functools.partial(
        dw.deepen, variables, apply=old.apply, target_apply=new.apply, inputs=(x,)
    )
    fresh = fill(shapes, 3)
    params = deepen(fresh)["params"]
    assert (params["up_1"]["kernel"] == fresh["params"]["up_1"]["kernel"]).all()
    assert not params["down_1"]["kernel"].any() and not params["down_1"]["bias"].any()
    drawn = deepen(shapes, key=jax.random.key(0))["params"]
    largest = jnp.abs(drawn["up_1"]["kernel"]).max()
    assert np.sqrt(6 / 11) / 2 < largest <= np.sqrt(6 / 11)
    assert (drawn["norm_1"]["scale"] == 1).all() and not drawn["norm_1"]["bias"].any()
    with pytest.raises(ValueError, match="up_1/kernel: free, so pass key="):
        deepen(shapes)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_new_layers_have_the_dtype_of_old_ones(dtype):
    apply = chain("a", "b")
    variables = {"a": data(4, 4).astype(dtype)}
    x = VECTOR.astype(dtype)
    deeper = dw.deepen(
        variables, square("a", "b"), apply=chain("a"), target_apply=apply, inputs=(x,)
    )
    assert deeper["b"].dtype == dtype
    assert (apply(deeper, x) == chain("a")(variables, x)).all()


def test_running_statistics_among_the_outputs():
    old, new = Cnn(), Cnn(2)
    applies = [functools.partial(module.apply, mutable=["batch_stats"]) for module in (old, new)]
    shapes = [shapes_of(module, IMAGE) for module in (old, new)]
    found = insertions(applies[0], shapes[0], applies[1], shapes[1], IMAGE)
    fills = {i.path: i.value for i in found if i.fill == "constant"}
    assert fills["batch_stats/norm_1/mean"] == 0 and fills["batch_stats/norm_1/var"] == 1
    assert fills["params/norm_1/scale"] == pytest.approx(np.sqrt(1 + 1e-5))


def test_inserted_normalizations_get_the_statistics_of_a_batch():
    old, new, x = Cnn(2), Cnn(4), jnp.linspace(-1, 2, 5 * 6 * 6 * 2).reshape(5, 6, 6, 2) ** 3
    variables = fill(old.init(jax.random.key(0), x), 1)
    # As after training, the running statistics are those of the data.
    train = lambda model: functools.partial(model.clone(training=True).apply, mutable="batch_stats")  # noqa: E731
    _, seen = train(old)(variables, x)
    fixed = variables["batch_stats"]["norm_1"]
    variables["batch_stats"]["norm_1"] = jax.tree.map(
        lambda after, before: (after - 0.99 * before) / 0.01, seen["batch_stats"]["norm_1"], fixed
    )
    deepen = functools.partial(
        dw.deepen,
        variables,
        jax.eval_shape(new.init, jax.random.key(0), x),
        apply=old.apply,
        target_apply=new.apply,
        inputs=(x[:1],),
    )
    for deeper, limit in ((deepen(batch=(x,)), 1e-6), (deepen(), np.inf)):
        # Flax adds epsilon to the variance in the statistics' dtype, float32.
        assert dw.compare(old.apply, variables, new.apply, deeper, x).relative < 1e-6
        outputs = [train(old)(variables, x)[0], train(new)(deeper, x)[0]]
        difference = jnp.abs(outputs[1] - outputs[0]).max() / jnp.abs(outputs[0]).max()
        assert difference < limit
    assert difference > 1e-2
    assert list(deeper["params"]) == sorted(deeper["params"])
    plain = {"a": data(4, 4)}
    with pytest.raises(ValueError, match="none was inserted"):
        applies = {"apply": chain("a"), "target_apply": chain("a", "b")}
        dw.deepen(plain, square("a", "b"), inputs=(VECTOR,), batch=(VECTOR,), **applies)


def test_insertions_are_data_from_shapes_alone():
    variables, target = fill(stack(2), 0), stack(4) | {"u": f64(4, 3)}
    found = insertions(loop(), stack(2), loop(), target, f64(5, 4))
    assert found == insertions(loop(), variables, loop(), target, VECTOR)
    assert found == pickle.loads(pickle.dumps(found)) and hash(found) is not None
    assert [str(insertion) for insertion in found] == ["u: free", "w[2,3]: 0"]

    @functools.partial(jax.jit, static_argnums=1)
    def inserted(variables, found):
        return insert(variables, found, target, key=jax.random.key(0))

    compiled = inserted(variables, found)
    eager = insert(variables, found, target, key=jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), compiled, eager))
    with pytest.raises(ValueError, match="w: missing; it is to become w"):
        insert({}, found, target, key=jax.random.key(0))


def test_interleaved_layers_copy_the_one_before():
    variables = fill(stack(2), 0)
    found = insertions(loop(), stack(2), loop(), stack(5), VECTOR, interleave=True)
    assert found[0].layers == (0, -1, 1, -1, -1)
    deeper = insert(variables, found, stack(5))["w"]
    assert (deeper[jnp.array([0, 2])] == variables["w"]).all()
    assert not deeper[jnp.array([1, 3, 4])].any()


class Gated(nn.Module):
    """Pre-norm attention with heads, and an MLP, of any sizes."""

    layers: int = 1
    hidden: int = 5
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            y = LayerNorm(name=f"norm_{i}")(x)
            x += Attention(self.heads, qkv_features=3 * self.heads, name=f"attention_{i}")(y, y)
            x += Dense(x.shape[-1], name=f"down_{i}")(
                nn.relu(Dense(self.hidden, name=f"up_{i}")(x))
            )
        return x


WIDER = {
    "mlp": (mlp(5, 3), mlp(8, 8, 3), VECTOR, {"dense_0": 8}),
    "heads": (Gated(), Gated(2, 7, 4), data(2, 5, 6), {"up_0": 7, "attention_0/query[heads]": 4}),
}


@pytest.mark.parametrize("name", WIDER)
def test_wider_and_deeper(name):
    old, new, x, sizes = WIDER[name]
    variables, target = fill(shapes_of(old, x), 0), shapes_of(new, x)
    found = insertions(old.apply, variables, new.apply, target, x, wider=True)
    wide = dw.grow(
        variables, dw.plan(dw.trace(old.apply, variables, x), sizes), key=jax.random.key(0)
    )
    deeper = insert(wide, found, target, key=jax.random.key(1))
    assert jax.tree.map(jnp.shape, deeper) == jax.tree.map(jnp.shape, target)
    assert relative(jax.jit(old.apply)(variables, x), jax.jit(new.apply)(deeper, x)) <= 1e-12


def test_one_is_no_size():
    old, new = {"a": f64(4, 4)}, {"a": f64(4, 8), "b": f64(4, 4)}
    for scale, proved in ((1.0, True), (2.0, False)):
        try:
            insertions(
                lambda p, x: x * 1.0 @ p["a"],
                old,
                lambda p, x, scale=scale: residual(p, x) * scale @ p["a"],
                new,
                VECTOR,
                wider=True,
            )
        except ValueError:
            assert not proved
        else:
            assert proved


def test_deepen_needs_networks_or_names():
    with pytest.raises(ValueError, match="either target="):
        dw.deepen({}, {}, layers={})
    with pytest.raises(ValueError, match="needs apply= and target_apply="):
        dw.deepen({}, {})
