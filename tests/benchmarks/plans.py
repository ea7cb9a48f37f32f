"""How long plans of small networks take: those of the table of tests that take longest.

Each width grows alone, to twice its size, by ``plan(widths, sizes)`` and by ``target_apply=``, the
larger network of the same builder. What JAX has cached is forgotten before each network.

    python tests/benchmarks/plans.py [--most 10]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

import dogwood_jax as dw

sys.path.append(str(Path(__file__).parents[1]))
from networks import Network, load


def plans(network: Network) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields what grows a network, with its name."""
    model = network.build()
    widths = dw.trace(model.apply, model.shapes, *model.inputs)
    for name, expected in network.widths.items():
        if expected.by and not (expected.fixed or expected.changes or expected.interface):
            size = 2 * network.sizes[expected.by]
            large = network.build(**{expected.by: size})
            larger = {"target": large.shapes, "target_apply": large.apply}
            yield f"{name}, by size", partial(dw.plan, widths, {name: 2 * expected.size})
            yield f"{name}, by target_apply=", partial(dw.plan, widths, **larger)


def seconds_of_plans() -> Iterator[tuple[float, str]]:
    """Yields the seconds of the processor that each plan takes, with its name."""
    for name, network in load().items():
        jax.clear_caches()
        for what, grow in plans(network):
            start = time.process_time()
            try:
                grow()
            except ValueError:
                what = f"{what}, refused"
            yield time.process_time() - start, f"{name}: {what}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=10)
    most = parser.parse_args().most
    jax.config.update("jax_enable_x64", True)  # the table holds float64
    found = sorted(seconds_of_plans(), reverse=True)
    total = sum(seconds for seconds, _ in found)
    print(f"{len(found)} plans in {total:.0f} s of the processor; the slowest:")
    for seconds, what in found[:most]:
        print(f"{seconds:6.2f} s  {what}")


if __name__ == "__main__":
    main()
