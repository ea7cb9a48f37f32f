"""Grow trained MNIST networks: hidden units are added, and no prediction changes.

Trains a network, saves its weights to a Keras file and loads them, adds hidden units and continues
training. It is compared with networks that have the larger size from the start: first with 1 and 2
hidden units, as in the notebook that this example follows, then with 32 and 128.
"""

import csv
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, parse, run, say

import dogwood_jax as dw
from dogwood_jax import keras_h5, mnist, plotting, training
from dogwood_jax.training import Stage

Variables = dict[str, Any]


class MLP(nn.Module):
    """784 pixels, one layer of relu units, 10 digits, initialized as in Keras."""

    units: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        glorot = nn.initializers.glorot_uniform()
        x = images.reshape(len(images), -1)
        x = nn.relu(nn.Dense(self.units, kernel_init=glorot, name="dense_1")(x))
        return nn.Dense(10, kernel_init=glorot, name="dense_2")(x)


def apply(variables: Variables, images: jax.Array) -> Any:
    """Applies a network of any size; `fit` keeps its compiled programs for this one function."""
    return MLP(kernel_of(variables).shape[1]).apply(variables, images)


def kernel_of(variables: Variables) -> jax.Array:
    """Returns the weights from the pixels to the units, ``[784, units]``."""
    return variables["params"]["dense_1"]["kernel"]


class Row(NamedTuple):
    """A row of the table."""

    name: str
    units: int
    epochs: int  # of training so far, including those of the smaller network
    loss: float  # on the test images, like the accuracy
    accuracy: float
    change: float | None  # largest difference in an output from the network that it comes from
    seconds: float

    def __str__(self) -> str:
        change = "" if self.change is None else f"{self.change:.2g}"
        return (
            f"{self.name:<38}{self.units:>6}{self.epochs:>8}{self.loss:>9.4f}{self.accuracy:>10.2%}"
            f"{change:>19}{self.seconds:>9.1f}"
        )


HEADER = (
    f"{'stage':<38}{'units':>6}{'epochs':>8}{'loss':>9}{'accuracy':>10}"
    f"{'max output change':>19}{'seconds':>9}"
)


class Experiment(NamedTuple):
    """Results of growing one network."""

    rows: list[Row]
    networks: dict[str, Variables]  # before growing, after growing, and after more training
    curves: dict[str, np.ndarray]  # accuracy on the test images, by epoch


def grow(
    digits: mnist.Digits,
    units: int,
    wide_units: int,
    strategies: Sequence[dw.strategies.Strategy],
    *,
    epochs: int,
    key: jax.Array,
    out: Path,
) -> Experiment:
    """Trains and widens a network with each strategy, and compares it with one from scratch.

    Prints a row after each stage, and writes ``<units>_units.h5`` and, for each strategy,
    ``<wide_units>_units_<strategy>.h5`` to the folder ``out``.
    """
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    test = jnp.asarray(digits.test_images), jnp.asarray(digits.test_labels)
    tx = dw.growable(optax.adam(1e-3))
    train = functools.partial(fit, apply, tx=tx, data=(images, labels), batch_size=32, test=test)
    init_key, wide_init_key, grow_key, fit_key, on_key = jax.random.split(key, 5)
    result = Experiment([], {}, {})
    started = time.perf_counter()

    def end_of_stage(name: str, variables: Variables, epochs: int, old: Any = None) -> None:
        nonlocal started
        loss, accuracy = training.evaluate(apply, variables, test)
        change = None if old is None else largest_change(old, variables, digits.test_images)
        seconds = time.perf_counter() - started
        size = kernel_of(variables).shape[1]
        result.rows.append(Row(name, size, epochs, loss, accuracy, change, seconds))
        say(result.rows[-1])
        started = time.perf_counter()

    small = train(MLP(units).init(init_key, images[:1] / 255), epochs=epochs, key=fit_key)
    end_of_stage("trained", small.variables, epochs)
    result.networks["trained"] = small.variables

    path = out / f"{units}_units.h5"
    keras_h5.save(path, small.variables)
    loaded = keras_h5.load(path)
    end_of_stage("saved as .h5 and loaded", loaded, epochs, small.variables)

    for strategy in strategies:
        growing = Stage(sizes={"dense_1": wide_units}, strategy=strategy, epochs=0)
        wide, opt_state, _ = train(
            loaded, stages=[growing], key=grow_key, opt_state=small.opt_state
        )
        keras_h5.save(out / f"{wide_units}_units_{strategy}.h5", wide, like=path)
        end_of_stage(f"widened: {strategy}", wide, epochs, loaded)
        anew = train(wide, epochs=epochs, key=on_key)
        end_of_stage(f"widened: {strategy}, new optimizer", anew.variables, 2 * epochs)
        on = train(wide, epochs=epochs, key=on_key, opt_state=opt_state)
        end_of_stage(f"widened: {strategy}, trained on", on.variables, 2 * epochs)
        result.networks[f"widened: {strategy}"] = wide
        result.networks[f"widened: {strategy},\ntrained on"] = on.variables
        accuracy = [small.history["test accuracy"], on.history["test accuracy"]]
        result.curves[f"widened: {strategy}"] = np.concatenate(accuracy)

    # One run, tested three times: after the epochs of one network, after the FLOPs of both
    # networks, and after the epochs of both networks.
    cost = dw.cost(dw.trace(apply, loaded, images[:1]), {"dense_1": wide_units})
    assert cost.flops is not None  # always known for a traced network
    equal_flops = math.ceil(epochs * sum(cost.flops) / cost.flops[1])
    run_key, parts = fit_key, []
    variables, opt_state, done = MLP(wide_units).init(wide_init_key, images[:1] / 255), None, 0
    for name, until in [
        ("from scratch", epochs),
        ("from scratch, equal FLOPs", equal_flops),
        ("from scratch, equal epochs", 2 * epochs),
    ]:
        run_key = jax.random.fold_in(run_key, until)
        part = train(variables, epochs=until - done, key=run_key, opt_state=opt_state)
        variables, opt_state, done = part.variables, part.opt_state, until
        end_of_stage(name, variables, done)
        parts.append(part.history["test accuracy"])
    result.curves["from scratch"] = np.concatenate(parts)
    return result


def largest_change(old: Variables, new: Variables, images: np.ndarray) -> float:
    """Returns the largest difference between the outputs of two networks over all images."""
    x = training.scale_uint8(jnp.asarray(images))
    return float(jnp.max(jnp.abs(apply(new, x) - apply(old, x))))


SEEN = (
    "Growing changes no old unit. New units learn if their incoming weights begin random and\n"
    "their outgoing ones zero (zero_outgoing). A unit that is all zero never learns (zeros)."
)
COLORS = {
    "from scratch": "black",
    "widened: zero_outgoing": "tab:blue",
    "widened: zeros": "tab:orange",
}


def picture(experiments: Sequence[Experiment], epochs: int) -> Any:
    """Returns a figure of the units' incoming weights and of the learning curves."""
    from matplotlib.figure import Figure

    # The weights of many units are too small to see.
    networks = experiments[0].networks
    figure = Figure(figsize=(2.3 * len(networks), 7), layout="constrained")
    figure.suptitle(SEEN, fontsize=10)
    (top,), (bottom,) = figure.subfigures(2, 1, height_ratios=(3, 4), squeeze=False)
    panels = top.subplots(1, len(networks), squeeze=False)[0]
    for ax, (name, variables) in zip(panels, networks.items(), strict=True):
        plotting.units(kernel_of(variables), ax=ax).set_title(name, fontsize=9)
        # All panels have the same size, for any number of tiles.
        ax.set_adjustable("datalim")
        ax.set_box_aspect(1)
    plots = bottom.subplots(1, len(experiments), squeeze=False)[0]
    for ax, experiment in zip(plots, experiments, strict=True):
        units, wide_units = experiment.rows[0].units, experiment.rows[-1].units
        curves = {name: experiment.curves[name] for name in COLORS if name in experiment.curves}
        ax.set_prop_cycle(color=[COLORS[name] for name in curves])
        plotting.curves(curves, grown_at=epochs, ylabel="test accuracy", ax=ax)
        ax.set_title(f"{units} hidden unit{'s' * (units > 1)}, then {wide_units}; one seed")
    return figure


def verdict(experiment: Experiment) -> str:
    """Returns a summary of the results, and of when growing pays."""
    rows = {row.name: row for row in experiment.rows}
    small, on = rows["trained"], rows["widened: zero_outgoing, trained on"]
    scratch = rows["from scratch, equal FLOPs"]
    moved = max(row.change for row in experiment.rows if row.change is not None)
    ahead = on.accuracy - scratch.accuracy
    when = (
        "Growing pays here"
        if ahead > 0.005
        else "The large network from scratch is better here: grow a network that is trained already"
        if ahead < -0.005
        else "Both are about as good: grow where the small network is trained already"
    )
    return (
        f"{small.units} to {on.units} units: no output moved by more than {moved:.1g}, and "
        f"training went on from {small.accuracy:.1%} to {on.accuracy:.1%}. From scratch, "
        f"{scratch.units} units come to {scratch.accuracy:.1%} with as many FLOPs. {when}."
    )


def write_table(experiments: Sequence[Experiment], out: Path) -> None:
    """Writes all rows, as the printed text and as a CSV file with all digits."""
    rows = [row for experiment in experiments for row in experiment.rows]
    (out / "grow_mnist.txt").write_text("\n".join([HEADER, *map(str, rows)]) + "\n")
    with open(out / "grow_mnist.csv", "w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *rows])


def main(arguments: list[str] | None = None) -> list[Experiment]:
    """Runs the example; returns the results for each network."""
    options = parse(__doc__, arguments)
    zeros, zero_outgoing = dw.strategies.zeros(), dw.strategies.zero_outgoing()
    sizes = [(1, 2, (zeros, zero_outgoing)), (32, 128, (zero_outgoing,))]
    print(HEADER)
    # Epochs: one run of the small network, two per strategy, and a double run from scratch.
    with bar(options.epochs * sum(3 + 2 * len(strategies) for *_, strategies in sizes)):
        experiments = [
            grow(
                options.digits,
                units,
                wide_units,
                strategies,
                epochs=options.epochs,
                key=jax.random.fold_in(jax.random.key(options.seed), units),
                out=options.out,
            )
            for units, wide_units, strategies in sizes
        ]
    print("", *map(verdict, experiments), "", sep="\n")
    write_table(experiments, options.out)
    picture(experiments, options.epochs).savefig(options.out / "grow_mnist.png", dpi=150)
    print(f"written to {options.out}: {', '.join(sorted(p.name for p in options.out.iterdir()))}")
    return experiments


if __name__ == "__main__":
    run(main)
