"""The tasks: each needs the large network, and has several ways to train it."""

import dataclasses
from argparse import Namespace
from typing import Any

import flax.linen as nn

from dogwood_jax import strategies
from growing.data import CHARACTERS, Data, Hops, MovedDigits, Parities, Text
from growing.networks import CNN, MLP, Transformer
from growing.runs import Size, Task, Way

BUDGETS = (0.3, 0.45, 0.6, 0.75, 0.85, 1.0)


def scratch(model: nn.Module) -> Way:
    """Returns a way that only trains the large network."""
    return Way("from scratch", (Size(model),))


def alone(name: str, model: nn.Module) -> Way:
    """Returns a way with a small network that never grows."""
    return Way(f"{name} alone", (Size(model),))


def grown(name: str, first: nn.Module, *others: Size) -> Way:
    """Returns a way with a network that grows."""
    return Way(name, (Size(first), *others))


RANDOM, PAIRED = strategies.random(), strategies.paired()

# Text ---------------------------------------------------------------------------------------------


def decoder(layers: int, stream: int = 64, context: int = 64, silent: bool = False) -> Transformer:
    """Returns a network for text."""
    return Transformer(
        layers, stream, words=CHARACTERS, context=context, classes=CHARACTERS, silent=silent
    )


def text(options: Namespace, half: int) -> Data:
    """Returns a half of the text."""
    return Text(half, options.text)


def deeper(
    name: str, *others: tuple[int, float], depth: strategies.DepthStrategy | None, first: int = 3
) -> Way:
    """Returns a way to more layers.

    Args:
        name: its name.
        others: numbers of layers, each with the share of the full budget that is spent before.
        depth: how new layers are initialized.
        first: number of layers at the start.
    """
    sizes = (Size(decoder(layers, silent=True), at, depth=depth) for layers, at in others)
    return grown(name, decoder(first, silent=True), *sizes)


def wider(name: str, at: float, strategy: Any = None) -> Way:
    """Returns a way from a stream of 32 to a stream of 64."""
    return grown(name, decoder(6, 32, silent=True), Size(decoder(6, silent=True), at, strategy))


# New units come in pairs wherever no norm sees them.
HIDDEN = [name for i in range(6) for name in (f"up_{i}", f"attention_{i}/query[heads]")]
STACK, BETWEEN = strategies.stack(), strategies.interpose(scaled=True)
TEXT = Task(
    "text",
    text,
    steps=8000,
    batch_size=16,
    rate=6e-3,
    ways=(
        scratch(decoder(6)),
        Way("from scratch, layers begin silent", (Size(decoder(6, silent=True)),)),
        alone("1 layer", decoder(1, silent=True)),
        alone("3 layers", decoder(3, silent=True)),
        deeper("3 to 6 layers, copies between", (6, 0.2), depth=BETWEEN),
        deeper("3 to 6 layers, silent", (6, 0.12), depth=None),
        alone("stream of 32", decoder(6, 32, silent=True)),
        wider("stream of 32 to 64, random", 0.12, RANDOM),
        wider("stream of 32 to 64, outputs kept", 0.12),
        wider("stream of 32 to 64, pairs", 0.12, dict.fromkeys(HIDDEN, PAIRED)),
    ),
    budgets=(0.45, 0.6, 0.75, 1.0),
    baselines=2,
)
LONG = dataclasses.replace(
    TEXT,
    name="text of 256",
    baselines=1,
    load=lambda options, half: Text(half, options.text, context=256),
    ways=(
        scratch(decoder(6, context=256)),
        alone("3 layers", decoder(3, context=256, silent=True)),
        grown(
            "3 to 6 layers, copies between",
            decoder(3, context=256, silent=True),
            Size(decoder(6, context=256, silent=True), 0.2, depth=BETWEEN),
        ),
    ),
)

# Look-ups -----------------------------------------------------------------------------------------

SYMBOLS = 8


def looker(layers: int, hops: int) -> Transformer:
    """Returns a network for chains of look-ups."""
    words = SYMBOLS * SYMBOLS + SYMBOLS + 1
    return Transformer(
        layers, 64, words=words, context=SYMBOLS + hops, classes=SYMBOLS, answers=hops
    )


def look_ups(hops: int, steps: int, at: float, *others: Way) -> Task:
    """Returns the task of chains of look-ups, which has the same data for both halves.

    Args:
        hops: the length of the longest chain.
        steps: number of steps of four layers with the full budget.
        at: the share of the full budget after which two layers become four.
        others: more ways.
    """
    four = looker(4, hops)
    return Task(
        f"{hops} look-ups, depth",
        lambda options, half: Hops(SYMBOLS, hops),
        steps=steps,
        batch_size=64,
        rate=2e-3,
        ways=(
            scratch(four),
            alone("1 layer", looker(1, hops)),
            alone("2 layers", looker(2, hops)),
            grown("2 to 4 layers, copies between", looker(2, hops), Size(four, at, depth=BETWEEN)),
            grown("2 to 4 layers, silent", looker(2, hops), Size(four, at)),
            *others,
        ),
        budgets=(1.0,),
        until=0.95,
    )


HOPPING = look_ups(
    3,
    12000,
    0.08,
    grown(
        "1 to 2 to 4 layers, copies between",
        looker(1, 3),
        Size(looker(2, 3), 0.01, depth=BETWEEN),
        Size(looker(4, 3), 0.08, depth=BETWEEN),
    ),
)
LONG_HOPPING = look_ups(4, 24000, 0.04)

# Parities -----------------------------------------------------------------------------------------


def parities(options: Namespace, half: int) -> Data:
    """Returns the parities, the same for both halves."""
    del options, half
    return Parities(60, 40)


PARITIES = Task(
    "parities, width",
    parities,
    steps=8000,
    batch_size=512,
    rate=3e-3,
    ways=(
        scratch(MLP(256, 2)),
        alone("32 units", MLP(32, 2)),
        alone("64 units", MLP(64, 2)),
        grown("64 units to 256, random", MLP(64, 2), Size(MLP(256, 2), 0.15, RANDOM)),
        grown("64 units to 256, outputs kept", MLP(64, 2), Size(MLP(256, 2), 0.15)),
        grown("64 units to 256, pairs", MLP(64, 2), Size(MLP(256, 2), 0.15, PAIRED)),
    ),
    budgets=BUDGETS,
    b2=0.999,
)

# Images -------------------------------------------------------------------------------------------


def images(options: Namespace, half: int) -> Data:
    """Returns the moved digits, the same for both halves."""
    del half
    return MovedDigits(options.data)


DIGITS_MLP = Task(
    "moved digits, MLP, width",
    images,
    steps=8000,
    batch_size=128,
    rate=2e-3,
    ways=(
        scratch(MLP(256)),
        alone("32 units", MLP(32)),
        grown("32 units to 256, random", MLP(32), Size(MLP(256), 0.15, RANDOM)),
        grown("32 units to 256, outputs kept", MLP(32), Size(MLP(256), 0.15)),
        grown("32 units to 256, pairs", MLP(32), Size(MLP(256), 0.15, PAIRED)),
    ),
    budgets=BUDGETS,
    b2=0.999,
)
DIGITS_CNN = Task(
    "moved digits, CNN, width",
    images,
    steps=3000,
    batch_size=64,
    rate=1e-2,
    ways=(
        scratch(CNN(16)),
        alone("4 channels", CNN(4)),
        grown("4 channels to 16, random", CNN(4), Size(CNN(16), 0.15, RANDOM)),
        grown("4 channels to 16, outputs kept", CNN(4), Size(CNN(16), 0.15)),
        grown("4 channels to 16, pairs", CNN(4), Size(CNN(16), 0.15, PAIRED)),
    ),
    budgets=BUDGETS,
    b2=0.999,
)

TASKS = {
    task.name: task
    for task in (TEXT, LONG, HOPPING, LONG_HOPPING, PARITIES, DIGITS_MLP, DIGITS_CNN)
}

# The ways that ``search`` compares, and the ways to which ``predict`` fits its law.
CANDIDATES: dict[str, tuple[Way, ...]] = {
    TEXT.name: (
        deeper("silent, 12 %", (6, 0.12), depth=None),
        deeper("copies on top, 6 %", (6, 0.06), depth=STACK),
        deeper("copies on top, 20 %", (6, 0.2), depth=STACK),
        deeper("copies between, 12 %", (6, 0.12), depth=BETWEEN),
        deeper("copies between, 20 %", (6, 0.2), depth=BETWEEN),
        deeper("copies between, 30 %", (6, 0.3), depth=BETWEEN),
        deeper("from 2 layers, copies between, 12 %", (6, 0.12), depth=BETWEEN, first=2),
        deeper("from 1 to 3 to 6", (3, 0.02), (6, 0.2), depth=BETWEEN, first=1),
        deeper("from 1 layer, new ones, 50 %", (6, 0.5), depth=strategies.new_layers(), first=1),
        wider("default, 12 %", 0.12),
        wider("hyperclone, 12 %", 0.12, strategies.hyperclone(state="new")),
        wider("random, 12 %", 0.12, RANDOM),
        wider("shrink, perturb, 12 %", 0.12, strategies.shrink_perturb()),
    ),
}
PREDICTED: dict[str, tuple[Way, ...]] = {
    TEXT.name: (
        scratch(decoder(6, silent=True)),
        alone("3 layers", decoder(3, silent=True)),
        alone("1 layer", decoder(1, silent=True)),
        alone("stream of 32", decoder(6, 32, silent=True)),
    )
}
