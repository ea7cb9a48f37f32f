"""Training: a compiled epoch against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear import (
    KEY,
    assert_trees_close,
    assert_trees_equal,
    classes_data,
    linear,
    linear_variables,
)
from tiers import long

from dogwood_jax import training
from dogwood_jax.training import loop

CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


class Recorder:
    """A preprocess that notes down the inputs of every batch, in the order in which they come."""

    def __init__(self):
        self.batches = []

    def __call__(self, inputs):
        jax.debug.callback(lambda batch: self.batches.append(np.array(batch)), inputs, ordered=True)
        return inputs


def fit_recorded(*args, **kwargs):
    recorder = Recorder()
    run = training.fit(*args, preprocess=recorder, **kwargs)
    jax.effects_barrier()
    return run, recorder.batches


class SourceOf:
    """Reads samples of arrays one at a time."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


def fit_by_hand(apply, variables, tx, data, batches, opt_state=None):
    """Optax's own loop in plain Python, over batches found again in the data by their inputs."""
    opt_state = tx.init(variables) if opt_state is None else opt_state
    values = []

    @jax.jit
    def step(variables, opt_state, inputs, labels):
        def objective(variables):
            outputs = apply(variables, inputs)
            return CROSS_ENTROPY(outputs, labels).mean(), outputs

        (loss, outputs), grads = jax.value_and_grad(objective, has_aux=True)(variables)
        updates, opt_state = tx.update(grads, opt_state, variables)
        return optax.apply_updates(variables, updates), opt_state, loss, outputs

    for batch in batches:
        samples = [int(np.flatnonzero((data[0] == row).all(1))[0]) for row in batch]
        inputs, labels = data[0][samples], data[1][samples]
        variables, opt_state, loss, outputs = step(variables, opt_state, inputs, labels)
        right = np.argmax(outputs, -1) == labels
        values += [(float(loss), bool(hit)) for hit in right]
    losses, accuracies = np.array(values).reshape(-1, len(data[0]), 2).mean(1).T
    return variables, opt_state, losses, accuracies


@pytest.mark.parametrize("size, batch_size", [(5, 2), long(5, 5)])
@pytest.mark.parametrize(
    "tx, dtype, rtol",
    [
        (optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1)), np.float64, 1e-12),
        (
            optax.sgd(optax.piecewise_constant_schedule(0.1, {2: 0.5}), momentum=0.9),
            np.float32,
            1e-5,
        ),
    ],
    ids=["clipped_adamw-float64", "scheduled_momentum-float32"],
)
def test_fit_is_the_plain_loop(tx, size, batch_size, dtype, rtol):
    data, variables = classes_data(size, dtype), linear_variables(dtype)
    run, batches = fit_recorded(
        linear, variables, tx, data, epochs=3, batch_size=batch_size, key=KEY
    )
    expected, opt_state, losses, accuracies = fit_by_hand(
        linear, jax.tree.map(jnp.asarray, variables), tx, data, batches
    )
    assert_trees_close(run.variables, expected, rtol)
    assert_trees_close(run.opt_state, opt_state, rtol)
    np.testing.assert_allclose(run.history["loss"], losses, rtol=rtol)
    np.testing.assert_allclose(run.history["accuracy"], accuracies, rtol=1e-12)


@pytest.mark.long
def test_several_models_at_once_learn_as_each_alone():
    """As the module says: of several seeds and of several widths, padded with zeros."""

    def model(weights, inputs):
        return jax.nn.relu(inputs @ weights[0]) @ weights[1]

    def apply(several, inputs):
        return jax.vmap(model)(several, jnp.broadcast_to(inputs, (3, *inputs.shape)))

    def loss(outputs, labels):
        return CROSS_ENTROPY(outputs, jnp.broadcast_to(labels, outputs.shape[:-1])).sum(0)

    rng = np.random.default_rng(5)
    models = [[rng.normal(size=(3, units)), rng.normal(size=(units, 4))] for units in (6, 6, 2)]
    padded = [
        *models[:2],
        [np.pad(models[2][0], ((0, 0), (0, 4))), np.pad(models[2][1], ((0, 4), (0, 0)))],
    ]
    several = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    tx, data, settings = (
        optax.adam(0.1),
        classes_data(9),
        {"epochs": 2, "batch_size": 4, "key": KEY},
    )
    together = training.fit(apply, several, tx, data, loss=loss, **settings)
    alone = [training.fit(model, weights, tx, data, **settings) for weights in models[1:]]
    for index, run, units in zip((1, 2), alone, (6, 2)):
        first, second = (leaf[index] for leaf in together.variables)
        assert_trees_close([first[:, :units], second[:units]], run.variables, rtol=1e-12)
        assert not np.any(first[:, units:]) and not np.any(second[units:])


def test_every_epoch_takes_every_sample_once_in_another_order():
    size, batch_size, epochs = 25, 4, 3
    inputs = np.arange(size, dtype=np.float64).reshape(-1, 1)
    data = inputs, np.zeros(size, np.int32)
    variables = linear_variables(features=1)
    _, batches = fit_recorded(
        linear, variables, optax.sgd(0.0), data, epochs=epochs, batch_size=batch_size, key=KEY
    )
    assert [len(batch) for batch in batches] == epochs * [4, 4, 4, 4, 4, 4, 1]
    orders = np.concatenate(batches).reshape(epochs, size)
    np.testing.assert_array_equal(np.sort(orders), np.tile(inputs.T, (epochs, 1)))
    assert len(np.unique(orders, axis=0)) == epochs


def steps_of_calls(monkeypatch, seconds_a_call=0):
    """Has the clock go on by each compiled call, and returns the list of their batches' shapes."""
    shapes, now, train = [], [0], loop._train

    def timed(*args, **kwargs):
        shapes.append(jax.tree.leaves(args[3].batches)[-1].shape)  # of labels or indices
        now[0] += seconds_a_call
        return train(*args, **kwargs)

    monkeypatch.setattr(loop, "_train", timed)
    monkeypatch.setattr(loop, "monotonic", lambda: now[0])
    return shapes


def test_epochs_alone_are_compiled_whole_in_orders_of_the_key(monkeypatch):
    shapes = steps_of_calls(monkeypatch)
    data, settings = classes_data(85), {"epochs": 2, "batch_size": 4, "key": KEY}
    run, batches = fit_recorded(linear, linear_variables(), optax.adam(0.1), data, **settings)
    assert shapes == [(21, 4), (1, 1)] * 2
    rng = np.random.default_rng(np.asarray(jax.random.key_data(KEY)))
    orders = np.concatenate([rng.permutation(85), rng.permutation(85)])
    np.testing.assert_array_equal(np.concatenate(batches), data[0][orders])
    assert list(run.history) == ["loss", "accuracy"]


@pytest.mark.parametrize("is_source", [long(False), True])
def test_a_stage_goes_on_with_the_pass_in_which_the_last_one_ended(is_source, monkeypatch):
    data, tx = classes_data(25), optax.adam(0.1)  # 7 steps a pass
    given = SourceOf(*data) if is_source else data
    settings = {"batch_size": 4, "key": KEY}
    whole, batches = fit_recorded(linear, linear_variables(), tx, data, epochs=3, **settings)
    monkeypatch.setattr(loop, "_STEPS_BY_THE_CLOCK", 2)
    shapes = steps_of_calls(monkeypatch, seconds_a_call=1)
    # The second stage ends after a call, of the four steps that are left of the first pass.
    lengths = [{"steps": 3}, {"seconds": 1, "epochs": 8}, {"steps": 2}, {"steps": 0}, {"epochs": 2}]
    stages = [training.Stage(**length) for length in lengths]
    run, others = fit_recorded(linear, linear_variables(), tx, given, stages=stages, **settings)
    assert run.history["steps"].tolist() == [3, 5, 7, 14, 21]
    assert shapes == [(3, 4), (2, 4), (1, 4), (1, 1), (6, 4), (1, 1), (6, 4), (1, 1)]
    assert len(others) == len(batches)
    for one, other in zip(others, batches):
        np.testing.assert_array_equal(one, other)
    assert_trees_close(run[:2], whole[:2], rtol=1e-12)
    for name in ("loss", "accuracy"):
        parts, others = run.history[name][:3], run.history[name][3:]
        means = [np.average(parts, weights=[12, 8, 5]), *others]
        np.testing.assert_allclose(means, whole.history[name], rtol=1e-12)


def test_a_run_ends_by_the_clock():
    settings = {"batch_size": 2, "key": KEY, "progress": False}
    given = linear, linear_variables(), optax.adam(0.1), classes_data()
    run = training.fit(*given, seconds=0.2, **settings)
    assert run.history["steps"][-1] > 0
    assert len(run.history["steps"]) == len(run.history["loss"])
    assert training.fit(*given, seconds=600, epochs=1, **settings).history["steps"] == [3]


@pytest.mark.long
def test_a_wide_network_learns_separable_images():
    nn = pytest.importorskip("flax.linen", reason="the network is written in Flax")

    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.relu(nn.Dense(128, name="dense_1")(images.reshape(len(images), -1)))
            return nn.Dense(10, name="dense_2")(x)

    rng = np.random.default_rng(3)
    labels = np.arange(500) % 10
    prototypes = rng.integers(0, 256, (10, 28, 28))
    noisy = (prototypes[labels] + rng.integers(0, 256, (500, 28, 28))) // 2
    images = noisy.astype(np.uint8)
    model = Classifier()
    variables = jax.jit(model.init)(KEY, images[:1] / np.float32(255))
    train, test = (images[:400], labels[:400]), (images[400:], labels[400:])
    _, before = training.evaluate(model.apply, variables, test)
    run = training.fit(
        model.apply, variables, optax.adam(1e-3), train, epochs=3, batch_size=32, key=KEY
    )
    _, after = training.evaluate(model.apply, run.variables, test)
    assert before < 0.4 and after > 0.95
    assert all(np.diff(run.history["loss"]) < 0)


def test_the_same_key_gives_the_same_bits_and_another_key_others():
    def train(key):
        return training.fit(
            linear,
            linear_variables(),
            optax.adam(0.1),
            classes_data(37),
            epochs=2,
            batch_size=4,
            key=key,
        )

    first, second, other = train(KEY), train(KEY), train(jax.random.key(1))
    assert_trees_equal(second, first)
    assert np.any(other.variables["kernel"] != first.variables["kernel"])
    # A key of the old kind is the same key.
    assert_trees_equal(train(jax.random.PRNGKey(0)), first)


@pytest.mark.parametrize("convert", [np.array, jnp.array], ids=["numpy", "jax"])
def test_arguments_stay_as_they_are(convert):
    variables, data = jax.tree.map(convert, (linear_variables(), classes_data()))
    tx = optax.adam(0.1)
    opt_state = jax.tree.map(convert, tx.init(variables))
    before = jax.tree.map(np.array, (variables, opt_state, data))
    settings = {"epochs": 2, "batch_size": 2, "key": KEY}
    first = training.fit(linear, variables, tx, data, opt_state=opt_state, **settings)
    assert_trees_equal((variables, opt_state, data), before)
    again = training.fit(linear, variables, tx, data, opt_state=opt_state, **settings)
    assert_trees_equal(again, first)


def test_a_run_goes_on_from_its_optimizer_state():
    data, tx = classes_data(), optax.adam(0.1)
    settings = {"batch_size": 5, "key": KEY}  # one batch: the order of its samples is no matter
    whole = training.fit(linear, linear_variables(), tx, data, epochs=5, **settings)
    half = training.fit(linear, linear_variables(), tx, data, epochs=2, **settings)
    rest = training.fit(
        linear, half.variables, tx, data, epochs=3, opt_state=half.opt_state, **settings
    )
    assert_trees_close(rest[:2], whole[:2], rtol=1e-12)
    joined = np.concatenate([half.history["loss"], rest.history["loss"]])
    np.testing.assert_allclose(joined, whole.history["loss"], rtol=1e-12)


def test_no_epochs_return_what_came_in():
    variables, tx = linear_variables(), optax.adam(0.1)
    run = training.fit(linear, variables, tx, classes_data(), epochs=0, batch_size=2, key=KEY)
    assert_trees_equal(run.variables, variables)
    assert_trees_equal(run.opt_state, tx.init(variables))
    assert run.history["loss"].shape == run.history["accuracy"].shape == (0,)


def test_history_is_numpy():
    run = training.fit(
        linear, linear_variables(), optax.adam(0.1), classes_data(), epochs=2, batch_size=2, key=KEY
    )
    assert list(run.history) == ["loss", "accuracy"]
    for curve in run.history.values():
        assert isinstance(curve, np.ndarray) and curve.dtype == np.float64 and curve.shape == (2,)


def test_an_epoch_compiles_once():
    traces = []

    def apply(variables, inputs):
        traces.append(inputs.shape)
        return linear(variables, inputs)

    def train(variables, epochs, opt_state=None):
        settings = {"epochs": epochs, "batch_size": 2, "key": KEY, "opt_state": opt_state}
        return training.fit(apply, variables, tx, data, **settings)

    tx, data = optax.inject_hyperparams(optax.adam)(0.1), classes_data()
    first = train(linear_variables(), epochs=1)
    assert set(traces) == {(2, 3), (1, 3)}
    traces.clear()
    second = train(linear_variables(), epochs=3)
    third = train(second.variables, epochs=1, opt_state=second.opt_state)
    # A value of weak type is made strong before the first epoch, not by it.
    train({**linear_variables(), "bias": jnp.full(4, 0.0)}, epochs=2)
    assert traces == []

    training.evaluate(apply, first.variables, data, batch_size=2)
    traces.clear()
    training.evaluate(apply, third.variables, data, batch_size=2)
    assert traces == []


def test_data_is_converted_a_batch_at_a_time():
    images = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
    seen = []

    def preprocess(batch):
        seen.append((batch.shape, batch.dtype))
        return training.scale_uint8(batch).reshape(len(batch), -1)[:, :3]

    data = jnp.asarray(images), np.zeros(5, np.int64)
    training.fit(
        linear,
        linear_variables(np.float32),
        optax.sgd(0.1),
        data,
        epochs=1,
        batch_size=2,
        key=KEY,
        preprocess=preprocess,
    )
    uint8 = np.dtype(np.uint8)
    assert set(seen) == {((2, 2, 3), uint8), ((1, 2, 3), uint8)}


def test_scale_uint8():
    scaled = training.scale_uint8(jnp.arange(256, dtype=jnp.uint8))
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, np.arange(256) / 255, rtol=1e-7)
    for dtype in (jnp.float64, jnp.bfloat16, jnp.int32):
        other = jnp.arange(3, dtype=dtype)
        assert training.scale_uint8(other) is other


def test_only_floating_point_leaves_are_trained():
    variables = {
        "table": np.array([2, 0, 1]),
        "kernel": linear_variables()["kernel"],
        "mask": np.array([True, False, True, True]),
        "key": jax.random.key(7),
        "bias": jnp.zeros(4),
    }

    def apply(variables, inputs):
        outputs = linear(variables, inputs[:, variables["table"]])
        return jnp.where(variables["mask"][None], outputs, -1.0)

    run = training.fit(
        apply, variables, optax.adam(0.1), classes_data(), epochs=2, batch_size=2, key=KEY
    )
    assert list(run.variables) == list(variables)  # and in the same order
    for name in ("table", "mask"):
        assert run.variables[name].dtype == variables[name].dtype
        np.testing.assert_array_equal(run.variables[name], variables[name])
    assert run.variables["key"] == variables["key"]
    changed = np.asarray(run.variables["kernel"]) != variables["kernel"]
    np.testing.assert_array_equal(changed, np.tile(variables["mask"], (3, 1)))
    assert len(jax.tree.leaves(run.opt_state[0].mu)) == 2


def test_collections_beside_params_pass_through():
    statistics = {"mean": np.ones((1, 3))}
    variables = {"params": linear_variables(), "batch_stats": statistics}

    def apply(variables, inputs):
        return linear(variables["params"], inputs - variables["batch_stats"]["mean"])

    run = training.fit(
        apply, variables, optax.adam(0.1), classes_data(), epochs=1, batch_size=2, key=KEY
    )
    assert_trees_equal(run.variables["batch_stats"], statistics)
    assert np.all(run.variables["params"]["kernel"] != variables["params"]["kernel"])


def test_parameters_keep_a_low_precision():
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), linear_variables())
    inputs, labels = classes_data(32)
    data = jnp.asarray(inputs, jnp.bfloat16), labels
    run = training.fit(linear, variables, optax.adam(0.1), data, epochs=3, batch_size=5, key=KEY)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(run.variables))
    assert run.history["loss"][-1] < run.history["loss"][0]


def test_complex_parameters_descend():
    target = np.array([1 + 2j, -3j])

    def distance(outputs, labels):
        return jnp.abs(outputs - labels) ** 2

    run = training.fit(
        lambda variables, inputs: jnp.broadcast_to(variables, inputs.shape),
        jnp.zeros(2, complex),
        optax.sgd(0.1),
        (np.zeros((4, 2)), np.tile(target, (4, 1))),
        epochs=40,
        batch_size=2,
        key=KEY,
        loss=distance,
    )
    np.testing.assert_allclose(run.variables, target, rtol=1e-3)


@pytest.mark.parametrize(
    "tx",
    [
        long(optax.lbfgs()),
        optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        long(optax.noisy_sgd(0.1, key=0)),
        optax.MultiSteps(optax.adam(0.1), every_k_schedule=2),
        optax.contrib.schedule_free_adamw(0.1),
    ],
    ids=["lbfgs", "reduce_on_plateau", "noisy_sgd", "multi_steps", "schedule_free"],
)
def test_optimizers_that_need_more_than_gradients(tx):
    data = classes_data(16)
    run = training.fit(linear, linear_variables(), tx, data, epochs=5, batch_size=16, key=KEY)
    assert run.history["loss"][-1] < run.history["loss"][0]


def test_a_label_of_optax_holds_leaves_back():
    tx = optax.multi_transform(
        {"train": optax.adam(0.1), "hold": optax.set_to_zero()},
        {"kernel": "train", "bias": "hold"},
    )
    run = training.fit(
        linear, linear_variables(), tx, classes_data(), epochs=1, batch_size=2, key=KEY
    )
    np.testing.assert_array_equal(run.variables["bias"], 0.0)
    assert np.all(run.variables["kernel"] != linear_variables()["kernel"])


@pytest.mark.long
def test_equinox_modules():
    eqx = pytest.importorskip("equinox", reason="the network is written in Equinox")
    model = eqx.nn.MLP(3, 4, 8, 1, key=KEY)
    arrays, static = eqx.partition(model, eqx.is_array)

    def apply(arrays, inputs):
        return jax.vmap(eqx.combine(arrays, static))(inputs)

    run = training.fit(
        apply, arrays, optax.adam(0.1), classes_data(), epochs=3, batch_size=2, key=KEY
    )
    assert jax.tree.structure(run.variables) == jax.tree.structure(arrays)
    assert run.history["loss"][-1] < run.history["loss"][0]
    with pytest.raises(ValueError, match="variables/activation: expected an array, got custom_jvp"):
        training.fit(apply, model, optax.adam(0.1), classes_data(), epochs=3, batch_size=2, key=KEY)


@pytest.mark.parametrize("batch_size", [3, 5, 8])
def test_evaluate_gives_exact_means_whatever_the_batches(batch_size):
    (inputs, labels), variables = classes_data(5), linear_variables()
    logits = inputs @ variables["kernel"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss, accuracy = training.evaluate(linear, variables, (inputs, labels), batch_size=batch_size)
    assert type(loss) is type(accuracy) is float
    assert loss == pytest.approx(-log_p[np.arange(5), labels].mean(), rel=1e-12)
    assert accuracy == np.mean(logits.argmax(-1) == labels)


def test_labels_that_are_not_classes_have_a_loss_alone():
    inputs, _ = classes_data(5)
    targets = inputs @ np.ones((3, 4))
    data = inputs, targets
    run = training.fit(
        linear,
        linear_variables(),
        optax.adam(0.1),
        data,
        epochs=2,
        batch_size=2,
        key=KEY,
        loss=optax.squared_error,
    )
    assert run.history["loss"][1] < run.history["loss"][0]
    assert np.isnan(run.history["accuracy"]).all()
    loss, accuracy = training.evaluate(
        linear, run.variables, data, batch_size=2, loss=optax.squared_error
    )
    errors = linear(run.variables, inputs) - targets
    assert loss == pytest.approx(float(np.mean(errors**2)), rel=1e-12)
    assert np.isnan(accuracy)


def test_one_hot_labels_are_named_and_have_a_loss_of_their_own():
    inputs, labels = classes_data(5)
    options = {"batch_size": 2, "key": KEY, "epochs": 1}
    for dtype in (np.int32, np.float64):
        data, start = (inputs, np.eye(4, dtype=dtype)[labels]), linear_variables()
        with pytest.raises(ValueError, match=r"one-hot labels .*loss=optax.softmax_cross_entropy"):
            training.fit(linear, start, optax.adam(0.1), data, **options)
        with pytest.raises(ValueError, match=r"one-hot labels .*loss=optax.softmax_cross_entropy"):
            training.evaluate(linear, start, data, batch_size=2)
        one_hot = training.evaluate(
            linear, start, data, batch_size=2, loss=optax.softmax_cross_entropy
        )
        classes = training.evaluate(linear, start, (inputs, labels), batch_size=2)
        assert one_hot[0] == pytest.approx(classes[0], rel=1e-12)


def test_every_token_of_a_sequence_counts():
    rng = np.random.default_rng(4)
    inputs, labels = rng.normal(size=(5, 7, 3)), rng.integers(0, 4, (5, 7))
    variables = {"kernel": linear_variables()["kernel"]}

    def apply(variables, inputs):
        return inputs @ variables["kernel"]

    _, accuracy = training.evaluate(apply, variables, (inputs, labels), batch_size=2)
    assert accuracy == np.mean(apply(variables, inputs).argmax(-1) == labels)
