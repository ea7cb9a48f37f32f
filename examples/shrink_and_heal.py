"""Shrink a trained transformer to two thirds of its parameters, and heal it by distillation.

The large network learns to write like Python's sources, one character at a time. ``dw.shrink``
removes the units with the lowest scores over all widths, or a third of the layers. The small
network then learns the large network's predictions, on a few more characters of the same text.
"""

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, run, say
from growing.data import CHARACTERS, codes_of

import dogwood_jax as dw
from dogwood_jax import training

Params = dict[str, Any]

STREAM, HEADS, HEAD_DIM, MLP = 64, 4, 16, 256
CONTEXT = 64  # characters that the network sees
BATCH_SIZE, RATE = 16, 6e-3
STEPS = 50  # per compiled call
SHARE = 0.67  # of the parameters stays
TOKENS = 0.05  # tokens for healing, as a share of those of the large network's training
HEALING_BATCH_SIZE, HEALING_RATE = 4, 2e-3
OWN = 0.3  # the weight of the loss on the text; the rest is that of the large network's predictions
WAYS: tuple[Literal["first_order", "activity", "norm"], ...] = ("first_order", "activity", "norm")

# The text -----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Windows of a text to train on and to test with, and the next character for each character."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def text() -> Data:
    """Returns windows of Python's help texts and of the sources of its standard library."""
    parts = [topics[name] for name in sorted(topics)]
    for path in sorted(Path(argparse.__file__).parent.glob("*.py")):
        parts.append(path.read_text("utf-8", "replace"))
    numbers = codes_of("\n".join(parts))[:2_000_000].astype(np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, CONTEXT)
    inputs, labels = windows[:-1], windows[1:]
    cut = len(inputs) * 9 // 10
    tests = np.arange(cut, len(inputs), 4 * CONTEXT)[:500]
    return Data((inputs[:cut], labels[:cut]), (inputs[tests], labels[tests]))


# The network --------------------------------------------------------------------------------------


def init(key: jax.Array, layers: int) -> Params:
    """Returns random weights of a decoder."""
    keys = iter(jax.random.split(key, 6 * layers + 3))

    def weights(*shape: int, inputs: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, jnp.float32) / math.sqrt(inputs)

    def block() -> Params:
        heads = {
            part: weights(STREAM, HEADS, HEAD_DIM, inputs=STREAM)
            for part in ("query", "key", "value")
        }
        return heads | {
            "out": weights(HEADS, HEAD_DIM, STREAM, inputs=HEADS * HEAD_DIM),
            "up": weights(STREAM, MLP, inputs=STREAM),
            "down": weights(MLP, STREAM, inputs=MLP),
            "attention_norm": jnp.ones(STREAM, jnp.float32),
            "mlp_norm": jnp.ones(STREAM, jnp.float32),
        }

    return {
        "characters": weights(CHARACTERS, STREAM, inputs=STREAM),
        "positions": weights(CONTEXT, STREAM, inputs=STREAM),
        "blocks": [block() for _ in range(layers)],
        "norm": jnp.ones(STREAM, jnp.float32),
        "logits": weights(STREAM, CHARACTERS, inputs=STREAM),
    }


def apply(params: Params, text: jax.Array) -> jax.Array:
    """Returns logits ``[n, time, characters]`` for the next character at each position.

    All sizes and the number of layers follow from the arrays, so the small network has the same
    function.
    """
    x = params["characters"][text] + params["positions"][None, : text.shape[1]]
    is_past = jnp.tril(jnp.ones((text.shape[1],) * 2, bool))[None, None]
    for block in params["blocks"]:
        h = _norm(x, block["attention_norm"])
        query, key, value = (
            jnp.einsum("nti,ihd->nthd", h, block[part]) for part in ("query", "key", "value")
        )
        scores = jnp.einsum("nthd,nshd->nhts", query, key) / math.sqrt(query.shape[-1])
        seen = jax.nn.softmax(jnp.where(is_past, scores, -1e9))
        x += jnp.einsum("nhts,nshd,hdi->nti", seen, value, block["out"])
        x += jax.nn.gelu(_norm(x, block["mlp_norm"]) @ block["up"]) @ block["down"]
    return jnp.asarray(_norm(x, params["norm"]) @ params["logits"])


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale[None, None]


# Training -----------------------------------------------------------------------------------------


def loss(params: Params, text: jax.Array, following: jax.Array) -> jax.Array:
    """Returns the mean loss of a batch, in nats per character."""
    logits = apply(params, text)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, following))


@functools.cache  # because training.fit compiles once for each optimizer
def optimizer(rate: float, steps: int, decay: float) -> optax.GradientTransformation:
    """Returns Adam with a short warmup and a linear decay over the last share of the steps."""

    def schedule(step: jax.Array) -> jax.Array:
        done = step / steps
        return rate * jnp.minimum(1, (done + 1 / steps) / 0.05) * jnp.minimum(1, (1 - done) / decay)

    return optax.adam(schedule, b2=0.99)


def windows(data: Data, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random windows of the training text, and the next character for each character."""
    chosen = np.random.default_rng(seed).integers(0, len(data.train[0]), count)
    return data.train[0][chosen], data.train[1][chosen]


def trained(
    variables: Params,
    tx: optax.GradientTransformation,
    data: tuple[np.ndarray, np.ndarray],
    *,
    batch_size: int,
    key: jax.Array,
    opt_state: Any = None,
    **options: Any,
) -> training.Run:
    """Trains on windows once, in several parts so that the bar moves."""
    part = STEPS * batch_size
    for start in range(0, len(data[0]), part):
        run = fit(
            apply,
            variables,
            tx,
            tuple(array[start : start + part] for array in data),
            epochs=1,
            batch_size=batch_size,
            key=jax.random.fold_in(key, start),
            opt_state=opt_state,
            step=len(data[0][start : start + part]) / batch_size,
            **options,
        )
        variables, opt_state = run.variables, run.opt_state
    return run


def train(data: Data, seed: int, layers: int, steps: int) -> training.Run:
    """Trains the large network."""
    return trained(
        jax.jit(init, static_argnames="layers")(jax.random.key(seed), layers=layers),
        optimizer(RATE, steps, 0.2),
        windows(data, seed, steps * BATCH_SIZE),
        batch_size=BATCH_SIZE,
        key=jax.random.key(seed),
    )


def heal(
    small: Params, growth: dw.Growth, large: training.Run, data: Data, count: int, own: float
) -> training.Run:
    """Trains the small network to predict what the large network predicts.

    Args:
        small: the narrowed variables.
        growth: the narrowing, which also narrows Adam's state.
        large: the large network.
        data: the text.
        count: number of windows.
        own: the weight of the loss on the text itself.
    """
    steps = count // HEALING_BATCH_SIZE
    tx = optimizer(HEALING_RATE, steps, 1.0)
    moments, _ = dw.grow_opt_state(large.opt_state, growth, tx)
    _, schedule = tx.init(small)  # its step count starts at zero
    return trained(
        small,
        tx,
        windows(data, 1_000_000, count),
        batch_size=HEALING_BATCH_SIZE,
        key=jax.random.key(0),
        opt_state=(moments, schedule),
        teacher=large.variables,
        share=1 - own,
    )


def tested(params: Params, data: Data) -> float:
    """Returns the test loss, in nats per character."""
    return training.evaluate(apply, params, data.test, batch_size=100)[0]


# Results ------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """Test losses of one way to shrink and heal, for one seed."""

    way: str
    parameters: tuple[int, int]  # before and after
    large: float
    shrunk: float
    healed: float


def shrink_and_heal(
    data: Data, seed: int, layers: int, steps: int, scored: int
) -> tuple[list[Result], dw.Growth]:
    """Trains a large network, then shrinks and heals it in all ways.

    Returns:
        The results, and the narrowing of the first way.
    """
    large = train(data, seed, layers, steps)
    batch = windows(data, 2_000_000, scored)
    widths = dw.trace(apply, large.variables, batch[0])
    before, count = tested(large.variables, data), int(TOKENS * steps * BATCH_SIZE)
    results, growths = [], []

    def add(way: str, small: Params, growth: dw.Growth, own: float) -> None:
        sizes = _count(large.variables), _count(small)
        healed = heal(small, growth, large, data, count, own).variables
        results.append(Result(way, sizes, before, tested(small, data), tested(healed, data)))
        growths.append(growth)

    for by in WAYS:
        scores = dw.saliency(large.variables, widths, loss, *batch, by=by)
        smaller = dw.shrink(large.variables, widths, scores=scores, parameters=SHARE, alike=False)
        add(by, *smaller, OWN)
        if by == WAYS[0]:
            add(f"{by}, the text alone", *smaller, 1.0)
            alike = dw.shrink(large.variables, widths, scores=scores, parameters=SHARE)
            add(f"{by}, one size", *alike, OWN)
    fewer = round(SHARE * layers)
    smaller = dw.shrink(large.variables, widths, loss, *batch, layers={"blocks": fewer})
    add(f"{fewer} of {layers} layers", *smaller, OWN)
    return results, growths[0]


def _count(params: Params) -> int:
    return sum(array.size for array in jax.tree.leaves(params))


def table(results: Sequence[Result]) -> str:
    """Returns a table, a row per way: mean losses over seeds, and their rise over the large one."""
    lines = [f"{'scored by':<28}{'large':>8}{'shrunk':>9}{'':>8}{'healed':>9}{'':>8}  single seeds"]
    for way in dict.fromkeys(result.way for result in results):
        runs = [result for result in results if result.way == way]
        large, shrunk, healed = np.mean([run[2:] for run in runs], axis=0)
        single = ", ".join(f"{run.healed / run.large - 1:+.1%}" for run in runs)
        lines.append(
            f"{way:<28}{large:>8.4f}{shrunk:>9.4f}{shrunk / large - 1:>+8.1%}"
            f"{healed:>9.4f}{healed / large - 1:>+8.1%}  {single}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Runs the example; returns the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="two layers, few steps and one seed")
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps of the large network's training"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    options = parser.parse_args(arguments)
    layers, steps, seeds, scored = 6, options.steps, options.seeds, 128
    if options.quick:
        layers, steps, seeds, scored = 2, 100, 1, 16
    data, count = text(), int(TOKENS * steps * BATCH_SIZE)
    results: list[Result] = []
    with bar(seeds * (steps + (len(WAYS) + 3) * count / HEALING_BATCH_SIZE)):
        for seed in range(seeds):
            found, growth = shrink_and_heal(data, seed, layers, steps, scored)
            if not seed:
                say(f"{growth}\n")
            results += found
    before, after = results[0].parameters
    print(f"{before:,} parameters become {after:,}, or {results[-1].parameters[1]:,} with fewer")
    print("layers. Test losses, in nats a character, after")
    print(
        f"{steps * BATCH_SIZE * CONTEXT:,} characters of training, and {count * CONTEXT:,} of "
        f"healing ({count / steps / BATCH_SIZE:.1%}):\n"
    )
    print(table(results))
    return results


if __name__ == "__main__":
    run(main)
