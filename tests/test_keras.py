"""Live Keras models grow, predict the same, and ``fit`` goes on."""

import os
import random
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import dogwood_jax as dw

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
keras = pytest.importorskip("keras", reason="needs real Keras: pip install keras")
if not hasattr(keras, "StatelessScope") or keras.config.backend() != "jax":
    pytest.skip("needs Keras 3 on JAX", allow_module_level=True)
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras's own

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")
IDS = RNG.integers(0, 11, (16, 5))
IMAGES = RNG.normal(size=(16, 6, 6, 3)).astype("float32")


@pytest.fixture(autouse=True)
def as_keras_needs_it():
    """Lets Keras promote ranks, and draws the same weights each time."""
    keras.utils.set_random_seed(0)
    with jax.numpy_rank_promotion("allow"):
        yield


def mlp(units=6):
    hidden = layers.Dense(units, activation="relu", name="up")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(2, name="out")])


def normalized():
    parts = layers.Dense(6, name="up"), layers.BatchNormalization(), layers.ReLU()
    return keras.Sequential([keras.Input((4,)), *parts, layers.Dropout(0.5), layers.Dense(2)])


def convolutional():
    first = layers.Conv2D(4, 3, name="first"), layers.BatchNormalization(), layers.MaxPool2D()
    more = layers.DepthwiseConv2D(2), layers.Flatten(), layers.Dense(2)
    return keras.Sequential([keras.Input((6, 6, 3)), *first, *more])


def reshaped():
    parts = layers.Dense(8, name="up"), layers.Reshape((2, 4)), layers.LSTM(5, name="lstm")
    return keras.Sequential([keras.Input((4,)), *parts, layers.Dense(2)])


def of_sequences():
    ids = keras.Input((5,), dtype="int32")
    h = layers.Embedding(11, 6, name="table")(ids)
    h = h + layers.MultiHeadAttention(2, 3, name="heads")(h, h)
    h = layers.Bidirectional(layers.GRU(4), name="both")(h)
    inner = [layers.Dense(7, name="up"), layers.Dropout(0.1), layers.Dense(2)]
    return keras.Model(ids, keras.Sequential(inner, name="inner")(h))


class Residual(layers.Layer):
    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units
        self.up, self.down = layers.Dense(units, activation="gelu"), layers.Dense(4)

    def call(self, x):
        return x + self.down(self.up(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def with_own_layer():
    return keras.Sequential([keras.Input((4,)), Residual(5, name="block"), layers.Dense(2)])


class Own(keras.Model):
    def __init__(self, units, depth=2, shift=0.0, **options):
        super().__init__(**options)
        self.units, self.depth, self.shift = units, depth, shift
        self.blocks = [layers.Dense(units, activation="relu") for _ in range(depth)]
        self.out = layers.Dense(2)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x) + self.shift


def own(*args, **options):
    model = Own(*args, **options)
    model(X)
    return model


def trained(model, x=X, y=Y, optimizer="adam", **options):
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    model.fit(x, y, epochs=2, verbose=0)
    return model


def assert_goes_on(model, larger, x=X, y=Y, tolerance=1e-5):
    """Asserts that a larger model predicts the same, trains on, and leaves the old one alone."""
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(larger.predict(x, verbose=0), expected, tolerance, tolerance)
    losses = model.evaluate(x, y, verbose=0), larger.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(*losses, 1e-4)
    assert int(larger.optimizer.iterations) == int(model.optimizer.iterations) > 0
    before = [np.asarray(variable) for variable in (*model.variables, *model.optimizer.variables)]
    history = larger.fit(x, y, verbose=0, epochs=2).history["loss"]
    assert np.isfinite(history).all()
    after = [np.asarray(variable) for variable in (*model.variables, *model.optimizer.variables)]
    jax.tree.map(np.testing.assert_array_equal, after, before)
    model.fit(x, y, verbose=0)  # no array of it was deleted


def assert_appended(old, new):
    """Asserts that variables are those of before, with new entries at the ends of axes."""
    assert len(old) == len(new)
    for before, after in zip(old, new):
        at_front = tuple(slice(size) for size in before.shape)
        np.testing.assert_allclose(np.asarray(after)[at_front], np.asarray(before), 1e-6)


@pytest.mark.parametrize(
    ("make", "sizes", "x"),
    [
        (normalized, {"up": 9}, X),
        (convolutional, {"first": 6}, IMAGES),
        (reshaped, {"up[1.1]": 6, "lstm/cell": 8}, X),
        (
            of_sequences,
            {
                "heads/query[heads]": 3,
                "both/forward_layer/cell": 5,
                "both/backward_layer/cell": 5,
                "table": 9,
                "inner/up": 10,
            },
            IDS,
        ),
        (with_own_layer, {"block/up": 8}, X),
        (lambda: own(5), {"blocks/0": 7, "blocks/1": 7}, X),
    ],
    ids=["normalized", "convolutional", "reshaped", "of sequences", "own layer", "own model"],
)
def test_a_model_grows_and_trains_on(make, sizes, x):
    model = trained(make(), x)
    larger = dw.keras.grow(model, sizes, x)
    assert type(larger) is type(model)
    assert {name: dw.keras.trace(larger, x)[name].size for name in sizes} == sizes
    assert_goes_on(model, larger, x)


def test_double_precision_is_kept():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        model = trained(mlp(), X.astype("float64"), Y.astype("float64"))
        larger = dw.keras.grow(model, {"up": 9})
        assert larger.layers[0].kernel.dtype == "float64"
        assert_goes_on(model, larger, X.astype("float64"), Y.astype("float64"), 1e-12)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_kept(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = trained(mlp())
    finally:
        keras.config.set_dtype_policy("float32")
    larger = dw.keras.grow(model, {"up": 9})
    assert larger.layers[0].dtype_policy.name == policy
    assert type(larger.optimizer) is type(model.optimizer)  # one that scales the loss for float16
    assert_appended(model.optimizer.variables, larger.optimizer.variables)
    assert_goes_on(model, larger, tolerance=1e-2)


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "Adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True, clipnorm=1.0),
    "AdamW": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 9)),
    "a function": lambda: keras.optimizers.Adam(lambda: 0.01, gradient_accumulation_steps=2),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Adamax": lambda: keras.optimizers.Adamax(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_optimizers_keep_grows_along(name):
    model = trained(mlp(), optimizer=OPTIMIZERS[name]())
    larger = dw.keras.grow(model, {"up": 9})
    assert_appended(model.optimizer.variables, larger.optimizer.variables)
    begun = OPTIMIZERS[name]()
    begun.build(larger.trainable_variables)
    for start, after, before in zip(
        begun.variables, *(which.optimizer.variables for which in (larger, model))
    ):
        if before.shape != after.shape:  # new entries are as in a new optimizer
            new = np.ones(after.shape, bool)
            new[tuple(slice(size) for size in before.shape)] = False
            np.testing.assert_array_equal(np.asarray(after)[new], np.asarray(start)[new])
    assert_goes_on(model, larger)


def test_moments_of_copies_are_those_that_optax_would_have():
    model, copies = trained(mlp()), dw.strategies.replicate()
    larger = dw.keras.grow(model, {"up": 9}, strategy=copies, key=jax.random.key(0))
    growth = dw.plan(dw.keras.trace(model), {"up": 9}, strategy=copies)
    weights = ("up/kernel", "up/bias", "out/kernel", "out/bias")

    def moments(which):
        _, _, *kept = map(np.asarray, which.optimizer.variables)
        return dict(zip(weights, kept[::2])), dict(zip(weights, kept[1::2]))

    adam = optax.scale_by_adam()
    mu, nu = moments(model)
    state = optax.ScaleByAdamState(np.int32(2), mu, nu)
    expected = dw.grow_opt_state(state, growth, adam, second_moment="zeros")
    for ours, its in zip(moments(larger), (expected.mu, expected.nu)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), ours, its)
    np.testing.assert_allclose(
        larger.predict(X, verbose=0), model.predict(X, verbose=0), 1e-5, 1e-6
    )


def test_adafactor_keeps_means_of_what_has_grown():
    model = trained(mlp(), optimizer=keras.optimizers.Adafactor(0.01))
    larger = dw.keras.grow(model, {"up": 9})
    kept = dict(zip([v.path for v in model.optimizer.variables], model.optimizer.variables))
    iteration, rate, *moments = larger.optimizer.variables
    row, column, velocity = moments[:3]  # of the first kernel
    before = next(v for path, v in kept.items() if path.endswith("up_kernel_velocity"))
    assert_appended([before], [velocity])
    np.testing.assert_allclose(row, np.mean(velocity, -1), 1e-6)
    np.testing.assert_allclose(column, np.mean(velocity, -2), 1e-6)
    assert_goes_on(model, larger)


def test_moving_averages_of_weights_begin_with_the_new_weights():
    adam = keras.optimizers.Adam(0.01, use_ema=True)
    model = trained(mlp(), optimizer=adam)
    larger = dw.keras.grow(model, {"up": 9})
    averages = [v for v in larger.optimizer.variables if v.path.endswith("kernel_average")]
    np.testing.assert_array_equal(averages[0][:, 6:], larger.layers[0].kernel[:, 6:])
    larger.fit(X, Y, verbose=0)


def test_an_optimizer_that_is_not_known_is_refused_before_anything_grows():
    class Other(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.twists = self.add_optimizer_variables(variables, "twist")

    model = mlp()
    model.compile(Other(0.1), "mse")
    with pytest.raises(
        ValueError, match="Other keeps arrays of unknown meaning.*\n.*twist, expected one"
    ):
        dw.keras.grow(model, {"up": 9})
    with pytest.raises(ValueError, match="twist"):
        dw.keras.fit(model, X, Y, grow_at={0: {"up": 9}})


def test_losses_metrics_and_frozen_layers_go_along():
    def own_loss(targets, outputs):
        return keras.ops.mean(abs(targets - outputs))

    one, other = keras.Input((4,), name="one"), keras.Input((2,), name="other")
    h = layers.Dense(6, name="up")(layers.Concatenate()([one, other]))
    h = layers.Dense(5, name="frozen", trainable=False)(h)
    outputs = {"a": layers.Dense(2, name="a")(h), "b": layers.Dense(1, name="b")(h)}
    model = keras.Model({"one": one, "other": other}, outputs)
    metrics = {"a": ["mae", keras.metrics.MeanSquaredError()], "b": [own_loss]}
    x, y = {"one": X, "other": Y}, {"a": Y, "b": Y[:, :1]}
    losses = {"a": own_loss, "b": keras.losses.Huber()}
    model.compile("adamw", losses, {"a": 2.0, "b": 0.5}, metrics, steps_per_execution=2)
    model.fit(x, y, verbose=0)
    larger = dw.keras.grow(model, {"up": 9}, key=jax.random.key(0))
    logs = (which.evaluate(x, y, verbose=0, return_dict=True) for which in (model, larger))
    before, after = logs
    assert before.keys() == after.keys() and len(before) > 5
    np.testing.assert_allclose([*after.values()], [*before.values()], 1e-4)
    assert not larger.get_layer("frozen").trainable and larger.steps_per_execution == 2
    assert_appended(model.optimizer.variables, larger.optimizer.variables)


def test_new_weights_are_those_of_keras_or_of_a_key():
    model = mlp()
    keras.utils.set_random_seed(5)
    kernels = [dw.keras.grow(model, {"up": 9}).layers[0].kernel]
    keras.utils.set_random_seed(5)
    kernels += [mlp(9).layers[0].kernel]
    np.testing.assert_array_equal(kernels[0][:, 6:], kernels[1][:, 6:])
    by_key = [dw.keras.grow(model, {"up": 9}, key=jax.random.key(k)) for k in (0, 0, 1)]
    first, second, third = (np.asarray(one.layers[0].kernel) for one in by_key)
    assert (first == second).all() and (first[:, 6:] != third[:, 6:]).all()
    assert not by_key[0].compiled


def test_the_larger_model_may_be_given():
    model = trained(own(5, depth=1))
    wider, deeper = own(8, depth=1), own(5, depth=2)
    assert dw.keras.grow(model, x=X, target=wider) is wider
    assert_appended(model.variables, wider.variables)
    assert_goes_on(model, wider)
    dw.keras.grow(model, x=X, target=deeper)
    assert len(deeper.optimizer.variables) == len(model.optimizer.variables) + 4
    assert_goes_on(model, deeper)
    compiled = own(8, depth=1)
    compiled.compile("sgd", "mse")
    with pytest.raises(ValueError, match="compiled with SGD, but the smaller model with Adam"):
        dw.keras.grow(model, x=X, target=compiled)
    with pytest.raises(ValueError, match="the larger model computes something else"):
        dw.keras.grow(model, x=X, target=own(8, depth=1, shift=0.5))


def test_numbers_that_no_shape_shows_are_tried():
    def model(groups):
        first = layers.Conv2D(4, 3, name="first"), layers.GroupNormalization(groups)
        return keras.Sequential([keras.Input((6, 6, 3)), *first, layers.Flatten(), layers.Dense(2)])

    small = model(2)
    more, larger = (dw.keras.grow(small, {f"first[{n}]": 4}) for n in ("groups", "group_size"))
    assert (more.layers[1].groups, larger.layers[1].groups) == (4, 2)
    for grown in (more, larger):
        expected = small.predict(IMAGES, verbose=0)
        np.testing.assert_allclose(grown.predict(IMAGES, verbose=0), expected, 1e-5, 1e-5)


def test_inputs_and_outputs_grow_if_asked():
    model = mlp()
    larger = dw.keras.grow(model, {"up[0]": 5, "out": 3}, interface=True)
    x = np.concatenate([X, np.zeros((16, 1), "float32")], 1)
    new, old = larger.predict(x, verbose=0), model.predict(X, verbose=0)
    np.testing.assert_allclose(new[:, :2], old, 1e-5, 1e-6)


class Fixed(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.up, self.down = layers.Dense(7), layers.Dense(4)

    def call(self, x):
        return self.down(self.up(x))


class Secret(Fixed):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)


def attention_alone():
    x = keras.Input((5, 4))
    return keras.Model(x, layers.Dense(2)(layers.MultiHeadAttention(2, 3, name="heads")(x, x)))


REFUSED = {
    "no width 'down'.*closest": lambda: dw.keras.grow(mlp(), {"down": 9}),
    "5 units are fewer than today's 6": lambda: dw.keras.grow(mlp(), {"up": 5}),
    "out: is a dimension of an input or output": lambda: dw.keras.grow(mlp(), {"out": 3}),
    "block: no values in the config of Fixed make up/kernel .4, 9. in place of .4, 7.*target=": (
        lambda: dw.keras.grow(
            keras.Sequential([keras.Input((4,)), Fixed(name="block")]), {"block/up": 9}
        )
    ),
    "block: Secret has no get_config": lambda: dw.keras.grow(
        keras.Sequential([keras.Input((4,)), Secret(abs, name="block")]), {"block/up": 9}
    ),
    "no values in the config of Own make blocks/0/kernel": (
        lambda: dw.keras.grow(own(5), {"blocks/0": 7}, X)
    ),
    r"other widths of the same layer, such as \[.*'heads/value\[value_dim\]'.*\], because": (
        lambda: dw.keras.grow(attention_alone(), {"heads/query[head_dim]": 6})
    ),
    "needs sizes": lambda: dw.keras.grow(mlp()),
    "its input shape is unknown; pass an example": lambda: dw.keras.trace(own(5)),
    "its input shapes leave sizes open": lambda: dw.keras.trace(
        keras.Sequential([keras.Input((None, 3)), layers.LSTM(4), layers.Dense(2)])
    ),
    "has no variables yet": lambda: dw.keras.trace(keras.Sequential([layers.Dense(2)])),
    "is not compiled": lambda: dw.keras.fit(mlp(), X, Y, grow_at={}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_done_is_said(message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        REFUSED[message]()


def test_only_keras_models_are_taken():
    with pytest.raises(TypeError, match="model must be a keras.Model, got the function"):
        dw.keras.trace(lambda x: x)
    with pytest.raises(TypeError, match="dw.keras.trace.model, x. takes models of Keras"):
        dw.trace(mlp(), {"kernel": X}, X)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="found Keras on torch.*KERAS_BACKEND=jax"):
        dw.keras.trace(mlp())


def test_fit_grows_between_epochs():
    sizes = {1: {"up": 8}, 3: {"up": 9}}
    seen = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        model, epochs = mlp(), []
        model.compile("adam", "mse", metrics=["mae"])
        options = {"validation_data": (X, Y), "callbacks": [seen], "verbose": 0}
        runs.append(dw.keras.fit(model, X, Y, epochs=4, grow_at=sizes, shuffle=False, **options))
    history = runs[0]
    assert history.history == runs[1].history
    assert {*history.history} == {"loss", "mae", "val_loss", "val_mae"}
    assert history.epoch == epochs == [0, 1, 2, 3]
    assert all(len(values) == 4 for values in history.history.values())
    assert (model.layers[0].units, history.model.layers[0].units) == (6, 9)
    assert int(history.model.optimizer.iterations) == 4
    with pytest.raises(ValueError, match="grow_at has the epochs .4., but training goes from 0"):
        dw.keras.fit(model, X, Y, epochs=4, grow_at={4: {"up": 8}})
    state = random.getstate()
    with pytest.raises(ValueError, match="no width 'down'"):  # before it trains
        dw.keras.fit(model, X, Y, epochs=4, grow_at={2: {"up": 8}, 3: {"down": 8}})
    assert int(model.optimizer.iterations) == 1 and random.getstate() == state


def test_fit_stops_where_a_callback_stops_it():
    model = own(5)
    model.compile("adam", "mse")
    stop = keras.callbacks.TerminateOnNaN()
    y = np.full_like(Y, np.nan)
    sizes = {2: {"blocks/0": 7, "blocks/1": 7}}
    history = dw.keras.fit(model, X, y, epochs=4, grow_at=sizes, callbacks=[stop], verbose=0)
    assert history.epoch == [0] and history.model is model


@pytest.mark.parametrize("family", ["GPT2", "Gemma"])
def test_language_models_of_keras_hub_grow(family):
    hub = pytest.importorskip("keras_hub", reason="pip install keras-hub")

    def model(**options):
        sizes = {"vocabulary_size": 20, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12}
        heads = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
        if family == "GPT2":
            heads = {"num_heads": 2, "max_sequence_length": 6}
        backbone = getattr(hub.models, f"{family}Backbone")(**sizes | heads | options)
        return getattr(hub.models, f"{family}CausalLM")(backbone=backbone)

    small = model()
    ids = RNG.integers(0, 20, (4, 6))
    x = {"token_ids": ids, "padding_mask": np.ones((4, 6), "int32")}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(0.01), loss)
    small.fit(x, ids, verbose=0)
    if family == "GPT2":
        widths = dw.keras.trace(small, x)
        names = [name for name in widths if name.endswith("feedforward_intermediate_dense")]
        larger = dw.keras.grow(small, dict.fromkeys(names, 16), x)
        assert len(names) == 2 and larger.backbone.intermediate_dim == 16
    else:  # whose config says twice this size
        larger = dw.keras.grow(small, x=x, target=model(intermediate_dim=16))
    assert_goes_on(small, larger, x, ids)
    assert_goes_on(small, dw.keras.grow(small, x=x, target=model(num_layers=3)), x, ids)


def test_the_recipes_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "README.md").read_text()
    first, *recipes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(first, names)
    with_keras, with_a_file = (recipe for recipe in recipes if "keras" in recipe)
    exec(with_keras, names)
    exec(with_a_file, names)
    assert names["keras_model"].get_layer("dense_1").units == 256
    assert keras.saving.load_model("wider.keras").get_layer("dense_1").units == 512
