"""Does growing pay if the large network is needed?

Each task also shows the results of small networks that never grow. For each way to get the large
network, the benchmark draws the whole curve: floating-point operations against test loss. A ratio
compares budgets for the final loss of training from scratch: below 1, growing pays. All costs of a
run count, including the small network's training. A growth counts as one step of the large network.
Learning rates are tuned for training from scratch, and all ways use the same rates.

``table`` measures the ways of each task, ``search`` searches for better ways on the other half of
the data, and ``predict`` fits a law of loss to short runs. Measurements are kept in a file, and an
interrupted benchmark continues from it.
"""

import argparse
import dataclasses
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# On a CPU, small networks train fastest with one thread each, several at once.
os.environ.setdefault("NPROC", "1")

import jax
from command_line import advance, bar, run, say
from growing import law, results
from growing.runs import End, Task, Way, ends_of, flops, key_of
from growing.tasks import CANDIDATES, LONG, PREDICTED, TASKS


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run to make: a task, a way, a seed, and budgets at which it is evaluated."""

    task: Task
    way: Way
    seed: int
    budgets: tuple[float, ...]


def made(trials: Iterable[Trial], options: argparse.Namespace, half: int) -> list[End]:
    """Makes the runs that are missing in the file of results; returns the ends of all runs.

    Args:
        trials: the runs.
        options: options of the command line.
        half: the half of the data, 0 or 1.
    """
    path: Path = options.out / "growbench.csv"
    known = {(end.key, end.seed, end.asked): end for end in results.read(path)}
    ends, missing = [], []
    for trial in trials:
        key = key_of(trial.task, trial.way, half)
        there = [known.get((key, trial.seed, budget)) for budget in trial.budgets]
        ends += [end for end in there if end is not None]
        budgets = tuple(b for b, end in zip(trial.budgets, there, strict=True) if end is None)
        if budgets:
            missing.append(dataclasses.replace(trial, budgets=budgets))
    data = {
        task.name: task.load(options, half)
        for task in {t.task.name: t.task for t in missing}.values()
    }

    writing = threading.Lock()  # because only one run may write the header of the file

    def make(trial: Trial) -> list[End]:
        found = []
        for end in ends_of(
            trial.task, trial.way, trial.seed, data[trial.task.name], trial.budgets, half, advance
        ):
            with writing:
                results.add(path, end)
            say(f"{end.task}, {end.way}, seed {end.seed}: {end.budget:.2f} {end.loss:.4f}")
            found.append(end)
        return found

    # One run at a time on an accelerator, one run per processor on a CPU.
    at_once = os.cpu_count() if jax.default_backend() == "cpu" else 1
    with bar(sum(max(t.budgets) for t in missing)), ThreadPoolExecutor(at_once) as pool:
        for found in pool.map(make, missing):
            ends += found
    return ends


def compare(tasks: list[Task], options: argparse.Namespace) -> None:
    """Measures all ways of some tasks; prints a table and writes a picture for each task."""
    trials = [
        Trial(task, way, seed, tuple(filter(way.reaches, task.budgets)))
        for task in tasks
        for seed in range(options.seeds)
        for way in task.ways
    ]
    ends = made(trials, options, half=1)
    for task in tasks:
        own = [end for end in ends if end.task == task.name]
        print(results.table(task, own), end="\n\n")
        name = "growbench_" + task.name.replace(",", "").replace(" ", "_") + ".png"
        results.picture(task, own).savefig(options.out / name)


def search(tasks: list[Task], options: argparse.Namespace) -> None:
    """Searches for better ways by successive halving: half of the ways get the next budget."""
    for task in tasks:
        ways = [*CANDIDATES.get(task.name, ())]
        for budget in (0.4, 0.75):
            trials = [Trial(task, way, 0, (budget,)) for way in ways]
            losses = {end.way: end.loss for end in made(trials, options, half=0)}
            ways.sort(key=lambda way: losses[way.name])
            print(f"{task.name}, budget {budget}:")
            for way in ways:
                print(f"  {losses[way.name]:.4f}  {way.name}")
            ways = ways[: -(-len(ways) // 2)]


def predict(tasks: list[Task], options: argparse.Namespace) -> None:
    """Fits a law to short runs, and prints the budgets above which the large network wins."""
    for task in tasks:
        if task.name not in PREDICTED:
            continue
        ways = PREDICTED[task.name]
        inputs = task.load(options, 0).test[0][: task.batch_size]
        each = {way.name: flops(way.sizes[0].model, inputs.shape, inputs.dtype) for way in ways}
        tokens_a_step = inputs.size
        models: dict[str, Any] = {way.name: way.sizes[0].model for way in ways}
        kinds = {
            name: law.Kind(model.stream, model.layers, each[name] / tokens_a_step)
            for name, model in models.items()
        }
        large = kinds[ways[0].name]
        full = task.steps * tokens_a_step * large.flops
        trials = []
        for way in ways:
            # All ways take the same steps: 1/16, 1/8 and 1/4 of the large network's.
            ratio = kinds[way.name].flops / large.flops
            shares = tuple(round(ratio * part, 6) for part in (1 / 16, 1 / 8, 1 / 4))
            trials.append(Trial(task, way, 0, shares))
        runs = [
            law.Measured(*kinds[end.way][:2], end.steps * tokens_a_step, end.loss)
            for end in made(trials, options, half=0)
        ]
        found = law.fitted(runs)
        print(f"{task.name}: {found}")
        for way in ways[1:]:
            budget = law.crossing(found, kinds[way.name], large)
            print(f"  {way.name} ends worse from {budget / full:.3f} of the full budget on")


COMMANDS = {"table": compare, "search": search, "predict": predict}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("command", nargs="?", default="table", choices=list(COMMANDS))
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, short texts")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for each run")
    parser.add_argument(
        "--data",
        choices=["subset", "tfds"],
        default="tfds",
        help="all 70,000 digits from tensorflow-datasets, or 12,000 that come with the package",
    )
    parser.add_argument(
        "--text", type=Path, help="a folder of text; by default Python's standard library"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = [TASKS[name] for name in options.tasks]
    if options.quick:
        options.seeds = 1
        tasks = [
            dataclasses.replace(task, steps=task.steps // 80, budgets=task.budgets[-1:])
            for task in tasks
            if task.name != LONG.name
        ]
    COMMANDS[options.command](tasks, options)


if __name__ == "__main__":
    run(main)
