"""Where a new unit or layer would lower the loss most: estimates against what training does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dogwood_jax as dw
from dogwood_jax._front.gain import DRAWS
from dogwood_jax._widths.layout import units_along

HIDDEN = ("h0", "h1", "h2", "h3")


def apply(params, x, layer_behind=""):
    for name in HIDDEN:
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        if name == layer_behind:
            x = x @ params["new"]
    return x @ params["out"]


def loss(params, x, y, layer_behind=""):
    return jnp.mean((apply(params, x, layer_behind) - y) ** 2)


@functools.partial(jax.jit, static_argnames=("steps", "layer_behind"))
def descended(params, x, y, mask, steps, rate, layer_behind=""):
    """The loss after some steps of gradient descent on the weights in a mask."""

    def step(params, _):
        slopes = jax.grad(loss)(params, x, y, layer_behind)
        return jax.tree.map(lambda p, g, m: p - rate * m * g, params, slopes, mask), None

    params = jax.lax.scan(step, params, length=steps)[0]
    return params, loss(params, x, y, layer_behind)


def problem(seed):
    """A network in training, and its data."""
    keys = jax.random.split(jax.random.key(seed), 8)
    sizes = [6, 5, 9, 4, 12, 3]
    params = {
        name: {
            "kernel": jax.random.normal(k, (m, n)) * np.sqrt(2 / m),
            "bias": jnp.zeros(n),
        }
        for name, k, m, n in zip(HIDDEN, keys[1:5], sizes, sizes[1:-1])
    }
    params["out"] = jax.random.normal(keys[5], (sizes[4], 3)) / np.sqrt(sizes[4])
    x = jax.random.normal(keys[6], (256, 6))
    y = jnp.sin(x @ jax.random.normal(keys[7], (6, 3)))
    everything = jax.tree.map(jnp.ones_like, params)
    return descended(params, x, y, everything, 300, 0.02)[0], x, y


@functools.cache
def traced():
    """The widths of all problems: their shapes are the same."""
    params, x, _ = jax.eval_shape(problem, 0)
    return dw.trace(apply, params, x)


@functools.partial(jax.jit, static_argnames="growth")
def after_steps(params, growth, keys, x, y, mask):
    """The losses after some steps on new weights, of as many draws as there are keys."""

    def one(key):
        return descended(dw.grow(params, growth, key=key), x, y, mask, 5, 0.001)[1]

    return jax.vmap(one)(keys)


def spearman(first, second):
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return np.corrcoef(*ranks)[0, 1]


def new_entries(growth, name, like):
    """Ones where weights belong to new units, zeros elsewhere."""
    mask = jax.tree.map(lambda leaf: np.zeros(leaf.shape), like)
    for leaf in growth.after.leaves:
        where = mask
        for key in leaf.path.split("/"):
            where = where[key]
        for axis, layout in enumerate(leaf.axes):
            is_new = units_along(layout, name, ("incoming", "outgoing")) >= growth.widths[name].size
            np.moveaxis(where, axis, 0)[is_new] = 1
    return jax.tree.map(jnp.asarray, mask)


@functools.cache
def case(seed):
    """A network in training, its data, and what is estimated."""
    params, x, y = jax.jit(problem)(seed)
    return params, x, y, dw.gain(params, traced(), loss, x, y)


@pytest.mark.long
def test_units_rank_as_training_them_does():
    """The new weights alone are trained: old ones may lower the same part of the loss."""
    estimated, measured, widths = [], [], traced()
    growths = {name: dw.plan(widths, {name: widths[name].size + 1}) for name in HIDDEN}
    keys = jax.vmap(jax.random.key)(np.arange(DRAWS))
    for params, x, y, gains in map(case, range(5)):
        assert {*gains} == {*HIDDEN}
        before = float(loss(params, x, y))
        for name in gains:
            growth = growths[name]
            wide = jax.eval_shape(lambda p, by=growth: dw.grow(p, by, key=keys[0]), params)
            mask = new_entries(growth, name, wide)
            after = after_steps(params, growth, keys, x, y, mask)
            measured.append(before - np.mean(after))
        estimated += [gain.unit for gain in gains.values()]
    assert spearman(estimated, measured) > 0.85


@pytest.mark.long
def test_layers_rank_as_training_them_does():
    estimated, measured, widths = [], [], traced()
    for params, x, y, gains in map(case, range(5)):
        before = float(loss(params, x, y))
        for name in gains:
            deep = params | {"new": jnp.eye(widths[name].size)}
            mask = jax.tree.map(jnp.zeros_like, deep) | {"new": jnp.ones_like(deep["new"])}
            measured.append(before - float(descended(deep, x, y, mask, 5, 0.001, name)[1]))
        estimated += [gain.layer for gain in gains.values()]
    assert spearman(estimated, measured) > 0.85


@pytest.mark.long
def test_a_unit_is_worth_the_squared_norm_of_its_gradient():
    """By growing each width alone; the draws differ, so the means are close."""
    (params, x, y, gains), widths = case(0), traced()
    reader = {"h0": "h1", "h1": "h2", "h2": "h3"}
    slopes = jax.jit(jax.grad(loss))
    for name in HIDDEN:
        growth = dw.plan(widths, {name: widths[name].size + 64})
        gradients = slopes(jax.jit(dw.grow)(params, growth, key=jax.random.key(3)), x, y)
        rows = gradients[reader[name]]["kernel"] if name in reader else gradients["out"]
        norms = jnp.sum(rows[widths[name].size :] ** 2, axis=1)
        fans = widths.leaf(f"{name}/kernel").shape
        # Among 64 new units, incoming weights are drawn smaller than for one.
        expected = float(norms.mean()) * (sum(fans) + 64) / (sum(fans) + 1)
        assert 0.4 < gains[name].unit / expected < 2.5


@pytest.mark.long
def test_the_table_says_what_a_unit_costs():
    (params, x, y, gains), widths = case(0), traced()
    h1 = gains["h1"]
    assert h1.parameters == widths["h0"].size + 1 + widths["h2"].size
    assert h1.flops == 6 * len(x) * (widths["h0"].size + widths["h2"].size)
    assert h1.layer_parameters == widths["h1"].size * (widths["h1"].size + 1)
    rows = str(gains).splitlines()
    assert rows[0].split()[:4] == ["width", "size", "a", "unit"]
    assert [row.split()[0] for row in rows[2:]] == list(gains)
    values = [gain.per_parameter for gain in gains.values()]
    assert values == sorted(values, reverse=True)
    assert dw.gain(params, widths, loss, x, y) == gains


@pytest.mark.long
def test_channels_and_flattened_units_count_each_place():
    """A flattened image has many weights for each channel."""

    def convolved(params, x):
        axes = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=axes)
        return jax.nn.relu(h).reshape(len(x), -1) @ params["out"]

    def error(params, x, y):
        return jnp.mean((convolved(params, x) - y) ** 2)

    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "conv": jax.random.normal(keys[0], (3, 3, 2, 4)),
        "out": jax.random.normal(keys[1], (5 * 5 * 4, 2)),
    }
    x, y = jax.random.normal(keys[2], (6, 5, 5, 2)), jax.random.normal(keys[3], (6, 2))
    gains = dw.gain(params, dw.trace(convolved, params, x), error, x, y)
    assert gains["conv"].parameters == 3 * 3 * 2 + 5 * 5 * 2
    slopes = jax.jit(jax.grad(error))(params, x, y)["out"].reshape(25, 4, 2)
    rows = params["out"].reshape(25, 4, 2)
    kernel = jnp.einsum("suo,svo->uv", slopes, rows)
    assert gains["conv"].layer == pytest.approx(float(jnp.sum(kernel**2)), rel=1e-4)


@pytest.mark.long
def test_widths_that_cannot_be_tried_are_named():
    params, x, y, _ = case(0)

    def normed(params, x):
        h = jnp.tanh(x @ params["h0"]["kernel"])
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return jax.nn.softmax(h @ params["mix"]) @ params["out"]

    tree = {"h0": params["h0"], "mix": jnp.ones((params["h0"]["kernel"].shape[1], 5))}
    tree["out"] = jnp.ones((5, 3))
    widths = dw.trace(normed, tree, x)
    gains = dw.gain(tree, widths, lambda p, x, y: jnp.mean((normed(p, x) - y) ** 2), x, y)
    assert "mix" in gains.skipped and "no estimate of mix" in str(gains)
    with pytest.raises(KeyError, match="mix: no estimate"):
        gains["mix"]


@pytest.mark.long
def test_a_loss_of_fixed_sizes_is_refused():
    (params, x, y, _), widths = case(0), traced()

    def fixed(wide, x, y):
        return loss(jax.tree.map(lambda w, p: w.reshape(p.shape), wide, params), x, y)

    with pytest.raises(ValueError, match="must work for arrays of any size"):
        dw.gain(params, widths, fixed, x, y)
    with pytest.raises(TypeError, match="gain.*loss"):
        dw.gain(params, widths, "loss", x, y)
