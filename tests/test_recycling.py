"""An optimizer that renews units by itself."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from tiers import long

import dogwood_jax as dw

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(16, 4))
DEAD = [1, 4]


def perceptron(dtype=jnp.float64):
    """Parameters of a network whose units 1 and 4 are zero for all inputs."""
    draw = np.random.default_rng(0).normal
    params = {
        "up": {"kernel": draw(size=(4, 8)), "bias": np.zeros(8)},
        "down": {"kernel": draw(size=(8, 3)), "bias": np.zeros(3)},
    }
    params["up"]["bias"][DEAD] = -1e3
    return jax.tree.map(lambda array: jnp.asarray(array, dtype), params)


def apply(params, x):
    up, down = params["up"], params["down"]
    h = jax.nn.relu(x.astype(up["kernel"].dtype) @ up["kernel"] + up["bias"][None])
    return h @ down["kernel"] + down["bias"][None]


@jax.jit
def gradients(params, step=0):
    def loss(params):
        return jnp.mean(jnp.square(apply(params, X) - jnp.cos(step)))

    return jax.grad(loss)(params)


@functools.cache
def widths():
    return dw.trace(apply, perceptron(), X)


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(1e-2), optax.contrib.muon(1e-2)],
    ids=["adamw", "muon"],
)
@pytest.mark.long
def test_it_is_the_wrapped_optimizer_and_a_renewal(optimizer):
    plain = dw.growable(optimizer, renewable=True)
    tx = dw.recycling(optimizer, widths(), key=KEY, every=3)
    update, renew = (
        jax.jit(tx.update),
        jax.jit(lambda p, s, masks, key: dw.renew(p, s, widths(), masks, key=key, tx=plain)),
    )
    params = wanted = perceptron()
    state, inner = tx.init(params), plain.init(params)
    idle = {"up": np.isin(np.arange(8), DEAD)}
    is_new = jax.tree.map(lambda array: np.zeros(array.shape, bool), params)
    is_new["up"] = {"kernel": np.tile(idle["up"], (4, 1)), "bias": idle["up"]}
    is_new["down"]["kernel"] = np.tile(idle["up"][:, None], (1, 3))
    for step in range(1, 6):
        gradient = gradients(params, step)
        updates, state = update(gradient, state, params)
        changes, inner = jax.jit(plain.update)(gradient, inner, wanted)
        if step == 3:
            anew, inner = renew(wanted, inner, idle, jax.random.fold_in(KEY, step))
            moved = optax.apply_updates(wanted, changes)
            wanted = jax.tree.map(np.where, is_new, anew, moved)
        else:
            wanted = optax.apply_updates(wanted, changes)
        params = optax.apply_updates(params, updates)
        if step == 3:
            assert jnp.all(params["down"]["kernel"][np.array(DEAD)] == 0)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), params, wanted)
            of_old = lambda new, array: np.asarray(array)[~new]  # noqa: E731
            same(*(jax.tree.map(of_old, is_new, tree) for tree in (params, wanted)))
            params = wanted  # to go on without the rounding
        same(params, wanted)
        same(state.inner_state, inner)
        assert int(state.renewed) == (2 if step >= 3 else 0)


@pytest.mark.long
def test_a_training_state_of_flax_needs_nothing_else():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(8, name="up")(x))
            return nn.Dense(3, name="down")(x)

    model = Network()
    variables = {"params": perceptron(jnp.float32)}
    its_widths = dw.trace(model.apply, variables, jnp.float32(X))
    tx = dw.recycling(optax.adam(1e-2), its_widths, key=KEY, every=20)
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    traced = 0

    @jax.jit
    def run(state):
        nonlocal traced
        traced += 1

        def step(state, number):
            state = state.apply_gradients(grads=gradients(state.params, number))
            return state, (state.opt_state.renewed, state.params["up"]["bias"])

        return jax.lax.scan(step, state, jnp.arange(60))

    state, (renewed, biases) = run(state)
    run(state)
    assert traced == 1
    assert renewed[18] == 0 and renewed[19] >= 2
    assert jnp.all(biases[18][np.array(DEAD)] < -900)
    assert jnp.all(jnp.abs(biases[20][np.array(DEAD)]) < 1)
    assert int(state.step) == 60


@pytest.mark.long
def test_masks_of_the_loop_take_the_place_of_its_own():
    tx = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=1)
    params = perceptron()
    state = tx.init(params)
    mask = jnp.arange(8) == 5
    update = jax.jit(tx.update)
    updates, state = update(gradients(params), state, params, masks={"up": mask})
    params = optax.apply_updates(params, updates)
    assert jnp.all(params["down"]["kernel"][5] == 0)
    assert jnp.all(params["down"]["kernel"][np.array(DEAD)] != 0)
    assert int(state.renewed) == 1
    mu = state.inner_state.inner_state[0].mu
    assert jnp.all(mu["up"]["kernel"][:, 5] == 0) and jnp.any(mu["up"]["kernel"][:, 0] != 0)


def test_without_gradients_nothing_is_renewed():
    tx = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=1)
    params = perceptron()
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    assert int(state.renewed) == 0
    assert all(jnp.all(update == 0) for update in jax.tree.leaves(updates))


def test_scores_count_from_the_last_time_on():
    """A unit that had gradients in the first period only is renewed after the second one."""
    tx = dw.recycling(optax.sgd(1e-2), widths(), key=KEY, every=2)
    params = perceptron()
    state = tx.init(params)
    first = jax.tree.map(jnp.ones_like, params)
    second = first | {"up": jax.tree.map(lambda array: array.at[..., 3].set(0), first["up"])}
    counts, update = [], jax.jit(tx.update)
    for gradient in (first, second, second, second):
        _, state = update(gradient, state, params)
        counts.append(int(state.renewed))
    assert counts == [0, 0, 0, 1]


@pytest.mark.parametrize("dtype", [long(jnp.float16), jnp.bfloat16])
def test_outgoing_weights_are_zero_in_any_dtype(dtype):
    tx = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=1)
    params = perceptron(dtype)
    updates, _ = jax.jit(tx.update)(gradients(params), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    assert jnp.all(params["down"]["kernel"][np.array(DEAD)] == 0)
    assert params["up"]["kernel"].dtype == dtype


@pytest.mark.long
def test_units_of_a_stack_are_idle_if_they_are_so_in_each_layer():
    one, other = perceptron(), perceptron()
    one["up"]["bias"] = one["up"]["bias"].at[2].set(-1e3)
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), one, other)
    stack["down"] = {"kernel": jnp.ones((2, 8, 4)), "bias": jnp.zeros((2, 4))}

    def deep(stack, x):
        return jax.lax.scan(lambda x, layer: (x + apply(layer, x), None), x, stack)[0]

    tx = dw.recycling(optax.adam(1e-2), dw.trace(deep, stack, X), key=KEY, every=1)
    grads = jax.jit(jax.grad(lambda stack: jnp.mean(jnp.square(deep(stack, X)))))(stack)
    assert jnp.all(grads["up"]["kernel"][0, :, 2] == 0)
    updates, state = jax.jit(tx.update)(grads, tx.init(stack), stack)
    stack = optax.apply_updates(stack, updates)
    assert int(state.renewed) == 2
    assert jnp.all(stack["down"]["kernel"][:, np.array(DEAD)] == 0)
    assert jnp.all(stack["up"]["bias"][0, 2] < -900)


@pytest.mark.long
def test_a_module_of_nnx_needs_nothing_else():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(4, 8, rngs=rngs)
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    model, x = Network(nnx.Rngs(0)), jnp.float32(X)
    model.up.bias = nnx.Param(perceptron(jnp.float32)["up"]["bias"])
    tx = dw.recycling(optax.adam(1e-2), dw.nnx.trace(model, x), key=KEY, every=2)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    has_model = "model" in vars(optimizer)  # before Flax 0.11

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.mean(jnp.square(model(x) - 1)))(model)
        optimizer.update(*(() if has_model else (model,)), grads)

    for _ in range(2):
        step(model, optimizer)
    assert jnp.all(model.down.kernel[np.array(DEAD)] == 0)
    assert jnp.all(jnp.abs(model.up.bias[np.array(DEAD)]) < 1)


@pytest.mark.long
def test_a_grown_network_goes_on():
    tx = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=2)
    params = perceptron()
    state = tx.init(params)
    _, state = jax.jit(tx.update)(gradients(params), state, params)
    growth = dw.plan(widths(), {"up": 12})
    wide = jax.jit(dw.grow)(params, growth, key=KEY)
    inner = dw.growable(optax.adam(1e-2), renewable=True)
    grown = jax.jit(dw.grow_opt_state, static_argnames="tx")(state.inner_state, growth, inner)
    anew = dw.recycling(inner, growth.after, key=KEY, every=2)
    old = state
    state = jax.jit(anew.init)(wide)._replace(inner_state=grown)
    update = jax.jit(anew.update)
    for _ in range(2):
        updates, state = update(gradients(wide), state, wide)
        wide = optax.apply_updates(wide, updates)
    assert jnp.all(wide["down"]["kernel"][np.array(DEAD)] == 0)
    with pytest.raises(ValueError, match="wrap the optimizer again with growth.after"):
        jax.eval_shape(anew.update, wide, old, wide)


@pytest.mark.long
def test_wrong_arguments_are_named():
    tx, params = optax.adam(1e-2), perceptron()
    with pytest.raises(TypeError, match="the arguments are in the wrong order"):
        dw.recycling(widths(), tx, key=KEY)
    with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
        dw.recycling(tx, widths(), key=KEY, every=0)
    with pytest.raises(ValueError, match="tau must be zero or positive, got -1"):
        dw.recycling(tx, widths(), key=KEY, tau=-1)
    recycling = dw.recycling(tx, widths(), key=KEY)
    state = jax.jit(recycling.init)(params)
    with pytest.raises(ValueError, match=r"pass the parameters, tx.update\(grads, state, params\)"):
        recycling.update(params, state)
    with pytest.raises(TypeError, match="state must be a RecyclingState, as tx.init returns it"):
        recycling.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="trace again"):
        recycling.init({"up": params["up"], "down": params["up"]})
    with pytest.raises(ValueError, match="up: pass a boolean for each unit"):
        recycling.update(params, state, params, masks={"up": jnp.zeros(3, bool)})
    tied = dw.trace(lambda p, x: x @ p @ p.T, np.ones((4, 8)), X)
    with pytest.raises(ValueError, match="no width of this network can be renewed"):
        dw.recycling(tx, tied, key=KEY)


@pytest.mark.long
def test_an_optimizer_for_these_parameters_alone_may_be_wrapped_already():
    labels = {"up": "adam", "down": "sgd"}
    inner = optax.multi_transform({"adam": optax.adam(1e-2), "sgd": optax.sgd(1e-2)}, labels)
    params, found = perceptron(), []
    for tx in (inner, dw.growable(inner, renewable=True)):
        tx = dw.recycling(tx, widths(), key=KEY, every=1)
        updates, state = jax.jit(tx.update)(gradients(params), tx.init(params), params)
        assert int(state.renewed) == 2
        found.append(updates)
    same(*found)


@pytest.mark.long
def test_a_module_of_equinox_may_hold_functions():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(4, 3, 8, 1, key=KEY)
    module = eqx.tree_at(lambda m: m.layers[0].bias, module, perceptron()["up"]["bias"])

    def batched(module, x):
        return jax.vmap(module)(x)

    arrays = eqx.filter(module, eqx.is_array)
    its_widths = dw.trace(batched, module, X)
    tx = dw.recycling(optax.adamw(1e-2), its_widths, key=KEY, every=1)
    loss = lambda module: jnp.mean(jnp.square(batched(module, X)))  # noqa: E731
    grads = eqx.filter_jit(eqx.filter_grad(loss))(module)
    update = eqx.filter_jit(tx.update)
    found = [update(grads, tx.init(arrays), params)[0] for params in (arrays, module)]
    same(*found)
    module = eqx.apply_updates(module, found[1])
    assert jnp.all(module.layers[1].weight[:, np.array(DEAD)] == 0)


@pytest.mark.long
def test_masks_may_be_none_at_all():
    tx = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=1)
    params = perceptron()
    _, state = jax.jit(tx.update)(gradients(params), tx.init(params), params, masks={})
    assert int(state.renewed) == 0


@pytest.mark.long
def test_what_is_not_of_these_parameters_is_named():
    tx, params = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=1), perceptron()
    state, grads = tx.init(params), gradients(params)
    with pytest.raises(ValueError, match=r"not the gradients(.|\n)*- up/bias: .*got None"):
        tx.update({"down": grads["down"]}, state, params)
    wide = {"up": {"kernel": jnp.ones((4, 9)), "bias": jnp.ones(9)}, "down": params["down"]}
    with pytest.raises(ValueError, match="these are not the variables in which up was found"):
        tx.update(wide, state, wide)
    with pytest.raises(ValueError, match=r"up/kernel: expected shape \(4, 8\), got an array"):
        tx.update(jax.tree.map(lambda g: g[None], grads), state, params)
    with pytest.raises(
        ValueError, match="state and the updates belong|expected an optimizer's state of"
    ):
        tx.update(grads, dw.recycling(optax.sgd(1e-2), widths(), key=KEY).init(params), params)
    with pytest.raises(ValueError, match="down: this optimizer renews none of its units"):
        tx.update(grads, state, params, masks={"down": jnp.zeros(3, bool)})
    with pytest.raises(ValueError, match="pass only masks of up:?\n- no width 'upp'"):
        tx.update(grads, state, params, masks={"upp": jnp.zeros(8, bool)})
    with pytest.raises(ValueError, match="up: pass a boolean for each unit, .* got a list"):
        tx.update(grads, state, params, masks={"up": [True] * 8})
    with pytest.raises(TypeError, match="init must be an initializer, got the str 'glorot'"):
        dw.recycling(optax.adam(1e-2), widths(), key=KEY, init="glorot")
    growth = dw.plan(widths(), {"up": 12})
    with pytest.raises(ValueError, match="wrap the optimizer again with growth.after"):
        dw.grow_opt_state(state, growth, tx)


def test_running_statistics_are_not_the_optimizers():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))
            return nn.Dense(3)(nn.relu(x))

    variables = jax.jit(Normed().init)(KEY, X)
    tx = dw.recycling(optax.adam(1e-2), dw.trace(Normed().apply, variables, X), key=KEY)
    with pytest.raises(ValueError, match=r"use dw.renew in the training loop:?\n- batch_stats/"):
        tx.init(variables["params"])


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.long
def test_arrays_on_a_mesh_stay_there(kind):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    if kind == "Explicit" and not hasattr(jax.sharding, "auto_axes"):
        pytest.skip("takes JAX 0.7")
    mesh = jax.make_mesh((2,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    spec = jax.sharding.PartitionSpec
    specs = {
        "up": {"kernel": spec(None, "x"), "bias": spec("x")},
        "down": {"kernel": spec("x", None), "bias": spec()},
    }
    shardings = jax.tree.map(lambda one: jax.sharding.NamedSharding(mesh, one), specs)
    tx = dw.recycling(optax.adam(1e-2), widths(), key=KEY, every=1)

    def step(params):
        # Each unit has a gradient but those of places 1 and 4.
        gradient = jax.tree.map(jnp.cos, params)
        gradient["up"] = jax.tree.map(
            lambda g, a: jnp.where(a < -9, 0, g), gradient["up"], params["up"]
        )
        updates, state = tx.update(gradient, tx.init(params), params)
        return optax.apply_updates(params, updates), state.renewed

    params = perceptron()
    params["up"]["kernel"] = params["up"]["kernel"].at[:, np.array(DEAD)].set(-10)
    wanted, count = jax.jit(step)(params)
    assert int(count) == 2
    found, count = jax.jit(step)(jax.device_put(params, shardings))
    assert int(count) == 2
    for array, other, sharding in zip(
        *map(jax.tree.leaves, (found, wanted, shardings)), strict=True
    ):
        np.testing.assert_allclose(jax.device_get(array), other, rtol=1e-12)
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
