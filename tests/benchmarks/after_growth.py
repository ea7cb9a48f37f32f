"""How the loss moves in the first steps after a growth, by optimizer and by ``warmup``.

Small networks train, and then grow with their outputs kept. From then on each takes 100 steps of
the same batches, without a growth and with each ``dw.growable(tx, warmup=...)``. A cell has the
highest test loss in the first 20 of these steps and that of the last one, both minus the test loss
at the growth.

    python tests/benchmarks/after_growth.py [--only TASK]
    python tests/benchmarks/after_growth.py --starts [--only NETWORK]

With ``--starts``, networks grow from several initial values instead, see ``starts.py``.
"""

import argparse
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from optax import contrib

import dogwood_jax as dw

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import starts
from growing.data import Text
from growing.networks import Transformer

WARMUPS = (0, 10, 30, 100)
STEPS, FIRST = 100, 20  # after the growth, and the first of them
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "rmsprop": optax.rmsprop,
    "adafactor": optax.adafactor,
    "lion": lambda rate: optax.lion(rate / 5),
    "muon": lambda rate: contrib.muon(10 * rate),
    "sgd, momentum": lambda rate: optax.sgd(20 * rate, momentum=0.9),
}


class MLP(nn.Module):
    """Two layers of relu units, and the digits."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name in ("first", "second"):
            x = nn.relu(nn.Dense(self.units, name=name)(x))
        return nn.Dense(10, name="digits")(x)


class Task(NamedTuple):
    """What is learned: networks, batches, test data, learning rate, steps before the growth."""

    small: nn.Module
    large: nn.Module
    batch: Callable[[np.random.Generator], Any]
    test: Any
    rate: float
    steps: int


def tasks() -> dict[str, Task]:
    digits = dw.mnist.load("subset")
    x = digits.train_images.reshape(len(digits.train_images), -1).astype(np.float32) / 255
    y, held_out = digits.train_labels, (x[-500:], digits.train_labels[-500:])
    x, y = x[:-500], y[:-500]
    text = Text(0, None, context=32, tests=250)

    def some(rng: np.random.Generator) -> Any:
        chosen = rng.integers(0, len(x), 128)
        return x[chosen], y[chosen]

    few = x[:1000], y[:1000]
    decoder = functools.partial(Transformer, context=32)

    def lines(rng: np.random.Generator) -> Any:
        return text.draw(rng, 32)

    return {
        "MLP, 32 units to 128": Task(MLP(32), MLP(128), some, held_out, 1e-3, 600),
        "the same, full batch": Task(MLP(32), MLP(128), lambda rng: few, few, 1e-3, 150),
        "MLP, 16 units to 512": Task(MLP(16), MLP(512), some, held_out, 3e-3, 600),
        "decoder, stream of 32 to 64": Task(
            decoder(2, 32), decoder(2, 64), lines, text.test, 3e-3, 500
        ),
        "decoder, 2 layers to 4": Task(decoder(2, 32), decoder(4, 32), lines, text.test, 3e-3, 500),
    }


@functools.partial(jax.jit, static_argnames="model")
def loss(variables: Any, batch: Any, *, model: nn.Module) -> Any:
    logits = model.apply(variables, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@functools.partial(jax.jit, static_argnames=("model", "tx"))
def train_step(variables: Any, state: Any, batch: Any, *, model: nn.Module, tx: Any) -> Any:
    gradients = jax.grad(loss)(variables, batch, model=model)
    updates, state = tx.update(gradients, state, variables)
    return optax.apply_updates(variables, updates), state


def cells(task: Task, optimizer: Callable[[float], Any]) -> list[str]:
    """Returns a row of the table: without a growth, and with each warmup."""
    rng = np.random.default_rng(0)
    batch = task.batch(rng)
    variables = task.small.init(jax.random.key(0), batch[0][:2])
    tx = dw.growable(optimizer(task.rate))
    state = tx.init(variables)
    for _ in range(task.steps):
        batch = task.batch(rng)
        variables, state = train_step(variables, state, batch, model=task.small, tx=tx)
    batches = [task.batch(rng) for _ in range(STEPS)]

    def goes_on(model: nn.Module, variables: Any, state: Any, tx: Any) -> str:
        losses = [float(loss(variables, task.test, model=model))]
        for batch in batches:
            variables, state = train_step(variables, state, batch, model=model, tx=tx)
            if len(losses) <= FIRST:
                losses.append(float(loss(variables, task.test, model=model)))
        last = float(loss(variables, task.test, model=model))
        return f"{max(losses) - losses[0]:+.3f} / {last - losses[0]:+.3f}"

    row = [f"{loss(variables, task.test, model=task.small):.3f}"]
    row.append(goes_on(task.small, variables, state, tx))
    growth = dw.plan(
        dw.trace(task.small.apply, variables, batch[0][:2]),
        target=jax.eval_shape(task.large.init, jax.random.key(0), batch[0][:2]),
        target_apply=task.large.apply,
    )
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    for warmup in WARMUPS:
        warmed = dw.growable(optimizer(task.rate), warmup=warmup)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.append(goes_on(task.large, wide, dw.grow_opt_state(state, growth, warmed), warmed))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="a part of the name of a task or network")
    parser.add_argument("--starts", action="store_true", help="compare initial values instead")
    arguments = parser.parse_args()
    only = arguments.only or ""
    if arguments.starts:
        print("| network | start | different units | test loss | largest distance from it |")
        print("|---|---|---|---|---|")
        for row in starts.rows(only):
            print(row, flush=True)
        return
    warmups = " | ".join(f"warmup={warmup}" for warmup in WARMUPS)
    print(f"| task | optimizer | loss at the growth | no growth | {warmups} |")
    print("|---|---|---|---|" + "---|" * len(WARMUPS))
    for name, task in tasks().items():
        for optimizer, make in OPTIMIZERS.items() if only in name else ():
            print(f"| {name} | {optimizer} | {' | '.join(cells(task, make))} |", flush=True)


if __name__ == "__main__":
    main()
