"""Removing units: exact where they are dead, the inverse of growing where they are copies."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import long

import dogwood_jax as dw


class Network(nn.Module):
    conv: int = 5
    wide: int = 4
    hidden: int = 7

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Conv(self.conv, (3, 3), padding="VALID", param_dtype=jnp.float64)(x))
        x = nn.sigmoid(nn.Conv(self.wide, (2, 2), padding="VALID", param_dtype=jnp.float64)(x))
        x = x.reshape(len(x), -1)
        x = nn.tanh(nn.Dense(self.hidden, param_dtype=jnp.float64)(x))
        return nn.Dense(3, param_dtype=jnp.float64)(x)


X = jax.random.normal(jax.random.key(0), (4, 6, 6, 2), jnp.float64)
SIZES = {"Conv_0": ("conv", 5), "Conv_1": ("wide", 4), "Dense_0": ("hidden", 7)}


@pytest.fixture(scope="module")
def network():
    shapes, random = jax.eval_shape(Network().init, jax.random.key(1), X), np.random.default_rng(1)
    variables = jax.tree.map(lambda a: 0.5 * random.normal(size=a.shape), shapes)
    return variables, dw.trace(Network().apply, variables, X)


compiled = functools.cache(lambda network: jax.jit(network.apply))


def outputs(variables, **sizes):
    return np.asarray(compiled(Network(**sizes))(variables, X))


@pytest.mark.parametrize(
    ("name", "jitted"),
    [
        ("Dense_0", False),
        long("Conv_1", True),
        long("Conv_0", False),
    ],
)
def test_constant_units_move_into_the_next_bias(network, name, jitted):
    variables, widths = jax.tree.map(np.copy, network[0]), network[1]
    argument, size = SIZES[name]
    variables["params"][name]["kernel"][..., 2] = 0
    assert dw.find_dead(variables, widths[name]) == (2,)
    keep = [unit for unit in range(size) if unit != 2]
    narrow = lambda v: dw.narrow(v, widths, {name: keep})  # noqa: E731
    narrowed = (jax.jit(narrow) if jitted else narrow)(variables)
    before = outputs(variables)
    np.testing.assert_allclose(outputs(narrowed, **{argument: size - 1}), before, rtol=1e-12)


@pytest.mark.long
def test_a_constant_unit_that_no_bias_makes_up_for():
    def apply(params, x):
        return jax.nn.sigmoid(x @ params["up"] + params["b"][None]) @ params["down"]

    up, b, down = np.ones((2, 3)), np.ones(3), np.ones((3, 1))
    up[:, [0, 2]] = down[2] = 0
    params = {"up": up, "b": b, "down": down}
    widths = dw.trace(apply, params, np.ones((4, 2)))
    dw.narrow(params, widths, {"up": [0, 1]})  # nothing reads the last unit
    with pytest.warns(UserWarning, match="outputs move by [0-9.]+% ") as caught:
        dw.narrow(params, widths, {"up": [0, 2]})  # the second one is neither
    assert "constant" not in str(caught[0].message)
    for traced in (widths, dw.from_json(dw.to_json(widths))):
        with pytest.warns(
            UserWarning, match=r"removing the constant units \[0\] changes what down"
        ):
            dw.narrow(params, traced, {"up": [1]})


def test_units_that_are_not_constant_are_dropped_without_a_trace(network):
    variables, widths = network
    with pytest.warns(UserWarning, match="outputs move by [0-9.]+% ") as caught:
        narrowed = dw.narrow(variables, widths, {"Dense_0": np.arange(7) < 6})
    silent = jax.tree.map(np.copy, variables)
    silent["params"]["Dense_1"]["kernel"][6] = 0
    before = outputs(variables)
    share = np.sqrt(((outputs(silent) - before) ** 2).mean() / (before**2).mean())
    said = float(re.search(r"by (.*)% \(root", str(caught[0].message))[1]) / 100
    assert share / 2 < said < share * 2  # for other random inputs
    np.testing.assert_array_equal(
        narrowed["params"]["Dense_1"]["bias"], variables["params"]["Dense_1"]["bias"]
    )


def test_units_that_nothing_reads_are_dead(network):
    variables, widths = jax.tree.map(np.copy, network[0]), network[1]
    variables["params"]["Dense_1"]["kernel"][[1, 4]] = 0
    assert dw.find_dead(variables, widths["Dense_0"]) == (1, 4)
    narrowed = dw.narrow(variables, widths, {"Dense_0": [6, 5, 3, 2, 0]})
    np.testing.assert_allclose(outputs(narrowed, hidden=5), outputs(variables), rtol=1e-12)


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_merging_undoes_replication(network, split):
    variables, widths = network
    sizes = {"Conv_0": 8, "Conv_1": 6, "Dense_0": 17}
    growth = dw.plan(widths, sizes, strategy=dw.strategies.replicate(split=split))
    grown = dw.grow(variables, growth)
    merged = dw.merge_symmetric(grown, growth.after, list(sizes))
    for new, old in zip(jax.tree.leaves(merged), jax.tree.leaves(variables), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-12)


def test_the_most_active_units_can_be_copied(network):
    variables, widths = network
    active = np.argsort(-dw.activity(Network().apply, variables, widths, X)["Dense_0"])[:2]
    growth = dw.plan(widths, {"Dense_0": 10}, strategy=dw.strategies.replicate(units=active))
    assert growth.changes[0].sources == (*range(7), active[0], active[1], active[0])
    grown = dw.grow(variables, growth)
    np.testing.assert_allclose(outputs(grown, hidden=10), outputs(variables), rtol=1e-12)


def test_activity_is_the_change_that_silencing_makes(network):
    variables, widths = network
    found = dw.activity(Network().apply, variables, widths, X)["Dense_0"]
    for unit in (0, 3):
        silent = jax.tree.map(np.copy, variables)
        silent["params"]["Dense_1"]["kernel"][unit] = 0
        change = outputs(silent) - outputs(variables)
        np.testing.assert_allclose(found[unit], np.sqrt((change**2).mean()), rtol=1e-10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"keep": {"Conv_0": [0, 5]}}, "keep takes distinct indices below 5"),
        ({"keep": {"Conv_0": [1, 1]}}, "keep takes distinct indices below 5"),
        ({"keep": {"Conv_0": np.ones(4, bool)}}, "a boolean mask of 5 units"),
        ({"keep": {"Conv_0[0]": [0]}}, "cannot change from 3 to 1: it is a spatial dimension"),
        ({"keep": {"Dense_1": [0]}}, "pass interface=True"),
        ({"keep": {"Cov": [0]}}, "no width 'Cov'"),
        ({"keep": {"Conv": [0]}}, "nothing shows how the network runs without these layers"),
        ({"merge": {"Conv_0": [(0, 1), (1, 2)]}}, "merge takes groups of distinct units"),
        ({"sizes": {"Conv_0": 6}, "keep": {"Conv_0": [0]}}, "is in sizes and in keep= or merge="),
    ],
)
def test_bad_requests_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        dw.plan(network[1], **arguments)


def test_some_layers_of_a_stack_stay():
    """A loop runs over any number of layers, so some of them may go; the state goes along."""

    def apply(params, x):
        def layer(x, block):
            return x + jnp.tanh(x @ block["up"]) @ block["down"], None

        return jax.lax.scan(layer, x, params["blocks"])[0] @ params["out"]

    draw = lambda *shape: jax.device_put(random.normal(size=shape))  # noqa: E731
    random = np.random.default_rng(0)
    params = {"blocks": {"up": draw(4, 3, 6), "down": draw(4, 6, 3)}, "out": draw(3, 2)}
    x = draw(5, 3)
    widths = dw.trace(apply, params, x)
    name = widths.of("blocks/up", 0).name
    growth = dw.plan(widths, keep={name: [3, 0]})
    kept = {**params, "blocks": jax.tree.map(lambda a: a[jnp.array([3, 0])], params["blocks"])}
    narrow = dw.grow(params, growth)
    np.testing.assert_array_equal(apply(narrow, x), apply(kept, x))
    tx = optax.adam(1e-3)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    moments = dw.grow_opt_state(state, growth, tx)[0].mu
    np.testing.assert_allclose(moments["blocks"]["up"], 0.1 * kept["blocks"]["up"], 1e-12)
    fewer = jax.eval_shape(lambda: kept)
    with pytest.raises(ValueError, match="2 units are fewer than today's 4"):
        dw.plan(widths, target=fewer)


def test_fewer_layers_with_names_of_their_own_are_told():
    def network(layers):
        def apply(params, x):
            for index in range(layers):
                x = x + jnp.tanh(x @ params[f"block_{index}"])
            return x

        return apply, {f"block_{n}": jax.ShapeDtypeStruct((3, 3), float) for n in range(layers)}

    (deep, shapes), (flat, fewer) = network(4), network(2)
    widths = dw.trace(deep, shapes, jnp.ones((2, 3)))
    for options in ({}, {"target_apply": flat}):
        with pytest.raises(
            ValueError, match="if the target is to have fewer layers, say which ones stay"
        ):
            dw.plan(widths, target=fewer, **options)
