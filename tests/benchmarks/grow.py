"""How long growing takes beside a plain copy of the result.

A trained 784-4096-4096-10 perceptron is grown to 8192 units a layer, jitted and compiled
beforehand, in every way; each round times all of them in turn, so that the ratios hold on a noisy
machine.

    python tests/benchmarks/grow.py [--rounds 21]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import dogwood_jax as dw

ORDER = ("dense_1", "dense_2", "dense_3")


def perceptron(key: jax.Array, sizes: tuple[int, ...]) -> dict:
    keys = jax.random.split(key, len(ORDER))
    return {
        name: {"kernel": jax.random.normal(k, shape), "bias": jnp.zeros(shape[1])}
        for name, k, shape in zip(ORDER, keys, zip(sizes, sizes[1:], strict=False), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds

    key = jax.random.key(0)
    old = perceptron(key, (784, 4096, 4096, 10))
    new = perceptron(key, (784, 8192, 8192, 10))
    widths = dw.chain(old, ORDER)

    def growth(strategy: dw.strategies.Strategy) -> dw.Growth:
        return dw.plan(widths, {"dense_1": 8192, "dense_2": 8192}, strategy=strategy)

    random = growth(dw.strategies.zero_outgoing())
    donating = jax.jit(
        lambda old, fresh: dw.grow(old, random, fresh=fresh), donate_argnames="fresh"
    )
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    cases: dict[str, Callable[[], dict]] = {
        "copy of the result": lambda: copy(new),
        "zero_outgoing, random numbers included": lambda: dw.grow(old, random, key=key),
        "zeros": lambda: dw.grow(old, growth(dw.strategies.zeros())),
        "replicate": lambda: dw.grow(old, growth(dw.strategies.replicate())),
        "zero_outgoing, fresh": lambda: dw.grow(old, random, fresh=new),
    }
    seconds: dict[str, list[float]] = {
        name: [] for name in [*cases, "zero_outgoing, fresh donated"]
    }
    for round_ in range(rounds + 1):
        for name, case in cases.items():
            seconds[name].append(timed(case))
        fresh = jax.block_until_ready(copy(new))
        seconds["zero_outgoing, fresh donated"].append(timed(lambda f=fresh: donating(old, f)))
        if round_ == 0:  # compiling
            seconds = {name: [] for name in seconds}

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {rounds} interleaved rounds")
    print(f"{'':40}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>8}")
    peer = seconds["copy of the result"]
    for name, times in seconds.items():
        ratio = statistics.median(t / p for t, p in zip(times, peer, strict=True))
        print(
            f"{name:40}{statistics.median(times):10.4f}{min(times):8.4f}{max(times):8.4f}"
            f"{ratio:8.2f}"
        )


def timed(case: Callable[[], dict]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(case())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
