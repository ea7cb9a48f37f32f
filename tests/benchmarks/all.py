"""Runs what the documentation's page of benchmarks shows, and writes what came of it.

Each result is a file in ``docs/results``: the command, the machine, the versions and the output.
All of them take hours. The comparisons with Keras and PyTorch need the extra ``bench``.

    python tests/benchmarks/all.py [NAME ...]
"""

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "keras", "tf_keras", "torch")

COMMANDS = {
    "grow": "tests/benchmarks/grow.py --rounds 7",
    "depth": "tests/benchmarks/depth.py --rounds 5",
    "first_call": "tests/benchmarks/first_call.py",
    "plans": "tests/benchmarks/plans.py",
    "state": "tests/benchmarks/state.py --details docs/results/state.csv",
    "repetition": "tests/benchmarks/repetition.py",
    "keras_files": "tests/benchmarks/keras_files.py 400 15",
    "checkpoint": "tests/benchmarks/checkpoint.py --gib 4 --runs 3",
    "checkpoint_bfloat16": "tests/benchmarks/checkpoint.py --gib 4 --runs 3 --dtype bfloat16",
    "memory": "tests/benchmarks/memory.py --depth 40 --width 1600 --ways key donate",
    "growable": "tests/benchmarks/growable.py",
    "after_growth": "tests/benchmarks/after_growth.py",
    "after_growth_starts": "tests/benchmarks/after_growth.py --starts",
    "training": "tests/benchmarks/training.py",
    "grow_mnist": "examples/grow_mnist.py --data tfds",
    "weight_symmetry": "examples/weight_symmetry.py --data tfds",
    "growth_vs_scratch": "examples/growth_vs_scratch.py --data tfds",
    "growbench": "examples/growbench.py --data tfds",
    "growbench_search": "examples/growbench.py search",
    "growbench_predict": "examples/growbench.py predict",
    "grow_transformer": "examples/grow_transformer.py",
    "shrink_and_heal": "examples/shrink_and_heal.py",
    "permuted_mnist": "examples/permuted_mnist.py",
    "recycled_agent": "examples/recycled_agent.py",
    "two_domains": "examples/two_domains.py",
}


def machine() -> str:
    """Returns the processor, how many of it there are, Python, and the versions of packages."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join([_processor(), f"Python {platform.python_version()}", *found])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}"


def measure(name: str) -> None:
    """Runs a command and writes its result; raises if it fails, and writes nothing then."""
    command = COMMANDS[name]
    print(f"== {name}: python {command}", flush=True)
    run = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if run.returncode:
        raise SystemExit(f"{name} failed with exit status {run.returncode}")
    print(run.stdout, flush=True)
    today = datetime.date.today().isoformat()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(
        f"`python {command}`, {today}, on {machine()}:\n\n```text\n{run.stdout.rstrip()}\n```\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)}")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in COMMANDS]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    for name in names or COMMANDS:
        measure(name)


if __name__ == "__main__":
    main()
