"""Deeper by copies or by new layers: what becomes of each, and that it is said."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import long

import dogwood_jax as dw
from dogwood_jax import strategies

X = jax.random.normal(jax.random.key(0), (3, 8))
KEY = jax.random.key(1)


class Blocks(nn.Module):
    """Residual blocks between an embedding and a head, as a language model has them."""

    layers: int
    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x)
        for i in range(self.layers):
            h = nn.gelu(nn.Dense(12, name=f"block_{i}_up")(x))
            x = x + nn.Dense(self.width, name=f"block_{i}_down")(h)
        return nn.Dense(2, name="head")(x)


@functools.cache
def variables(layers, width=8):
    draw = np.random.default_rng(layers).normal
    shapes = jax.eval_shape(Blocks(layers, width).init, KEY, X)
    return jax.tree.map(
        lambda leaf: jax.device_put(draw(scale=0.3, size=leaf.shape).astype(leaf.dtype)), shapes
    )


def deeper(old, new, depth, width=8, **options):
    small, larger = variables(old), Blocks(new, width)
    widths, target = dw.trace(Blocks(old).apply, small, X), jax.eval_shape(larger.init, KEY, X)
    growth = dw.plan(widths, target=target, target_apply=larger.apply, depth=depth, **options)
    return small, growth, dw.grow(small, growth, key=KEY)


def kernel(tree, layer, part="up"):
    return np.asarray(tree["params"][f"block_{layer}_{part}"]["kernel"])


@pytest.mark.parametrize(
    ("depth", "sources"),
    [
        (strategies.stack(), [0, 1, 0, 1, 0]),
        (strategies.interpose(), [0, 0, 0, 1, 1]),
    ],
)
def test_layers_are_copies_in_the_order_of_the_strategy(depth, sources):
    small, growth, wide = deeper(2, 5, depth)
    for layer, source in enumerate(sources):
        for part in ("up", "down"):
            np.testing.assert_array_equal(kernel(wide, layer, part), kernel(small, source, part))
    for name in ("embed", "head"):
        jax.tree.map(np.testing.assert_array_equal, wide["params"][name], small["params"][name])
    assert any(f"outputs change, because strategies.{depth}()" in note for note in growth.notes)
    assert "copy of params/block_0_up/kernel" in str(growth)
    assert dw.from_json(dw.to_json(growth)) == growth


def test_new_layers_are_random():
    small, growth, wide = deeper(1, 4, strategies.new_layers())
    np.testing.assert_array_equal(kernel(wide, 0), kernel(small, 0))
    for layer in (1, 2, 3):
        assert 0.1 < kernel(wide, layer, "down").std() < 1
    assert not np.allclose(kernel(wide, 1), kernel(wide, 2))
    fresh = variables(4)
    own = dw.grow(small, growth, fresh=fresh)
    np.testing.assert_array_equal(kernel(own, 2), kernel(fresh, 2))


def test_one_layer_becomes_many_and_wider():
    small, _, wide = deeper(1, 3, strategies.stack(), width=12, strategy=strategies.replicate())
    for layer in range(3):
        np.testing.assert_array_equal(kernel(wide, layer)[:8, :12] * 1.0, kernel(wide, 0)[:8, :12])
        np.testing.assert_array_equal(kernel(wide, layer, "down")[:, :8], kernel(small, 0, "down"))


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_new_layers_of_a_stack_begin_where_an_optimizer_does():
    def apply(params, x):
        return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["w"])[0]

    small, large = ({"w": jax.ShapeDtypeStruct((n, 8, 8), jnp.float32)} for n in (2, 3))
    growth = dw.plan(dw.trace(apply, small, X), target=large, target_apply=apply)
    params = jax.tree.map(lambda array: jnp.ones(array.shape, array.dtype), small)
    tx = optax.adagrad(1e-2, initial_accumulator_value=0.25)
    _, state = tx.update(params, tx.init(params), params)
    sums = dw.grow_opt_state(state, growth, tx)[0].sum_of_squares["w"]
    np.testing.assert_allclose(sums[:, 0, 0], [1.25, 1.25, 0.25])


@pytest.mark.parametrize("depth", [strategies.stack(), long(strategies.interpose())])
def test_old_layers_keep_their_state_and_copies_begin_anew(depth):
    small, growth, wide = deeper(2, 4, depth)
    tx = dw.growable(optax.adam(1e-2))
    grads = jax.tree.map(jnp.ones_like, small)
    _, state = jax.jit(tx.update)(grads, tx.init(small), small)
    grown = dw.grow_opt_state(state, growth, tx)
    has_moments = [leaf for leaf in jax.tree.leaves(grown, is_leaf=is_adam) if is_adam(leaf)]
    moments = has_moments[0]
    mu = moments.mu["params"]
    old = {0, 1} if depth.name == "stack" else {0, 2}
    for layer in range(4):
        value = float(mu[f"block_{layer}_up"]["kernel"].max())
        assert value == pytest.approx(0.1 if layer in old else 0.0)
    updates, _ = jax.eval_shape(tx.update, wide, grown, wide)
    assert jax.tree.structure(updates) == jax.tree.structure(wide)


def stacked(params, x, axis=0):
    def layer(h, p):
        return h + jnp.tanh(h @ p["up"]) @ p["down"], None

    layers = {name: jnp.moveaxis(array, axis, 0) for name, array in params["layers"].items()}
    return jax.lax.scan(layer, x @ params["embed"], layers)[0]


def stack_of(layers, axis=0):
    draw = np.random.default_rng(layers).normal
    shapes = {"up": (6, 5), "down": (5, 6)}
    shapes = {name: (*s[:axis], layers, *s[axis:]) for name, s in shapes.items()}
    made = {name: jax.device_put(draw(size=size)) for name, size in shapes.items()}
    return {"embed": jax.device_put(draw(size=(8, 6))), "layers": made}


@pytest.mark.parametrize(
    ("depth", "sources", "axis"),
    [
        (strategies.stack(), [0, 1, 0, 1, 0], 0),
        (strategies.interpose(), [0, 0, 0, 1, 1], 1),
    ],
)
def test_layers_of_a_scan_are_copied_alike(depth, sources, axis):
    apply = functools.partial(stacked, axis=axis)
    small, target = stack_of(2, axis), stack_of(5, axis)
    growth = dw.plan(dw.trace(apply, small, X), target=target, target_apply=apply, depth=depth)
    wide = dw.grow(small, growth, key=KEY)
    for part in ("up", "down"):
        copies = np.take(small["layers"][part], sources, axis)
        np.testing.assert_array_equal(wide["layers"][part], copies)


def test_new_layers_of_a_scan_are_random():
    small = stack_of(2)
    growth = dw.plan(
        dw.trace(stacked, small, X),
        target=stack_of(4),
        target_apply=stacked,
        depth=strategies.new_layers(),
    )
    wide = dw.grow(small, growth, key=KEY)
    np.testing.assert_array_equal(wide["layers"]["up"][:2], small["layers"]["up"])
    assert 0.1 < float(wide["layers"]["up"][2:].std()) < 2


class Normed(nn.Module):
    """Blocks with names, but norms that are numbered through, one of them behind the blocks."""

    layers: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            h = nn.gelu(nn.Dense(12, name=f"up_{i}")(nn.LayerNorm()(x)))
            x = x + nn.Dense(8, name=f"down_{i}")(h)
        return nn.LayerNorm()(x)


def test_numbers_that_count_something_else_are_refused():
    small, target = (jax.eval_shape(Normed(n).init, KEY, X) for n in (2, 4))
    widths = dw.trace(Normed(2).apply, small, X)
    for depth in (strategies.stack(), strategies.new_layers(), strategies.interpose()):
        with pytest.raises(
            ValueError, match="LayerNorm_# from 3 to 5(.|\n)*name modules by the layer"
        ):
            dw.plan(widths, target=target, target_apply=Normed(4).apply, depth=depth)


def test_copies_of_another_shape_are_refused():
    def apply(params, x):
        for i in range(len(params)):
            x = jnp.tanh(x @ params[f"hidden_{i}"])
        return x

    def of(*sizes):
        return {f"hidden_{i}": jnp.ones(s) for i, s in enumerate(zip(sizes, sizes[1:]))}

    widths = dw.trace(apply, of(8, 6, 6), X)
    with pytest.raises(ValueError, match=r"hidden_2: .*hidden_0.*\(8, 6\)"):
        dw.plan(widths, target=of(8, 6, 6, 6, 6), target_apply=apply, depth=strategies.stack())


def test_from_no_layer_to_some():
    small, target = variables(0), variables(3)
    growth = dw.plan(
        dw.trace(Blocks(0).apply, small, X),
        target=target,
        target_apply=Blocks(3).apply,
        depth=strategies.new_layers(),
    )
    wide = dw.grow(small, growth, key=KEY)
    assert 0.1 < kernel(wide, 2, "down").std() < 1


def test_rates_of_new_layers_are_those_of_layers_like_them():
    _, growth, wide = deeper(1, 3, strategies.stack(), width=16, strategy=strategies.replicate())
    rates = growth.rates(wide)["params"]
    assert [rates[f"block_{i}_up"]["kernel"] for i in range(3)] == [0.5] * 3
    assert [rates[f"block_{i}_down"]["kernel"] for i in range(3)] == [1.0] * 3


def test_without_a_strategy_layers_still_compute_the_identity():
    small, _, wide = deeper(2, 4, None)
    before, after = jax.jit(Blocks(2).apply)(small, X), jax.jit(Blocks(4).apply)(wide, X)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_what_cannot_be_is_refused():
    small = variables(2)
    widths = dw.trace(Blocks(2).apply, small, X)
    with pytest.raises(ValueError, match="depth= goes with target= and target_apply="):
        dw.plan(widths, target=variables(4), depth=strategies.stack())
    with pytest.raises(TypeError, match="plan: depth must be strategies.stack"):
        dw.plan(widths, target=variables(4), target_apply=Blocks(4).apply, depth="stack")
    other = {"params": variables(4)["params"] | {"extra": {"kernel": jnp.ones((8, 8))}}}
    with pytest.raises(
        ValueError,
        match=r"stack\(\) cannot make these layers.(?s:.*)extra: the network has no extra",
    ):
        dw.plan(widths, target=other, target_apply=Blocks(4).apply, depth=strategies.stack())


SCALED = strategies.interpose(scaled=True)


def shares(small, wide, layers=(0, 0, 0, 1, 1)):
    """What the arrays of each layer are multiplied by, two for each layer: before, and last."""
    return [
        [
            float((kernel(wide, n, part) / kernel(small, old, part)).mean())
            for part in ("up", "down")
        ]
        for n, old in enumerate(layers)
    ]


def test_layers_that_stand_where_one_stood_share_what_it_added():
    small, growth, wide = deeper(2, 5, SCALED)
    third, half = 3**-0.5, 2**-0.5
    expected = [[1, third]] * 3 + [[1, half]] * 2
    np.testing.assert_allclose(shares(small, wide), expected, rtol=1e-6)
    assert "params/block_0_down/{kernel,bias}: times 0.57735" in str(growth)
    assert dw.from_json(dw.to_json(growth)).inserted == growth.inserted
    same = jax.jit(lambda v: dw.grow(v, growth, key=KEY))(small)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same, wide)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), small)
    low = dw.grow(low, growth, key=KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(
        kernel(low, 4, "down").astype(float), kernel(wide, 4, "down"), rtol=2e-2
    )


@pytest.mark.long
def test_layers_share_beside_new_units():
    small, _, wide = deeper(2, 4, SCALED, width=12)
    cut = jax.tree.map(lambda a: a, wide)
    for n in range(4):
        its = cut["params"][f"block_{n}_up"], cut["params"][f"block_{n}_down"]
        its[0]["kernel"], its[1]["kernel"] = its[0]["kernel"][:8], its[1]["kernel"][:, :8]
    expected = [[1, 2**-0.5]] * 4
    np.testing.assert_allclose(shares(small, cut, (0, 0, 1, 1)), expected, rtol=1e-6)


def test_layers_of_a_scan_share(axis=1):
    apply = functools.partial(stacked, axis=axis)
    small = stack_of(2, axis)
    widths, target = dw.trace(apply, small, X), stack_of(5, axis)
    growth = dw.plan(widths, target=target, target_apply=apply, depth=SCALED)
    wide = dw.grow(small, growth, key=KEY)
    sources, times = [0, 0, 0, 1, 1], np.array([3, 3, 3, 2, 2]) ** -0.5
    times = np.expand_dims(times, [a for a in range(3) if a != axis])
    down = np.take(small["layers"]["down"], sources, axis)
    np.testing.assert_allclose(wide["layers"]["down"], down * times, rtol=1e-6)
    np.testing.assert_array_equal(
        wide["layers"]["up"], np.take(small["layers"]["up"], sources, axis)
    )


@pytest.mark.parametrize("model", ["scan", long("names")])
def test_averages_of_parameters_share_and_moments_stay(model):
    if model == "names":
        small, growth, wide = deeper(2, 4, SCALED)
    else:
        small = stack_of(2)
        widths = dw.trace(stacked, small, X)
        growth = dw.plan(widths, target=stack_of(4), target_apply=stacked, depth=SCALED)
        wide = dw.grow(small, growth, key=KEY)
    tx = optax.chain(optax.trace(0.9), optax.ema(0.9, debias=False))
    state = (optax.TraceState(small), optax.EmaState(jnp.zeros([], jnp.int32), small))
    for known in ({}, {"variables": wide}):
        its = dw.grow_opt_state(state, growth, tx, fields={"ema": "parameters"}, **known)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), its[1].ema, wide)
        if model == "names":
            old = np.asarray(its[0].trace["params"]["block_2_down"]["kernel"])
            np.testing.assert_array_equal(old, kernel(small, 1, "down"))
        else:
            np.testing.assert_array_equal(
                its[0].trace["layers"]["down"][::2], small["layers"]["down"]
            )


def test_layers_that_add_to_nothing_cannot_share():
    def apply(params, x):
        for i in range(len(params)):
            x = jnp.tanh(x @ params[f"hidden_{i}"])
        return x

    of = [{f"hidden_{i}": jnp.eye(8) for i in range(n)} for n in (2, 4)]
    with pytest.raises(ValueError, match=r"so they add to no stream\n  pass .*interpose"):
        dw.plan(dw.trace(apply, of[0], X), target=of[1], target_apply=apply, depth=SCALED)


class Attending(nn.Module):
    """A decoder whose table of positions is as long as its inputs; it answers at the last three."""

    layers: int

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(73, 64, name="words")(words) + nn.Embed(11, 64, name="places")(
            jnp.arange(11)[None]
        )
        mask = nn.make_causal_mask(words)
        for i in range(self.layers):
            h = nn.RMSNorm(name=f"norm_{i}")(x)
            x += nn.MultiHeadDotProductAttention(4, name=f"attention_{i}")(h, mask=mask)
        return nn.Dense(8, name="head")(x[:, -3:])


@pytest.mark.long
def test_a_network_that_is_finite_only_in_its_own_sizes_gets_more_layers():
    words = jnp.zeros((4, 11), jnp.int32)
    small, large = Attending(1), Attending(2)
    old = jax.jit(small.init)(KEY, words)
    widths, target = dw.trace(small.apply, old, words), jax.eval_shape(large.init, KEY, words)
    growth = dw.plan(widths, target=target, target_apply=large.apply)
    wide = dw.grow(old, growth, key=KEY)
    np.testing.assert_allclose(large.apply(wide, words), small.apply(old, words), atol=1e-5)
    shared = dw.plan(widths, target=target, target_apply=large.apply, depth=SCALED)
    kernels = dw.grow(old, shared, key=KEY)["params"]["attention_1"]
    its = old["params"]["attention_0"]
    np.testing.assert_allclose(kernels["out"]["kernel"], its["out"]["kernel"] / 2**0.5, rtol=1e-6)
    np.testing.assert_array_equal(kernels["query"]["kernel"], its["query"]["kernel"])
    copies = dw.deepen(
        *(old, target), apply=small.apply, target_apply=large.apply, inputs=(words,), copy=True
    )
    np.testing.assert_allclose(large.apply(copies, words), small.apply(old, words), atol=1e-5)
