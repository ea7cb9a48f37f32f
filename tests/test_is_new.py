"""``Growth.is_new``: which entries come from no old value, and training these alone."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from networks import load
from tiers import long

import dogwood_jax as dw
from dogwood_jax import strategies
from dogwood_jax._plan.silence import heard

KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(9, 4))
grow = eqx.filter_jit(dw.grow)
LARGE = 1e6  # what old values are; no entry that is drawn comes near it


def apply(params, x):
    for name in sorted(params)[:-1]:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None])
    return x @ params["z"]["kernel"]


def dense(key, inputs, units):
    kernel = np.random.default_rng(key).normal(size=(inputs, units))
    return {"kernel": jnp.asarray(kernel), "bias": jnp.ones(units)}


def deep(params, x):
    """Blocks on a residual stream: a list of them, or a stack."""
    block = lambda x, p: (x + jnp.tanh(x @ p["up"]) @ p["down"], None)  # noqa: E731
    if isinstance(params["blocks"], dict):
        return jax.lax.scan(block, x, params["blocks"])[0] @ params["out"]
    for one in params["blocks"]:
        x, _ = block(x, one)
    return x @ params["out"]


def blocks(count, units, stacked):
    one = {"up": jnp.full((4, units), LARGE), "down": jnp.full((units, 4), LARGE)}
    many = [one] * count
    whole = jax.tree.map(lambda *arrays: jnp.stack(arrays), *many) if stacked else many
    return {"blocks": whole, "out": jnp.full((4, 2), LARGE)}


PARAMS = {"a": dense(1, 4, 6), "b": dense(2, 6, 6), "z": dense(3, 6, 2)}


@functools.cache
def planned(a, b):
    sizes = {name: size for name, size in (("a", a), ("b", b)) if size > 6}
    return dw.plan(dw.trace(apply, PARAMS, X), sizes)


def entrywise(growth, tx):
    """Returns an optimizer that trains new entries alone, as the docstring says."""
    frozen = optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda update, new: jnp.where(new, update, 0), updates, growth.is_new(updates)
        )
    )
    return optax.chain(tx, frozen)


def trained(params, tx, apply=apply):
    state, start = tx.init(params), params
    loss = lambda params: jnp.mean((apply(params, X) - 1) ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    return start, params


# Which entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("mlp", "zero_outgoing"), ("multi_query", "replicate")),
        long("stacked_layers", "replicate"),
        *(long(name, "zero_outgoing") for name in ("conv_1d", "branches", "equinox_mlp")),
    ],
)
def test_old_values_are_where_nothing_is_new(name, way):
    """Where old values are large, entries are large where they come from one."""
    network = load()[name]
    model = network.build(**network.sizes)
    widths = dw.trace(model.apply, model.shapes, *model.inputs)
    free = {n: w for n, w in widths.items() if not (w.fixed or w.interface or heard(widths, [n]))}
    sizes = {n: 2 * w.size for n, w in free.items()}
    growth = dw.plan(widths, sizes, strategy=getattr(strategies, way)(), check=False)
    old = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, LARGE, leaf.dtype) if hasattr(leaf, "shape") else leaf,
        model.shapes,
    )
    wide = grow(old, growth, key=KEY)
    is_new = growth.is_new(wide)
    assert any(map(np.any, jax.tree.leaves(is_new))) == (way != "replicate")
    for array, new in zip(jax.tree.leaves(wide), jax.tree.leaves(is_new), strict=True):
        if hasattr(array, "shape"):
            np.testing.assert_array_equal(new, np.abs(array) < LARGE / 100)


@pytest.mark.parametrize("stacked", [False, True])
def test_new_layers_are_new_also_as_copies(stacked):
    """Two layers become four, each with five units in place of three."""
    small, large = blocks(2, 3, stacked), blocks(4, 5, stacked)
    growth = dw.plan(
        dw.trace(deep, small, X), target=large, target_apply=deep, depth=strategies.stack()
    )
    is_new = growth.is_new(jax.eval_shape(lambda: dw.grow(small, growth, key=KEY)))
    layers, units = np.arange(4) >= 2, np.arange(5) >= 3
    expected = layers[:, None, None] | units[None, None, :] & np.ones((1, 4, 1), bool)
    found = is_new["blocks"]
    ups, downs = (
        found[name] if stacked else jnp.stack([one[name] for one in found])
        for name in ("up", "down")
    )
    np.testing.assert_array_equal(ups, expected)
    np.testing.assert_array_equal(downs, expected.transpose(0, 2, 1))
    assert not is_new["out"].any()


def test_a_shape_is_enough_under_jit_and_with_or_without_a_collection():
    growth = planned(6, 9)
    wide = grow(PARAMS, growth, key=KEY)
    is_new = growth.is_new(wide)
    np.testing.assert_array_equal(is_new["b"]["bias"], [False] * 6 + [True] * 3)
    traces = []

    @jax.jit
    def masks(params):
        traces.append(1)
        return growth.is_new(params)

    state = optax.adam(1e-3).init(wide)
    for found in (growth.is_new(jax.eval_shape(lambda: wide)), masks(wide), masks(wide)):
        jax.tree.map(np.testing.assert_array_equal, found, is_new)
    assert len(traces) == 1
    mu = growth.is_new({"params": wide, "count": state[0].count})
    jax.tree.map(np.testing.assert_array_equal, mu["params"], is_new)
    assert not mu["count"]


def test_another_tree_is_refused():
    growth = planned(6, 9)
    with pytest.raises(ValueError, match="(?s)b/bias: has shape .6,., expected .9,.*z/kernel: has"):
        growth.is_new(PARAMS)
    with pytest.raises(ValueError, match="is another network's"):
        growth.is_new({"other": jnp.ones(3)})


# Training new entries alone -----------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.long
def test_old_weights_stay_entry_by_entry_also_under_weight_decay(sharded):
    growth = planned(8, 8)
    wide = grow(PARAMS, growth, key=KEY)
    if sharded:
        mesh = Mesh(np.array(jax.devices()[:2]), "model")
        wide = jax.device_put(wide, NamedSharding(mesh, P("model")))
    is_new = growth.is_new(wide)
    start, end = trained(wide, entrywise(growth, optax.adamw(1e-2, weight_decay=0.1)))
    for before, after, new in zip(*map(jax.tree.leaves, (start, end, is_new)), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
        old = ~np.asarray(new)
        np.testing.assert_array_equal(np.asarray(before)[old], np.asarray(after)[old])
        assert np.all(np.asarray(before)[~old] != np.asarray(after)[~old])


def test_whole_new_layers_train_alone():
    """LLaMA-Pro: only new blocks learn, and no state is kept for others."""
    small, large = (jax.tree.map(lambda a: a / LARGE, blocks(n, 3, False)) for n in (2, 3))
    growth = dw.plan(dw.trace(deep, small, X), target=large, target_apply=deep)
    deeper = grow(small, growth, key=KEY)
    whole = jax.tree.map(lambda new: bool(new.all()), growth.is_new(deeper))
    parts = {True: optax.adamw(1e-2, weight_decay=0.1), False: optax.set_to_zero()}
    tx = optax.multi_transform(parts, whole)
    start, end = trained(deeper, tx, deep)
    assert [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start, end)))] == [
        *[True] * 4,
        *[False] * 2,
        True,
    ]
    assert sum(leaf.size for leaf in jax.tree.leaves(tx.init(deeper))) < 2 * 24 + 2
