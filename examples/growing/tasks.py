"""The tasks: each needs the large network, and each says in which ways one can come by it."""

from argparse import Namespace

import flax.linen as nn

from dogwood_jax import strategies
from growing.data import CHARACTERS, Data, Hops, MovedDigits, Parities, Text
from growing.networks import CNN, MLP, Transformer
from growing.runs import Size, Task, Way

BUDGETS = (0.3, 0.45, 0.6, 0.75, 0.85, 1.0)


def scratch(model: nn.Module) -> Way:
    """Returns the way of the large network alone."""
    return Way("from scratch", (Size(model),))


def alone(name: str, model: nn.Module) -> Way:
    """Returns the way of a small network that never grows."""
    return Way(f"{name} alone", (Size(model),))


def grown(name: str, first: nn.Module, *others: Size) -> Way:
    """Returns the way of a network that grows."""
    return Way(name, (Size(first), *others))


# Text ---------------------------------------------------------------------------------------------


def decoder(layers: int, stream: int = 64, context: int = 64, silent: bool = False) -> Transformer:
    """Returns a network for text."""
    return Transformer(
        layers, stream, words=CHARACTERS, context=context, classes=CHARACTERS, silent=silent
    )


def text(options: Namespace, half: int) -> Data:
    """Returns a half of the text."""
    return Text(half, options.text)


TEXT = Task(
    "text, depth",
    text,
    steps=8000,
    batch_size=16,
    rate=6e-3,
    ways=(
        scratch(decoder(6)),
        Way("from scratch, silent layers", (Size(decoder(6, silent=True)),)),
        alone("1 layer", decoder(1)),
        alone("3 layers", decoder(3)),
        grown("1 layer to 6", decoder(1), Size(decoder(6), 0.02)),
        grown("3 layers to 6", decoder(3), Size(decoder(6), 0.06)),
        grown("3 to 6, stack", decoder(3), Size(decoder(6), 0.06, depth=strategies.stack())),
    ),
    budgets=BUDGETS,
)

# Look-ups -----------------------------------------------------------------------------------------

SYMBOLS, HOPS = 8, 3


def looker(layers: int) -> Transformer:
    """Returns a network for chains of look-ups."""
    words = SYMBOLS * SYMBOLS + SYMBOLS + 1
    return Transformer(
        layers, 64, words=words, context=SYMBOLS + HOPS, classes=SYMBOLS, answers=HOPS
    )


def look_ups(options: Namespace, half: int) -> Data:
    """Returns chains of look-ups, the same for both halves."""
    del options, half
    return Hops(SYMBOLS, HOPS)


HOPPING = Task(
    f"{HOPS} look-ups, depth",
    look_ups,
    steps=12000,
    batch_size=64,
    rate=2e-3,
    ways=(
        scratch(looker(4)),
        alone("1 layer", looker(1)),
        alone("2 layers", looker(2)),
        grown("2 layers to 4", looker(2), Size(looker(4), 0.11)),
        grown("2 to 4, stack", looker(2), Size(looker(4), 0.11, depth=strategies.stack())),
    ),
    budgets=(1.0,),
    until=0.95,
)

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
        grown("64 units to 256", MLP(64, 2), Size(MLP(256, 2), 0.05)),
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
        grown("32 units to 256", MLP(32), Size(MLP(256), 0.05)),
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
        grown("4 channels to 16", CNN(4), Size(CNN(16), 0.03)),
    ),
    budgets=BUDGETS,
    b2=0.999,
)

TASKS = {task.name: task for task in (TEXT, HOPPING, PARITIES, DIGITS_MLP, DIGITS_CNN)}
CANDIDATES: dict[str, tuple[Way, ...]] = {}
PREDICTED: dict[str, tuple[Way, ...]] = {}
