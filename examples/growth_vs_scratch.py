"""Does growing pay? Growing an MNIST network in training, against training the large one at once.

Every run may spend the same number of floating-point operations. The small network is grown early,
late or in two steps, by each strategy, and its optimizer's state grows along, or else starts anew.
What counts is how much computing it takes to reach the accuracy that the large network comes to
from scratch, over several seeds.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import parse

import dogwood_jax as dw
from dogwood_jax import mnist, training

Variables = Mapping[str, Any]

ADAM = optax.adam(1e-3)
GROWABLE = dw.growable(ADAM)
BATCH_SIZE = 128
IMAGE = jax.ShapeDtypeStruct((1, 28, 28), jnp.float32)


class MLP(nn.Module):
    """784 pixels, hidden layers of relu units, 10 digits."""

    units: int
    layers: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        glorot = nn.initializers.glorot_uniform()
        x = images.reshape(len(images), -1)
        for i in range(self.layers):
            x = nn.relu(nn.Dense(self.units, kernel_init=glorot, name=f"hidden_{i}")(x))
        return nn.Dense(10, kernel_init=glorot, name="digits")(x)


def apply(variables: Variables, images: jax.Array) -> Any:
    """Applies a network of any size: one function for all, so that `fit` knows it again."""
    params = variables["params"]
    units = params["hidden_0"]["kernel"].shape[1]
    return MLP(units, len(params) - 1).apply(variables, images)


def loss(variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean loss of a batch."""
    outputs = apply(variables, images)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def flops(variables: Variables) -> int:
    """Returns the floating-point operations of one training step for one image.

    A weight takes a multiplication and an addition forward, and twice that backward.
    """
    return sum(6 * kernel.size for kernel in jax.tree.leaves(variables) if kernel.ndim == 2)


# What is compared ---------------------------------------------------------------------------------


class Way(NamedTuple):
    """A way to grow: how new units are filled in, and what becomes of the optimizer's state."""

    strategy: str
    state: str


# The optimizer's state grows along, that of one that can grow or that of a plain one, with new
# second moments of zero or like the old ones; or it starts anew.
PLAIN: dict[str, Literal["mean", "zeros"]] = {"plain, zeros": "zeros", "plain, mean": "mean"}
STATES = ("growable", *PLAIN, "new")


def strategies(digits: mnist.Digits) -> dict[Way, dw.strategies.Strategy]:
    """Returns the strategy of each way to grow."""
    images = training.scale_uint8(jnp.asarray(digits.train_images[:1000]))
    batch = images, digits.train_labels[:1000]
    named = {
        "zero_outgoing": dw.strategies.zero_outgoing(),
        "gradmax": dw.strategies.gradmax(loss, *batch, variant="incoming"),
        "replicate, even": dw.strategies.replicate(),
        "replicate, uneven": dw.strategies.replicate(split="uneven"),
        "replicate, noise": dw.strategies.replicate(noise=0.1),
        "random": dw.strategies.random(),
    }
    return {
        Way(name, state): strategy
        for name, strategy in named.items()
        for state in STATES
        # Copies have the moments of the units they copy, whatever the others get.
        if state != "plain, zeros" or not name.startswith("replicate")
    }


class Stage(NamedTuple):
    """So many epochs with so many units in each hidden layer."""

    units: int
    epochs: int


def schedules(small: int, large: int, epochs: int) -> dict[str, list[Stage]]:
    """Returns the stages before the last one, in which the large network has what is left."""
    return {
        "early": [Stage(small, max(1, epochs // 8))],
        "two steps": [
            Stage(small, max(1, epochs // 4)),
            Stage(round((small * large) ** 0.5), max(1, epochs // 4)),
        ],
        "late": [Stage(small, epochs)],
    }


# Training and growing -----------------------------------------------------------------------------


class Point(NamedTuple):
    """What an epoch came to."""

    flops: int  # spent so far, before growing included
    loss: float  # on the test images, like the accuracy
    accuracy: float


class Network(NamedTuple):
    """A network in training, and where it has been."""

    variables: Variables
    tx: optax.GradientTransformation = ADAM
    opt_state: Any = None
    points: tuple[Point, ...] = ()

    @property
    def spent(self) -> int:
        """FLOPs spent so far."""
        return self.points[-1].flops if self.points else 0


def train(
    network: Network, digits: mnist.Digits, key: jax.Array, *, epochs: int, budget: int
) -> Network:
    """Trains for some epochs, or for as many as the budget of FLOPs allows."""
    data = digits.train_images, digits.train_labels
    test = digits.test_images, digits.test_labels
    variables, tx, opt_state, points = network
    cost = flops(variables) * len(data[0])
    for _ in range(min(epochs, (budget - network.spent) // cost)):
        run = training.fit(
            apply,
            variables,
            tx,
            data,
            epochs=1,
            batch_size=BATCH_SIZE,
            key=jax.random.fold_in(key, len(points)),
            opt_state=opt_state,
            progress=False,
        )
        variables, opt_state = run.variables, run.opt_state
        spent = cost + (points[-1].flops if points else 0)
        points = (*points, Point(spent, *training.evaluate(apply, variables, test)))
    return Network(variables, tx, opt_state, points)


def widen(
    network: Network, units: int, strategy: dw.strategies.Strategy, state: str, key: jax.Array
) -> Network:
    """Grows all hidden layers, and the optimizer's state with them."""
    widths = dw.trace(apply, network.variables, IMAGE)
    hidden = [name for name in network.variables["params"] if name.startswith("hidden")]
    growth = dw.plan(widths, dict.fromkeys(hidden, units), strategy=strategy)
    variables = dw.grow(network.variables, growth, key=key)
    if state == "new":
        return Network(variables, points=network.points)
    tx = ADAM if state in PLAIN else GROWABLE  # which takes over the state of a plain one
    opt_state = dw.grow_opt_state(network.opt_state, growth, tx, second_moment=PLAIN.get(state))
    return Network(variables, tx, opt_state, network.points)


class Curve(NamedTuple):
    """What one way of training came to, over all seeds."""

    flops: np.ndarray  # [points], spent so far
    loss: np.ndarray  # [seeds, points], on the test images
    accuracy: np.ndarray  # [seeds, points]
    before: int = 0  # FLOPs spent before the last growth
    change: float = 0.0  # largest difference in an output that growing made

    def reaches(self, accuracy: float, seed: int | None = None) -> float:
        """Returns the FLOPs after which the mean over seeds, or one, is as good; or infinity."""
        values = self.accuracy.mean(axis=0) if seed is None else self.accuracy[seed]
        return float(min(self.flops[values >= accuracy], default=np.inf))


def curve(networks: Sequence[Network], before: int = 0, change: float = 0.0) -> Curve:
    """Puts the runs of all seeds together, which have all spent the same."""
    points = np.array([network.points for network in networks])
    return Curve(points[0, :, 0], points[..., 1], points[..., 2], before, change)


def from_scratch(
    digits: mnist.Digits, keys: Sequence[jax.Array], units: int, layers: int, epochs: int
) -> Curve:
    """Trains networks that have had their size from the start."""
    networks = []
    for key in keys:
        init_key, fit_key = jax.random.split(key)
        network = Network(MLP(units, layers).init(init_key, jnp.zeros(IMAGE.shape)))
        budget = epochs * flops(network.variables) * len(digits.train_images)
        networks.append(train(network, digits, fit_key, epochs=epochs, budget=budget))
    return curve(networks)


def grown(
    digits: mnist.Digits,
    keys: Sequence[jax.Array],
    stages: Sequence[Stage],
    units: int,
    layers: int,
    budget: int,
    ways: Mapping[Way, dw.strategies.Strategy],
) -> dict[Way, Curve]:
    """Trains small networks, grows them in each way, and trains on until the budget is spent."""
    images = training.scale_uint8(jnp.asarray(digits.test_images[:1000]))
    runs: dict[Way, list[Network]] = {way: [] for way in ways}
    changes = dict.fromkeys(ways, 0.0)
    before = 0
    for key in keys:
        init_key, fit_key, grow_key = jax.random.split(key, 3)
        fit = functools.partial(train, digits=digits, key=fit_key, budget=budget)
        first, *others = [*stages, Stage(units, budget)]
        start = Network(MLP(first.units, layers).init(init_key, jnp.zeros(IMAGE.shape)))
        trained = fit(start, epochs=first.epochs)
        for way, strategy in ways.items():
            network = trained
            for stage in others:
                old, before = network, network.spent
                stage_key = jax.random.fold_in(grow_key, stage.units)
                network = widen(old, stage.units, strategy, way.state, stage_key)
                change = dw.compare(apply, old.variables, apply, network.variables, images)
                changes[way] = max(changes[way], change.absolute)
                network = fit(network, epochs=stage.epochs)
            runs[way].append(network)
    return {way: curve(runs[way], before, changes[way]) for way in ways}


# What came of it ----------------------------------------------------------------------------------


class Result(NamedTuple):
    """All that was measured, each with the same computing except for the small network."""

    small: Curve  # from scratch, for as many epochs as the large network
    large: Curve
    renewed: Curve  # the large network, with a new optimizer when the others grow early
    grown: dict[tuple[str, Way], Curve]  # by schedule and way

    @property
    def converged(self) -> tuple[float, float]:
        """Mean and standard deviation of the large network's accuracy from scratch.

        That of a seed is its mean over the last quarter of the epochs.
        """
        last = -(-len(self.large.flops) // 4)
        return mean_and_spread(self.large.accuracy[:, -last:].mean(axis=1))

    @property
    def bar(self) -> float:
        """The accuracy to reach: within one standard deviation of that from scratch."""
        mean, spread = self.converged
        return mean - spread

    @property
    def epoch(self) -> int:
        """FLOPs of an epoch of the large network: smaller differences cannot be told."""
        return int(self.large.flops[0])


def mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation over seeds, zero for a single one."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


HEADER = (
    f"{'schedule':<10} {'strategy':<17} {'state':<12} {'accuracy':>16} {'loss':>15} "
    f"{'output change':>14} {'to reach':>9} {'of it grown':>12}"
)


def row(schedule: str, way: Way, curve: Curve, result: Result) -> str:
    """Returns a row of the table; computing is in epochs of the large network."""
    accuracy, spread = mean_and_spread(curve.accuracy[:, -1])
    loss, loss_spread = mean_and_spread(curve.loss[:, -1])
    reached = curve.reaches(result.bar)
    change = f"{curve.change:.1e}" if curve.before else ""
    total, after = (
        f"{cost / result.epoch:.2f}" if cost < np.inf else "never"
        for cost in (reached, reached - curve.before)
    )
    return (
        f"{schedule:<10} {way.strategy:<17} {way.state:<12} {accuracy:>8.2%} ± {spread:.2%} "
        f"{loss:>7.4f} ± {loss_spread:.3f} {change:>14} {total:>9} {after:>12}"
    )


def verdict(result: Result) -> list[str]:
    """Returns what the measurements say, in sentences."""
    mean, spread = result.converged
    bar, large = result.bar, result.large
    lines = [
        f"From scratch, the large network comes to {mean:.2%} ± {spread:.2%}. It first reaches "
        f"{bar:.2%} {_after(large.reaches(bar), result)}.",
        "With a new optimizer early on, without growing, it does so "
        f"{_after(result.renewed.reaches(bar), result)}.",
    ]
    best = {}
    for schedule in dict.fromkeys(schedule for schedule, _ in result.grown):
        curves = {way: c for (name, way), c in result.grown.items() if name == schedule}
        way = min(curves, key=lambda way: (curves[way].reaches(bar), -curves[way].accuracy.mean()))
        found = best[f"{way.strategy}, state {way.state}, {schedule}"] = curves[way]
        lines.append(
            f"Grown {schedule}, the best way is {way.strategy}, state {way.state}: it does so "
            f"{_after(found.reaches(bar), result)}: {_judged(found, 0, result)}. "
            f"Where the small network is paid for: {_judged(found, found.before, result)}."
        )
    name, found = min(best.items(), key=lambda item: item[1].reaches(bar))
    if found.reaches(bar) < np.inf:
        seeds = range(len(found.accuracy))
        wins = sum(found.reaches(bar, seed) < large.reaches(bar, seed) for seed in seeds)
        lines.append(
            f"The fewest FLOPs of all: {name}; fewer than from scratch for {wins} of "
            f"{len(seeds)} seeds."
        )
    return lines


def _after(flops: float, result: Result) -> str:
    if flops == np.inf:
        return "never"
    return f"after {flops / result.epoch:.2f} epochs ({flops:.3g} FLOPs)"


def _judged(curve: Curve, paid: int, result: Result) -> str:
    """Says whether growing costs less than training from scratch, without what is paid."""
    scratch = result.large.reaches(result.bar)
    saved = scratch - (curve.reaches(result.bar) - paid)
    if saved == -np.inf:
        return "growing does not pay"
    share = f"{abs(saved) / scratch:.0%} {'less' if saved >= 0 else 'more'} than from scratch"
    if abs(saved) <= result.epoch:
        return f"no clear advantage, {share}, within an epoch"
    return f"growing {'pays' if saved > 0 else 'does not pay'}, {share}"


def picture(result: Result) -> Any:
    """Returns a figure of accuracy against FLOPs, a panel for each schedule."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(schedule for schedule, _ in result.grown))
    figure = Figure(figsize=(6 * len(names), 5), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
        _draw(ax, "from scratch", result.large, color="black")
        ways = [way for schedule, way in result.grown if schedule == name]
        colors = {strategy: f"C{i}" for i, strategy in enumerate(dict.fromkeys(w[0] for w in ways))}
        for way in ways:
            style = dict(zip(STATES, ("--", ":", "-.", "-"), strict=True))[way.state]
            label = f"{way.strategy}, state {way.state}"
            _draw(ax, label, result.grown[name, way], color=colors[way.strategy], linestyle=style)
        ax.axhline(result.bar, color="0.6", linewidth=1, label="to reach")
        lowest = float(result.large.accuracy.mean(axis=0)[0])
        ax.set(title=f"grown {name}", xlabel="FLOPs", ylim=(lowest - 0.01, None))
    panels[0].set_ylabel("accuracy on test images")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure


def _draw(ax: Any, label: str, curve: Curve, **style: Any) -> None:
    """Draws the mean over seeds, and a band of one standard deviation around it."""
    mean = curve.accuracy.mean(axis=0)
    spread = np.array([mean_and_spread(values)[1] for values in curve.accuracy.T])
    ax.plot(curve.flops, mean, marker=".", label=label, **style)
    ax.fill_between(curve.flops, mean - spread, mean + spread, alpha=0.1, color=style["color"])


def main(arguments: list[str] | None = None) -> Result:
    """Runs the example; returns what was measured."""
    options = parse(
        __doc__,
        arguments,
        counts={
            "epochs": (16, "epochs of the large network from scratch; all runs cost the same"),
            "seeds": (5, "how often each is run"),
            "units": (32, "hidden units of the small network"),
            "wide": (128, "hidden units of the large network"),
            "layers": (1, "hidden layers"),
        },
    )
    digits = options.digits._replace(
        train_images=jnp.asarray(options.digits.train_images),
        train_labels=jnp.asarray(options.digits.train_labels),
    )
    epochs, units, wide = options.epochs, options.units, options.wide
    keys = list(jax.random.split(jax.random.key(options.seed), options.seeds))
    small = from_scratch(digits, keys, units, options.layers, epochs)
    large = from_scratch(digits, keys, wide, options.layers, epochs)
    grow = functools.partial(
        grown, digits, keys, units=wide, layers=options.layers, budget=int(large.flops[-1])
    )
    plans = schedules(units, wide, epochs)
    # Growing to the same size changes nothing but the optimizer's state.
    same, ways = Way("from scratch", "new"), strategies(digits)
    renewed = grow([Stage(wide, plans["early"][0].epochs)], ways={same: ways[Way("random", "new")]})
    result = Result(small, large, renewed[same], {})
    print(HEADER)
    for size, scratch in (units, small), (wide, large):
        print(row("", Way(f"scratch, {size}", ""), scratch, result))
    print(row("", Way(f"scratch, {wide}", "new"), result.renewed, result), flush=True)
    for name, stages in plans.items():
        for way, found in grow(stages, ways=ways).items():
            result.grown[name, way] = found
            print(row(name, way, found, result), flush=True)
    print("\nAccuracy and loss are those on the test images at the end, over seeds. To reach the")
    print("accuracy of from scratch, and how much of it after growing, is in epochs of the large")
    print(f"network, of {result.epoch:.3g} FLOPs.\n")
    print("\n".join(verdict(result)))
    picture(result).savefig(options.out / "growth_vs_scratch.png", dpi=150)
    print(f"\nwritten to {options.out}: growth_vs_scratch.png")
    return result


if __name__ == "__main__":
    main()
