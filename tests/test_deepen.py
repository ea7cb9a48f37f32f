"""Inserting layers that compute the identity."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import data, f64, fill
from networks_deeper import (
    IMAGE,
    VECTOR,
    WORDS,
    Cnn,
    Named,
    PooledCnn,
    ResNet,
    Transformer,
    before_last,
    branching,
    branching_inside,
    chain,
    doubling,
    dropped,
    entries,
    gated_recurrent,
    inserted,
    loop,
    mlp,
    multiplied_wide,
    normalized,
    proposed,
    rectified_entries,
    recurrent,
    reduced,
    relative,
    remembering,
    residual,
    same,
    scaled_branch,
    sequential,
    shapes_of,
    square,
    stack,
    stacks,
    summed_wide,
    unrolled_loop,
)
from tiers import in_tiers

import dogwood_jax as dw

Dense = functools.partial(nn.Dense, param_dtype=jnp.float64)
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
    "circular padding": (
        Cnn(),
        Cnn(2, padding="CIRCULAR"),
        IMAGE,
        "conv_1/kernel norm_1/scale norm_1/bias",
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
        "depthwise/kernel grouped/kernel dilated/kernel even/kernel averaged/kernel",
    ),
    "residual": (
        ResNet(),
        ResNet((2, 2)),
        IMAGE,
        "Bottleneck_1/BatchNorm_1/scale Bottleneck_3/BatchNorm_1/scale",
    ),
    "stacked": (
        Transformer(2, scan=True),
        Transformer(4, scan=True),
        WORDS,
        "blocks/down/kernel blocks/down/bias",
    ),
}
# The others take long to compile.
SHORT = ("batch norm",)


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


@pytest.mark.parametrize("name", in_tiers(LINEN, short=SHORT))
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


def messages(p, x):
    sent = jnp.tanh(x)[jnp.array([0, 1, 1, 0])] @ p["b"]
    return x + jax.ops.segment_sum(sent, jnp.array([1, 0, 2, 2]), len(x))


def rounded(w):
    scale = jnp.maximum(jnp.abs(w).mean(), 1e-5)
    return w + lax.stop_gradient(jnp.clip(jnp.round(w / scale), -1, 1) * scale - w)


def loops(numbers):
    return loop(numbers=numbers), stack(2), loop(numbers=numbers), stack(4)


ACCEPTED = {
    "messages": (same, messages, square("b"), {"b": 0.0}),
    "rounded": (same, lambda p, x: x + x @ rounded(p["b"]), square("b"), {"b": 0.0}),
    "multiplied": (same, lambda p, x: x * (1 + x @ p["b"]), square("b"), {"b": 0.0}),
    "scaled": (same, scaled_branch, square("b") | {"g": f64()}, {"g": 0.0}),
    "normalized": (same, normalized, square("b"), {"b": 0.0}),
    "dropped": (same, dropped, square("b"), {"b": 0.0}),
    "gated by two": (
        same,
        lambda p, x: p["g"][0] * x + p["g"].astype(jnp.float64)[1] * jnp.sin(x),
        {"g": f64(2)},
        {"g": (1.0, 0.0)},
    ),
    "remembering": (same, remembering(), square("b"), {"b": 0.0}),
    "gated recurrent": (same, gated_recurrent, square("b", "c", "d"), {"b": 0.0}),
    "stacked": (
        same,
        lambda p, x: x + jnp.stack([x @ p["b"], jnp.tanh(x @ p["b"])]).sum(0),
        square("b"),
        {"b": 0.0},
    ),
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
    "sums in another precision": (
        summed_wide("a"),
        square("a"),
        summed_wide("a", "b", "c"),
        square("a", "b", "c"),
        {"b": 0.0, "c": 0.0},
    ),
    "products in another precision": (
        multiplied_wide("a"),
        square("a"),
        multiplied_wide("a", "b"),
        square("a", "b"),
        {"b": "identity"},
    ),
    "entries": (entries, stacks(2), entries, stacks(4), {"r": (1.0, 0.0), "s": 0.0, "w": 0.0}),
    "entries of one layer": (
        rectified_entries,
        stack(1),
        rectified_entries,
        stack(3),
        {"w": "identity"},
    ),
    "counted layers": (*loops(lambda n: jnp.arange(n, dtype=float)), {"w": 0.0}),
    "layers of two kinds": (*loops(lambda n: 1.0 + np.arange(n) % 2), {"w": 0.0}),
    "computed kinds": (*loops(lambda n: 1.0 * (jnp.arange(n) % 2 == 0)), {"w": 0.0}),
    "converted stack": (
        loop(dtype=jnp.float32),
        stack(2),
        loop(dtype=jnp.float32),
        stack(3),
        {"w": 0.0},
    ),
}


def _filled(edit):
    """Returns the constants of an edit, or what else it is filled with."""
    fill = edit.fill
    if fill.kind != "constant":
        return fill.kind
    return fill.values if fill.value is None else fill.value


LONG = {"messages", "rounded", "entries", "computed kinds", "before a reduction"}


@pytest.mark.parametrize("name", in_tiers(BY_HAND, long=LONG))
def test_programs_written_by_hand(name):
    old, shapes, new, target, fills = BY_HAND[name]
    found = proposed(old, shapes, new, target, VECTOR)
    filled = {edit.path: _filled(edit) for edit in found}
    assert {path: fill for path, fill in filled.items() if fill != "free"} == fills
    variables = fill(shapes, 1)
    deeper = inserted(variables, found, fill(target, 2))
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


def test_of_several_new_layers_the_one_that_changes_outputs_is_named():
    def old(p, x):
        return nn.relu(x @ p["a"]) @ p["out"]

    def new(p, x):
        return nn.tanh(nn.relu(nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]) @ p["out"]

    shapes = {"a": f64(VECTOR.shape[1], 5), "out": f64(5, 3)}
    deeper = shapes | {"b": f64(5, 5), "c": f64(5, 5)}
    with pytest.raises(ValueError, match="- c: tanh follows it"):
        dw.deepen(shapes, deeper, apply=old, target_apply=new, inputs=(VECTOR,), copy=True)


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
    "post-LN": (Transformer(1, post=True), Transformer(2, post=True), WORDS, "block_1/norm_3"),
    "scaled": (
        Transformer(1),
        Transformer(2, scale=0.5),
        WORDS,
        "mul is applied where the old network does something else",
    ),
    "scaled stack": (
        Transformer(2, scan=True),
        Transformer(4, scan=True, scale=2.0),
        WORDS,
        "mul is applied where the old network does something else\n  it computes with 2",
    ),
    "shallower": (
        Transformer(2),
        Transformer(1),
        WORDS,
        r"block_1/\{down,up\}/\{bias,kernel\}: not in the target",
    ),
    "shallower stack": (
        Transformer(3, scan=True),
        Transformer(2, scan=True),
        WORDS,
        r"blocks/down/kernel: has shape \(3, 10, 6\), in the target \(2, 10, 6\)",
    ),
}


@pytest.mark.parametrize("name", in_tiers(REFUSED, long={"post-LN", "scaled"}))
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
    "gated by two and their sum": (
        before_last(same),
        square("a"),
        before_last(
            lambda p, x: p["g"][0] * x + p["g"][1] * jnp.sin(x) + p["g"].sum() * jnp.cos(x)
        ),
        square("a") | {"g": f64(2)},
    ),
    "remembering a number": (
        before_last(same),
        square("a"),
        before_last(remembering(begin=1.0)),
        square("a", "b"),
    ),
    "divided by no count": (
        before_last(same),
        square("a"),
        before_last(remembering(rest=0.0)),
        square("a", "b"),
    ),
    "infinite": (
        before_last(same),
        square("a"),
        before_last(lambda p, x: x + p["b"] * jnp.inf @ jnp.ones((4, 4))),
        square("a", "b"),
    ),
    "outputs": (chain("a"), square("a"), lambda p, x: (chain("a")(p, x), x), square("a")),
    "order of layers": (loop(), stack(2), loop(reverse=True), stack(3)),
    "layers counted from the last": loops(lambda n: jnp.arange(n, dtype=float)[::-1]),
    "layers of other kinds": loops(lambda n: np.linspace(1, 2, n)),
    "collected layers": (loop(collect=True), stack(2), loop(collect=True), stack(3)),
    "the last entry": (
        lambda p, x: entries(p, x) @ p["w"][-1],
        stacks(2),
        lambda p, x: entries(p, x) @ p["w"][-1],
        stacks(3),
    ),
    "a whole stack": (
        lambda p, x: loop()(p, x) + jnp.max(p["w"]),
        stack(2),
        lambda p, x: loop()(p, x) + jnp.max(p["w"]),
        stack(3),
    ),
    "indexed stack": (unrolled_loop, stack(2), unrolled_loop, stack(3)),
}


@pytest.mark.parametrize("name", REFUSED_BY_HAND)
def test_programs_written_by_hand_that_are_refused(name):
    old, shapes, new, target = REFUSED_BY_HAND[name]
    with pytest.raises(ValueError, match="cannot (show|plan)"):
        dw.plan(dw.trace(old, shapes, VECTOR[:4]), target=target, target_apply=new)
    options = {"apply": old, "target_apply": new, "inputs": (VECTOR[:4],), "verify": False}
    with pytest.raises(ValueError, match="cannot (show|plan)"):
        dw.deepen(fill(shapes, 0), target, key=jax.random.key(0), **options)


def test_a_number_that_follows_from_how_many_layers_there_are_is_named():
    def apply(p, x):
        for layer in p:
            x = x + len(p) ** -0.5 * (jnp.tanh(x @ layer["up"]) @ layer["down"])
        return x

    layer = {"up": f64(4, 3), "down": f64(3, 4)}
    with pytest.raises(ValueError, match="computes with 0.57735, which the old network does not"):
        proposed(apply, 2 * [layer], apply, 3 * [layer], VECTOR[:4])


def test_a_real_part_is_not_bounded_like_the_function_of_real_numbers():
    def cosine(h):  # of both signs, though exp of a real number is positive
        return jnp.real(jnp.exp(lax.complex(jnp.zeros_like(h), h)))

    def small(p, x):
        return cosine(x @ p["a"]) @ p["c"]

    def deep(p, x):
        return jax.nn.relu(cosine(x @ p["a"]) @ p["b"]) @ p["c"]

    params = {"a": jnp.ones((3, 4)), "c": jnp.ones((4, 2))}
    target = params | {"b": jax.ShapeDtypeStruct((4, 4), params["a"].dtype)}
    with pytest.raises(ValueError, match="relu follows it"):
        dw.deepen(params, target, apply=small, target_apply=deep, inputs=(jnp.ones((5, 3)),))


def test_a_lower_precision_is_noted():
    def deep(p, x):
        return chain("a", "b")(p, x.astype(jnp.float32)).astype(jnp.float64)

    widths = dw.trace(chain("a"), square("a"), VECTOR)
    growth = dw.plan(widths, target=square("a", "b"), target_apply=deep)
    assert "casts to float32, so outputs may differ by its rounding" in " ".join(growth.notes)


def test_zeros_do_not_silence_what_overflows():
    def small(p, x):
        return x @ p["a"]

    def deep(p, x):
        huge = lax.pow(10.0 + 0 * p["b"], 400.0 + 0 * p["b"])
        return x @ p["a"] + (p["s"] * huge)[None]

    params = {"a": jnp.ones((3, 4))}
    target = params | {name: jax.ShapeDtypeStruct((4,), params["a"].dtype) for name in "bs"}
    with pytest.raises(ValueError, match=r"because pow \(test_deepen.py:\d+\) is not finite"):
        dw.deepen(params, target, apply=small, target_apply=deep, inputs=(jnp.ones((5, 3)),))


class Stages(nn.Module):
    """Residual layers of three widths. Flax numbers them, so more of the first rename the rest."""

    first: int

    @nn.compact
    def __call__(self, x):
        for width, layers in ((4, self.first), (6, 1), (8, 1)):
            x = nn.Dense(width)(x)
            for _ in range(layers):
                x = x + nn.Dense(width)(nn.relu(nn.Dense(width + 1)(x)))
        return nn.Dense(2)(x)


@pytest.mark.long
def test_fresh_arrays_are_read_where_old_ones_go():
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    small, large = Stages(1), Stages(2)
    variables, fresh = (jax.jit(model.init)(jax.random.key(1), x) for model in (small, large))
    widths = dw.trace(small.apply, variables, x)
    growth = dw.plan(widths, target=fresh, target_apply=large.apply)
    grown = dw.grow(variables, growth, fresh=fresh, key=jax.random.key(2))
    np.testing.assert_allclose(large.apply(grown, x), small.apply(variables, x), rtol=1e-5)


def test_fresh_stacks_have_the_new_layers():
    def apply(params, x):
        return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["layers"])[0]

    small, large = ({"layers": jnp.ones((layers, 3, 3))} for layers in (2, 4))
    growth = dw.plan(dw.trace(apply, small, jnp.ones((1, 3))), target=large, target_apply=apply)
    assert dw.grow(small, growth, fresh=large)["layers"].shape == (4, 3, 3)
    with pytest.raises(ValueError, match=r"layers: has shape \(2, 3, 3\) in fresh, but grows to"):
        dw.grow(small, growth, fresh=small)


class Decoder(nn.Module):
    """Flax numbers its layers through all blocks, so more blocks rename what comes after them."""

    blocks: int

    @nn.compact
    def __call__(self, x):
        memory = nn.Dense(4)(x)
        for i in range(self.blocks):
            gain = self.param(f"gain_{i}", nn.initializers.normal(), (4,))[None, None]
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(4)(nn.gelu(nn.Dense(6)(y) + 0.5)) + gain * jnp.tanh(memory)
        x = nn.LayerNorm()(x)
        return nn.Dense(3)(x), nn.Dense(2)(x)


class EncoderDecoder(nn.Module):
    """Two stacks of blocks, whose layers are numbered through both."""

    blocks: int

    @nn.compact
    def __call__(self, x):
        def stack(x, memory):
            for _ in range(self.blocks):
                y = nn.LayerNorm()(x)
                if memory is not None:
                    y = jnp.concatenate([y, memory], -1)
                x = x + nn.Dense(4)(nn.gelu(nn.Dense(6)(y)))
            return nn.LayerNorm()(x)

        return nn.Dense(3)(stack(x, stack(x[..., ::-1], None)))


@pytest.mark.long
@pytest.mark.parametrize("network", [Decoder, EncoderDecoder])
def test_layers_that_are_numbered_through_all_blocks_are_found_in_the_order_of_reading(network):
    small, large = network(2), network(3)
    x = jnp.linspace(-1, 1, 24).reshape(1, 6, 4)
    variables = jax.jit(small.init)(jax.random.key(1), x)
    target = jax.eval_shape(large.init, jax.random.key(0), x)
    growth = dw.plan(dw.trace(small.apply, variables, x), target=target, target_apply=large.apply)
    grown = dw.grow(variables, growth, key=jax.random.key(2))
    old, new = jax.jit(small.apply)(variables, x), jax.jit(large.apply)(grown, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6), old, new)
