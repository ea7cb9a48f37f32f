"""Strategies from papers: cloned models, pairs, shrunk weights, copies with a new state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import long

import dogwood_jax as dw
from dogwood_jax import strategies

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(0), (7, 4), jnp.float64)


def apply(params, x):
    h = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None])
    h = jnp.tanh(h @ params["mid"]["kernel"] + params["mid"]["bias"][None])
    return h @ params["down"]["kernel"]


def variables(seed=1):
    rng = np.random.default_rng(seed)
    sizes = {"up": (4, 6), "mid": (6, 5), "down": (5, 2)}
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape)), "bias": jnp.ones(shape[1])}
        for name, shape in sizes.items()
    }


def grown(strategy, sizes, **options):
    params = variables()
    growth = dw.plan(dw.trace(apply, params, X), sizes, strategy=strategy)
    return params, growth, dw.grow(params, growth, key=KEY, **options)


class Encoder(nn.Module):
    """A pre-norm block whose stream, heads and MLP can be cloned."""

    stream: int = 8
    heads: int = 2
    mlp: int = 12
    head_dim: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.stream, name="embed")(x)
        h = nn.LayerNorm(name="norm_1")(x)
        qkv_features = self.heads * self.head_dim
        attend = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=qkv_features, out_features=self.stream, name="attention"
        )
        x = x + attend(h)
        h = nn.gelu(nn.Dense(self.mlp, name="mlp_up")(nn.LayerNorm(name="norm_2")(x)))
        x = x + nn.Dense(self.stream, name="mlp_down")(h)
        return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x))


@pytest.mark.long
def test_a_whole_model_is_cloned(times=3):
    x = jax.random.normal(KEY, (2, 5, 6), jnp.float64)
    small, large = Encoder(), Encoder(8 * times, 2 * times, 12 * times)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape, leaf.dtype),
        jax.jit(small.init)(KEY, x.astype(jnp.float32)),
    )
    x = x.astype(jnp.float32)
    target = jax.eval_shape(large.init, KEY, x)
    sizes = {("attention/query/kernel", 1): 2 * times}
    growth = dw.plan(
        dw.trace(small.apply, params, x),
        sizes,
        target=target,
        target_apply=large.apply,
        strategy=strategies.hyperclone(),
    )
    wide = dw.grow(params, growth)
    dw.verify(small.apply, params, large.apply, wide, x)
    kernel, old = (tree["params"]["mlp_up"]["kernel"] for tree in (wide, params))
    np.testing.assert_allclose(kernel, np.tile(old, (times, times)) / times, rtol=1e-6)


def test_clones_are_whole():
    with pytest.raises(
        ValueError, match=r"hyperclone\(\) grows it to multiples of 6 only, not to 9"
    ):
        grown(strategies.hyperclone(), {"up": 9})
    params, growth, wide = grown(strategies.hyperclone(), {"up": 12, "mid": 10})
    np.testing.assert_allclose(apply(wide, X), apply(params, X), rtol=1e-12)
    assert dw.from_json(dw.to_json(growth)) == growth


@pytest.mark.parametrize(
    ("sizes", "is_fresh"),
    [
        ({"up": 9, "mid": 11}, False),
        ({"up": 7}, False),
        long({"up": 9, "mid": 11}, True),
    ],
)
def test_pairs_cancel_and_learn_at_once(sizes, is_fresh):
    fresh = {}
    if is_fresh:
        shapes = dw.plan(dw.trace(apply, variables(), X), sizes).shapes
        keys = dict(zip(shapes, jax.random.split(KEY, len(shapes)), strict=True))
        flat = {path: jax.random.normal(keys[path], shape) for path, shape in shapes.items()}
        for path, array in flat.items():
            fresh.setdefault(path.split("/")[0], {})[path.split("/")[1]] = array
    params, _, wide = grown(strategies.paired(), sizes, fresh=fresh or None)
    np.testing.assert_allclose(apply(wide, X), apply(params, X), rtol=1e-11, atol=1e-12)
    reader = {"up": "mid", "mid": "down"}
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, X) ** 3)))(wide)
    for name, size in sizes.items():
        old = params[name]["bias"].size
        half = (size - old) // 2
        new = np.asarray(wide[name]["kernel"])[:, old:]
        np.testing.assert_array_equal(new[:, :half], new[:, half : 2 * half])
        rows = np.asarray(wide[reader[name]]["kernel"])[old:]
        np.testing.assert_array_equal(rows[:half], -rows[half : 2 * half])
        assert (size - old) % 2 == 0 or (rows[-1] == 0).all()
        if half:
            assert np.abs(slopes[name]["kernel"][:, old : old + half]).min() > 0
            assert np.abs(slopes[reader[name]]["kernel"][old : old + half]).min() > 0


def test_pairs_that_would_never_part_are_refused():
    fresh = variables(2) | {"up": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
    fresh["mid"] = {"kernel": jnp.zeros((8, 5)), "bias": jnp.ones(5)}
    growth = dw.plan(dw.trace(apply, variables(), X), {"up": 8}, strategy=strategies.paired())
    with pytest.raises(ValueError, match="never learn to differ"):
        dw.grow(variables(), growth, fresh=fresh)


def test_pairs_are_refused_where_units_cannot_be_alike():
    def gated(params, x):
        h = jnp.tanh(x @ params["up"]["kernel"])
        return jnp.sort(h, axis=-1) @ params["down"]["kernel"]

    params = {name: variables()[name] for name in ("up",)} | {"down": {"kernel": jnp.ones((6, 2))}}
    with pytest.raises(ValueError, match="computes something else"):
        dw.plan(dw.trace(gated, params, X), {"up": 8}, strategy=strategies.paired())
    with pytest.raises(ValueError, match="units of an input or output cannot be copied"):
        grown_widths = dw.trace(apply, variables(), X)
        name = grown_widths.of("up/kernel", 0).name
        dw.plan(grown_widths, {name: 8}, strategy=strategies.paired(), interface=True)


def test_old_weights_shrink_and_all_are_perturbed():
    params, growth, wide = grown(strategies.shrink_perturb(0.3, 0), {"up": 8})
    np.testing.assert_allclose(wide["up"]["kernel"][:, :6], 0.3 * params["up"]["kernel"])
    assert (wide["up"]["kernel"][:, 6:] == 0).all() and (wide["mid"]["kernel"][6:] == 0).all()
    np.testing.assert_array_equal(wide["up"]["bias"][:6], params["up"]["bias"])
    assert any("old weights are multiplied by 0.3 and 0 times" in note for note in growth.notes)
    _, _, noisy = grown(strategies.shrink_perturb(0.3, 0.1), {"up": 8})
    added = np.asarray(noisy["up"]["kernel"] - wide["up"]["kernel"])
    limit = 0.1 * np.sqrt(6 / (4 + 8))
    assert 0.5 * limit < np.abs(added).max() <= limit and (added != 0).all()
    np.testing.assert_array_equal(noisy["down"]["kernel"], params["down"]["kernel"])
    averages = optax.contrib.schedule_free_sgd(0.1).init(params)
    noisy_growth = dw.plan(
        dw.trace(apply, params, X), {"up": 8}, strategy=strategies.shrink_perturb(0.3, 0.1)
    )
    assert "axis 1 perturbed (up)" in str(noisy_growth)
    state = dw.grow_opt_state(
        averages, noisy_growth, optax.contrib.schedule_free_sgd(0.1), variables=noisy
    )
    np.testing.assert_array_equal(state.z["up"]["kernel"], noisy["up"]["kernel"])
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        strategies.shrink_perturb(-1)


@pytest.mark.parametrize("strategy", [strategies.replicate, strategies.hyperclone])
@pytest.mark.long
def test_copies_may_begin_with_a_new_state(strategy):
    params, growth, wide = grown(strategy(state="new"), {"up": 12})
    _, same, _ = grown(strategy(), {"up": 12})
    np.testing.assert_allclose(apply(wide, X), apply(params, X), rtol=1e-12)
    tx = dw.growable(optax.adam(0.01))
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)

    def moments(growth):
        found = jax.tree.leaves(dw.grow_opt_state(state, growth, tx), is_leaf=is_adam)
        return next(leaf for leaf in found if is_adam(leaf)).mu

    new, copied = moments(growth), moments(same)
    assert (new["up"]["kernel"][:, 6:] == 0).all() and (new["mid"]["kernel"][6:] == 0).all()
    assert (copied["up"]["kernel"][:, 6:] != 0).all()
    for name, entries in {"up": np.s_[:, :6], "mid": np.s_[:6]}.items():
        np.testing.assert_allclose(new[name]["kernel"][entries], copied[name]["kernel"][entries])

    def loss(p):
        return jnp.sum((apply(p, X) - 1) ** 2)

    @jax.jit
    def step(at, opt_state):
        updates, opt_state = tx.update(jax.grad(loss)(at), opt_state, at)
        return optax.apply_updates(at, updates), opt_state

    at, opt_state = wide, dw.grow_opt_state(state, growth, tx)
    for _ in range(3):
        at, opt_state = step(at, opt_state)
    kernel = np.asarray(at["up"]["kernel"])
    assert np.abs(kernel[:, :6] - kernel[:, 6:]).max() > 1e-3  # copies part
    with pytest.raises(ValueError, match="state must be 'copied' or 'new', got 'old'"):
        strategy(state="old")


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)
