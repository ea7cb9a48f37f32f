"""What the tests notice of the package when it is broken in one place at a time.

Each mutant replaces one piece of text in one file of a copy of the package. First the tests of the
file that should notice it run, then the rest of the short tier, then the long one, up to the first
failure. Which mutant was noticed by which test, and after how many seconds of the processor, is
written to ``docs/results/mutants.csv``. What no test notices needs one.

    python tests/benchmarks/mutants.py [--jobs 2] [PART OF A NAME ...]
"""

import argparse
import concurrent.futures
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/mutants.csv"
HEADER = "mutant", "file", "noticed by", "tier", "seconds"
# What the tests need of the checkout.
COPIED = "dogwood_jax tests docs examples pictures pyproject.toml README.md CHANGELOG.md".split()


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        name: what is broken.
        path: the file, below the package.
        old: text that occurs once in it.
        new: what takes its place.
        asked_first: the file of tests that should notice it.
    """

    name: str
    path: str
    old: str
    new: str
    asked_first: str


MUTANTS = [
    # _base
    Mutant(
        "base: several typed keys pass for one key",
        "_base/arguments.py",
        "return value.shape == ()",
        "return True",
        "test_wrong_arguments.py",
    ),
    # _program
    Mutant(
        "program: a maximum of numbers is their minimum",
        "_program/primitives/entries.py",
        "_MAX = _Clipped(np.maximum,",
        "_MAX = _Clipped(np.minimum,",
        "test_primitives.py",
    ),
    Mutant(
        "program: a transpose is read as its inverse",
        "_program/primitives/axis_moves.py",
        'return Axes((named(names),), named([names[axis] for axis in params["permutation"]]))',
        'return Axes((named([names[axis] for axis in params["permutation"]]),), named(names))',
        "test_scaling.py",
    ),
    Mutant(
        "program: layers are alike whatever numbers they hold",
        "_program/sameness.py",
        "return (*_kind(atom), self._plain(atom.val))",
        "return _kind(atom)",
        "test_like_layers.py",
    ),
    # _widths
    Mutant(
        "widths: the second of joined arrays shares no axes",
        "_program/primitives/axis_moves.py",
        "for value in values[1:]:",
        "for value in values[2:]:",
        "test_trace.py",
    ),
    Mutant(
        "widths: a convolution's window has no part in its fan-in",
        "_program/primitives/windows.py",
        "use.count_fans(value, [*contract, *space], [*free, *space])",
        "use.count_fans(value, contract, [*free, *space])",
        "test_trace_growth.py",
    ),
    Mutant(
        "widths: a table of positions is called a vocabulary",
        "_program/primitives/lookups.py",
        'if many and indices.origin != "constant":',
        "if many:",
        "test_trace.py",
    ),
    Mutant(
        "silence: what is not finite is silent",
        "_plan/silence.py",
        "return are_finite and not any(",
        "return not any(",
        "test_primitives.py",
    ),
    Mutant(
        "search: epsilons are not large while factors are looked for",
        "_plan/search/problem.py",
        "if not 1e-30 < abs(number) <= _EPSILON:",
        "if True:",
        "test_search.py",
    ),
    Mutant(
        "search: what only an order is computed of is not compared",
        "_plan/search/problem.py",
        "if self._is_hidden_seen:",
        "if False:",
        "test_search.py",
    ),
    Mutant(
        "widths: nested factors of products are in the wrong order",
        "_program/dims.py",
        "unify(x, product((y, rest)), depth)",
        "unify(x, product((rest, y)), depth)",
        "test_trace.py",
    ),
    Mutant(
        "silence: no zeros are freed",
        "_plan/silence.py",
        "zeros = trial.freed(begin)",
        "zeros = begin",
        "test_trace_growth.py",
    ),
    # _check
    Mutant(
        "check: no sample has a row of zeros",
        "_check/samples.py",
        'SampleFamily("fan", 1.0, 1.0, "a zero row"),',
        'SampleFamily("fan", 1.0, 1.0),',
        "test_check.py",
    ),
    Mutant(
        "check: rounding may move an entry a million times as far",
        "_check/check.py",
        "_ROUNDING = 1e-11",
        "_ROUNDING = 1e-5",
        "test_check.py",
    ),
    Mutant(
        "check: the numbers of remainders are not looked at",
        "_check/seen.py",
        'if name in ("rem", "div") and not operands[1].ndim:',
        'if name == "div" and not operands[1].ndim:',
        "test_check.py",
    ),
    Mutant(
        "check: a gradient of zero counts as learning",
        "_check/gradients.py",
        "return np.isfinite(gradient) & (np.abs(gradient) > smallest)",
        "return np.isfinite(gradient)",
        "test_check.py",
    ),
    Mutant(
        "check: tables are compared in small sizes alone",
        "_check/reduced.py",
        "is_few |= other is not None",
        "is_few |= False",
        "test_unseen.py",
    ),
    Mutant(
        "check: no input is a mask of zeros and ones",
        "_check/samples.py",
        'if family.rows == "flags" and',
        "if False and",
        "test_unseen.py",
    ),
    Mutant(
        "check: NaN is taken for the minus infinity that was there",
        "_check/check.py",
        "differs |= np.isinf(old) & (old == near) & (old != new)",
        "differs |= np.isinf(old) & (old == near) & ~((old == new) | np.isnan(new))",
        "test_unseen.py",
    ),
    Mutant(
        "check: gradients need not be finite behind hidden rows of zeros",
        "_check/check.py",
        "for family in (ZERO_ROW, SIGNED[1]):",
        "for family in (SIGNED[1],):",
        "test_unseen.py",
    ),
    Mutant(
        "plan: a function's own splits are forgiven whatever numbers it has",
        "_plan/own_function.py",
        "return [*found] if is_explained else []",
        "return [*found]",
        "test_unseen.py",
    ),
    Mutant(
        "plan: numbers of modules never follow from sizes",
        "_plan/shown.py",
        "if open_numbers := {step: its for step, its in every.items() if step not in following}:",
        "if open_numbers := {}:",
        "test_unseen.py",
    ),
    Mutant(
        "verify: outputs may be larger as a whole",
        "_front/verify.py",
        "if entries.moved or entries.scaled:",
        "if entries.moved:",
        "test_unseen.py",
    ),
    Mutant(
        "check: remainders of floats have the divisor's sign",
        "_program/primitives/entries.py",
        "return np.fmod(a, b)",
        "return np.remainder(a, b)",
        "test_check.py",
    ),
    Mutant(
        "check: one over a size follows the size, not its inverse",
        "_check/resize.py",
        "return size / new",
        "return new / size",
        "test_scaling.py",
    ),
    Mutant(
        "check: a reduced model keeps no ratio for recipes without copies",
        "_check/reduced.py",
        "return change.recipe is not None or change.strategy.makes_alike",
        "return change.recipe is not None and change.strategy.makes_alike",
        "test_check.py",
    ),
    Mutant(
        "check: no side of a select is taken by force",
        "_program/primitives/entries.py",
        "sides = Pick()",
        "sides = None",
        "test_check.py",
    ),
    Mutant(
        "check: hidden differences count only if they are huge",
        "_check/hidden.py",
        "_FAR = 1e-6",
        "_FAR = 1.0",
        "test_check.py",
    ),
    # _plan
    Mutant(
        "plan: of several ways to explain a target one is taken",
        "_plan/target.py",
        "if complete and len(ways) == 1:",
        "if complete and ways:",
        "test_target.py",
    ),
    Mutant(
        "search: powers of later groups are guessed first",
        "_plan/search/solve.py",
        "[*map(abs, way[::-1])]",
        "[*map(abs, way)]",
        "test_larger.py",
    ),
    Mutant(
        "plan: no note says that the larger model rounds otherwise",
        "_plan/shown.py",
        "map(_ROUNDING.format, verdict.rounding))\n    if growth.inserted",
        "())\n    if growth.inserted",
        "test_check.py",
    ),
    Mutant(
        "plan: numbers that must stay are noted only where compared",
        "_plan/notes.py",
        '"must_stay": not is_seen',
        '"must_stay": is_seen',
        "test_scaling.py",
    ),
    Mutant(
        "plan: a unit may be kept twice",
        "_plan/removals.py",
        " or len({*kept}) < len(kept):",
        ":",
        "test_narrow.py",
    ),
    Mutant(
        "plan: gradmax takes widths that nothing reads",
        "_plan/obstacles.py",
        '("incoming" in roles and roles - {"incoming"})',
        '("incoming" in roles or roles - {"incoming"})',
        "test_gradmax.py",
    ),
    # _plan/depth
    Mutant(
        "depth: scales begin with zero, and other vectors with one",
        "_plan/depth/trial.py",
        "float(i.path in self._ones)",
        "float(i.path not in self._ones)",
        "test_deepen.py",
    ),
    Mutant(
        "depth: the first array is blamed instead of the last",
        "_plan/depth/departures.py",
        "last = max(read, key=read.__getitem__)",
        "last = min(read, key=read.__getitem__)",
        "test_deepen.py",
    ),
    Mutant(
        "depth: copies forget the layer that shares with them",
        "_plan/depth/repeated.py",
        "((1 + alike[copy.source]) ** -0.5,)",
        "(alike[copy.source] ** -0.5,)",
        "test_depth_strategies.py",
    ),
    # _growth/modules
    Mutant(
        "modules: products of sizes leave out the last axis",
        "_growth/modules/resizing.py",
        "itertools.combinations(range(len(axes) + 1), 2)",
        "itertools.combinations(range(len(axes)), 2)",
        "test_modules.py",
    ),
    Mutant(
        "modules: of two ways to make a module one is taken",
        "_growth/modules/remaking.py",
        "if len(found) > 1:",
        "if len(found) > 2:",
        "test_modules.py",
    ),
    # _growth
    Mutant(
        "growth: second moments of copies lack the square",
        "_growth/leaf_map.py",
        "tuple(share**degree for share in self.shares)",
        "tuple(share for share in self.shares)",
        "test_opt_state.py",
    ),
    Mutant(
        "growth: repeated arrays are divided one axis too early",
        "_growth/shardings.py",
        "PartitionSpec(None, *sharding.spec)",
        "PartitionSpec(*sharding.spec)",
        "test_upcycle.py",
    ),
    Mutant(
        "growth: JSON forgets that widths had a program",
        "_growth/as_json.py",
        "value.is_saved or value.network is not None",
        "value.is_saved",
        "test_trace_traps.py",
    ),
    # _arrays
    Mutant(
        "arrays: random weights are drawn by the fan-in alone",
        "_growth/draws.py",
        "for axes in (leaf_map.fan_in, leaf_map.fan_out)",
        "for axes in (leaf_map.fan_in, leaf_map.fan_in)",
        "test_widen.py",
    ),
    Mutant(
        "arrays: scales of new layers are zeros",
        "_growth/edited.py",
        'float(fill.drawn == "ones")',
        "0.0",
        "test_deepen.py",
    ),
    # _optimizer
    Mutant(
        "optimizer fields: Adamax's magnitudes are scaled like squares",
        "_optimizer/fields.py",
        '"second": 2, "magnitude": 1,',
        '"second": 2, "magnitude": 2,',
        "test_opt_state.py",
    ),
    Mutant(
        "by_cohort: an entry of two grown axes takes the older cohort",
        "_optimizer/by_cohort.py",
        "merged = jnp.where(born > latest, lane, merged)",
        "merged = jnp.where(born < latest, lane, merged)",
        "test_growable.py",
    ),
    Mutant(
        "step_counts: the share of copies does not count from this growth",
        "_optimizer/step_counts.py",
        "jnp.where(is_old, jnp.where(same, taken(begun), number), 0),",
        "jnp.where(is_old, taken(begun), 0),",
        "test_growable.py",
    ),
    Mutant(
        "growable: the units of the first growth are not warmed up",
        "_optimizer/growable.py",
        "jnp.where(order[numbers] < 0, 1.0, own)",
        "jnp.where(order[numbers] <= 0, 1.0, own)",
        "test_growable.py",
    ),
    Mutant(
        "opt_state: second moments of repeated experts lack the square",
        "_growth/edit.py",
        "(float(self.experts.count) ** -degree,)",
        "(1.0 / self.experts.count,)",
        "test_upcycle.py",
    ),
    Mutant(
        "opt_state: what adds up loses the number that it starts from",
        "_optimizer/kept.py",
        "array = array + self.start if self.start else array",
        "array = array",
        "test_opt_state.py",
    ),
    Mutant(
        "step_counts: units of several cohorts may go by layer",
        "_optimizer/step_counts.py",
        "(cohorts != cohorts[:1]).any()",
        "(cohorts != cohorts[:1]).all()",
        "test_units_by_layer.py",
    ),
    Mutant(
        "renew of a state: renewed units keep their old step counts",
        "_optimizer/renewed_state.py",
        "return with_step_counts_of(renewed, counted)",
        "return with_step_counts_of(renewed, opt_state)",
        "test_renew.py",
    ),
    # _front
    Mutant(
        "verify: growths without changed widths, as by deepen, go unverified",
        "_front/verify.py",
        "if not all(change.strategy.preserving for change in growth.changes):",
        "if not any(change.strategy.preserving for change in growth.changes):",
        "test_verify.py",
    ),
    Mutant(
        "rounding: numbers may move by the root of eps, a looser tolerance",
        "_front/rounding.py",
        "return math.pow(eps(dtype), 3 / 4)",
        "return math.pow(eps(dtype), 1 / 2)",
        "test_verify.py",
    ),
    Mutant(
        "compare: NaN in only one of two networks is no difference",
        "_front/compare.py",
        "(a == b) | numpy.isnan(a) & numpy.isnan(b), 0, abs(a - b)",
        "(a == b) | numpy.isnan(a) | numpy.isnan(b), 0, abs(a - b)",
        "test_compare.py",
    ),
    Mutant(
        "stages: a later stage goes back to the function of the first one",
        "_front/stages.py",
        "growth))\n        apply = own\n",
        "growth))\n",
        "test_stages.py",
    ),
    # strategies
    Mutant(
        "strategies: copies with noise count as preserving",
        "strategies.py",
        "exact = self.exact and self.noise == self.perturb == 0 and self.shrink == 1",
        "exact = self.exact and self.perturb == 0 and self.shrink == 1",
        "test_strategies.py",
    ),
    Mutant(
        "strategies: replicate(units=) copies all units in turn",
        "strategies.py",
        "copied = self.units or range(old)",
        "copied = range(old)",
        "test_narrow.py",
    ),
    # _front
    Mutant(
        "cost: the body of a scan counts once",
        "_front/counts.py",
        "yield 2 * step.times * entries * summed_over(step)",
        "yield 2 * entries * summed_over(step)",
        "test_cost.py",
    ),
    Mutant(
        "gain: new units are tried together with new units that read them",
        "_front/gain.py",
        "shared = {path: sum(along.values()) > 1 for",
        "shared = {path: sum(along.values()) > 2 for",
        "test_gain.py",
    ),
    # _front/smaller
    Mutant(
        "shrink: units go by their scores, whatever they cost",
        "_front/smaller/shrink.py",
        "cuts.append((sum(gone) / (saved * (size - left - before)), number))",
        "cuts.append((sum(gone) / (size - left - before), number))",
        "test_shrink.py",
    ),
    Mutant(
        "saliency: scores of copies are added up without root and square",
        "_front/smaller/saliency.py",
        "np.sqrt(own[..., [first, *others]]).sum(axis=-1) ** 2",
        "own[..., [first, *others]].sum(axis=-1)",
        "test_shrink.py",
    ),
    Mutant(
        "merge_symmetric: only units of equal outgoing weights are merged",
        "_front/smaller/narrow.py",
        "widths[name], tolerance=tolerance, outgoing=False)",
        "widths[name], tolerance=tolerance)",
        "test_narrow.py",
    ),
    Mutant(
        "dormant: with tau=0, units that are never active are not found",
        "_front/smaller/dormant.py",
        "idle = reading.activity <= tau * mean",
        "idle = reading.activity < tau * mean",
        "test_dormant.py",
    ),
    # _growth
    Mutant(
        "gradmax: incoming weights are those of the smaller gradient",
        "_growth/by_gradient.py",
        "rows = jnp.where(scores[1] > scores[0], both[1], both[0])",
        "rows = jnp.where(scores[1] < scores[0], both[1], both[0])",
        "test_gradmax.py",
    ),
    # _plan
    Mutant(
        "heads: copies come before their heads, not behind them",
        "_plan/heads.py",
        'return [layout, Units(split.copies, 1, "incoming", layout.produced)]',
        'return [Units(split.copies, 1, "incoming", layout.produced), layout]',
        "test_groups.py",
    ),
    Mutant(
        "plan: a unit that is repeated is copied only with target_apply=",
        "_plan/sizes.py",
        "return any(size > widths[n].size and is_single(widths[n]) for n, size in named.items())",
        "return False",
        "test_groups.py",
    ),
    Mutant(
        "decoder: arrays of other shapes are taken",
        "decoder/folder.py",
        "if shape != known.shape:",
        "if shape is None:",
        "test_decoder.py",
    ),
    # _plan/experts
    Mutant(
        "experts: experts that a loss would fall without count as useless",
        "_plan/experts/more_experts.py",
        "np.argmax(np.abs(score) / copies)",
        "np.argmax(score / copies)",
        "test_upcycle.py",
    ),
    Mutant(
        "placements: new units follow all old ones, not each of them",
        "_plan/placements.py",
        "Product((layout, replace(layout, width=_name(layout.width), size=1)))",
        "Product((replace(layout, width=_name(layout.width), size=1), layout))",
        "test_target_numbers.py",
    ),
    # nnx
    Mutant(
        "nnx.grow: free weights are those of fresh= although there is a key",
        "nnx.py",
        "None if fresh is None or key is not None else nnx.state(fresh)",
        "None if fresh is None else nnx.state(fresh)",
        "test_nnx.py",
    ),
    # keras_h5
    Mutant(
        "keras_h5 GRU: biases of inputs and of the state are swapped",
        "keras_h5/_kinds/recurrent.py",
        '_gates("ih", order, "bias")',
        '_gates("hi", order, "bias")',
        "test_keras_models.py",
    ),
    Mutant(
        "keras_h5 gelu: the approximation by tanh in place of the function",
        "keras_h5/_kinds/activations.py",
        "partial(jax.nn.gelu, approximate=False)",
        "partial(jax.nn.gelu, approximate=True)",
        "test_keras_models.py",
    ),
    Mutant(
        "keras_h5 BatchNormalization: the epsilon of the config is not read",
        "keras_h5/_kinds/normalizations.py",
        '"epsilon": float(config.get("epsilon", 1e-3)),',
        '"epsilon": 1e-3,',
        "test_keras_models.py",
    ),
    Mutant(
        "keras_h5 positions: layers TensorFlow 2.12 counts twice count once",
        "keras_h5/_weights/positions.py",
        "used[kind] = number + (2 if name in counted_twice else 1)",
        "used[kind] = number + 1",
        "test_keras_layouts.py",
    ),
    Mutant(
        "keras_h5.save: the optimizer is left out although no weight grew",
        "keras_h5/_weights/copy.py",
        "left_out = _OPTIMIZER if grown and not optimizer else ()",
        "left_out = _OPTIMIZER if not optimizer else ()",
        "test_keras_layouts.py",
    ),
    # checkpoint
    Mutant(
        "config_json: heads of a file that fits only in part are believed",
        "checkpoint/config_json.py",
        "fits = all(n is None or n * head_dim == old.get(rows) for",
        "fits = any(n is None or n * head_dim == old.get(rows) for",
        "test_config_json.py",
    ),
    Mutant(
        "checkpoint pieces: all arrays are drawn from the seed of the first",
        "checkpoint/made.py",
        "None if words is None else words[place],",
        "None if words is None else words[0],",
        "test_checkpoint.py",
    ),
    Mutant(
        "checkpoint orbax: a state at the top of the tree is not found",
        "checkpoint/orbax_names.py",
        "above = [common[:n] for n in range(len(common), -1, -1)]",
        "above = [common[:n] for n in range(len(common), 0, -1)]",
        "test_checkpoint.py",
    ),
    # decoder
    Mutant(
        "decoder rope of llama3: fast frequencies are divided, slow ones kept",
        "decoder/model.py",
        "return frequencies * (kept + (1.0 - kept) / rope.factor)",
        "return frequencies * ((1.0 - kept) + kept / rope.factor)",
        "test_decoder.py",
    ),
    # decoder/_folders
    Mutant(
        "folders: a list of layers goes on although it repeats nothing",
        "decoder/_folders/numbers.py",
        "if layers > len(types) and 2 * period > len(types):",
        "if layers > len(types) and period > len(types):",
        "test_folders.py",
    ),
    # training
    Mutant(
        "batches: a stage within a pass begins with its first samples again",
        "training/batches.py",
        "return self._order[self.done * size : int(until) * size]",
        "return self._order[: int(until - self.done) * size]",
        "test_training.py",
    ),
    Mutant(
        "fit: in the history a smaller last batch counts as a whole one",
        "training/loop.py",
        "np.average(batch_losses, weights=sizes),",
        "np.mean(batch_losses),",
        "test_training.py",
    ),
    # __main__
    Mutant(
        "command line: --names or --config without GROWTH is passed over",
        "__main__.py",
        "if options.names or options.config:",
        "if options.names and options.config:",
        "test_folders.py",
    ),
    Mutant(
        "check: units that are compared with each other are as any others",
        "_check/check.py",
        "is_compared = network is not None and",
        "is_compared = False and network is not None and",
        "test_unseen.py",
    ),
    Mutant(
        "check: another constant passes for the rounding of a narrow dtype",
        "_check/check.py",
        "if not differs.any() and self._others:",
        "if False:",
        "test_unseen.py",
    ),
    Mutant(
        "plan: units that stay copies are a default",
        "_plan/decide.py",
        "if isinstance(its, Growth) and _stays_copied(asked, its):",
        "if False:",
        "test_twins.py",
    ),
    Mutant(
        "plan: roots of sizes stay",
        "_plan/programs.py",
        "self.numbers.items() if its.is_root}",
        "self.numbers.items() if False}",
        "test_unseen.py",
    ),
    Mutant(
        "plan: widths that do not grow together are refused",
        "_plan/decide.py",
        "if len(groups) < 2 or growth.inserted",
        "if True or growth.inserted",
        "test_primitives.py",
    ),
    Mutant(
        "search: running statistics are rescaled like learned arrays",
        "_plan/search/search.py",
        "statistics = {} if network is None else statistics_of(network)",
        "statistics = dict[str, float | None]()",
        "test_twins.py",
    ),
]


def copied(mutant: Mutant, folder: Path) -> None:
    """Copies the checkout to a folder, and breaks the copy."""
    ignored = shutil.ignore_patterns("__pycache__", "_build")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    file = folder / "dogwood_jax" / mutant.path
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.path} must hold its text once: {mutant.old!r}")
    file.write_text(text.replace(mutant.old, mutant.new))


def failure(folder: Path, *arguments: str) -> tuple[str, float]:
    """Returns the first test that fails, nothing if none does, and the seconds of the processor."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "1000"}
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=output, stderr=output
        )
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    seconds = used.ru_utime + used.ru_stime
    if run.returncode in (0, 5):  # 5: nothing was selected
        return "", seconds
    found = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{folder}: pytest stopped without a failure:\n{text[-2000:]}")
    return found[1], seconds


def noticed(mutant: Mutant) -> dict[str, str]:
    """Returns a row of the table."""
    first = f"tests/{mutant.asked_first}"
    tries = (
        ("short", (first,)),
        ("short", ("tests", f"--deselect={first}")),
        ("long", ("-m", "long", first)),
        ("long", ("-m", "long", "tests", f"--deselect={first}")),
    )
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        copied(mutant, Path(folder))
        for tier, arguments in tries:  # noqa: B007, which is returned
            test, seconds = failure(Path(folder), *arguments)
            total += seconds
            if test:
                break
        else:
            test, tier = "no test", "none"
    return dict(zip(HEADER, (mutant.name, mutant.path, test, tier, f"{total:.0f}"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("names", nargs="*", help="parts of names; by default, all mutants")
    options = parser.parse_args()
    chosen = [
        m for m in MUTANTS if not options.names or any(part in m.name for part in options.names)
    ]
    rows: dict[str, dict[str, str]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            rows = {row["mutant"]: row for row in csv.DictReader(file)}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as threads:
        for done in concurrent.futures.as_completed(threads.submit(noticed, m) for m in chosen):
            row = done.result()
            print(*row.values(), sep="  ", flush=True)
            rows[row["mutant"]] = row
            with RESULTS.open("w", newline="") as file:
                writer = csv.DictWriter(file, HEADER, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows[m.name] for m in MUTANTS if m.name in rows)
    tiers = [rows[m.name]["tier"] for m in MUTANTS if m.name in rows]
    short = tiers.count("short")
    both = short + tiers.count("long")
    print(f"the short tier notices {short} of {len(tiers)} mutants, all tests {both}")


if __name__ == "__main__":
    main()
