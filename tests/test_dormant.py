"""``dormant`` and ``utility``: against activations and algorithms that are written out by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiers import long

import dogwood_jax as dw
from dogwood_jax._front.smaller.readings import readings
from dogwood_jax._front.smaller.symmetry import hidden


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


X = normal(0, 16, 4)


def mlp(params, x):
    for layer in params["hidden"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ params["out"]


PARAMS = {
    "hidden": [
        {"kernel": normal(1, 4, 8), "bias": normal(2, 8)},
        {"kernel": normal(3, 8, 6), "bias": normal(4, 6)},
    ],
    "out": normal(5, 6, 3),
}
FIRST, SECOND = "hidden/0", "hidden/1"


@functools.cache
def traced():
    return dw.trace(mlp, PARAMS, X)


def activations(params, x):
    """Returns what both hidden layers compute, by NumPy."""
    found, h = [], np.asarray(x)
    for layer in params["hidden"]:
        h = np.maximum(h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
        found.append(h)
    return dict(zip((FIRST, SECOND), found, strict=True))


def scores(values):
    """Returns ReDo's scores of units along the last axis."""
    means = np.abs(values).reshape(-1, values.shape[-1]).mean(0)
    return means / means.mean()


def with_idle(params, units):
    """Returns the parameters with biases that keep some units of the first layer below zero."""
    bias = np.where(np.isin(np.arange(8), units), -100.0, params["hidden"][0]["bias"])
    first = params["hidden"][0] | {"bias": jnp.asarray(bias)}
    return params | {"hidden": [first, params["hidden"][1]]}


# Dormant units ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_dormant_units_are_those_of_small_scores(tau):
    params = with_idle(PARAMS, [1, 5])
    found = jax.jit(lambda p: dw.dormant(mlp, p, traced(), X, tau=tau))(params)
    assert found.keys() == {FIRST, SECOND}
    for name, values in activations(params, X).items():
        np.testing.assert_array_equal(found[name], scores(values) <= tau)
    assert found[FIRST][jnp.array([1, 5])].all()


def test_all_units_are_dormant_where_none_is_active():
    found = dw.dormant(mlp, with_idle(PARAMS, range(8)), traced(), X)
    assert found[FIRST].all() and found[FIRST].dtype == bool


def test_it_is_traced_once_and_runs_in_a_loop():
    traces = []

    @jax.jit
    def find(params, x):
        traces.append(1)
        return dw.dormant(mlp, params, traced(), x)

    for units in ([1], [2, 3]):
        params = with_idle(PARAMS, units)
        jax.tree.map(
            np.testing.assert_array_equal, find(params, X), dw.dormant(mlp, params, traced(), X)
        )
    assert len(traces) == 1
    batches = jnp.stack([X, -X])
    step = lambda state, x: (state, dw.dormant(mlp, PARAMS, traced(), x, tau=0.5))  # noqa: E731
    _, found = jax.lax.scan(step, 0, batches)
    for n, x in enumerate(batches):
        np.testing.assert_array_equal(found[FIRST][n], scores(activations(PARAMS, x)[FIRST]) <= 0.5)


@pytest.mark.long
def test_arrays_may_be_divided_over_devices():
    mesh = Mesh(np.array(jax.devices()[:2]), "model")
    params = with_idle(PARAMS, [1, 5])
    specs = {"kernel": P(None, "model"), "bias": P("model")}
    shardings = {
        "hidden": [{name: NamedSharding(mesh, spec) for name, spec in specs.items()}] * 2,
        "out": NamedSharding(mesh, P("model")),
    }
    found = dw.dormant(mlp, jax.device_put(params, shardings), traced(), X, tau=0.5)
    jax.tree.map(
        np.testing.assert_array_equal, found, dw.dormant(mlp, params, traced(), X, tau=0.5)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.long
def test_other_dtypes_are_averaged_in_single_precision_at_least(dtype):
    params = jax.tree.map(lambda a: a.astype(dtype), with_idle(PARAMS, [1, 5]))
    found = readings(mlp, params, hidden(traced()), X.astype(dtype))[FIRST][0]
    assert found.activity.dtype == "float32"
    expected = np.abs(activations(with_idle(PARAMS, [1, 5]), X)[FIRST]).mean(0)
    np.testing.assert_allclose(found.activity, expected, rtol=0.02, atol=1e-3)


class Convolutional(nn.Module):
    """Convolutions, a norm, pooling, and a Dense layer that reads a flattened image."""

    @nn.compact
    def __call__(self, x):
        x = self.perturb("first", nn.relu(nn.Conv(5, (3, 3))(x)))
        x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        self.sow("intermediates", "second", x)
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.long
def test_convolutions_count_positions_and_pooling_comes_first():
    x, module = normal(6, 3, 8, 8, 2), Convolutional()
    params = {"params": jax.jit(module.init)(jax.random.key(0), x)["params"]}
    idle = params["params"]["Conv_1"]["bias"].at[2].set(-100.0)
    params["params"]["Conv_1"]["bias"] = idle
    apply = lambda params, x: module.apply(params, x, mutable=["other"])[0]  # noqa: E731
    found = readings(apply, params, hidden(dw.trace(apply, params, x)), x)
    apply_all = jax.jit(lambda params: module.apply(params, x, mutable=["intermediates"]))
    kept = apply_all(params)[1]["intermediates"]
    second = np.abs(np.asarray(kept["second"][0])).mean((0, 1, 2))
    np.testing.assert_allclose(found["Conv_1"][0].activity, second, rtol=1e-5)
    masks = dw.dormant(apply, params, dw.trace(apply, params, x), x)
    np.testing.assert_array_equal(masks["Conv_1"], np.arange(6) == 2)


def attention(params, x):
    """One head-wise attention, and a gated MLP that reads a fused kernel."""
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, params[name]) for name in "qkv")
    q = q + params["bias"][None, None]
    weights = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k))
    mixed = jnp.einsum("bhts,bshe->bthe", weights, v)
    x = x + jnp.einsum("bthe,hed->btd", mixed, params["o"])
    gate, up = jnp.split(x @ params["gated"], 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ params["down"], mixed, jax.nn.silu(gate) * up


@pytest.mark.long
def test_heads_and_gated_units_are_found():
    x = normal(7, 2, 5, 4)
    params = {name: normal(n, 4, 2, 3) for n, name in enumerate("qkv")}
    params |= {"o": normal(3, 2, 3, 4), "gated": normal(4, 4, 10), "down": normal(5, 5, 4)}
    params["bias"] = normal(6, 2, 3)
    apply = lambda params, x: attention(params, x)[0]  # noqa: E731
    _, mixed, gated = (np.abs(np.asarray(a)) for a in jax.jit(attention)(params, x))
    widths = dw.trace(apply, params, x)
    found = readings(apply, params, hidden(widths), x)
    by_places = {tuple(w.size for w in [widths[name]]): found[name] for name in found}
    np.testing.assert_allclose(by_places[(2,)][0].activity, mixed.mean((0, 1, 3)), rtol=1e-10)
    np.testing.assert_allclose(by_places[(3,)][0].activity, mixed.mean((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(by_places[(5,)][0].activity, gated.mean((0, 1)), rtol=1e-10)


@pytest.mark.long
def test_biases_make_no_weights_of_values():
    """Queries meet keys. Both hold biases along the units, but no weights read them."""
    module, x = nn.MultiHeadDotProductAttention(2), normal(7, 2, 5, 4)
    params = jax.jit(module.init)(jax.random.key(0), x)
    widths = dw.trace(module.apply, params, x)
    assert "query[head_dim]" in widths
    assert {*dw.dormant(module.apply, params, widths, x)} == {"query[heads]", "value[value_dim]"}


def test_a_unit_of_a_stack_is_dormant_if_it_is_so_in_all_layers():
    """A loop over layers, against the same layers in a list."""
    layers = {"up": normal(1, 3, 4, 6), "bias": normal(2, 3, 6), "down": normal(3, 3, 6, 4)}
    layers["bias"] = layers["bias"].at[:, 2].set(-100).at[1, 4].set(-100)

    def block(x, p):
        return x + jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"], None

    def stacked(params, x):
        return jax.lax.scan(jax.checkpoint(block), x, params, reverse=True)[0]

    one_by_one, x = [], np.asarray(X)
    for n in (2, 1, 0):
        one = {name: np.asarray(array[n]) for name, array in layers.items()}
        active = np.maximum(x @ one["up"] + one["bias"], 0)
        one_by_one.insert(0, active.mean(0))
        x = x + active @ one["down"]
    widths = dw.trace(stacked, layers, X)
    (name,) = dw.dormant(stacked, layers, widths, X)
    (found,) = readings(stacked, layers, [widths[name]], X)[name]
    np.testing.assert_allclose(found.activity, one_by_one, rtol=1e-10)
    weights = np.abs(layers["down"]).sum(2)
    np.testing.assert_allclose(found.contribution, one_by_one * weights, rtol=1e-10)
    masks = dw.dormant(stacked, layers, widths, X)[name]
    np.testing.assert_array_equal(masks, np.arange(6) == 2)


def test_steps_of_a_recurrent_network_are_averaged():
    params = {"in": normal(1, 4, 5), "again": normal(2, 5, 5), "out": normal(3, 5, 2)}

    def recurrent(params, x):
        def step(h, x):
            h = jnp.tanh(x @ params["in"] + h @ params["again"])
            return h, h

        return jax.lax.scan(step, jnp.zeros(5), x)[0] @ params["out"]

    states, h = [np.zeros(5)], np.zeros(5)
    for x in np.asarray(X):
        h = np.tanh(x @ params["in"] + h @ params["again"])
        states.append(np.asarray(h))
    widths = dw.trace(recurrent, params, X)
    ((_, (loop, end)),) = readings(recurrent, params, hidden(widths), X).items()
    np.testing.assert_allclose(loop.activity, np.abs(states[:-1]).mean(0), rtol=1e-10)
    np.testing.assert_allclose(end.activity, np.abs(states[-1]), rtol=1e-10)


def test_a_tied_embedding_is_read_where_it_makes_logits():
    params, ids = {"embed": normal(1, 7, 5)}, jnp.array([[1, 3, 3], [0, 6, 2]])
    tied = lambda params, ids: params["embed"][ids] @ params["embed"].T  # noqa: E731
    widths = dw.trace(tied, params, ids)
    ((found,),) = readings(tied, params, hidden(widths), ids).values()
    expected = np.abs(np.asarray(params["embed"])[ids]).mean((0, 1))
    np.testing.assert_allclose(found.activity, expected, rtol=1e-10)


def test_nothing_to_read_is_an_error():
    squares = lambda params, x: x @ (params["up"] ** 2)  # noqa: E731
    params = {"up": normal(1, 4, 3)}
    with pytest.raises(ValueError, match="no product with weights reads the units"):
        dw.dormant(squares, params, dw.trace(squares, params, X), X)


# Utility ------------------------------------------------------------------------------------------


def by_algorithm(params, batches, decay, maturity, share):
    """Algorithm 1 of Dohare et al., unit by unit; yields which units are replaced in each step."""
    readers = {FIRST: params["hidden"][1]["kernel"], SECOND: params["out"]}
    sums = {name: np.abs(np.asarray(kernel)).sum(1) for name, kernel in readers.items()}
    utility = {name: [0.0] * len(of) for name, of in sums.items()}
    steps = {name: [0] * len(of) for name, of in sums.items()}
    due = dict.fromkeys(sums, 0.0)
    for x in batches:
        replaced = {}
        for name, values in activations(params, x).items():
            mean = np.abs(values).mean(0)
            for unit in range(len(mean)):
                steps[name][unit] += 1
                added = (1 - decay) * mean[unit] * sums[name][unit]
                utility[name][unit] = decay * utility[name][unit] + added
            mature = [unit for unit, n in enumerate(steps[name]) if n > maturity]
            due[name] += share * len(mature)
            corrected = {u: utility[name][u] / (1 - decay ** steps[name][u]) for u in mature}
            lowest = sorted(mature, key=corrected.__getitem__)[: int(due[name])]
            due[name] -= len(lowest)
            for unit in lowest:
                utility[name][unit], steps[name][unit] = 0.0, 0
            replaced[name] = sorted(lowest)
        yield replaced


@pytest.mark.parametrize("share", [0.03137, long(1.0)])
def test_utility_is_that_of_continual_backprop(share):
    batches = normal(8, 40, 16, 4)
    tracked = dw.training.utility(mlp, traced(), decay=0.9, maturity=5, share=share)
    expected = [*by_algorithm(PARAMS, batches, 0.9, 5, share)]

    def step(state, x):
        masks, state = tracked.update(state, PARAMS, x)
        return state, masks

    state, masks = jax.lax.scan(step, tracked.init(PARAMS), batches)
    for n, replaced in enumerate(expected):
        assert {name: np.flatnonzero(masks[name][n]).tolist() for name in masks} == replaced
    assert sum(len(units) for one in expected for units in one.values()) > 5
    assert all(jnp.all(steps <= 40) for steps in state.steps.values())


def test_updates_are_traced_once_and_need_shapes_to_begin():
    tracked = dw.training.utility(mlp, traced(), maturity=2, share=0.2)
    traces = []

    @jax.jit
    def update(state, params, x):
        traces.append(1)
        return tracked.update(state, params, x)

    state = tracked.init(jax.eval_shape(lambda: PARAMS))
    assert jax.tree.structure(state) == jax.tree.structure(tracked.init(PARAMS))
    for _ in range(5):
        masks, state = update(state, PARAMS, X)
    assert len(traces) == 1
    assert {name: mask.shape for name, mask in masks.items()} == {FIRST: (8,), SECOND: (6,)}


# Activity -----------------------------------------------------------------------------------------


def test_activity_is_told_of_each_width_that_may_change():
    found = dw.activity(mlp, PARAMS, traced(), X)
    assert {name: each.shape for name, each in found.items()} == {FIRST: (8,), SECOND: (6,)}
    with pytest.raises(TypeError, match="widths must be the Widths that dw.trace returns"):
        dw.activity(mlp, PARAMS, traced()[FIRST], X)
