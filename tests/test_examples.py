"""The examples, on fewer digits and for one epoch, and the README's own code."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dogwood_jax as dw
from dogwood_jax import keras_h5, mnist

pytest.importorskip("matplotlib", reason="the examples need the extra plot")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import command_line  # noqa: E402
import grow_mnist  # noqa: E402
import grow_transformer  # noqa: E402
import growbench  # noqa: E402
import growth_vs_scratch  # noqa: E402
import multi_device  # noqa: E402
import weight_symmetry  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """Replaces the subset by a part of it."""
    digits = mnist.load("subset")
    few = mnist.Digits(*(a[:2000] for a in digits[:2]), *(a[:500] for a in digits[2:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "load", lambda source: few)
        yield few


# growbench.py -------------------------------------------------------------------------------------


def ended(loss, budget, way=growbench.SCRATCH):
    return growbench.Result("task", "schedule", way, 0, growbench.Run([budget], [loss]))


def test_a_ratio_compares_with_the_budget_that_from_scratch_needs():
    scratch = [ended(2.0, 0.5), ended(1.0, 1.0), ended(1.1, 1.0), ended(1.9, 0.75)]
    assert growbench.equivalent(1.95, scratch) == pytest.approx(0.625)
    assert growbench.ratio([ended(1.95, 0.5, "default")], scratch) == "0.80"
    assert growbench.ratio([ended(2.1, 0.5)], scratch) == "> 1.00"  # worse than what was tried
    assert growbench.ratio([ended(0.9, 0.5)], scratch) == "< 0.50"
    worse = [*scratch, ended(1.3, 1.5)]  # more computing may end worse
    assert growbench.equivalent(1.05, worse) == pytest.approx(1.0)
    assert "0.80" in growbench.table([*scratch, ended(1.95, 0.5, "default")])


@pytest.mark.parametrize("name", ["default", "pairs", "copies, new state"])
def test_grown_runs_pay_for_the_small_network(name):
    task = growbench.dataclasses.replace(growbench.TASKS["MNIST, MLP"], steps=40)
    data = growbench.digits("subset")
    way = next(way for way in growbench.WAYS if way.name == name)
    run = growbench.train(task, data, 0, growbench.constant, 0.5, way, moment=0.5)
    assert 0.3 < run.budgets[-1] < 0.8
    steps = np.diff([0, *run.budgets])
    assert steps[-1] > 2 * steps[0]  # the large network's cost more
    assert np.isfinite(run.losses).all()


def test_the_bench_writes_a_table_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growbench, "WAYS", growbench.WAYS[:1])
    options = ["--quick", "--tasks", "MNIST, MLP", "--data", "subset", "--out", str(tmp_path)]
    results = growbench.main(options)
    assert {result.way for result in results} == {"from scratch", "default"}
    assert len((tmp_path / "growbench.csv").read_text().splitlines()) == 1 + len(results)
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert "default" in capsys.readouterr().out


# grow_mnist.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    out = tmp_path_factory.mktemp("grow_mnist")
    return grow_mnist.main(["--epochs", "1", "--out", str(out)]), out


def stage(experiment, name):
    (found,) = [stage for stage in experiment.stages if stage.name == name]
    return found


def test_every_stage_of_the_notebook_is_there(grown):
    (small, large), _ = grown
    assert [stage[:3] for stage in small.stages] == [
        ("trained", 1, 1),
        ("saved as .h5 and loaded", 1, 1),
        ("widened: zeros", 2, 1),
        ("widened: zeros, new optimizer", 2, 2),
        ("widened: zeros, trained on", 2, 2),
        ("widened: zero_outgoing", 2, 1),
        ("widened: zero_outgoing, new optimizer", 2, 2),
        ("widened: zero_outgoing, trained on", 2, 2),
        ("from scratch", 2, 1),
        ("from scratch, equal FLOPs", 2, 2),
        ("from scratch, equal epochs", 2, 2),
    ]
    assert [stage[1:3] for stage in large.stages] == [
        *[(32, 1), (32, 1), (128, 1), (128, 2), (128, 2)],
        *[(128, 1), (128, 2), (128, 2)],
    ]


def test_saving_and_widening_change_no_prediction(grown):
    for experiment in grown[0]:
        trained = experiment.stages[0]
        remade = [stage for stage in experiment.stages if stage.change is not None]
        assert remade[0].change == 0
        for after in remade:
            assert after.accuracy == trained.accuracy
            assert after.loss == pytest.approx(trained.loss, rel=1e-5)
            assert after.change < 1e-4


def test_new_units_learn_unless_they_are_all_zero(grown):
    networks = grown[0][0].networks
    kernels = {name: np.asarray(grow_mnist.kernel_of(v)) for name, v in networks.items()}
    assert not kernels["widened: zeros,\ntrained on"][:, 1].any()
    before, after = (
        kernels["widened: zero_outgoing"],
        kernels["widened: zero_outgoing,\ntrained on"],
    )
    assert np.abs(after - before)[:, 1].max() > 0.01


def test_files_and_picture_are_written(grown):
    experiments, out = grown
    assert sorted(path.name for path in out.iterdir()) == [
        "128_units_zero_outgoing.h5",
        "1_units.h5",
        "2_units_zero_outgoing.h5",
        "2_units_zeros.h5",
        "32_units.h5",
        "grow_mnist.png",
    ]
    wide = keras_h5.load(out / "128_units_zero_outgoing.h5")
    expected = experiments[1].networks["widened: zero_outgoing"]
    np.testing.assert_array_equal(grow_mnist.kernel_of(wide), grow_mnist.kernel_of(expected))
    assert (out / "grow_mnist.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each_stage_as_it_ends(few_digits, tmp_path, capsys):
    strategies = (grow_mnist.dw.strategies.replicate(),)
    key = grow_mnist.jax.random.key(0)
    arguments = {"epochs": 4, "key": key, "out": tmp_path}
    experiment = grow_mnist.grow(few_digits, 2, 5, strategies, **arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(stage) for stage in experiment.stages]
    assert {len(line) for line in lines} == {len(grow_mnist.HEADER)}
    # Two of five units cost two fifths: 4 epochs of either size cost 5.6 of the larger one.
    assert stage(experiment, "from scratch, equal FLOPs").epochs == 6
    assert len(experiment.curves["from scratch"]) == 8
    assert len(experiment.curves["widened: replicate"]) == 8


def test_flops_count_every_weight_forward_and_backward():
    variables = grow_mnist.MLP(3).init(grow_mnist.jax.random.key(0), jnp.zeros((1, 28, 28)))
    assert grow_mnist.flops(variables) == 6 * (784 * 3 + 3 * 10)


# weight_symmetry.py -------------------------------------------------------------------------------


def test_only_model_5_learns_and_units_stay_as_different_as_they_were(tmp_path, capsys):
    outcomes = weight_symmetry.main(["--epochs", "1", "--out", str(tmp_path)])
    assert [number for number, outcome in outcomes.items() if outcome.learns] == [5]
    for number, counts in {
        4: [1],
        5: [128],
        6: [1, 1],
        7: [128, 1],
        8: [128] * 2,
        9: [128] * 2,
    }.items():
        assert list(outcomes[number].before.values()) == counts
        assert outcomes[number].after == outcomes[number].before
    printed = capsys.readouterr().out
    for number, outcome in outcomes.items():
        assert outcome.learns == weight_symmetry.MODELS[number].learns
        verb = "learns" if number == 5 else "does not learn"
        assert re.search(rf"^Model {number} {verb}: .*\.$", printed, re.MULTILINE)
        assert re.search(
            rf"^ *{number}  dense_1 .* {outcome.accuracy:.2%}  dense_1 ", printed, re.M
        )
    assert (tmp_path / "weight_symmetry.png").read_bytes().startswith(b"\x89PNG")


def test_an_outcome_against_expectation_is_said():
    model = weight_symmetry.MODELS[4]
    outcome = weight_symmetry.Outcome(0.9, True, {}, {}, np.ones(1))
    assert weight_symmetry.sentence(4, model, outcome) == "Model 4 learns, against expectation."


# growth_vs_scratch.py -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two epochs, two seeds, and three ways to grow."""
    ways = [("zero_outgoing", "growable"), ("gradmax", "new"), ("random", "new")]
    strategies = growth_vs_scratch.strategies(mnist.load("subset"))
    out = tmp_path_factory.mktemp("growth_vs_scratch")
    with pytest.MonkeyPatch.context() as patch:
        chosen = {way: strategies[way] for way in strategies if way in ways}
        patch.setattr(growth_vs_scratch, "strategies", lambda digits: chosen)
        arguments = ["--epochs", "2", "--seeds", "2", "--units", "4", "--wide", "16"]
        return growth_vs_scratch.main([*arguments, "--out", str(out)]), out


def test_all_ways_to_grow_spend_what_training_from_scratch_does(compared):
    result, out = compared
    assert len(result.grown) == 3 * 3
    # An image takes 6 operations for each weight: 784 x 16 and 16 x 10.
    assert result.epoch == 6 * (784 * 16 + 16 * 10) * 2000
    assert list(result.large.flops) == [result.epoch, 2 * result.epoch]
    for (schedule, _), curve in result.grown.items():
        assert curve.accuracy.shape == curve.loss.shape == (2, len(curve.flops))
        assert result.epoch < curve.flops[-1] <= 2 * result.epoch
        steps = np.diff(curve.flops, prepend=0) / result.epoch
        small = {"early": [0.25], "two steps": [0.25, 0.5], "late": [0.25, 0.25]}[schedule]
        np.testing.assert_allclose(steps, [*small, *[1] * (len(steps) - len(small))])
        assert curve.before == curve.flops[len(small) - 1]
    assert (out / "growth_vs_scratch.png").read_bytes().startswith(b"\x89PNG")


def test_only_preserving_growth_keeps_the_outputs(compared):
    for (_, way), curve in compared[0].grown.items():
        assert (curve.change < 1e-4) == (way.strategy != "random")


def curves(flops, *accuracies, before=0):
    accuracies = np.array(accuracies)
    return growth_vs_scratch.Curve(np.array(flops), 1 - accuracies, accuracies, before)


def test_the_verdict_follows_from_the_measurements():
    scratch = curves([10, 20, 30, 40], [0.1, 0.5, 0.7, 0.9], [0.1, 0.6, 0.8, 0.8])
    way = growth_vs_scratch.Way
    grown = {
        ("early", way("zeros", "new")): curves([5, 15, 25], [0.1, 0.8, 0.8], [0.1, 0.8, 0.8]),
        ("early", way("random", "new")): curves([5, 15, 25], [0, 0, 0.9], [0, 0, 0.9]),
        ("late", way("zeros", "new")): curves([30, 40], [0.6, 0.9], [0.6, 0.9], before=30),
        ("too late", way("zeros", "new")): curves([30, 40], [0.6, 0.6], [0.6, 0.6], before=30),
    }
    result = growth_vs_scratch.Result(scratch, scratch, scratch, grown)
    # The last quarter is one epoch: 0.85 with a standard deviation of 0.0707.
    assert result.converged == pytest.approx((0.85, 0.05 * 2**0.5))
    assert result.bar == pytest.approx(0.85 - 0.05 * 2**0.5)
    lines = growth_vs_scratch.verdict(result)
    assert "first reaches 77.93% after 4.00 epochs (40 FLOPs)" in lines[0]
    assert (
        "zeros, state new: it does so after 1.50 epochs (15 FLOPs): growing pays, 62% less"
        in (lines[2])
    )
    assert "after 4.00 epochs (40 FLOPs): no clear advantage, 0% less than from scratch" in lines[3]
    assert "paid for: growing pays, 75% less" in lines[3]
    assert "it does so never: growing does not pay" in lines[4]
    assert lines[5] == (
        "The fewest FLOPs of all: zeros, state new, early; fewer than from scratch for 2 of 2 "
        "seeds."
    )


# grow_transformer.py ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """Shallow networks, short rounds and little text to test on."""
    out = tmp_path_factory.mktemp("grow_transformer")
    text = grow_transformer.load()
    with pytest.MonkeyPatch.context() as patch:
        for name, depth in ("SMALL", 1), ("WIDE", 1), ("DEEP", 2):
            model = dataclasses.replace(getattr(grow_transformer, name), depth=depth)
            patch.setattr(grow_transformer, name, model)
        patch.setattr(grow_transformer, "STEPS", 4)
        few = text._replace(test=text.test[:5000])
        patch.setattr(grow_transformer, "load", lambda: few)
        arguments = ["--rounds", "4", "--seeds", "1", "--out", str(out)]
        return grow_transformer.main(arguments), out


def test_growing_the_transformer_changes_no_prediction(transformers):
    result, out = transformers
    (wide, deep), (grown,) = result.growths[0], result.grown
    assert 0 < wide.difference.relative < 1e-5
    assert deep.difference.absolute == 0
    for growth in wide, deep:
        assert growth.after == pytest.approx(growth.before, rel=1e-6)
    assert wide.before > deep.before > grown.points[-1][1]
    assert grown.model.depth == 2
    assert grown.model.epsilon == pytest.approx(1e-6 * 32 / 48)
    # The optimizer has counted all steps: two rounds before the last growth, the rest behind it.
    assert grown.opt_state.inner_state[0].count == 4 * len(grown.points)
    assert (out / "grow_transformer.png").read_bytes().startswith(b"\x89PNG")


def test_the_transformers_spend_the_same(transformers):
    result, _ = transformers
    (grown,), (scratch,) = result.grown, result.scratch
    assert len(scratch.points) == 4
    assert 3 / 4 < grown.spent / scratch.spent <= 1
    # Weights of two blocks and of the logits, and two products of each head with 64 characters.
    block = 4 * 48 * 48 + 2 * 48 * 192 + 2 * 64 * 48
    assert grown.model.flops() == 6 * (2 * block + 48 * 96)


# multi_device.py ----------------------------------------------------------------------------------


def test_a_run_is_restored_on_another_mesh_grown_and_continued(tmp_path, monkeypatch):
    options = ["--epochs", "1", "--out", str(tmp_path)]
    stages = multi_device.main([*options, "--model", "2"])
    trained, restored, grown, trained_on = stages
    assert [dict(stage.mesh.shape) for stage in stages] == [
        {"data": 4, "model": 2},
        *[{"data": 2, "model": 4}] * 3,
    ]
    assert [stage.loss for stage in (restored, grown)] == pytest.approx([trained.loss] * 2)
    assert trained_on.loss < trained.loss
    for stage in stages:
        wanted = jax.tree.leaves(multi_device.shardings(stage.mesh, stage.network))
        for array, sharding in zip(jax.tree.leaves(stage.network), wanted, strict=True):
            assert array.sharding.is_equivalent_to(sharding, array.ndim)
    growth = dw.from_json((tmp_path / "multi_device" / "growth.json").read_text())
    assert growth.sizes == {"dense_1": 256}

    # On one device, the same comes out.
    one = multi_device.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    monkeypatch.setattr(multi_device, "mesh_of", lambda model: one)
    alone = multi_device.main(options)
    losses = [[stage.loss for stage in run] for run in (stages, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


# The command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "subste"], r"invalid choice: 'subste' \(choose from '?subset'?, '?tfds'?\)"),
        (["--epochs", "0"], "expected an integer, 1 or more, got '0'"),
        (["--epochs", "two"], "expected an integer, 1 or more, got 'two'"),
        (["--sed", "0", "--epoch", "1", "--outt", "x"], "unrecognized arguments: .*--outt"),
    ],
)
def test_typos_are_answered_with_the_choices(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        command_line.parse("An example.", arguments)
    assert exit.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_is_missing_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    def load(source):
        raise FileNotFoundError("MNIST is not prepared")

    def failure(*arguments):
        with pytest.raises(SystemExit) as exit:
            command_line.parse("An example.", ["--out", str(tmp_path), *arguments])
        return exit.value.code, capsys.readouterr().err

    file = tmp_path / "file"
    file.touch()
    code, message = failure("--out", str(file))
    assert (code, message.splitlines()[-1].split("error: ")[1]) == (
        2,
        f"argument --out: File exists: {file}",
    )
    monkeypatch.setattr(mnist, "load", load)
    assert failure("--data", "tfds") == (1, "MNIST is not prepared\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, message = failure()
    assert code == 1
    assert "pip install 'dogwood_jax[examples]'" in message


# README.md ----------------------------------------------------------------------------------------


def test_the_code_of_the_readme_prints_no_difference():
    # In a process of its own: the tests' strict mode is not what a reader of the README has.
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    (difference,) = re.findall(r"largest difference (\S+) ", run.stdout)
    assert 0 <= float(difference) <= 1e-6
