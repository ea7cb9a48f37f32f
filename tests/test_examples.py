"""The examples, on fewer digits and for one epoch."""

import csv
import dataclasses
import functools
import io
import itertools
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import dogwood_jax as dw
from dogwood_jax import __main__ as checkpoints
from dogwood_jax import keras_h5, mnist, training
from dogwood_jax.keras_h5 import __main__ as keras_files

pytest.importorskip("matplotlib", reason="the examples need the extra plot")
pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import command_line  # noqa: E402
import grow_checkpoint  # noqa: E402
import grow_mnist  # noqa: E402
import grow_transformer  # noqa: E402
import growbench  # noqa: E402
import growth_vs_scratch  # noqa: E402
import multi_device  # noqa: E402
import permuted_mnist  # noqa: E402
import recycled_agent  # noqa: E402
import shrink_and_heal  # noqa: E402
import two_domains  # noqa: E402
import weight_symmetry  # noqa: E402
from growing import data, law, networks, results, runs, tasks  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """Replaces the subset by a part of it."""
    digits = mnist.load("subset")
    few = mnist.Digits(*(a[:2000] for a in digits[:2]), *(a[:500] for a in digits[2:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "load", lambda source: few)
        yield few


# grow_checkpoint.py -------------------------------------------------------------------------------


def test_a_language_model_grows_on_disk(tmp_path):
    with jax.numpy_rank_promotion("allow"):
        assert grow_checkpoint.main(tmp_path) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"small", "large"}


# growbench.py -------------------------------------------------------------------------------------


SMALL_TASK = runs.Task(
    "parities",
    lambda options, half: data.Parities(4, 8, tests=500),
    steps=80,
    batch_size=16,
    rate=1e-2,
    ways=(
        runs.Way("from scratch", (runs.Size(networks.MLP(16, 2)),)),
        runs.Way("small alone", (runs.Size(networks.MLP(4, 2)),)),
        runs.Way("grown", (runs.Size(networks.MLP(4, 2)), runs.Size(networks.MLP(16, 2), at=0.1))),
    ),
    budgets=(0.5, 1.0),
)


def ended(loss, budget, way="from scratch", seed=0, before=0.0):
    return runs.End(
        "", "parities", way, seed, budget, budget, before, 9, loss, loss, 0.5, 1.0, "cpu"
    )


def test_a_ratio_compares_the_budgets_for_the_loss_of_from_scratch():
    scratch = [ended(2.0, 0.5), ended(1.1, 1.0), ended(0.9, 1.0, seed=1)]
    found = {
        name: results.rows_of(SMALL_TASK, [*scratch, *ends])[2]
        for name, ends in {
            "between": [ended(1.5, 0.5, "grown", before=0.1), ended(0.5, 1.0, "grown")],
            "never": [ended(2.5, 0.5, "grown"), ended(1.5, 1.0, "grown")],
            "at once": [ended(0.8, 0.5, "grown"), ended(0.5, 1.0, "grown")],
        }.items()
    }
    assert str(found["between"].ratio) == "0.75"
    assert str(found["between"].without) == "0.65"
    assert str(found["never"].ratio) == "1.33"  # its full budget, by 0.75 from scratch
    assert str(found["at once"].ratio) == "<0.50"
    assert str(results.ratio(0.5, 2.1, results.curve(scratch))) == ">1.00"
    assert results.needed(1.05, [0.5, 1.0, 1.5], [2.0, 1.0, 1.3]) == pytest.approx(0.975)
    text = results.table(SMALL_TASK, [*scratch, ended(1.5, 1.0, "grown")])
    assert "| from scratch | 2 | 1.0000 ± 0.1000 |" in text
    assert "| small alone | not run |" in text


def recorded():
    """The results in the documentation, by task."""
    ends = results.read(ROOT / "docs/results/growbench.csv")
    return {name: [end for end in ends if end.task == name] for name in tasks.TASKS}


def test_the_documentation_has_the_tables_of_what_was_recorded():
    text = (ROOT / "docs/results/growbench.md").read_text()
    for name, ends in recorded().items():
        task = tasks.TASKS[name]
        assert {end.key for end in ends} <= {runs.key_of(task, way, 1) for way in task.ways}
        assert results.table(task, ends) in text


def test_the_readme_says_what_was_recorded():
    rows = {row.way.name: row for row in results.rows_of(tasks.TEXT, recorded()["text"])}
    grown = rows["3 to 6 layers, copies between"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"the from-scratch loss with {grown.ratio.value:.0%} of the FLOPs" in readme
    assert f"{grown.without.value:.0%} of the FLOPs are needed" in readme
    others = [row for row in rows.values() if not row.way.grows and row.seeds == grown.seeds]
    assert len(others) >= 3 and all(
        grown.loss + 3 * grown.error < row.loss - row.error for row in others
    )


def test_what_was_not_learned_has_a_bound_for_a_ratio():
    task = dataclasses.replace(SMALL_TASK, budgets=(1.0,), until=0.95)
    never, soon = ended(1.0, np.inf)._replace(asked=1.0), ended(0.1, 0.25, "grown")
    text = results.table(task, [never, soon, never._replace(way="small alone")])
    assert "| from scratch | 1 | > 1.00 |" in text
    assert "| small alone | 1 | > 1.00 |  |  |  |" in text  # neither has learned it
    assert "| grown | 1 | 0.25 |  | <0.25 |" in text
    assert results.picture(task, [never]).axes[0].get_legend() is None


def test_all_that_a_run_costs_counts_and_ends_fork_from_one_trunk():
    bits = SMALL_TASK.load(None, 0)
    way = SMALL_TASK.ways[2]
    both = [*runs.ends_of(SMALL_TASK, way, 0, bits, (0.5, 1.0))]
    (one,) = runs.ends_of(SMALL_TASK, way, 0, bits, (1.0,))
    assert both[1][:5] == one[:5]  # whatever other ends there are
    assert both[1][5:9] == pytest.approx(one[5:9], rel=1e-4)
    assert one.budget == pytest.approx(1.0, abs=0.03)
    costs = [runs.flops(size.model, (16, 12), bits.test[0].dtype) for size in way.sizes]
    small = one.before * 80 * costs[1] / costs[0]
    spent = small * costs[0] + (one.steps - small + 1) * costs[1]  # a growth costs a step
    assert spent / (80 * costs[1]) == pytest.approx(one.budget, rel=1e-5)
    assert one.steps > 80


def test_a_configuration_has_the_same_key_in_each_process():
    ways = [way for task in tasks.TASKS.values() for way in task.ways]
    ways += [way for some in tasks.CANDIDATES.values() for way in some]
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'examples')!r}]\n"
        "from growing import runs, tasks\n"
        "for some in [*[t.ways for t in tasks.TASKS.values()], *tasks.CANDIDATES.values()]:\n"
        "    for way in some: print(runs.key_of(tasks.TEXT, way, 0))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [runs.key_of(tasks.TEXT, way, 0) for way in ways]


def test_look_ups_and_parities_are_what_they_say():
    hops = data.Hops(5, 3)
    inputs, labels = hops.draw(np.random.default_rng(1), 50)
    for pairs, at, right in zip(inputs[:, :5], inputs[:, 5] - 25, labels, strict=True):
        follower = dict(divmod(int(pair), 5) for pair in pairs)
        for label in right:
            at = follower[int(at)]
            assert at == label
    inputs, labels = data.Parities(4, 8).draw(np.random.default_rng(1), 400)
    for task in range(4):
        own = inputs[:, task] == 1
        parities = [
            (inputs[own, 4:][:, bits].sum(-1) % 2 == labels[own]).all()
            for bits in itertools.combinations(range(8), 3)
        ]
        assert sum(parities) == 1


def test_the_halves_of_the_text_share_no_file(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"{number}.py").write_text(chr(ord("!") + number) * 200)
    monkeypatch.setattr(data.argparse, "__file__", str(tmp_path / "argparse.py"))
    halves = [data.Text(half, context=8, tests=400) for half in (0, 1)]
    rng = np.random.default_rng(0)
    parts = [
        {*np.unique(part)} for half in halves for part in (half.draw(rng, 4000)[0], half.test[0])
    ]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(parts, 2))


def test_a_law_is_found_again_and_says_where_lines_cross():
    true = law.Law(0.5, 8.0, 0.3, 40.0, 0.0)
    sizes = [(64, 6), (32, 6), (64, 1), (64, 3)]
    measured = [
        law.Measured(width, depth, tokens, true.loss(width, depth, tokens))
        for width, depth in sizes
        for tokens in (1e5, 1e6)
    ]
    found = law.fitted(measured)
    np.testing.assert_allclose(found[:4], true[:4], rtol=1e-6)
    small, large = law.Kind(64, 1, 1e5), law.Kind(64, 6, 6e5)
    budget = law.crossing(found, small, large)
    losses = [true.loss(kind.width, kind.depth, budget / kind.flops) for kind in (small, large)]
    assert losses[0] == pytest.approx(losses[1])
    assert law.crossing(true, large, small) == small.flops * 1e15 or np.isinf(
        law.crossing(true._replace(depth=0.0), small, large)
    )
    with pytest.raises(ValueError, match="differ in width, depth and tokens"):
        law.fitted(measured[:1])


def test_the_bench_writes_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growbench, "TASKS", {"parities": SMALL_TASK})
    options = ["table", "--seeds", "1", "--out", str(tmp_path)]
    growbench.main(options)
    assert "| grown | 1 |" in capsys.readouterr().out
    assert (tmp_path / "growbench_parities.png").exists()
    rows = (tmp_path / "growbench.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2
    (tmp_path / "growbench.csv").write_text("\n".join(rows[:-1]) + "\n")
    made = []
    monkeypatch.setattr(
        growbench, "ends_of", lambda task, way, *rest: made.append((way.name, rest[2])) or ()
    )
    growbench.main(options)
    assert made == [(rows[-1].split(",")[2], (float(rows[-1].split(",")[4]),))]


def test_the_bench_searches(tmp_path, monkeypatch, capsys):
    ways = SMALL_TASK.ways
    monkeypatch.setattr(growbench, "TASKS", {"parities": SMALL_TASK})
    monkeypatch.setattr(growbench, "CANDIDATES", {"parities": ways})
    growbench.main(["search", "--out", str(tmp_path)])
    found = capsys.readouterr().out
    assert sorted(found.count(f"  {way.name}\n") for way in ways) == [1, 2, 2]  # two are left


def test_the_bench_predicts(tmp_path, monkeypatch, capsys):
    sizes = [(2, 16), (1, 16), (2, 32)]
    ways = tuple(
        runs.Way(f"{layers} of {stream}", (runs.Size(tasks.decoder(layers, stream, context=8)),))
        for layers, stream in sizes
    )
    task = dataclasses.replace(
        tasks.TEXT,
        steps=40,
        ways=ways[:1],
        load=lambda options, half: data.Text(half, context=8, tests=250),
    )
    monkeypatch.setattr(growbench, "TASKS", {task.name: task})
    monkeypatch.setattr(growbench, "PREDICTED", {task.name: ways})
    growbench.main(["predict", "--out", str(tmp_path)])
    found = capsys.readouterr().out
    assert "tokens^(-1/3)" in found
    assert found.count("of the full budget on") == 2


# grow_mnist.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    out = tmp_path_factory.mktemp("grow_mnist")
    return grow_mnist.main(["--epochs", "1", "--out", str(out)]), out


def row(experiment, name):
    (found,) = [row for row in experiment.rows if row.name == name]
    return found


def test_every_stage_of_the_notebook_is_there(grown):
    (small, large), _ = grown
    assert [row[:3] for row in small.rows] == [
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
    assert [row[1:3] for row in large.rows] == [
        *[(32, 1), (32, 1), (128, 1), (128, 2), (128, 2)],
        *[(128, 1), (128, 2), (128, 2)],
    ]


def test_saving_and_widening_change_no_prediction(grown):
    for experiment in grown[0]:
        trained = experiment.rows[0]
        remade = [row for row in experiment.rows if row.change is not None]
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


def test_a_curve_has_one_color_and_ends_as_the_table_says(grown):
    experiments, _ = grown
    panels = [ax for ax in grow_mnist.picture(experiments, 1).axes if ax.get_legend()]
    colors = {}
    for ax, experiment in zip(panels, experiments, strict=True):
        for line in ax.get_lines():
            assert colors.setdefault(line.get_label(), line.get_color()) == line.get_color()
        for name, curve in experiment.curves.items():
            last = {"from scratch": "from scratch, equal epochs"}.get(name, f"{name}, trained on")
            assert curve[-1] == row(experiment, last).accuracy
    assert len(set(colors.values())) == len(colors) == 4  # three curves, and the growth


def test_the_main_example_says_what_happened(grown):
    (small, large), _ = grown
    first, second = map(grow_mnist.verdict, (small, large))
    on = row(large, "widened: zero_outgoing, trained on").accuracy
    assert first.startswith("1 to 2 units: no output moved by more than ")
    assert f"training went on from {large.rows[0].accuracy:.1%} to {on:.1%}" in second
    rows = [r._replace(accuracy=0.1) if "scratch" in r.name else r for r in large.rows]
    assert grow_mnist.verdict(large._replace(rows=rows)).endswith("Growing pays here.")


def test_files_and_picture_are_written(grown):
    experiments, out = grown
    assert sorted(path.name for path in out.iterdir()) == [
        "128_units_zero_outgoing.h5",
        "1_units.h5",
        "2_units_zero_outgoing.h5",
        "2_units_zeros.h5",
        "32_units.h5",
        "grow_mnist.csv",
        "grow_mnist.png",
        "grow_mnist.txt",
    ]
    wide = keras_h5.load(out / "128_units_zero_outgoing.h5")
    expected = experiments[1].networks["widened: zero_outgoing"]
    np.testing.assert_array_equal(grow_mnist.kernel_of(wide), grow_mnist.kernel_of(expected))
    assert (out / "grow_mnist.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_written_as_text_and_as_csv(grown):
    experiments, out = grown
    rows = [row for experiment in experiments for row in experiment.rows]
    lines = (out / "grow_mnist.txt").read_text().splitlines()
    assert lines == [grow_mnist.HEADER, *map(str, rows)]
    with open(out / "grow_mnist.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in written] == [
        tuple("" if value is None else str(value) for value in row) for row in rows
    ]
    assert {*written[0]} == {*grow_mnist.Row._fields}


def test_panels_of_units_are_equally_large(grown):
    figure = grow_mnist.picture(grown[0], 1)
    figure.draw_without_rendering()
    sizes = [ax.get_window_extent().size for ax in figure.axes if ax.images]
    assert len(sizes) == 5  # those of 32 and 128 units would be too small to see
    np.testing.assert_allclose(sizes, [sizes[0]] * len(sizes), rtol=0.01)


def test_the_table_has_a_row_for_each_stage_as_it_ends(few_digits, tmp_path, capsys):
    strategies = (grow_mnist.dw.strategies.replicate(),)
    key = grow_mnist.jax.random.key(0)
    arguments = {"epochs": 4, "key": key, "out": tmp_path}
    experiment = grow_mnist.grow(few_digits, 2, 5, strategies, **arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(row) for row in experiment.rows]
    assert {len(line) for line in lines} == {len(grow_mnist.HEADER)}
    # Two of five units cost two fifths: 4 epochs of either size cost 5.6 of the larger one.
    assert row(experiment, "from scratch, equal FLOPs").epochs == 6
    assert len(experiment.curves["from scratch"]) == 8
    assert len(experiment.curves["widened: replicate"]) == 8


# weight_symmetry.py -------------------------------------------------------------------------------


def test_only_zero_outgoing_weights_learn_and_units_stay_as_different_as_they_were(
    tmp_path, capsys
):
    outcomes = weight_symmetry.main(["--epochs", "1", "--out", str(tmp_path)])
    learning = "one hidden layer, dense_2 at zero"
    assert [name for name, outcome in outcomes.items() if outcome.learns] == [learning]
    printed = capsys.readouterr().out
    for (name, outcome), counts in zip(
        outcomes.items(), [[1], [128], [1, 1], [128, 1], [128] * 2, [128] * 2], strict=True
    ):
        assert list(outcome.before.values()) == counts
        assert outcome.after == outcome.before
        assert outcome.learns == weight_symmetry.MODELS[name].learns
        verb = "learns" if name == learning else "does not learn"
        assert re.search(rf"^{name}: {verb}, because .*\.$", printed, re.MULTILINE)
        assert re.search(rf"^{name} .* {outcome.accuracy:.2%}  dense_1 ", printed, re.MULTILINE)
    assert (tmp_path / "weight_symmetry.png").read_bytes().startswith(b"\x89PNG")


def test_networks_are_named_by_what_starts_at_zero():
    for name, model in weight_symmetry.MODELS.items():
        hidden, zero = name.split(", ")
        assert hidden.startswith({2: "one", 3: "two"}[len(model.layers)])
        named = (
            set(model.layers) if zero.startswith("all ") else set(re.findall(r"dense_\w+", zero))
        )
        assert named == model.zero


def test_an_outcome_against_expectation_is_said():
    name, model = next(iter(weight_symmetry.MODELS.items()))
    outcome = weight_symmetry.Outcome(0.9, True, {}, {})
    sentence = "one hidden layer, all at zero: learns, against expectation."
    assert weight_symmetry.sentence(name, model, outcome) == sentence


# growth_vs_scratch.py -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two budgets and two seeds."""
    out = tmp_path_factory.mktemp("growth_vs_scratch")
    arguments = ["--epochs", "2", "--seeds", "2", "--units", "4", "--wide", "16"]
    return growth_vs_scratch.main([*arguments, "--out", str(out)]), out


def test_grown_runs_pay_for_the_small_network_too(compared):
    ends, out = compared
    budgets = {name: np.mean(found, axis=1)[:, 0] for name, found in ends.items()}
    np.testing.assert_array_equal(budgets["from scratch"], [1, 2])
    np.testing.assert_allclose(budgets["grown"], [1.25, 2.25])  # a quarter of the units at first
    assert np.shape(ends["grown"]) == (2, 2, 3)
    losses = np.mean(ends["from scratch"], axis=1)[:, 1]
    assert losses[1] < losses[0] < 2.3
    assert (out / "growth_vs_scratch.png").read_bytes().startswith(b"\x89PNG")


def test_the_verdict_follows_from_the_measurements():
    def runs(*points):
        return [[growth_vs_scratch.End(budget, loss, 0.9)] for budget, loss in points]

    # The third budget ends worse than the second, so the second is what its loss takes.
    scratch = runs((1, 4.0), (2, 2.0), (3, 2.5), (4, 1.0))
    grown = runs((1.5, 3.0), (1, 4.5), (3, 0.5), (2, 1.5))
    found = growth_vs_scratch.verdict({"from scratch": scratch, "grown": grown})
    assert [line.split(": ")[1] for line in found] == [
        "from scratch needs 1.50, the ratio is 1.00.",
        "from scratch ends better with every budget.",
        "from scratch ends worse with every budget.",
        "from scratch needs 3.50, the ratio is 0.57.",
    ]


# grow_transformer.py ------------------------------------------------------------------------------


def test_the_trained_model_is_beside_the_example():
    small = grow_transformer.load(grow_transformer.TRAINED)
    assert grow_transformer.TRAINED.stat().st_size < 5e6
    assert small.last.step == small.opt_state.inner_state[0].count == 6000
    assert small.last.loss < 1.5


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Shallow networks, short rounds and little text to test on."""
    out = tmp_path_factory.mktemp("grow_transformer")
    with pytest.MonkeyPatch.context() as patch:
        for name, depth in ("SMALL", 1), ("WIDE", 1), ("DEEP", 2):
            model = dataclasses.replace(getattr(grow_transformer, name), depth=depth)
            patch.setattr(grow_transformer, name, model)
        patch.setattr(grow_transformer, "STEPS", 4)
        text = functools.partial(grow_transformer.Text, tests=20)
        patch.setattr(grow_transformer, "Text", lambda tests, **options: text(**options))
        result = grow_transformer.main(["--rounds", "1", "--anew", "--out", str(out)])
        yield result, out


def test_the_loss_goes_on_where_the_model_grows_and_jumps_where_it_is_random(story):
    result, _ = story
    for before, after in grow_transformer.jumps(result.grown):
        assert after.loss == pytest.approx(before.loss, rel=1e-6)
    assert max(abs(b.loss - a.loss) for a, b in grow_transformer.jumps(result.random)) > 0.01
    assert [point.step for point in result.grown.points] == [0, 4, 8, 12, 12, 16, 16, 20]
    assert result.grown.model.depth == 2
    assert result.grown.model.epsilon == pytest.approx(1e-6 * 72 / 108)
    assert result.grown.opt_state.inner_state[0].count == 20  # all steps


def test_from_scratch_spends_as_much(story):
    result, _ = story
    round_ = result.scratch.points[1].flops
    assert abs(result.scratch.last.flops - result.grown.last.flops) <= round_ / 2
    # Weights of two blocks and of the logits, and two products of each head with 64 characters.
    block = 4 * 108 * 108 + 2 * 108 * 432 + 2 * 64 * 108
    assert round_ == 6 * (2 * block + 108 * 96) * 4 * 32 * 64


def test_the_story_is_told(story):
    result, out = story
    assert sorted(path.name for path in out.iterdir()) == [
        "grow_transformer.csv",
        "grow_transformer.msgpack",
        "grow_transformer.png",
    ]
    (ax,) = grow_transformer.picture(result).axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0].endswith(f": ends at {result.grown.last.loss:.3f}")
    assert [label.partition(":")[0] for label in labels] == [
        "grows, outputs stay",
        "grows, new weights random",
        "large from scratch, equal FLOPs",
    ]
    saved = grow_transformer.load(out / "grow_transformer.msgpack")
    assert saved.points == result.grown.points[:4]
    assert f"{result.scratch.last.loss:.3f} from scratch" in grow_transformer.verdict(result)


# shrink_and_heal.py -------------------------------------------------------------------------------


def test_a_shrunk_transformer_heals(monkeypatch, capsys):
    monkeypatch.setattr(shrink_and_heal, "STREAM", 24)
    monkeypatch.setattr(shrink_and_heal, "WAYS", ("first_order",))
    healed, on_text, alike, fewer = shrink_and_heal.main(["--quick"])
    assert healed.way == "first_order"
    before, after = healed.parameters
    assert 0.66 * before < after <= 0.67 * before
    assert healed.large == on_text.large < 3
    assert healed.healed < healed.shrunk < 1.05 * healed.large
    assert alike.way == "first_order, one size" and alike.parameters[1] <= 0.67 * before
    assert fewer.way == "1 of 2 layers" and fewer.healed < fewer.shrunk
    printed = capsys.readouterr().out
    assert "of healing (5.0%)" in printed
    assert "kept (blocks/1/" in printed


# permuted_mnist.py --------------------------------------------------------------------------------


def test_networks_learn_permuted_digits_in_all_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(permuted_mnist, "LAYERS", 1)
    ways = [
        way._replace(
            sizes=(8, 16)[-len(way.sizes) :], every=way.every and 10, share=way.share and 0.05
        )
        for way in permuted_mnist.WAYS[2:-1]  # which have all parts of the others
    ]
    monkeypatch.setattr(permuted_mnist, "WAYS", ways)
    results = permuted_mnist.main(["--quick", "--seeds", "2", "--out", str(tmp_path)])
    assert [(result.way, result.seed) for result in results] == [
        (way.name, seed) for way in ways for seed in (0, 1)
    ]
    curves = np.array([result.accuracies for result in results])
    assert curves.shape == (len(ways) * 2, 2) and 0.2 < curves.min() < curves.max() < 0.8
    assert len({curve.tobytes() for curve in curves.reshape(len(ways), -1)}) == len(ways)
    lines = permuted_mnist.table(permuted_mnist.read(tmp_path / "permuted_mnist.csv")).splitlines()
    printed = capsys.readouterr().out
    assert len(lines) == 2 + len(ways) and all(line in printed for line in lines)
    assert (tmp_path / "permuted_mnist.png").read_bytes().startswith(b"\x89PNG")


def test_the_documentation_has_the_table_of_permuted_digits():
    found = permuted_mnist.read(ROOT / "docs/results/permuted_mnist.csv")
    assert permuted_mnist.table(found) in (ROOT / "docs/results/permuted_mnist.md").read_text()


# recycled_agent.py --------------------------------------------------------------------------------


def test_an_agent_has_fewer_dormant_units_if_they_are_renewed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recycled_agent, "SETTINGS", {4: (True,)})
    monkeypatch.setattr(recycled_agent, "STEPS", 2000)
    monkeypatch.setattr(recycled_agent, "TAU", 0.3)  # because it takes long until units are idle
    found = recycled_agent.main(["--quick", "--out", str(tmp_path)])
    left, renewed = recycled_agent.grouped(found).values()
    assert left.shape == renewed.shape == (2, 1, 2)
    assert 0 < renewed[1, 0, 1] < left[1, 0, 1] < 1
    assert -1 <= left[0].min() <= left[0].max() <= 1
    assert recorded_by(recycled_agent, recycled_agent.Game, tmp_path) == found
    assert recycled_agent.table(found) in capsys.readouterr().out
    assert (tmp_path / "recycled_agent.png").read_bytes().startswith(b"\x89PNG")


def test_a_ball_is_caught_where_the_paddle_is():
    balls = recycled_agent.jnp.arange(4)
    boards = recycled_agent.Boards(0 * balls, balls, 0 * balls + 2)
    for _ in range(9):
        seen = recycled_agent.seen(boards, np.arange(50)[::-1])
        assert (seen[:, ::-1].sum(-1) == 2).all()
        boards, rewards, ended = recycled_agent.play(boards, np.sign(balls - boards.paddle) + 1)
    assert ended.all() and (rewards == 1).all()
    assert not recycled_agent.play(recycled_agent.fresh(jax.random.key(0)), balls)[1].any()


# two_domains.py -----------------------------------------------------------------------------------


def test_old_weights_stay_as_new_ones_learn_another_domain(tmp_path, monkeypatch, capsys):
    small = dataclasses.replace(two_domains.SMALL, stream=24, mlp=24, depth=1)
    deep = dataclasses.replace(small, depth=2)
    monkeypatch.setattr(two_domains, "SMALL", small)
    ways = {"all weights": (small, 0.5), "new layers": (deep, 0.0)}
    ways = {name: two_domains.Way(*way) for name, way in ways.items()}
    monkeypatch.setattr(two_domains, "WAYS", ways)
    points = two_domains.main(["--quick", "--out", str(tmp_path)])
    every, layers = two_domains.curves(points).values()
    assert every.shape == layers.shape == (1, 1 + two_domains.PARTS, 2)
    np.testing.assert_allclose(every[:, 0], layers[:, 0], atol=2e-4)
    assert (every[:, -1, 1] < every[:, 0, 1]).all() and (layers[:, -1, 1] < layers[:, 0, 1]).all()
    assert recorded_by(two_domains, two_domains.Point, tmp_path) == points
    assert two_domains.table(points) in capsys.readouterr().out
    assert (tmp_path / "two_domains.png").read_bytes().startswith(b"\x89PNG")


def test_only_new_entries_are_trained():
    is_new = {"kernel": np.array([[False, True]])}
    tx = two_domains.optimizer(100, is_new)
    params = {"kernel": np.ones((1, 2), np.float32)}
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
    assert updates["kernel"][0, 0] == 0 > updates["kernel"][0, 1]


def test_code_and_english_are_divided():
    source = '"""Says."""\n\ndef f():\n    """Does."""  # why\n\n\nx = "# no"\n'
    code, english = two_domains.divided(source)
    assert code == "def f():\n    pass\nx = '# no'"
    assert english == "Says.\nDoes.\nwhy"


# What the documentation says of both --------------------------------------------------------------


def recorded_by(example, kind, folder):
    """What an example has measured, from its file."""
    with open(folder / f"{example.__name__}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [kind(*(of(row[name]) for name, of in kind.__annotations__.items())) for row in rows]


@pytest.mark.parametrize(
    "example, kind", [(recycled_agent, recycled_agent.Game), (two_domains, two_domains.Point)]
)
def test_the_documentation_has_the_table_of_what_was_recorded(example, kind):
    folder = ROOT / "docs/results"
    found = recorded_by(example, kind, folder)
    assert example.table(found) in (folder / f"{example.__name__}.md").read_text()


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
        (["--epoch", "1"], "unrecognized arguments: --epoch 1"),
    ],
)
def test_typos_are_answered_with_the_choices(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        command_line.parse("An example.", arguments)
    assert exit.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "main, arguments",
    [
        (grow_checkpoint.command, []),
        (growbench.main, []),
        (shrink_and_heal.main, []),
        (checkpoints.main, ["grow", "source", "growth", "out"]),
        (keras_files.main, ["widen", "path", "--layer", "dense=2", "--out", "out"]),
    ],
)
def test_options_are_not_abbreviated(main, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--ou=x", "--see=0"])
    assert exit.value.code == 2
    assert "unrecognized arguments: --ou=x --see=0" in capsys.readouterr().err


def test_ctrl_c_ends_an_example_with_a_line(tmp_path):
    script = ROOT / "examples" / "weight_symmetry.py"
    # A process started in the background may ignore Ctrl-C.
    code = f"""
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[:] = [{str(script)!r}, "--epochs", "1", "--out", {str(tmp_path)!r}]
sys.path.insert(0, {str(script.parent)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        rows = [process.stdout.readline() for _ in range(2)]
        assert rows[1].startswith("one hidden layer, all at zero "), process.stderr.read()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "weight_symmetry.py: interrupted"  # below lines of progress
    assert len(rest.splitlines()) <= 1  # a training that had just ended
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_an_example_after_an_epoch(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["examples/example.py"])
    monkeypatch.setattr(command_line, "_interrupted", command_line._interrupted)
    handler, epochs = signal.signal(signal.SIGINT, signal.default_int_handler), []

    def fit(*, progress, after_epoch):
        for _ in range(3):
            epochs.append(None)
            signal.raise_signal(signal.SIGINT)
            after_epoch(training.Run({}, (), {}))

    monkeypatch.setattr(training, "fit", fit)
    try:
        with pytest.raises(SystemExit) as exit:
            command_line.run(command_line.fit)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (exit.value.code, len(epochs)) == (130, 1)
    assert capsys.readouterr().err == "example.py: interrupted\n"


def test_one_bar_shows_all_trainings_on_a_terminal_alone(monkeypatch, capsys):
    pytest.importorskip("tqdm", reason="tqdm draws the bar")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        with command_line.bar(4):
            for _ in range(3):
                command_line.advance()
            command_line.say("a row")
            command_line.advance()
        return stream.getvalue()

    assert shown(io.StringIO()) == ""
    bar = shown(Terminal())
    assert "75%" in bar and "\n" not in bar
    assert bar.endswith("\r")  # nothing is left of it
    assert capsys.readouterr().out == "a row\n" * 2


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
