"""Online permuted MNIST: does a network still learn after it has learned a hundred tasks?

Each task has a new permutation of the pixels and shows each image once. The network keeps learning.
It is measured by its online accuracy, the accuracy on each batch before learning from it. Plain
backprop learns late tasks worse than early tasks, which is called loss of plasticity. The other
ways regularize the weights, renew units with ``dw.renew``, or grow.

Reference: Dohare et al., 2024, Loss of plasticity in deep continual learning. The setting is the
smaller one of Kumar, Marklund and Van Roy, 2023, Maintaining plasticity via regenerative
regularization.
"""

import csv
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import advance, bar, parse, run, say

import dogwood_jax as dw

Params = dict[str, dict[str, jax.Array]]

PIXELS, LAYERS, UNITS, CLASSES = 784, 3, 100, 10  # hidden layers, and units in each
BATCH_SIZE, RATE = 16, 1e-3
ENDS = 10  # tasks at the beginning and at the end that the table compares
SCORED = 1000  # images for which dormant units are counted
SEEDS = "seeds"  # the name of the axis that vmap adds
he = jax.nn.initializers.he_uniform()


class Way(NamedTuple):
    """A way to keep learning."""

    name: str
    sizes: tuple[int, ...] = (UNITS,)  # of each hidden layer, for equal parts of the tasks
    decay: float = 0.0  # of weights, as a part of their gradient
    noise: float = 0.0  # standard deviation of the noise that each step adds to weights
    every: int = 0  # steps between the renewals of ReDo
    tau: float = 0.0  # ReDo renews units with at most this score
    share: float = 0.0  # of the units that continual backprop renews in a step


# The strengths are the best powers of ten, and ReDo's settings the best of two values each, by the
# mean accuracy on another seed. The sizes of the growing network were not tuned.
WAYS = (
    Way("plain backprop"),
    Way("L2", decay=1e-3),
    Way("shrink and perturb", decay=1e-3, noise=1e-4),
    Way("ReDo", every=125, tau=0.025),
    Way("continual backprop", share=1e-3),
    Way("growing", sizes=(20, 40, 60, 80, 100)),
    Way("growing, L2", sizes=(20, 40, 60, 80, 100), decay=1e-3),
)

# The network --------------------------------------------------------------------------------------


def init(key: jax.Array, units: int) -> Params:
    """Returns random weights of a multilayer perceptron."""
    sizes, keys = [PIXELS, *[units] * LAYERS, CLASSES], jax.random.split(key, LAYERS + 1)
    return {
        f"layer_{number}": {"kernel": he(one, sides), "bias": jnp.zeros(sides[1])}
        for number, (one, sides) in enumerate(zip(keys, zip(sizes, sizes[1:])))
    }


def apply(params: Params, x: jax.Array) -> jax.Array:
    """Returns logits ``[n, classes]`` of images ``[n, pixels]``, for a network of any size."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ last["kernel"] + last["bias"][None]


def loss(params: Params, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss of a batch, and the share of correct predictions."""
    logits = apply(params, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), jnp.mean(logits.argmax(-1) == labels)


# Learning -----------------------------------------------------------------------------------------


class Learner(NamedTuple):
    """A network in training."""

    params: Params
    opt_state: Any
    utility: Any = ()  # of units, if continual backprop renews them


def optimizer(way: Way) -> Any:
    """Returns Adam with L2 regularization in the gradient; its state can grow or be renewed."""
    links = [optax.add_decayed_weights(way.decay)] if way.decay else []
    tx = optax.chain(*links, optax.adam(RATE))
    return dw.growable(tx, renewable=bool(way.every or way.share))


def learning(way: Way, widths: dw.Widths, tx: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns two functions: one creates a learner, the other one learns a batch of images."""
    utility = dw.training.utility(apply, widths, share=way.share) if way.share else None

    def begin(key: jax.Array) -> Learner:
        params = init(key, way.sizes[0])
        return Learner(params, tx.init(params), utility.init(params) if utility else ())

    def renewed(learner: Learner, masks: dict[str, jax.Array], key: jax.Array) -> Learner:
        def renew() -> Learner:
            new = dw.renew(*learner[:2], widths, masks, key=key, tx=tx, init=he)
            return Learner(*new, learner.utility)

        # Reduced over all seeds, because a cond with a mapped predicate runs both branches.
        some = jax.lax.pmax(jnp.any(jnp.stack([*masks.values()])), SEEDS)
        return jax.lax.cond(some, renew, lambda: learner)

    def learn(
        learner: Learner, x: jax.Array, labels: jax.Array, number: jax.Array, key: jax.Array
    ) -> tuple[Learner, jax.Array]:
        params, opt_state, used = learner
        grads, right = jax.grad(loss, has_aux=True)(params, x, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        after = optax.apply_updates(params, updates)
        if way.noise:
            noise = optax.tree_utils.tree_random_like(key, params)
            after = jax.tree.map(lambda a, b: a + way.noise * b, after, noise)
        if utility:
            # Uses the old weights, because their activations are already computed.
            masks, used = utility.update(used, params, x)
            return renewed(Learner(after, opt_state, used), masks, key), right
        learner = Learner(after, opt_state)
        if not way.every:
            return learner, right
        return jax.lax.cond(
            (number + 1) % way.every == 0,
            lambda: renewed(learner, dw.dormant(apply, after, widths, x, tau=way.tau), key),
            lambda: learner,
        ), right

    return begin, learn


def grown(
    learner: Learner, widths: dw.Widths, size: int, keys: jax.Array, tx: Any
) -> tuple[Learner, dw.Widths]:
    """Returns the learners of all seeds with ``size`` units in each hidden layer, and widths."""
    sizes = {f"layer_{number}": size for number in range(LAYERS)}
    growth = dw.plan(widths, sizes, strategy=dw.strategies.zero_outgoing(he))

    def grow(learner: Learner, key: jax.Array) -> Learner:
        opt_state = dw.grow_opt_state(learner.opt_state, growth, tx)
        return Learner(dw.grow(learner.params, growth, key=key), opt_state)

    return jax.jit(jax.vmap(grow))(learner, keys), growth.after


def task(key: jax.Array, images: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Draws a permutation of the pixels, and images in a random order: ``[steps, batch]``."""
    pixels_key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))[: steps * BATCH_SIZE]
    pixels = jax.random.permutation(pixels_key, PIXELS)
    return pixels, order.reshape(steps, BATCH_SIZE)


def over_a_task(learn: Callable[..., Any], steps: int) -> Any:
    """Returns a compiled function in which the learners of all seeds learn one task each.

    It takes the learners, keys, images and labels, and returns the learners and their online
    accuracies.
    """

    def one(
        learner: Learner, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[Learner, jax.Array]:
        pixels, order = task(key, images, steps)

        def step(learner: Learner, now: Any) -> tuple[Learner, jax.Array]:
            number, chosen, key = now
            return learn(learner, images[chosen][:, pixels], labels[chosen], number, key)

        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        learner, right = jax.lax.scan(step, learner, (jnp.arange(steps), order, keys))
        return learner, jnp.mean(right)

    return jax.jit(jax.vmap(one, (0, 0, None, None), axis_name=SEEDS))


# Results ------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """Measurements of a way with one seed."""

    way: str
    seed: int
    seconds: float  # per task, for all seeds
    dormant: float  # share of dormant units at the end
    accuracies: tuple[float, ...]  # online, of each task


def measured(
    way: Way, digits: dw.mnist.Digits, seeds: Sequence[int], tasks: int, steps: int
) -> list[Result]:
    """Learns all tasks in one way, with all seeds at once."""
    images = jnp.asarray(digits.train_images.reshape(-1, PIXELS) / 255, jnp.float32)
    data, tx = (images, jnp.asarray(digits.train_labels, jnp.int32)), optimizer(way)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    fold = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
    widths = dw.trace(apply, jax.eval_shape(lambda: init(keys[0], way.sizes[0])), images[:1])
    learner = jax.jit(jax.vmap(learning(way, widths, tx)[0]))(keys)
    curves, seconds = [], []
    for size, part in zip(way.sizes, np.array_split(np.arange(tasks), len(way.sizes)), strict=True):
        if not part.size:
            break  # there are fewer tasks than sizes
        if size > widths["layer_0"].size:
            learner, widths = grown(learner, widths, size, fold(keys, tasks + size), tx)
        learn = over_a_task(learning(way, widths, tx)[1], steps)
        times = []
        for number in part:
            start = time.perf_counter()
            learner, right = jax.block_until_ready(learn(learner, fold(keys, number), *data))
            times.append(time.perf_counter() - start)
            curves.append(right)
            advance()
        # The fastest task counts, because other programs may slow down the others.
        seconds += [min(times)] * len(times)

    def dormant_share(params: Params, key: jax.Array) -> jax.Array:
        pixels, _ = task(key, images, steps)
        masks = dw.dormant(apply, params, widths, images[:SCORED][:, pixels])
        return jnp.mean(jnp.concatenate([*masks.values()]))

    shares = jax.jit(jax.vmap(dormant_share))(learner.params, fold(keys, tasks - 1))
    return [
        Result(way.name, seed, float(np.mean(seconds)), float(share), (*map(float, curve),))
        for seed, share, curve in zip(seeds, shares, jnp.stack(curves, axis=1), strict=True)
    ]


def write(results: Sequence[Result], path: Path) -> None:
    """Writes a row for each way and seed."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*Result._fields[:-1], *range(1, len(results[0].accuracies) + 1)])
        for way, seed, *figures, curve in results:
            rows.writerow([way, seed, *(f"{figure:.4f}" for figure in (*figures, *curve))])


def read(path: Path) -> list[Result]:
    """Returns the results in a file."""
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [
        Result(way, int(seed), float(seconds), float(dormant), (*map(float, accuracies),))
        for way, seed, seconds, dormant, *accuracies in rows
    ]


def by_way(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Groups results by way."""
    ways: dict[str, list[Result]] = {}
    for result in results:
        ways.setdefault(result.way, []).append(result)
    return ways


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table with a row for each way: means over seeds and standard errors."""
    lines = [
        f"| way | first {ENDS} tasks | last {ENDS} tasks | difference | dormant units | cost |",
        "|---|---|---|---|---|---|",
    ]
    plain = results[0].seconds
    for way, runs in by_way(results).items():
        curves = np.array([run.accuracies for run in runs])
        first, last = curves[:, :ENDS].mean(1), curves[:, -ENDS:].mean(1)
        columns = [_mean(first, ""), _mean(last, ""), _mean(last - first, "+")]
        dormant = np.mean([run.dormant for run in runs])
        columns += [f"{dormant:.0%}", f"{runs[0].seconds / plain:.1f}"]
        lines.append(f"| {way} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _mean(shares: np.ndarray, sign: str) -> str:
    error = np.std(shares, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else 0
    return f"{np.mean(shares):{sign}.1%} ± {error:.1%}"


def picture(results: Sequence[Result]) -> Any:
    """Returns a figure of the online accuracy by task: means and ranges over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    for way, runs in by_way(results).items():
        curves = np.array([run.accuracies for run in runs])
        tasks = np.arange(1, curves.shape[1] + 1)
        ax.plot(tasks, curves.mean(0), label=way)
        ax.fill_between(tasks, curves.min(0), curves.max(0), alpha=0.2, linewidth=0)
    ax.set(xlabel="task", ylabel="online accuracy")
    ax.yaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def main(arguments: list[str] | None = None) -> list[Result]:
    """Runs the example; returns the measurements."""
    options = parse(
        __doc__,
        arguments,
        counts={
            "tasks": (120, "permutations, one after the other"),
            "images": (10_000, "images of each task, in batches of 16"),
            "seeds": (3, "number of seeds for each way"),
        },
        quick={"tasks": 2, "images": 960},
    )
    tasks, steps = options.tasks, options.images // BATCH_SIZE
    seeds = range(options.seed, options.seed + options.seeds)
    results: list[Result] = []
    with bar(len(WAYS) * tasks):
        for way in WAYS:
            results += measured(way, options.digits, seeds, tasks, steps)
            say(f"{way.name}: {np.mean([run.accuracies for run in results[-len(seeds) :]]):.1%}")
    write(results, options.out / "permuted_mnist.csv")
    results = read(options.out / "permuted_mnist.csv")  # the rounded values
    print(f"\n{table(results)}")
    picture(results).savefig(options.out / "permuted_mnist.png", dpi=150)
    print(f"\nwritten to {options.out}: permuted_mnist.csv, permuted_mnist.png")
    return results


if __name__ == "__main__":
    run(main)
