"""More layers and more experts in one growth."""

import functools

import jax
import jax.numpy as jnp
import networks_experts as net
import numpy as np
import optax
import pytest
from tiers import long

import dogwood_jax as dw
from dogwood_jax import strategies

TOKENS = jax.random.randint(jax.random.key(0), (2, 3), 0, net.VOCAB)
KEY = jax.random.key(1)
# Sigmoids that are not renormalized: the outputs of copies have to be divided.
KIND = "sigmoid"
LAYERS, EXPERTS, CHOSEN = (2, 3), (2, 4), (1, 2)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def params(layers, experts, *, stacked):
    trees = [net.params(experts, seed=seed) for seed in range(layers)]
    ends = {name: trees[0][name] for name in ("embed", "head")}
    blocks = [tree["moe"] for tree in trees]
    if stacked:
        return {**ends, "layers": jax.tree.map(lambda *arrays: jnp.stack(arrays), *blocks)}
    return {**ends, **{f"layer_{n}": block for n, block in enumerate(blocks)}}


def network(dispatch, chosen, kind=KIND):
    def block(x, weights):
        return x + net.moe(weights, x, kind, dispatch, chosen), None

    def apply(variables, tokens):
        x = variables["embed"][tokens.reshape(-1)]
        if "layers" in variables:
            x, _ = jax.lax.scan(block, x, variables["layers"])
        for n in range(sum(name.startswith("layer_") for name in variables)):
            x, _ = block(x, variables[f"layer_{n}"])
        return x @ variables["head"]

    return apply


def planned(dispatch, *, stacked, layers=LAYERS[1], experts=EXPERTS[1], hidden=net.HIDDEN, **how):
    """Returns a network's variables, the growth and the grown network's function."""
    small = params(LAYERS[0], EXPERTS[0], stacked=stacked)
    widths = dw.trace(network(dispatch, CHOSEN[0]), small, TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(net, "HIDDEN", hidden)
        target = jax.eval_shape(lambda: params(layers, experts, stacked=stacked))
    larger = network(dispatch, CHOSEN[experts == EXPERTS[1]])
    growth = dw.plan(widths, target=target, target_apply=larger, **how)
    return small, growth, larger


@pytest.mark.parametrize(
    ("dispatch", "stacked"),
    [("einsum", False), long("one by one", True)],
)
def test_outputs_stay(dispatch, stacked):
    small, growth, larger = planned(dispatch, stacked=stacked, hidden=17)
    assert growth.evidence.samples and "chooses 2 of 4 experts" in growth.notes[0]
    assert dw.from_json(dw.to_json(growth)) == growth
    grown = jax.jit(dw.grow, static_argnames="growth")(small, growth=growth, key=KEY)
    before = network(dispatch, CHOSEN[0])(small, TOKENS)
    np.testing.assert_allclose(larger(grown, TOKENS), before, rtol=1e-12, atol=1e-12)


def gradient(apply, variables):
    return jax.jit(jax.grad(lambda v: jnp.sum(apply(v, TOKENS) ** 2)))(variables)


@pytest.mark.long
def test_the_state_grows_along():
    """Of old layers it is the gradient of the larger network, and of new layers zero."""
    small, growth, larger = planned("einsum", stacked=True)
    grown, tx = dw.grow(small, growth, key=KEY), optax.trace(0.0)
    old = gradient(network("einsum", CHOSEN[0]), small)
    found = dw.grow_opt_state(tx.update(old, tx.init(small))[1], growth, tx).trace["layers"]
    wanted = gradient(larger, grown)["layers"]
    for name in ("gate", "up", "down"):
        np.testing.assert_allclose(found[name][:2], wanted[name][:2], rtol=1e-10, atol=1e-13)
        assert found[name][0].any() and not found[name][2].any()
    tx = dw.growable(optax.adam(1e-2))
    state = dw.grow_opt_state(tx.init(small), growth, tx)
    updates, _ = jax.eval_shape(tx.update, grown, state, grown)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, grown)


@pytest.mark.parametrize(
    ("stacked", "depth"),
    [
        (False, strategies.stack()),
        (True, strategies.interpose()),
    ],
)
@pytest.mark.long
def test_copied_layers_have_the_grown_experts(stacked, depth):
    """Deeper and with more experts, it computes what it would compute if it were deeper alone."""
    small, growth, larger = planned("einsum", stacked=stacked, depth=depth)
    assert any("outputs change, because strategies" in note for note in growth.notes)
    grown = dw.grow(small, growth)
    _, deeper, same = planned("einsum", stacked=stacked, experts=EXPERTS[0], depth=depth)
    deep = dw.grow(small, deeper)
    np.testing.assert_allclose(larger(grown, TOKENS), same(deep, TOKENS), rtol=1e-12, atol=1e-12)
    if not stacked:
        copies = (grown[f"layer_{n}"] for n in (2, 0))
        jax.tree.map(np.testing.assert_array_equal, *copies)


@pytest.mark.long
@pytest.mark.parametrize("depth", [None, strategies.stack()])
def test_noise_on_copied_experts(depth):
    widths = dw.trace(network("einsum", 1), params(2, 2, stacked=True), TOKENS)
    router = widths.of("layers/router/kernel", 2).name
    noise = {router: strategies.replicate(noise=0.1)}
    small, growth, _ = planned("einsum", stacked=True, depth=depth, strategy=noise)
    assert "outputs change, because copies carry noise" in growth.notes
    grown = dw.grow(small, growth, key=KEY)["layers"]
    for name in ("up", "down"):
        old, new = small["layers"][name] / (2 if name == "down" else 1), grown[name][:2]
        np.testing.assert_allclose(new[:, :2], old, rtol=1e-12)
        assert 0.03 < jnp.std(new[:, 2:] - old) / jnp.std(old) < 0.3


@pytest.mark.long
def test_copies_with_a_little_noise_move_outputs_a_little():
    """Behind sigmoids, the outputs of copies are divided with noise as without it."""
    small, old = params(1, 2, stacked=False), network("einsum", 1)
    widths = dw.trace(old, small, TOKENS)
    growth = dw.upcycle(widths, {("layer_0/router/kernel", 1): 4}, noise=1e-9)
    assert growth.notes[0] == "outputs change, because copies carry noise"
    moved = network("einsum", 2)(dw.grow(small, growth, key=KEY), TOKENS) - old(small, TOKENS)
    assert 0 < float(jnp.abs(moved).max()) < 1e-6


@pytest.mark.long
def test_other_widths_may_change_outputs():
    widths = dw.trace(network("einsum", 1), params(2, 2, stacked=True), TOKENS)
    drawn = {widths.of("layers/up", 3).name: strategies.random()}
    small, growth, _ = planned("einsum", stacked=True, hidden=17, layers=2, strategy=drawn)
    grown = dw.grow(small, growth, key=KEY)["layers"]["down"]
    old = small["layers"]["down"]
    np.testing.assert_allclose(grown[:, :, : net.HIDDEN], jnp.concatenate([old, old], 1) / 2)


def test_experts_that_are_modules_are_refused():
    def apply(variables, x):
        gates, which = jax.lax.top_k(jax.nn.softmax(x @ variables["router"]), CHOSEN[0])
        count = variables["router"].shape[1]
        outputs = jnp.stack([x @ variables[f"experts_{n}"]["kernel"] for n in range(count)], 1)
        return jnp.einsum("tk,tke,ted->td", gates, jax.nn.one_hot(which, count), outputs)

    def of(count):
        experts = {f"experts_{n}": {"kernel": jnp.ones((3, 3))} for n in range(count)}
        return {"router": jnp.ones((3, count)), **experts}

    widths = dw.trace(apply, of(2), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="separate modules, (.|\n)* in one"):
        dw.plan(widths, target=of(4), target_apply=functools.partial(apply))
