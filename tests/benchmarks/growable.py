"""What an optimizer that can grow costs in a step, beside the one that it wraps.

A transformer grows from 2 to 4 blocks and in its hidden widths, with AdamW. Both optimizers take
steps of the larger network in turn.

    python tests/benchmarks/growable.py [--rounds 15]
"""

import argparse
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import dogwood_jax as dw

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from grow_transformer import CHARACTERS, Transformer

SMALL = Transformer(stream=128, heads=6, mlp=256, depth=2)
LARGE = Transformer(stream=128, heads=10, mlp=512, depth=4)
TEXT = jax.ShapeDtypeStruct((16, 64), jnp.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds

    small = jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros(TEXT.shape, TEXT.dtype))
    target = jax.eval_shape(LARGE.init, jax.random.key(1), TEXT)
    widths = dw.trace(SMALL.apply, small, TEXT)
    growth = dw.plan(widths, target=target, target_apply=LARGE.apply)
    large = dw.grow(small, growth, key=jax.random.key(2))
    text = jax.random.randint(jax.random.key(3), TEXT.shape, 0, CHARACTERS)

    def loss(variables: Any) -> Any:
        logits = LARGE.apply(variables, text[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
        return losses.mean()

    adamw = optax.adamw(1e-3)
    wrapped = dw.growable(adamw)
    states: dict[str, Any] = {
        "optax.adamw": (adamw, adamw.init(large)),
        "dw.growable of it": (wrapped, dw.grow_opt_state(adamw.init(small), growth, wrapped)),
    }
    run: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in states}
    for name, (tx, state) in states.items():

        @jax.jit
        def step(variables: Any, state: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(jax.grad(loss)(variables), state, variables)
            return optax.apply_updates(variables, updates), state

        run[name] = step, jax.block_until_ready(step(large, state))
    for _ in range(rounds):
        for name, (step, (variables, state)) in run.items():
            start = time.perf_counter()
            for _ in range(4):
                variables, state = step(variables, state)
            jax.block_until_ready(variables)
            seconds[name].append((time.perf_counter() - start) / 4)

    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {version('jax')}, "
          f"optax {version('optax')}; {rounds} interleaved rounds of 4 steps")  # fmt: skip
    peer = seconds["optax.adamw"]
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, peer, strict=True))
        print(f"{name:20}{statistics.median(times):9.4f} s{min(times):9.4f} least{ratio:7.3f}")


if __name__ == "__main__":
    main()
