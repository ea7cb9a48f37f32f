"""Widening Dense layers by name: every network with every strategy in every dtype."""

import logging
from typing import NamedTuple

import flax.linen as nn
import hypothesis
import hypothesis.strategies as hst
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from tiers import long

import dogwood_jax as dw


class Network(NamedTuple):
    """A chain of Dense layers, relu between them, and how it grows."""

    layers: dict[str, tuple[int, int]]  # path: (in, out), in the order of the data
    sizes: dict[str, int]
    bias: bool = True


NETWORKS = {
    "one layer": Network({"up": (7, 3), "down": (3, 4)}, {"up": 8}),
    "neighbours": Network(
        {"dense_1": (7, 3), "dense_1a": (3, 5), "dense_2": (5, 4)}, {"dense_1": 6, "dense_1a": 9}
    ),
    "second of two, without bias": Network(
        {"dense_1": (7, 3), "dense_1a": (3, 5), "dense_2": (5, 4)}, {"dense_1a": 9}, bias=False
    ),
    "nested": Network(
        {"encoder/dense_1": (7, 1), "encoder/dense_2": (1, 5), "head": (5, 4)},
        {"encoder/dense_1": 2, "encoder/dense_2": 9},
    ),
}

# Without random numbers, which take long to compile.
ones = dw.strategies.zero_outgoing(jax.nn.initializers.ones)

STRATEGIES = {
    "zero_outgoing": dw.strategies.zero_outgoing(),
    "zero_outgoing, ones": ones,
    "zeros": dw.strategies.zeros(),
    "random": dw.strategies.random(),
    "replicate": dw.strategies.replicate(),
    "replicate, uneven": dw.strategies.replicate(split="uneven"),
}
PRESERVING = {
    name: how for name, how in STRATEGIES.items() if how.preserving and name != "zero_outgoing"
}

# How far outputs may move, as a multiple of the rounding of one sum. Zeros added to a sum change
# nothing but its order; shares of a third have to be rounded to the dtype of the weights.
ULPS = {"zero_outgoing": 4, "zeros": 4, "replicate": 16}

OTHERS = [network for network in NETWORKS if network != "neighbours"]
in_tiers = pytest.mark.parametrize("network", ["neighbours", *(long(n) for n in OTHERS)])
UNEVEN = "replicate, uneven"
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def make_params(network, dtype="float64", seed=0):
    """Returns random parameters, biases included, so that nothing is zero by accident."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, (inputs, units) in network.layers.items():
        *modules, name = path.split("/")
        place = params
        for module in modules:
            place = place.setdefault(module, {})
        place[name] = {"kernel": jnp.asarray(rng.normal(size=(inputs, units)), dtype)}
        if network.bias:
            place[name]["bias"] = jnp.asarray(rng.normal(size=units), dtype)
    return params


def layer_of(params, path):
    for module in path.split("/"):
        params = params[module]
    return params


def apply(network, params, x, activation=jax.nn.relu):
    for i, path in enumerate(network.layers):
        layer = layer_of(params, path)
        x = activation(x) if i else x
        x = x @ layer["kernel"] + (layer["bias"][None] if network.bias else 0)
    return x


def widen(network, params, strategy=None, seed=0):
    key = jax.random.key(seed)
    order = tuple(network.layers)
    return dw.widen(params, network.sizes, order=order, strategy=strategy, key=key)


def inputs_of(network, dtype="float64"):
    inputs = next(iter(network.layers.values()))[0]
    return jnp.asarray(np.random.default_rng(1).normal(size=(64, inputs)), dtype)


def loss(network, params, activation=jax.nn.relu):
    outputs = apply(network, params, inputs_of(network), activation)
    targets = np.random.default_rng(2).normal(size=outputs.shape)
    return jnp.mean((outputs - targets) ** 2)


def readers_of(network):
    """Yields each layer that is widened with the one that reads it."""
    paths = list(network.layers)
    return [(path, paths[paths.index(path) + 1]) for path in network.sizes]


# What it promises ---------------------------------------------------------------------------------


TWO = "zero_outgoing, ones", UNEVEN


@pytest.mark.parametrize(
    "network, strategy, dtype",
    [
        *(("neighbours", strategy, "float64") for strategy in STRATEGIES),
        *(("neighbours", strategy, "bfloat16") for strategy in TWO),
        *((network, strategy, "float64") for network in OTHERS for strategy in TWO),
        *(
            long("neighbours", strategy, dtype)
            for strategy in TWO
            for dtype in ("float32", "float16")
        ),
    ],
)
def test_outputs_and_old_weights_stay(network, strategy, dtype):
    network, strategy = NETWORKS[network], STRATEGIES[strategy]
    params = make_params(network, dtype)
    wide = widen(network, params, strategy)
    assert_old_weights_stay(network, params, wide, strategy)
    x = inputs_of(network, dtype)
    before, after = apply(network, params, x), apply(network, wide, x)
    assert after.dtype == before.dtype == dtype
    change = np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64))
    if not strategy.preserving:
        assert change.max() > 0.1
        return
    # A sum is as exact as the sum of its terms' magnitudes.
    magnitudes = apply(network, *jax.tree.map(jnp.abs, (params, x)))
    ulp = float(jnp.finfo(dtype).eps) * np.asarray(magnitudes, np.float64)
    assert np.all(change <= ULPS[strategy.name] * ulp)
    if dtype == "float64":
        assert change.max() <= 1e-12 * np.abs(before).max()


def assert_old_weights_stay(network, params, wide, strategy):
    assert jax.tree.structure(wide) == jax.tree.structure(params)
    assert list(wide) == list(params)
    inputs = 7
    for path, (old_inputs, old_units) in network.layers.items():
        layer, old = layer_of(wide, path), layer_of(params, path)
        units = network.sizes.get(path, old_units)
        assert list(layer) == list(old)
        assert layer["kernel"].shape == (inputs, units)
        assert layer["kernel"].dtype == old["kernel"].dtype
        if network.bias:
            assert layer["bias"].shape == (units,)
            assert layer["bias"].dtype == old["bias"].dtype
            np.testing.assert_array_equal(layer["bias"][:old_units], old["bias"])
        if strategy.name != "replicate":  # which divides outgoing weights among the copies
            kernel = layer["kernel"][:old_inputs, :old_units]
            np.testing.assert_array_equal(kernel, old["kernel"])
        inputs = units


@pytest.mark.long
@hypothesis.given(data=hst.data())
@hypothesis.settings(max_examples=20)
def test_any_chain_keeps_its_outputs(data):
    sizes = data.draw(hst.lists(hst.integers(1, 5), min_size=3, max_size=5), label="sizes")
    layers = {f"layer_{i}": pair for i, pair in enumerate(zip(sizes, sizes[1:], strict=False))}
    hidden = list(layers)[:-1]
    new = {path: layers[path][1] + data.draw(hst.integers(0, 4), label=path) for path in hidden}
    hypothesis.assume(any(new[path] > layers[path][1] for path in hidden))
    network = Network(layers, new, bias=data.draw(hst.booleans(), label="bias"))
    strategy = PRESERVING[data.draw(hst.sampled_from(sorted(PRESERVING)), label="strategy")]
    params = make_params(network)
    before, after = (
        # A plain loop in NumPy, to owe nothing to what XLA makes of the larger sums.
        apply(network, jax.tree.map(np.asarray, p), np.asarray(inputs_of(network)), np_relu)
        for p in (params, widen(network, params, strategy))
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


def np_relu(x):
    return np.where(x > 0, x, 0)


# The four blocks ----------------------------------------------------------------------------------

LARGE = Network(
    {"dense_1": (30, 20), "dense_1a": (20, 40), "dense_2": (40, 10)},
    {"dense_1": 50, "dense_1a": 90},
)


@pytest.mark.parametrize(
    "dtype",
    [
        "float64",
        "bfloat16",
        long("float32"),
        long("float16"),
    ],
)
def test_new_to_old_is_zero_and_the_rest_is_glorot_of_the_new_shape(dtype):
    params = make_params(LARGE, dtype)
    wide = widen(LARGE, params)
    kernel = np.asarray(wide["dense_1a"]["kernel"], np.float64)
    assert kernel.shape == (50, 90)
    np.testing.assert_array_equal(kernel[:20, :40], np.asarray(params["dense_1a"]["kernel"]))
    np.testing.assert_array_equal(kernel[20:, :40], 0)
    np.testing.assert_array_equal(wide["dense_2"]["kernel"][40:], 0)
    for block, shape in [
        (kernel[:20, 40:], (50, 90)),
        (kernel[20:, 40:], (50, 90)),
        (np.asarray(wide["dense_1"]["kernel"], np.float64)[:, 20:], (30, 50)),
    ]:
        limit = np.sqrt(6 / sum(shape))
        assert 0.98 * limit < np.abs(block).max() <= limit * (1 + float(jnp.finfo(dtype).eps))
        assert_uniform(block / limit)
    assert np.mean(kernel[:, 40:] == 0) < 0.01


def assert_uniform(values):
    """Checks values against the uniform distribution on [-1, 1], by Kolmogorov and Smirnov."""
    values = np.sort(values.ravel())
    distance = np.abs((values + 1) / 2 - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert distance < 1.95 / np.sqrt(len(values))  # one in a thousand samples is farther off


@every_strategy
def test_new_biases_are_zero_or_copied(strategy):
    params = make_params(LARGE)
    wide = widen(LARGE, params, strategy)
    for path in LARGE.sizes:
        bias, old = wide[path]["bias"], params[path]["bias"]
        sources = np.arange(len(bias) - len(old)) % len(old)
        expected = old[sources] if strategy.name == "replicate" else 0
        np.testing.assert_array_equal(bias[len(old) :], expected)


def test_initializers_are_given_the_full_new_shape():
    shapes = []

    def init(key, shape, dtype):
        shapes.append((shape, jnp.dtype(dtype)))
        return jnp.arange(float(np.prod(shape))).reshape(shape).astype(dtype)

    params = make_params(LARGE, "float32")
    wide = widen(LARGE, params, dw.strategies.zero_outgoing(init))
    assert set(shapes) >= {((30, 50), jnp.dtype("float32")), ((50, 90), jnp.dtype("float32"))}
    expected = np.arange(50 * 90).reshape(50, 90)
    np.testing.assert_array_equal(wide["dense_1a"]["kernel"][:, 40:], expected[:, 40:])


@pytest.mark.parametrize(
    "split, shares", [("even", [1 / 3] * 3), ("uneven", [1 / 6, 2 / 6, 3 / 6])]
)
def test_replicate_shares_outgoing_weights_among_the_copies(split, shares):
    network = Network({"dense_1": (7, 2), "dense_2": (2, 4)}, {"dense_1": 6})
    params = make_params(network)
    wide = widen(network, params, dw.strategies.replicate(split=split))
    for unit in range(2):
        for copy, share in zip((unit, unit + 2, unit + 4), shares, strict=True):
            kernels = (params["dense_1"]["kernel"], wide["dense_1"]["kernel"])
            np.testing.assert_array_equal(kernels[1][:, copy], kernels[0][:, unit])
            np.testing.assert_allclose(
                wide["dense_2"]["kernel"][copy],
                share * params["dense_2"]["kernel"][unit],
                rtol=1e-15,
            )


@pytest.mark.long
def test_noise_on_copies_is_relative_to_the_weights():
    params = make_params(LARGE)
    params["dense_1"]["kernel"] *= 100
    wide = widen(LARGE, params, dw.strategies.replicate(noise=0.01))
    kernel = wide["dense_1"]["kernel"]
    sources = np.arange(30) % 20
    noise = np.asarray(kernel[:, 20:] - kernel[:, sources])
    assert 0.9 < np.std(noise) < 1.1
    np.testing.assert_array_equal(kernel[:, :20], params["dense_1"]["kernel"])


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "strategy"),
    [
        ("neighbours", UNEVEN),
        *(("neighbours", strategy) for strategy in PRESERVING if strategy != UNEVEN),
        *((network, UNEVEN) for network in OTHERS),
    ],
)
@pytest.mark.long
def test_the_adjoint_of_the_growth_takes_new_gradients_to_old_ones(network, strategy):
    network, strategy = NETWORKS[network], PRESERVING[strategy]
    # loss(widen(p)) is loss(p) for every p, so the chain rule ties the two gradients together. It
    # sees a misplaced weight that no output depends on yet.
    params = make_params(network)
    wide, transpose = jax.vjp(lambda p: widen(network, p, strategy), params)
    (pulled,) = transpose(jax.grad(lambda p: loss(network, p))(wide))
    expected = jax.grad(lambda p: loss(network, p))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-10), pulled, expected)


def new_gradients(network, wide, path, reader, activation=jax.nn.relu):
    """Returns the gradients of a widened layer's new units: incoming, outgoing to old units."""
    grads = jax.jit(jax.grad(lambda p: loss(network, p, activation)))(wide)
    old, old_out = network.layers[path][1], network.layers[reader][1]
    return (
        layer_of(grads, path)["kernel"][:, old:],
        layer_of(grads, reader)["kernel"][old:, :old_out],
    )


@in_tiers
def test_zero_outgoing_learns_outgoing_weights_first_and_then_incoming_ones(network):
    network = NETWORKS[network]
    wide = widen(network, make_params(network), ones)
    for path, reader in readers_of(network):
        incoming, _ = new_gradients(network, wide, path, reader)
        np.testing.assert_array_equal(incoming, 0)
    path, reader = list(network.layers)[-2:]
    _, outgoing = new_gradients(network, wide, path, reader)
    assert np.abs(outgoing).min() > 0
    grads = jax.grad(lambda p: loss(network, p))(wide)
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, wide, grads)
    incoming, outgoing = new_gradients(network, stepped, path, reader)
    assert np.abs(incoming).max() > 0
    assert np.abs(outgoing).min() > 0


@in_tiers
def test_zeros_never_learn_with_relu(network):
    network = NETWORKS[network]
    wide = widen(network, make_params(network), dw.strategies.zeros())
    for path, reader in readers_of(network):
        for gradient in new_gradients(network, wide, path, reader):
            np.testing.assert_array_equal(gradient, 0)


def test_zeros_learn_where_the_activation_of_zero_is_not_zero():
    network = NETWORKS["one layer"]
    wide = widen(network, make_params(network), dw.strategies.zeros())
    _, outgoing = new_gradients(network, wide, "up", "down", jax.nn.sigmoid)
    assert np.abs(outgoing).min() > 0


@pytest.mark.long
def test_random_learns_everything_at_once():
    wide = widen(LARGE, make_params(LARGE), STRATEGIES["random"])
    for path, reader in readers_of(LARGE):
        for gradient in new_gradients(LARGE, wide, path, reader):
            assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_copies_get_the_gradient_of_their_share_of_the_copied_unit(split):
    network = Network({"dense_1": (7, 3), "dense_2": (3, 4)}, {"dense_1": 6})
    wide = widen(network, make_params(network), dw.strategies.replicate(split=split))
    grads = jax.grad(lambda p: loss(network, p))(wide)
    shares = {"even": (1 / 2, 1 / 2), "uneven": (1 / 3, 2 / 3)}[split]
    kernel = grads["dense_1"]["kernel"]
    np.testing.assert_allclose(kernel[:, 3:] * shares[0], kernel[:, :3] * shares[1], atol=1e-14)
    kernel = grads["dense_2"]["kernel"]
    np.testing.assert_allclose(kernel[3:], kernel[:3], atol=1e-14)


# Keys, compilation, containers --------------------------------------------------------------------


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_key_gives_the_same_weights_and_another_key_others():
    network = NETWORKS["neighbours"]
    params = make_params(network)
    assert_trees_equal(widen(network, params), widen(network, params))
    a, b = (widen(network, params, seed=seed) for seed in (1, 2))
    assert not np.any(a["dense_1"]["kernel"][:, 3:] == b["dense_1"]["kernel"][:, 3:])


def test_layers_of_the_same_shape_get_different_weights():
    network = Network(dict.fromkeys("abcd", (4, 4)), {"a": 8, "c": 8})
    wide = widen(network, make_params(network))
    assert not np.any(wide["a"]["kernel"][:, 4:] == wide["c"]["kernel"][:, 4:])


def test_arguments_stay_as_they_were():
    network = NETWORKS["nested"]
    params = jax.tree.map(np.array, make_params(network))
    copy = jax.tree.map(np.array, params)
    sizes, order = dict(network.sizes), list(network.layers)
    dw.widen(params, sizes, order=order, key=jax.random.key(0))
    assert_trees_equal(params, copy)
    assert sizes == network.sizes
    assert order == list(network.layers)


def test_both_call_forms_agree():
    params, key = make_params(NETWORKS["one layer"]), jax.random.key(1)
    one = dw.widen(params, "up", into="down", units=8, key=key)
    several = dw.widen(params, {"up": 8}, order=("up", "down"), key=key)
    assert_trees_equal(one, several)


def test_it_compiles_once_for_repeated_calls(caplog):
    network = Network({"a": (3, 11), "b": (11, 13)}, {"a": 17})
    trees = [make_params(network, seed=seed) for seed in range(3)]
    keys = list(jax.random.split(jax.random.key(0), 3))
    traces = []

    @jax.jit
    def jitted(params, key):
        traces.append(params)
        return dw.widen(params, "a", into="b", units=17, key=key)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        dw.widen(trees[0], "a", into="b", units=17, key=keys[0])
        assert any("ompil" in message for message in caplog.messages)
        caplog.clear()
        for params, key in zip(trees, keys, strict=True):
            dw.widen(params, "a", into="b", units=17, key=key)
        assert caplog.messages == []
        for params, key in zip(trees, keys, strict=True):
            jitted(params, key)
    assert len(traces) == 1


def test_under_jit_with_names_and_sizes_static():
    params = make_params(NETWORKS["one layer"])
    jitted = jax.jit(dw.widen, static_argnames=("layer", "into", "units", "strategy"))
    for strategy in STRATEGIES.values():
        arguments = {"into": "down", "units": 8, "strategy": strategy, "key": jax.random.key(1)}
        wide = jitted(params, "up", **arguments)
        expected = dw.widen(params, "up", **arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-15), wide, expected)


def test_shapes_without_values():
    network = NETWORKS["neighbours"]
    wide = jax.eval_shape(lambda p: widen(network, p), make_params(network, "bfloat16"))
    assert wide["dense_1a"]["kernel"] == jax.ShapeDtypeStruct((6, 9), jnp.bfloat16)


@pytest.mark.long
def test_old_style_keys_and_numpy_sizes():
    params = make_params(NETWORKS["one layer"])
    key = jax.random.PRNGKey(0)
    wide = dw.widen(params, "up", into="down", units=np.int64(8), key=key)
    assert wide["up"]["kernel"].shape == (7, 8)


class MLP(nn.Module):
    units: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense_2")(nn.relu(nn.Dense(self.units, name="dense_1")(x)))


@pytest.mark.parametrize("container", [dict, freeze], ids=["dict", "FrozenDict"])
def test_flax_variables(container):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
    variables = container(jax.jit(MLP(3).init)(jax.random.key(1), x))
    key = jax.random.key(2)
    wide = dw.widen(variables, "dense_1", into="dense_2", units=8, key=key)
    assert type(wide) is type(variables)
    assert jax.tree.structure(wide) == jax.tree.structure(variables)
    np.testing.assert_allclose(MLP(8).apply(wide, x), MLP(3).apply(variables, x), atol=1e-6)
    bare = dw.widen(variables["params"], "dense_1", into="dense_2", units=8, key=key)
    assert type(bare) is type(variables["params"])
    assert_trees_equal(bare, wide["params"])
    full = dw.widen(variables, "params/dense_1", into="params/dense_2", units=8, key=key)
    assert_trees_equal(full, wide)


def test_everything_else_is_passed_through():
    others = {"flatten": {}, "conv": {"kernel": np.ones((3, 3, 1, 7))}, "table": np.arange(3)}
    layers = make_params(NETWORKS["one layer"])
    variables = {"params": {**others, **layers}, "batch_stats": {"mean": np.ones(3)}, "step": 3}
    wide = dw.widen(variables, "up", into="down", units=8, key=jax.random.key(0))
    assert list(wide) == list(variables)
    assert list(wide["params"]) == list(variables["params"])
    assert wide["params"]["flatten"] == {}
    assert wide["params"]["conv"]["kernel"] is others["conv"]["kernel"]
    assert wide["params"]["table"] is others["table"]
    assert wide["params"]["down"]["bias"] is layers["down"]["bias"]
    assert wide["batch_stats"]["mean"] is variables["batch_stats"]["mean"]
    assert wide["step"] == 3
