"""Stages: the network grows between epochs, and the run goes on as one."""

import signal
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from linear import KEY, assert_trees_equal
from tiers import long

import dogwood_jax as dw
from dogwood_jax import plotting, training
from dogwood_jax._front.stages import planned
from dogwood_jax.training import Stage

SETTINGS = {"batch_size": 16, "key": KEY, "progress": False}
TX = dw.growable(optax.adam(0.01))


def data(samples=64):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(samples, 4)).astype(np.float32)
    return inputs, (inputs[:, 0] > inputs[:, 1]).astype(np.int32)


def apply(variables, inputs):
    params = variables["params"]
    return jnp.tanh(inputs @ params["up"]["kernel"]) @ params["down"]["kernel"]


def variables(units=8):
    rng = np.random.default_rng(1)
    kernels = {"up": rng.normal(size=(4, units)), "down": rng.normal(size=(units, 2))}
    return {"params": {k: {"kernel": jnp.asarray(v, jnp.float32)} for k, v in kernels.items()}}


class Net(nn.Module):
    units: int
    layers: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.units, name="first")(x))
        for i in range(1, self.layers):
            x = nn.relu(nn.Dense(self.units, name=f"hidden_{i}")(x))
        return nn.Dense(2, name="last")(x)


HOLDS_PARAMETERS = {
    "dog": optax.contrib.dog(),
    "schedule free": optax.contrib.schedule_free_adamw(),
}


@pytest.mark.parametrize("name", ["adam", "schedule free", long("dog")])
def test_a_growth_is_that_of_the_three_functions(name):
    tx = HOLDS_PARAMETERS.get(name, TX)
    small = training.fit(apply, variables(), tx, data(), epochs=2, **SETTINGS)
    growth = dw.plan(dw.trace(apply, variables(), data()[0][:16]), {"up": 12})
    wide = jax.jit(dw.grow)(small.variables, growth, key=jax.random.fold_in(KEY, 1))
    state = dw.grow_opt_state(small.opt_state, growth, tx, variables=wide)
    stages = [Stage(epochs=2), Stage(epochs=0, sizes={"up": 12})]
    run = training.fit(apply, variables(), tx, data(), stages=stages, **SETTINGS)
    assert_trees_equal(run.variables, wide)
    assert_trees_equal(run.opt_state, state)
    np.testing.assert_array_equal(run.history["loss"], small.history["loss"])
    # Old entries go on: their next step is that of the small network.
    before, _ = jax.jit(tx.update)(small.variables, small.opt_state, small.variables)
    gradient = jax.tree.map(np.zeros_like, wide)
    for name, place in (("up", np.s_[:, :8]), ("down", np.s_[:8])):
        gradient["params"][name]["kernel"][place] = small.variables["params"][name]["kernel"]
    after, _ = jax.jit(tx.update)(gradient, run.opt_state, run.variables)
    for name, place in (("up", np.s_[:, :8]), ("down", np.s_[:8])):
        a, b = (updates["params"][name]["kernel"] for updates in (after, before))
        np.testing.assert_allclose(a[place], b, rtol=1e-4)


def test_one_history_with_the_moments_of_growth():
    figure = pytest.importorskip("matplotlib.figure", reason="needs the extra plot")
    ax = figure.Figure().add_subplot()
    stages = [Stage(epochs=2), Stage(epochs=1, sizes={"up": 12}), Stage(epochs=3, sizes={"up": 16})]
    run = training.fit(apply, variables(), TX, data(), stages=stages, **SETTINGS)
    assert run.history["loss"].shape == run.history["accuracy"].shape == (6,)
    assert run.history["grown_at"].tolist() == [2, 3]
    assert run.variables["params"]["down"]["kernel"].shape == (16, 2)
    plotting.curves({"grown": run.history}, ax=ax)
    marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert marks == [2.5, 3.5]
    with pytest.raises(ValueError, match=r"no 'speed'; pass ylabel=, one of \['loss', 'acc"):
        plotting.curves({"grown": run.history}, ylabel="speed", ax=ax)


@pytest.mark.long
def test_entries_are_passes_and_their_parts():
    seen = []
    stages = [Stage(steps=3), Stage(epochs=1, sizes={"up": 12}), Stage(steps=2, sizes={"up": 16})]
    run = training.fit(
        apply,
        variables(),
        TX,
        data(),
        stages=stages,
        after_epoch=lambda run: seen.append(len(run.history["loss"])),
        **SETTINGS,
    )
    assert list(run.history) == ["loss", "accuracy", "steps", "grown_at"]
    assert run.history["steps"].tolist() == [3, 4, 7, 8, 9]  # four steps a pass
    assert run.history["grown_at"].tolist() == [1, 3]
    assert seen == [1, 2, 3, 4, 5]
    assert run.variables["params"]["down"]["kernel"].shape == (16, 2)


def test_the_loss_goes_on_where_the_network_grows():
    whole = training.fit(apply, variables(), TX, data(), epochs=4, **SETTINGS)
    stages = [Stage(epochs=3), Stage(epochs=1, sizes={"up": 12})]
    run = training.fit(apply, variables(), TX, data(), stages=stages, **SETTINGS)
    assert abs(run.history["loss"][3] - whole.history["loss"][3]) < 0.02
    assert run.history["loss"][3] < run.history["loss"][2]


@pytest.mark.long
def test_wider_and_deeper_with_functions_of_their_own():
    inputs, labels = data()
    small, large = Net(6), Net(10, layers=2)
    target = jax.jit(large.init)(jax.random.key(2), inputs)
    stages = [Stage(epochs=1), Stage(epochs=0, target=target, apply=large.apply)]
    start = jax.jit(small.init)(jax.random.key(1), inputs)
    run = training.fit(small.apply, start, TX, (inputs, labels), stages=stages, **SETTINGS)
    before = training.fit(small.apply, start, TX, (inputs, labels), epochs=1, **SETTINGS)
    assert run.apply == large.apply
    assert jax.tree.map(jnp.shape, run.variables) == jax.tree.map(jnp.shape, target)
    np.testing.assert_allclose(
        run.apply(run.variables, inputs), small.apply(before.variables, inputs), atol=1e-5
    )
    more = training.fit(
        small.apply,
        start,
        TX,
        (inputs, labels),
        stages=[Stage(epochs=1), Stage(epochs=2, target=target, apply=large.apply)],
        **SETTINGS,
    )
    assert more.history["loss"].shape == (3,)


@pytest.mark.long
def test_a_stage_may_stack_layers():
    inputs, labels = data()
    target = jax.eval_shape(Net(6, layers=5).init, KEY, inputs)
    stages = [
        Stage(epochs=1),
        Stage(epochs=1, target=target, apply=Net(6, 5).apply, depth=dw.strategies.stack()),
    ]
    start = jax.jit(Net(6, layers=2).init)(jax.random.key(1), inputs)
    run = training.fit(Net(6, 2).apply, start, TX, (inputs, labels), stages=stages, **SETTINGS)
    assert len(run.variables["params"]) == 6


@pytest.mark.long
def test_a_module_of_another_size_comes_with_its_function():
    inputs, labels = data()
    start = jax.jit(Net(6).init)(jax.random.key(1), inputs)
    stages = [Stage(epochs=1), Stage(epochs=1, sizes={"first": 9}, apply=Net(9).apply)]
    run = training.fit(Net(6).apply, start, TX, (inputs, labels), stages=stages, **SETTINGS)
    assert run.variables["params"]["last"]["kernel"].shape == (9, 2)


def test_a_stage_goes_on_with_the_function_of_the_one_before():
    def other(variables, inputs):
        return apply(variables, inputs)

    given = [Stage(epochs=1), Stage(sizes={"up": 12}, apply=other, epochs=1), Stage(epochs=1)]
    stages, problems = planned(given, apply, variables(), data()[0])
    assert problems == []
    assert [stage.apply for stage in stages] == [apply, other, other]


def test_collections_that_are_not_trained_grow_along():
    def scaled(variables, inputs):
        return apply(variables, inputs) @ variables["batch_stats"]["mix"]

    start = {**variables(), "batch_stats": {"mix": jnp.eye(2)}}
    stages = [Stage(epochs=1), Stage(epochs=1, sizes={"up": 12})]
    run = training.fit(scaled, start, TX, data(), stages=stages, **SETTINGS)
    assert run.variables["params"]["up"]["kernel"].shape == (4, 12)


def test_a_run_may_begin_by_growing_and_unpacks_into_three():
    run = training.fit(
        apply, variables(), TX, data(), stages=[Stage(epochs=1, sizes={"up": 12})], **SETTINGS
    )
    grown, _, history = run
    assert grown["params"]["up"]["kernel"].shape == (4, 12)
    assert history["grown_at"].tolist() == [0]


@pytest.mark.long
def test_a_source_grows_like_arrays():
    inputs, labels = data()

    class Source:
        def __len__(self):
            return len(inputs)

        def __getitem__(self, index):
            return inputs[index], labels[index]

    stages = [Stage(epochs=1), Stage(epochs=1, sizes={"up": 12})]
    runs = [
        training.fit(apply, variables(), TX, given, stages=stages, **SETTINGS)
        for given in (Source(), (inputs, labels))
    ]
    assert_trees_equal(runs[0].variables, runs[1].variables)


@pytest.mark.skipif(jax.device_count() < 8, reason="takes eight devices")
@pytest.mark.long
def test_a_mesh_grows_like_one_device():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    start = variables()
    split = {"up": P(None, "model"), "down": P("model", None)}
    placed = {
        "params": {
            name: {"kernel": jax.device_put(kernel["kernel"], NamedSharding(mesh, split[name]))}
            for name, kernel in start["params"].items()
        }
    }
    stages = [Stage(epochs=2), Stage(epochs=2, sizes={"up": 12})]
    one = training.fit(apply, start, TX, data(), stages=stages, **SETTINGS)
    many = training.fit(
        apply,
        placed,
        TX,
        data(),
        stages=stages,
        sharding=NamedSharding(mesh, P("data")),
        **SETTINGS,
    )
    kernel = many.variables["params"]["up"]["kernel"]
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, split["up"]), kernel.ndim)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        one.variables,
        many.variables,
    )


def test_ctrl_c_ends_the_run_before_the_next_growth():
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []

    def count(_):
        steps.append(None)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)

    def preprocess(inputs):
        jax.debug.callback(count, inputs, ordered=True)
        return inputs

    stages = [Stage(epochs=2), Stage(epochs=2, sizes={"up": 12})]
    try:
        run = training.fit(
            apply, variables(), TX, data(), stages=stages, preprocess=preprocess, **SETTINGS
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert run.history["loss"].shape == (1,)
    assert run.history["grown_at"].tolist() == []
    assert run.variables["params"]["up"]["kernel"].shape == (4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected epochs=, steps= or seconds=, got none"),
        ({"epochs": 1, "stages": [Stage(epochs=1)]}, "pass either epochs=, steps= .*, or stages="),
        ({"seconds": 1, "stages": [Stage(epochs=1)]}, "pass either epochs=, steps= .*, or stages="),
        ({"epochs": 1, "steps": 1}, "steps: expected either epochs= or steps=, got both"),
        ({"steps": 1.5}, "steps: expected an integer, 0 or more, got 1.5"),
        ({"seconds": 0}, "seconds: expected a positive number, got 0"),
        ({"seconds": float("inf")}, "seconds: expected a positive number, got inf"),
        ({"stages": [Stage(seconds="1")]}, r"stages\[0\].seconds: expected a positive .*'1'"),
        ({"stages": [Stage(steps=1), Stage()]}, r"stages\[1\].epochs: expected .* got none"),
        (
            {"stages": [Stage(steps=-1), Stage(epochs=1, steps=1, seconds=-1)]},
            r"stages\[0\].steps: .* -1\s+stages\[1\].steps: .* both\s+stages\[1\].seconds: .* -1",
        ),
        ({"stages": []}, "expected a list of training.Stage"),
        ({"stages": Stage(epochs=1)}, "expected a list of training.Stage"),
        ({"stages": [{"epochs": 1}]}, "expected a list of training.Stage"),
        ({"stages": [Stage(epochs=-1)]}, r"stages\[0\].epochs: expected an integer"),
        (
            {"stages": [Stage(epochs=1), Stage(epochs=1, sizes={"upp": 12})]},
            r"stages\[1\]: cannot plan this growth:\s+- no width 'upp'; the closest are \['up'",
        ),
        (
            {"stages": [Stage(epochs=1), Stage(epochs=1, sizes={"up": 4})]},
            r"stages\[1\]: (.|\s)*4 units are fewer",
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_work(arguments, message, monkeypatch):
    monkeypatch.setattr("dogwood_jax.training.loop._train", None)  # any work would fail
    with pytest.raises(ValueError, match=message):
        training.fit(apply, variables(), TX, data(), **arguments, **SETTINGS)


@pytest.mark.parametrize("stages", [None, [Stage(steps=1), Stage(seconds=1)]])
def test_a_clock_is_refused_where_several_processes_train(stages, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    length = {"seconds": 1} if stages is None else {"stages": stages}
    with pytest.raises(ValueError, match="seconds: expected None where several processes train"):
        training.fit(apply, variables(), TX, data(), **length, **SETTINGS)


def test_a_function_that_knows_its_sizes_is_asked_for():
    inputs, labels = data()
    start = jax.jit(Net(6).init)(jax.random.key(1), inputs)
    stages = [Stage(epochs=1), Stage(epochs=1, sizes={"first": 9})]
    around = lambda variables, x: Net(6).apply(variables, x)  # noqa: E731
    with pytest.raises(ValueError, match=r"stages\[1\]: apply does not take the grown variables"):
        training.fit(around, start, TX, (inputs, labels), stages=stages, **SETTINGS)
    run = training.fit(Net(6).apply, start, TX, (inputs, labels), stages=stages, **SETTINGS)
    assert run.variables["params"]["first"]["kernel"].shape[1] == 9


class Unknown(NamedTuple):
    trace: Any


UNKNOWN = optax.GradientTransformation(
    lambda params: Unknown(jax.tree.map(jnp.zeros_like, params)),
    lambda updates, state, params=None: (updates, state),
)


def test_a_state_that_cannot_grow_is_found_before_any_work(monkeypatch):
    tx = optax.chain(UNKNOWN, optax.sgd(0.1))
    stages = [Stage(epochs=1), Stage(epochs=1, sizes={"up": 12})]
    known = [stages[0], Stage(epochs=1, sizes={"up": 12}, fields={"trace": "first"})]
    run = training.fit(apply, variables(), tx, data(), stages=known, **SETTINGS)
    assert run.opt_state[0].trace["params"]["up"]["kernel"].shape == (4, 12)
    monkeypatch.setattr("dogwood_jax.training.loop._train", None)  # any work would fail
    with pytest.raises(
        ValueError, match=r"stages\[1\]: the optimizer's state cannot grow: (?s:.*)trace"
    ):
        training.fit(apply, variables(), tx, data(), stages=stages, **SETTINGS)


def test_averages_of_parameters_begin_at_the_grown_ones():
    tx = optax.contrib.schedule_free_sgd(0.05)
    stages = [Stage(epochs=1), Stage(epochs=0, sizes={"up": 12})]
    run = training.fit(apply, variables(), tx, data(), stages=stages, **SETTINGS)
    new = run.opt_state.z["params"]["up"]["kernel"][:, 8:]
    np.testing.assert_array_equal(new, run.variables["params"]["up"]["kernel"][:, 8:])


def test_a_stage_checks_its_arguments():
    with pytest.raises(ValueError, match="pass sizes= or target= as well"):
        Stage(epochs=1, depth=dw.strategies.stack())
    with pytest.raises(TypeError, match="training.Stage.*sizes"):
        Stage(epochs=1, sizes=12)
    with pytest.raises(TypeError, match="training.Stage.*strategy"):
        Stage(epochs=1, sizes={"up": 12}, strategy="replicate")


def test_a_rate_rises_stays_and_falls():
    rates = training.constant_then_decay(0.1, 400, warmup=20, decay=0.25)
    found = [float(rates(step)) for step in (0, 10, 20, 299, 300, 350, 400)]
    np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1, 0.1, 0.05, 0], atol=1e-6)
    always = training.constant_then_decay(0.1, 400, warmup=0, decay=0)
    assert [float(always(step)) for step in (0, 200, 399)] == pytest.approx([0.1] * 3)
    with pytest.raises(ValueError) as error:
        training.constant_then_decay(-0.1, 0, warmup=-1, decay=2)
    assert all(
        f"{name}: expected" in str(error.value) for name in "rate steps warmup decay".split()
    )
    with pytest.raises(ValueError, match="rises in 90 steps and falls in 20, more than 100"):
        training.constant_then_decay(0.1, 100, warmup=90)
    with pytest.raises(TypeError, match="rate"):
        training.constant_then_decay("fast", 100)
