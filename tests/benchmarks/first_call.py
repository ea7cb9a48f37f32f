"""How long the README's example takes from the start of Python, beside its imports alone.

Each run is a process of its own; all take turns. The last two lines differ by what evaluates the
growth in ``plan``.

    python tests/benchmarks/first_call.py [--rounds 7]
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def timed(program: str) -> tuple[float, float]:
    """Returns the seconds that a program takes, on the clock and of all processors."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system
    return time.perf_counter() - start, used - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[:1]
    without = example[: example.index("widths = ")].replace("import dogwood_jax as dw\n", "")
    programs = {
        "import flax, optax": "import flax, optax",
        "import jax": "import jax",
        "import dogwood_jax": "import dogwood_jax",
        "the example up to its small network": f"{without}\njax.block_until_ready(small)",
        "the whole example, check=False": example.replace("256})", "256}, check=False)"),
        "the whole example": example,
    }
    assert len({*programs.values()}) == len(programs)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            seconds[name].append(timed(program))

    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {version('jax')}, "
          f"flax {version('flax')}; {rounds} interleaved rounds")  # fmt: skip
    print(f"{'':38}{'median s':>10}{'min':>7}{'max':>7}{'more':>7}{'of processors':>15}")
    peer = [wall for wall, _ in seconds["import flax, optax"]]
    for name, times in seconds.items():
        walls = [wall for wall, _ in times]
        more = statistics.median(a - b for a, b in zip(walls, peer, strict=True))
        used = statistics.median(used for _, used in times)
        print(
            f"{name:38}{statistics.median(walls):10.2f}{min(walls):7.2f}{max(walls):7.2f}"
            f"{more:7.2f}{used:15.2f}"
        )


if __name__ == "__main__":
    main()
