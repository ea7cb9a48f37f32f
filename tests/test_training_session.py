"""Around training: Ctrl-C, losses that overflow, wrong arguments and progress."""

import io
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear import KEY, assert_trees_equal, classes_data, linear, linear_variables

from dogwood_jax import training
from dogwood_jax.training.loop import interrupt_held_back


@pytest.fixture
def python_handles_ctrl_c():
    """Python's own handler, which a process started in the background comes without."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_returns_what_is_trained_so_far(python_handles_ctrl_c):
    steps = []

    def count(_):
        steps.append(None)
        if len(steps) == 4:  # the first step of the second epoch
            signal.raise_signal(signal.SIGINT)

    def preprocess(inputs):
        jax.debug.callback(count, inputs, ordered=True)
        return inputs

    settings = {"batch_size": 2, "key": KEY}
    tx, data = optax.adam(0.1), classes_data()
    run = training.fit(
        linear, linear_variables(), tx, data, epochs=9, preprocess=preprocess, **settings
    )
    shorter = training.fit(linear, linear_variables(), tx, data, epochs=2, **settings)
    assert_trees_equal(run, shorter)
    assert (run.interrupted, shorter.interrupted) == (True, False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_epoch_is_said(python_handles_ctrl_c):
    settings = {"epochs": 1, "batch_size": 2, "key": KEY}
    run = training.fit(
        linear,
        linear_variables(),
        optax.sgd(0.1),
        classes_data(),
        after_epoch=lambda run: signal.raise_signal(signal.SIGINT),
        **settings,
    )
    assert run.interrupted and len(run.history["loss"]) == 1


def test_the_run_so_far_is_there_after_each_epoch():
    tx, data, stages = optax.adam(0.1), classes_data(), [training.Stage(epochs=2)] * 2
    settings = {"batch_size": 2, "key": KEY, "stages": stages}
    seen = []

    def after_epoch(run):
        seen.append(jax.device_get(tuple(run)))

    run = training.fit(linear, linear_variables(), tx, data, after_epoch=after_epoch, **settings)
    assert [len(history["loss"]) for *_, history in seen] == [1, 2, 3, 4]
    assert_trees_equal(seen[-1], jax.device_get(tuple(run)))
    assert_trees_equal(run, training.fit(linear, linear_variables(), tx, data, **settings))
    with pytest.raises(TypeError, match="after_epoch"):
        training.fit(linear, linear_variables(), tx, data, after_epoch=True, **settings)


def test_a_second_ctrl_c_interrupts_at_once(python_handles_ctrl_c):
    with interrupt_held_back() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_of_the_user_is_left_alone(python_handles_ctrl_c):
    received = []
    signal.signal(signal.SIGINT, lambda *_: received.append(None))
    with interrupt_held_back() as interrupted:
        signal.raise_signal(signal.SIGINT)
    assert received and not interrupted.is_set()


def test_fit_in_a_thread(python_handles_ctrl_c):
    runs = []

    def train():
        settings = {"epochs": 1, "batch_size": 2, "key": KEY}
        runs.append(
            training.fit(linear, linear_variables(), optax.sgd(0.1), classes_data(), **settings)
        )

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"epochs": 9}, "inf in epoch 7 of 9, step 3 of 3; .*learning"),
        ({"stages": [training.Stage(steps=20)] * 2}, "inf in epoch 7 of 14, step 3 of 3; .*l"),
        ({"seconds": 60}, "inf in epoch 7, step 3 of 3; .*learning"),
    ],
)
def test_a_loss_that_overflows_stops_with_epoch_and_step(length, message):
    # Each step multiplies the weight by -10; its square passes 3.4e38 before step 21.
    variables = jnp.ones(1, jnp.float32)
    with pytest.raises(FloatingPointError, match=message):
        training.fit(
            lambda weight, inputs: inputs * weight[None],
            variables,
            optax.sgd(5.5),
            (np.ones((5, 1), np.float32), np.zeros(5)),
            batch_size=2,
            key=KEY,
            loss=lambda outputs, _: outputs[:, 0] ** 2,
            **length,
        )
    np.testing.assert_array_equal(variables, 1.0)


def test_labels_out_of_range_stop_the_run():
    inputs, labels = classes_data()
    labels[:] = 4
    with pytest.raises(FloatingPointError, match=r"nan in epoch 1 .* labels are in \[0, classes\)"):
        training.fit(
            linear,
            linear_variables(),
            optax.sgd(0.1),
            (inputs, labels),
            epochs=1,
            batch_size=2,
            key=KEY,
        )


def never(*_):
    raise AssertionError("called in spite of wrong arguments")


def test_all_wrong_arguments_are_named_at_once():
    data = np.zeros((5, 3)), np.zeros(4, np.int32)
    variables = {"kernel": "glorot", "step": 1}
    with pytest.raises(ValueError) as raised:
        training.fit(
            never, variables, optax.adam(0.1), data, epochs=-1, batch_size=0, key=3, loss=never
        )
    assert str(raised.value).split("\n  ") == [
        "training.fit cannot start:",
        "data: expected inputs and labels with the same number of samples as first axis, "
        "got shapes (5, 3) and (4,)",
        "batch_size: expected an integer, 1 or more, got 0",
        "variables/kernel: expected an array, got str; close over it in apply "
        "(equinox.partition(model, equinox.is_array) splits a module)",
        "epochs: expected an integer, 0 or more, got -1",
        "key: expected one random key, such as jax.random.key(0), got int of shape ()",
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": (np.zeros((0, 3)), np.zeros(0, int))}, "at least one sample, got .* \\(0, 3\\)"),
        ({"data": (np.float64(1.0), np.zeros(1, int))}, "got shapes \\(\\) and \\(1,\\)"),
        ({"batch_size": 2.0}, "batch_size: .* got 2.0"),
        ({"epochs": "3"}, "epochs: .* got '3'"),
        ({"key": jax.random.split(KEY)}, "key: expected one random key"),
        ({"key": np.zeros(3, np.uint32)}, "key: expected one random key"),
        ({"variables": {"table": np.arange(3)}}, "expected a floating-point leaf"),
        ({"variables": {"params": {}, "stats": np.ones(3)}}, "expected a floating-point leaf"),
    ],
)
def test_each_wrong_argument_is_named(changes, message):
    arguments = {
        "variables": linear_variables(),
        "tx": optax.adam(0.1),
        "data": classes_data(),
        "epochs": 1,
        "batch_size": 2,
        "key": KEY,
    }
    with pytest.raises(ValueError, match=message):
        training.fit(never, **arguments | changes)


def test_an_optimizer_state_that_does_not_fit_is_named_by_path():
    tx = optax.adam(0.1)
    small, wide = linear_variables(), linear_variables(classes=6)
    settings = {"epochs": 1, "batch_size": 2, "key": KEY}
    with pytest.raises(ValueError) as raised:
        training.fit(never, wide, tx, classes_data(), opt_state=tx.init(small), **settings)
    message = str(raised.value)
    assert "opt_state/0/mu/kernel: expected float64[3, 6], got float64[3, 4]" in message
    assert "opt_state/0/nu/bias: expected float64[6], got float64[4]" in message
    assert "count" not in message
    momentum = optax.sgd(0.1, momentum=0.9).init(small)
    with pytest.raises(
        ValueError, match="opt_state: expected .*ScaleByAdamState.* got .*TraceState"
    ):
        training.fit(never, small, tx, classes_data(), opt_state=momentum, **settings)


def test_wrong_arguments_of_evaluate():
    with pytest.raises(ValueError, match="(?s)evaluate cannot start.*data: .*batch_size: "):
        training.evaluate(never, {}, (np.zeros((2, 3)), np.zeros(1, int)), batch_size=0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit_on(stream, monkeypatch, **settings):
    monkeypatch.setattr(sys, "stderr", stream)
    training.fit(
        linear,
        linear_variables(),
        optax.sgd(0.1),
        classes_data(),
        batch_size=2,
        key=KEY,
        **{"epochs": 3} | settings,
    )
    return stream.getvalue()


@pytest.mark.long
def test_a_terminal_shows_progress(monkeypatch):
    pytest.importorskip("tqdm", reason="tqdm draws the bar")
    shown = fit_on(Terminal(), monkeypatch)
    assert "3/3" in shown and "epoch/s" in shown and "accuracy=" in shown
    shown = fit_on(Terminal(), monkeypatch, epochs=None, steps=4)
    assert "4/4" in shown and "step/s" in shown
    assert fit_on(Terminal(), monkeypatch, progress=False) == ""
    assert fit_on(io.StringIO(), monkeypatch) == ""


def test_training_is_silent_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert fit_on(Terminal(), monkeypatch) == ""


def test_importing_training_imports_only_what_it_needs():
    late = {"flax", "h5py", "matplotlib", "tensorflow_datasets", "tqdm"}
    program = "import sys, dogwood_jax.training; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert late.isdisjoint(run.stdout.split())
