"""Which layers of an MNIST network can start at zero and still learn different units?

Trains networks in which the kernels of some layers start at zero, and counts the different units of
each hidden layer before and after training. (They are models 4 to 9 of the original notebook.)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, parse, run, say

import dogwood_jax as dw
from dogwood_jax import mnist, training

Variables = Mapping[str, Any]


class Model(NamedTuple):
    """A network of the notebook: its layers, the zero layers, and the expected result."""

    layers: tuple[str, ...]
    zero: frozenset[str]
    learns: bool
    reason: str


def _model(layers: str, zero: str, learns: bool, reason: str) -> Model:
    return Model(tuple(layers.split()), frozenset(zero.split()), learns, reason)


MODELS = {
    "one hidden layer, all at zero": _model(
        "dense_1 dense_2",
        "dense_1 dense_2",
        False,
        "units that output relu(0) = 0 give dense_2 no gradient, and a dense_2 of zeros gives none "
        "to them: all are one unit for ever, and only the output biases learn",
    ),
    "one hidden layer, dense_2 at zero": _model(
        "dense_1 dense_2",
        "dense_2",
        True,
        "random units give dense_2 a gradient at the first step, and get one themselves from the "
        "second on: this is why zero_outgoing works",
    ),
    "two hidden layers, all at zero": _model(
        "dense_1 dense_1a dense_2",
        "dense_1 dense_1a dense_2",
        False,
        "as with one hidden layer, and each hidden layer is a single unit for ever",
    ),
    "two hidden layers, dense_1a and dense_2 at zero": _model(
        "dense_1 dense_1a dense_2",
        "dense_1a dense_2",
        False,
        "the units of dense_1a have zero incoming and zero outgoing weights, so neither get a "
        "gradient, and nothing passes through them to the random units of dense_1",
    ),
    "two hidden layers, dense_1 and dense_2 at zero": _model(
        "dense_1 dense_1a dense_2",
        "dense_1 dense_2",
        False,
        "dense_1 outputs zero, so the random dense_1a does too: dense_2 gets no gradient, and at "
        "zero lets none through; that units differ in their outgoing weights does not help them",
    ),
    "two hidden layers, dense_1 at zero": _model(
        "dense_1 dense_1a dense_2",
        "dense_1",
        False,
        "no layer behind dense_1 is zero, but all relus are at exactly 0, where their derivative "
        "counts as 0: no gradient passes, though units differ in their outgoing weights",
    ),
}


class MLP(nn.Module):
    """784 pixels, hidden layers of relu units, 10 digits, initialized as in Keras or at zero."""

    layers: tuple[str, ...]
    zero: frozenset[str] = frozenset()
    units: int = 128

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        x = images.reshape(len(images), -1)
        for name in self.layers:
            last = name == self.layers[-1]
            zero = name in self.zero
            init = nn.initializers.zeros if zero else nn.initializers.glorot_uniform()
            x = nn.Dense(10 if last else self.units, kernel_init=init, name=name)(x)
            x = x if last else nn.relu(x)
        return x


@functools.cache
def apply_of(layers: tuple[str, ...]) -> Callable[..., Any]:
    """Returns one apply for all models with the same layers, so that `fit` compiles it once."""
    return MLP(layers).apply


def different_units(variables: Variables, layers: tuple[str, ...]) -> dict[str, int]:
    """Returns the number of different units in each hidden layer."""
    widths = dw.chain(variables, layers)
    counts = {}
    for name in layers[:-1]:
        groups = dw.find_symmetric(variables, widths[name])
        counts[name] = widths[name].size - sum(len(group) - 1 for group in groups)
    return counts


class Outcome(NamedTuple):
    """Results of training a model."""

    accuracy: float  # on the test images
    learns: bool
    before: dict[str, int]  # different units of each hidden layer
    after: dict[str, int]


def train(
    model: Model,
    digits: mnist.Digits,
    tx: optax.GradientTransformation,
    *,
    epochs: int,
    key: jax.Array,
) -> Outcome:
    """Trains a model and counts its different units before and after."""
    apply = apply_of(model.layers)
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    init_key, fit_key = jax.random.split(key)
    start = MLP(model.layers, model.zero).init(init_key, images[:1] / 255)
    trained = fit(
        apply,
        start,
        tx,
        (images, labels),
        epochs=epochs,
        batch_size=32,
        key=fit_key,
    )
    _, accuracy = training.evaluate(
        apply, trained.variables, (digits.test_images, digits.test_labels)
    )
    # A network that only learns the frequencies of the digits always predicts the same digit.
    one_answer = np.bincount(digits.test_labels).max() / len(digits.test_labels)
    before, after = (different_units(v, model.layers) for v in (start, trained.variables))
    return Outcome(accuracy, accuracy > 2 * one_answer, before, after)


HEADER = f"{'kernels at first':<49}{'accuracy':>9}  {'different units before':<27}{'after'}"


def row(name: str, outcome: Outcome) -> str:
    """Returns a row of the table."""
    before, after = (
        ", ".join(f"{layer} {count}" for layer, count in counts.items())
        for counts in (outcome.before, outcome.after)
    )
    return f"{name:<49}{outcome.accuracy:>9.2%}  {before:<27}{after}"


def sentence(name: str, model: Model, outcome: Outcome) -> str:
    """Returns a sentence on the outcome."""
    verb = "learns" if outcome.learns else "does not learn"
    expected = outcome.learns == model.learns
    return f"{name}: {verb}{', because ' + model.reason if expected else ', against expectation'}."


def picture(outcomes: Mapping[str, Outcome], epochs: int) -> Any:
    """Returns a figure of the accuracies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    ax = figure.subplots()
    accuracies = [outcome.accuracy for outcome in outcomes.values()]
    colors = ["C0" if outcome.learns else "0.7" for outcome in outcomes.values()]
    bars = ax.barh(list(outcomes), accuracies, color=colors)
    ax.bar_label(bars, [f"{accuracy:.1%}" for accuracy in accuracies], padding=4)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.1), xlabel=f"test accuracy after {epochs} epochs (gray: does not learn)")
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}" if share <= 1 else "")
    ax.set_title("Which kernels may start at zero? (one seed)")
    return figure


def main(arguments: list[str] | None = None) -> dict[str, Outcome]:
    """Runs the example; returns the outcome for each network."""
    options = parse(__doc__, arguments)
    print(HEADER)
    outcomes, tx = {}, optax.adam(1e-3)
    with bar(options.epochs * len(MODELS)):
        for number, (name, model) in enumerate(MODELS.items(), start=4):  # as in the notebook
            key = jax.random.fold_in(jax.random.key(options.seed), number)
            outcomes[name] = train(model, options.digits, tx, epochs=options.epochs, key=key)
            say(row(name, outcomes[name]))
    say("")
    for name, outcome in outcomes.items():
        say(sentence(name, MODELS[name], outcome))
    picture(outcomes, options.epochs).savefig(options.out / "weight_symmetry.png", dpi=150)
    print(f"\nwritten to {options.out}: weight_symmetry.png")
    return outcomes


if __name__ == "__main__":
    run(main)
