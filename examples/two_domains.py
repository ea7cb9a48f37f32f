"""Fine-tune a language model on a second domain, and measure how much it forgets of the first.

A small transformer learns Python code, one character at a time, and then English: the docstrings
and comments of the same files. Either all weights learn the second domain, or only new weights: new
units of the MLPs, or new layers between the old layers. New layers begin as silent copies, as in
LLaMA Pro (Wu et al., 2024). All ways have the same learning rate and the same number of steps.
"""

import argparse
import ast
import io
import itertools
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, mean_and_error, parse, run, say, write
from grow_transformer import CONTEXT, WINDOW, Transformer, Variables
from growing.data import codes_of

import dogwood_jax as dw
from dogwood_jax import strategies, training

BATCH_SIZE, RATE = 16, 2e-3
PARTS = 5  # of a training, with a test after each part
SMALL = Transformer(stream=48, heads=4, mlp=192, depth=3)
# Both add about the same number of weights.
WIDE = Transformer(stream=48, heads=4, mlp=480, depth=3)
DEEP = Transformer(stream=48, heads=4, mlp=192, depth=6)


class Way(NamedTuple):
    """A way to learn the second domain: a network and a mix of texts."""

    model: Transformer
    replayed: float = 0.0  # the share of windows from the first domain


WAYS = {
    "all weights": Way(SMALL),
    "all weights, a tenth of the text is code": Way(SMALL, replayed=0.1),
    "new units": Way(WIDE),
    "new layers": Way(DEEP),
}

# The text -----------------------------------------------------------------------------------------


class Domain(NamedTuple):
    """A text as codes of characters, and windows to test with."""

    train: np.ndarray
    test: tuple[np.ndarray, np.ndarray]


def domains(files: int) -> tuple[Domain, Domain]:
    """Returns code and English from at most ``files`` files of Python's standard library.

    Every tenth file is held out for tests.
    """
    parts: list[tuple[str, str]] = []
    for path in sorted(Path(argparse.__file__).parent.glob("*.py"))[:files]:
        parts.append(divided(path.read_text("utf-8", "replace")))
    found = []
    for texts in zip(*parts, strict=True):
        held_out = codes_of("\n".join(texts[::10]))
        train = codes_of("\n".join(text for i, text in enumerate(texts) if i % 10))
        starts = np.linspace(0, len(held_out) - CONTEXT - 1, 300).astype(int)
        found.append(Domain(train, windows(held_out, starts)))
    code, english = found
    return code, english


def divided(source: str) -> tuple[str, str]:
    """Returns a source's code without docstrings and comments, and its docstrings and comments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about escapes in strings
        tree = ast.parse(source)
    english = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                english.append(docstring)
                node.body = node.body[1:] or [ast.Pass()]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            english.append(token.string.lstrip("#! "))
    return ast.unparse(tree), "\n".join(english)


def windows(text: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns windows of a text, and the next character for each of their characters."""
    found = text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
    return found[:, :-1], found[:, 1:]


def drawn(
    rng: np.random.Generator, count: int, domain: Domain, other: Domain, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns random windows of a domain, with a share from another domain; ``fit`` mixes them."""
    both = []
    for one, size in (domain, count - round(share * count)), (other, round(share * count)):
        both.append(windows(one.train, rng.integers(0, len(one.train) - CONTEXT, size)))
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*both, strict=True))
    return inputs, labels


# Growing ------------------------------------------------------------------------------------------


def planned(model: Transformer) -> dw.Growth | None:
    """Plans the growth of the small network to ``model``; None if it is the small one itself."""
    if model == SMALL:
        return None
    before, after = shapes(SMALL), shapes(model)
    return dw.plan(
        dw.trace(SMALL.apply, before, WINDOW),
        target=after,
        target_apply=model.apply,
        depth=strategies.interpose() if model.depth > SMALL.depth else None,
    )


def shapes(model: Transformer) -> Any:
    """Returns the shapes of a network's variables."""
    return jax.eval_shape(model.init, jax.random.key(0), WINDOW)


def grown(variables: Variables, growth: dw.Growth, key: jax.Array) -> Variables:
    """Grows the small network; outputs stay, because the last weights of copied layers are zero."""
    wide = dw.grow(variables, growth, key=key)

    def silenced(keys: Any, array: jax.Array, new: jax.Array) -> jax.Array:
        is_last = {"out", "down"} & {key.key for key in keys}
        return jnp.where(new.all(), 0, array) if is_last else array

    found: Variables = jax.tree_util.tree_map_with_path(silenced, wide, growth.is_new(wide))
    return found


# Training -----------------------------------------------------------------------------------------


def optimizer(steps: int, is_new: Any = None) -> optax.GradientTransformation:
    """Returns Adam with a short warmup and a decay; ``is_new`` limits it to new entries."""
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0, RATE, steps // 20, steps))
    if is_new is None:
        return adam

    def only(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda update, new: jnp.where(new, update, 0), updates, is_new)

    return optax.chain(adam, optax.stateless(only))


def trained(
    model: Transformer,
    variables: Variables,
    tx: optax.GradientTransformation,
    steps: int,
    draw: Callable[[np.random.Generator, int], Any],
    seed: int,
) -> Iterator[tuple[int, Variables]]:
    """Trains in parts, each on newly drawn windows; yields steps and variables after each part."""
    rng, opt_state, size = np.random.default_rng(seed), None, steps // PARTS
    for part in range(PARTS):
        variables, opt_state, _ = fit(
            model.apply,
            variables,
            tx,
            draw(rng, size * BATCH_SIZE),
            epochs=1,
            batch_size=BATCH_SIZE,
            key=jax.random.key(seed),
            opt_state=opt_state,
            step=size,
        )
        yield (part + 1) * size, variables


class Point(NamedTuple):
    """Test losses, in nats per character, after some steps on the second domain."""

    way: str
    new_weights: int  # only these are trained; 0 if all weights are trained
    seed: int
    step: int
    code: float
    english: float


def measured(
    code: Domain, english: Domain, steps: int, second: int, seeds: Sequence[int]
) -> Iterator[Point]:
    """Trains on code, then on English in all ways; yields the test losses."""
    growths = {name: planned(way.model) for name, way in WAYS.items()}
    masks = {name: g and g.is_new(shapes(WAYS[name].model)) for name, g in growths.items()}
    news = {name: sum(int(new.sum()) for new in jax.tree.leaves(masks[name])) for name in WAYS}
    # One optimizer for all seeds, because fit compiles once per optimizer.
    first, txs = optimizer(steps), {name: optimizer(second, masks[name]) for name in WAYS}
    for seed in seeds:
        key = jax.random.key(seed)
        small = jax.jit(SMALL.init)(key, jnp.zeros(WINDOW.shape, WINDOW.dtype))
        draw = partial(drawn, domain=code, other=english, share=0.0)
        *_, (_, small) = trained(SMALL, small, first, steps, draw, seed)
        for name, (model, share) in WAYS.items():
            growth = growths[name]
            start = grown(small, growth, key) if growth else small
            draw = partial(drawn, domain=english, other=code, share=share)
            after = trained(model, start, txs[name], second, draw, seed)
            for step, variables in itertools.chain([(0, start)], after):
                losses = (
                    training.evaluate(model.apply, variables, domain.test, batch_size=100)[0]
                    for domain in (code, english)
                )
                yield Point(name, news[name], seed, step, *(round(loss, 4) for loss in losses))


# Results ------------------------------------------------------------------------------------------


def curves(points: Iterable[Point]) -> dict[str, np.ndarray]:
    """Returns losses ``[seeds, tests, 2]`` by way; the last axis is code, English."""
    ways: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for point in points:
        ways.setdefault(point.way, {}).setdefault(point.seed, []).append(point[-2:])
    return {way: np.array([*seeds.values()]) for way, seeds in ways.items()}


def table(points: Sequence[Point]) -> str:
    """Returns a Markdown table with a row for each way: means over seeds and standard errors."""
    heads = ["trained on English", "new weights", "loss on code", "forgotten", "loss on English"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found = curves(points)
    before = next(iter(found.values()))[:, 0]
    rows = {"nothing yet": (0, before, before)}
    rows |= {p.way: (p.new_weights, before, found[p.way][:, -1]) for p in points}
    for way, (new, start, end) in rows.items():
        parts = end[:, 0], (end - start)[:, 0], end[:, 1]
        losses = [mean_and_error(part, ".3f") for part in parts]
        lines.append(f"| {' | '.join([way, f'{new:,}' if new else '', *losses])} |")
    return "\n".join(lines)


def picture(points: Sequence[Point]) -> Any:
    """Returns a figure of losses on both domains during training, and at the end of all seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    ax = figure.subplots()
    for number, (way, runs) in enumerate(curves(points).items()):
        ax.plot(*runs.mean(0).T, "o-", color=f"C{number}", markersize=4, label=way)
        ax.plot(*runs[:, -1].T, "x", color=f"C{number}")
    ax.plot(*runs[:, 0].mean(0), "ko", label="before")
    ax.plot([], [], "x", color="0.5", label="the end for a single seed")
    ax.set(xlabel="test loss on code, nats a character", ylabel="test loss on English")
    ax.legend(title="trained on English:")
    return figure


def main(arguments: list[str] | None = None) -> list[Point]:
    """Runs the example; returns the measurements."""
    options = parse(
        __doc__.splitlines()[0],
        arguments,
        counts={
            "steps": (1000, "steps of training on code"),
            "second": (300, "steps of training on English"),
            "seeds": (3, "number of runs of each way"),
            "files": (1000, "at most this many files of Python's standard library to learn from"),
        },
        digits=False,
        quick={"steps": 40, "second": 20, "seeds": 1, "files": 30},
    )
    code, english = domains(options.files)
    points: list[Point] = []
    seeds = range(options.seed, options.seed + options.seeds)
    with bar(len(seeds) * (options.steps + len(WAYS) * options.second)):
        for point in measured(code, english, options.steps, options.second, seeds):
            points.append(point)
            if point.step == options.second:
                say(f"seed {point.seed}: {point.way}: {point.code:.3f} {point.english:.3f}")
    print(f"\n{table(points)}")
    write(points, picture(points), options.out, "two_domains")
    return points


if __name__ == "__main__":
    run(main)
