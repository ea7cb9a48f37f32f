"""Does growing pay? Ways to grow against training the large network from scratch.

From scratch, the large network is trained with several budgets of floating-point operations, each
with a full schedule of its own, decay included. A grown run with the share b of the full budget
that ends with the loss that from scratch needs the share c for has the ratio b / c: below 1,
growing pays. All that a run has cost counts, the small network's training too, but for what gradmax
computes once when it grows. Learning rates are tuned for from scratch, and all ways take the same.
"""

import argparse
import csv
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dogwood_jax as dw
from dogwood_jax import mnist, strategies

Variables = Any
BUDGETS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # of from scratch, as shares of the full one
CHARACTERS = 96  # the printable ones of ASCII and the end of a line
CONTEXT = 64  # characters that a language model sees
CHUNK = 10  # steps of a compiled call

# Networks -----------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Relu units between the pixels and the digits."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        x = x.reshape(len(x), -1)
        return nn.Dense(10, name="digits")(nn.relu(nn.Dense(self.units, name="hidden")(x)))


class CNN(nn.Module):
    """Three convolutions with BatchNorm, the mean over the image, and the digits."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        x = x[..., None]
        for i, times in enumerate((1, 2, 2)):
            x = nn.Conv(times * self.channels, (3, 3), strides=(2, 2), name=f"conv_{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm_{i}")(x))
        return nn.Dense(10, name="digits")(x.mean((1, 2)))


class GRU(nn.Module):
    """Reads an image row by row, and says the digit at the end."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        states = jnp.asarray(nn.RNN(nn.GRUCell(self.units), name="rows")(x))
        return nn.Dense(10, name="digits")(states[:, -1])


class Transformer(nn.Module):
    """A decoder of characters."""

    layers: int
    stream: int = 64
    heads: int = 4

    @nn.compact
    def __call__(self, text: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, time, characters]`` of what follows each character of a text."""
        x = nn.Embed(CHARACTERS, self.stream, name="characters")(text)
        x += nn.Embed(CONTEXT, self.stream, name="positions")(jnp.arange(text.shape[1])[None])
        mask = nn.make_causal_mask(text)
        for i in range(self.layers):
            h = nn.RMSNorm(name=f"attention_norm_{i}")(x)
            x += nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")(h, mask=mask)
            h = nn.RMSNorm(name=f"mlp_norm_{i}")(x)
            h = nn.gelu(nn.Dense(4 * self.stream, name=f"up_{i}")(h))
            x += nn.Dense(self.stream, name=f"down_{i}")(h)
        return nn.Dense(CHARACTERS, name="logits")(nn.RMSNorm(name="norm")(x))


# Tasks --------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Inputs and labels to train on and to test with; of a text, windows are drawn."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def batches(self, seed: int, steps: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields chunks of batches ``[CHUNK, size, ...]``, the same ones for a seed."""
        rng = np.random.default_rng(seed)
        for start in range(0, steps, CHUNK):
            chosen = rng.integers(0, len(self.train[0]), (min(CHUNK, steps - start), size))
            yield self.train[0][chosen], self.train[1][chosen]


def digits(data: str) -> Data:
    """Returns the digits of MNIST as images in [0, 1]."""
    found = mnist.load(data)  # type: ignore[arg-type]
    images, test_images = (
        (array / 255).astype(np.float32) for array in (found.train_images, found.test_images[:5000])
    )
    labels, test_labels = (
        array.astype(np.int32) for array in (found.train_labels, found.test_labels[:5000])
    )
    return Data((images, labels), (test_images, test_labels))


def text(data: str) -> Data:
    """Returns windows of Python's help texts and of the sources of its standard library."""
    del data  # it ships with Python
    parts = [topics[name] for name in sorted(topics)]
    for path in sorted(Path(argparse.__file__).parent.glob("*.py")):
        parts.append(path.read_text("utf-8", "replace"))
    codes = np.frombuffer("\n".join(parts).encode("ascii", "replace"), np.uint8).astype(np.int32)
    numbers = np.where(codes == ord("\n"), CHARACTERS - 1, np.clip(codes - 32, 0, CHARACTERS - 2))
    numbers = numbers[:2_000_000]
    windows = np.lib.stride_tricks.sliding_window_view(numbers, CONTEXT)
    inputs, labels = windows[:-1], windows[1:]
    cut = len(inputs) * 9 // 10
    tests = np.arange(cut, len(inputs), CONTEXT)[:1000]
    return Data((inputs[:cut], labels[:cut]), (inputs[tests], labels[tests]))


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned, by which networks.

    Attributes:
        name: what it is called.
        large: the network to come to.
        small: the networks to begin with, by what they lack: ``"width"``, a ``"stream"`` as wide,
            ``"depth"``, or all ``"layers"`` but one.
        load: returns the data.
        steps: of the large network with the full budget.
        batch_size: samples a step.
        rate: the largest learning rate, tuned for from scratch.
        budget: the share of the full budget that grown runs take.
        moment: the share of their steps that the small network takes.
        b2: the decay of second moments in Adam.
    """

    name: str
    large: nn.Module
    small: dict[str, nn.Module]
    load: Callable[[str], Data]
    steps: int
    batch_size: int
    rate: float
    budget: float = 0.55
    moment: float = 0.15
    b2: float = 0.999


TASKS = {
    task.name: task
    for task in (
        Task(
            "MNIST, MLP",
            MLP(128),
            {"width": MLP(32)},
            digits,
            steps=5600,
            batch_size=128,
            rate=1e-3,
        ),
        Task(
            "MNIST, CNN",
            CNN(16),
            {"width": CNN(4)},
            digits,
            steps=600,
            batch_size=64,
            rate=1e-2,
        ),
        Task(
            "MNIST, GRU",
            GRU(64),
            {"width": GRU(16)},
            digits,
            steps=600,
            batch_size=64,
            rate=1e-2,
        ),
        Task(
            "text, transformer",
            Transformer(6),
            {
                "stream": Transformer(6, stream=32, heads=2),
                "depth": Transformer(2),
                "layers": Transformer(1),
            },
            text,
            steps=400,
            batch_size=16,
            rate=6e-3,
            budget=0.42,
            moment=0.75,
            b2=0.99,
        ),
    )
}


# Ways to grow -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to grow.

    Attributes:
        name: what it is called.
        lacks: what the small network lacks.
        strategy: from the loss of the larger network to how new units are filled in.
        depth: how new layers are filled in, if they are not silent.
        warmup: steps in which the rate of new weights warms up.
    """

    name: str
    lacks: str
    strategy: Callable[[Callable[..., Any], Any], Any] = lambda loss, batch: None
    depth: strategies.DepthStrategy | None = None
    warmup: int = 0


WAYS = (
    Way("default", "width"),
    Way(
        "gradmax",
        "width",
        lambda loss, batch: strategies.gradmax(loss, *batch, variant="incoming"),
    ),
    Way("replicate", "width", lambda loss, batch: strategies.replicate(split="uneven")),
    Way("hyperclone", "width", lambda loss, batch: strategies.hyperclone(state="new")),
    Way(
        "copies, new state",
        "width",
        lambda loss, batch: strategies.replicate(state="new"),
        warmup=50,
    ),
    Way("pairs", "width", lambda loss, batch: strategies.paired()),
    Way("shrink, perturb", "width", lambda loss, batch: strategies.shrink_perturb()),
    Way("random", "width", lambda loss, batch: strategies.random()),
    Way("default, wider", "stream"),
    Way("hyperclone, wider", "stream", lambda loss, batch: strategies.hyperclone(state="new")),
    Way("default, deeper", "depth"),
    Way("stack", "depth", depth=strategies.stack()),
    Way("interpose", "depth", depth=strategies.interpose()),
    Way("one layer, silent new", "layers"),
    Way("one layer, copies", "layers", depth=strategies.stack()),
    Way("one layer, random new", "layers", depth=strategies.new_layers()),
)


# Training -----------------------------------------------------------------------------------------


def constant(share: np.ndarray) -> np.ndarray:
    """Rates over a run: a short warmup, constant, and a linear decay over the last fifth."""
    return np.asarray(np.minimum(1, share / 0.03) * np.clip((1 - share) / 0.2, 0, 1))


def cosine(share: np.ndarray) -> np.ndarray:
    """Rates over a run: a short warmup, then half a cosine."""
    return np.asarray(np.minimum(1, share / 0.03) * (1 + np.cos(np.pi * share)) / 2)


SCHEDULES = {"constant, decay": constant, "cosine": cosine}


def loss_of(model: nn.Module, variables: Variables, batch: Any, train: bool = False) -> Any:
    """Returns the mean loss of a batch, and what BatchNorm has seen."""
    inputs, labels = batch
    outputs, seen = model.apply(variables, inputs, train=train, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return losses.mean(), seen


@functools.partial(jax.jit, static_argnames=("model", "tx"), donate_argnames=("variables", "state"))
def train_chunk(
    variables: Variables, state: Any, batches: Any, rates: jax.Array, *, model: Any, tx: Any
) -> tuple[Variables, Any]:
    """Takes a step for each of some batches."""

    def step(carry: Any, now: Any) -> Any:
        (params, others, state), (batch, rate) = carry, now

        def objective(params: Any) -> Any:
            return loss_of(model, {"params": params, **others}, batch, train=True)

        gradients, seen = jax.grad(objective, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates))
        return (params, {**others, **seen}, state), None

    others = {name: tree for name, tree in variables.items() if name != "params"}
    carry = (variables["params"], others, state)
    (params, others, state), _ = jax.lax.scan(step, carry, (batches, rates))
    return {"params": params, **others}, state


@functools.partial(jax.jit, static_argnames="model")
def test_chunk(variables: Variables, batch: Any, *, model: Any) -> jax.Array:
    """Returns the mean loss of a batch in evaluation."""
    loss: jax.Array = loss_of(model, variables, batch)[0]
    return loss


def tested(model: nn.Module, variables: Variables, data: Data) -> float:
    """Returns the test loss."""
    size = 500
    inputs, labels = data.test
    parts = [
        test_chunk(variables, (inputs[i : i + size], labels[i : i + size]), model=model)
        for i in range(0, len(inputs) - size + 1, size)
    ]
    return float(np.mean(parts))


@functools.cache
def optimizer(b2: float, warmup: int) -> optax.GradientTransformation:
    """Returns Adam without its rate; the same object for the same arguments."""
    return dw.growable(optax.scale_by_adam(b2=b2), warmup=warmup)


@functools.cache
def flops(model: nn.Module, shape: tuple[int, ...], dtype: Any) -> int:
    """Returns the floating-point operations of a training step on inputs of a shape."""
    inputs = jax.eval_shape(lambda: jnp.zeros(shape, dtype))
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    found = dw.cost(dw.trace(model.apply, variables, inputs)).flops
    assert found is not None
    return found[0]


def whole(steps: float) -> int:
    """Returns a number of steps as whole chunks."""
    return CHUNK * max(1, round(steps / CHUNK))


class Run(NamedTuple):
    """A training run: FLOPs and test losses as it went on, in shares of the full budget."""

    budgets: list[float]
    losses: list[float]


def train(
    task: Task,
    data: Data,
    seed: int,
    schedule: Callable[[np.ndarray], np.ndarray],
    budget: float,
    way: Way | None = None,
    moment: float = 0.0,
) -> Run:
    """Trains with a share of the full budget, from scratch or growing.

    Args:
        task: the task.
        data: its data.
        seed: of the first weights, the batches and the growth.
        schedule: rates by the share of steps.
        budget: the share of the full budget.
        way: how to grow; None to train the large network from scratch.
        moment: the share of steps that the small network takes.
    """
    tx = optimizer(task.b2, way.warmup if way else 0)
    large = task.large
    inputs = data.train[0][: task.batch_size]
    costs = {"large": flops(large, inputs.shape, inputs.dtype)}
    full, small = task.steps * costs["large"], large
    steps, first = whole(budget * task.steps), 0
    if way is not None:
        small = task.small[way.lacks]
        costs["small"] = flops(small, inputs.shape, inputs.dtype)
        mean = moment * costs["small"] + (1 - moment) * costs["large"]
        steps = max(whole(budget * full / mean), 2 * CHUNK)
        first = min(whole(moment * steps), steps - CHUNK)
    model, spent, run = small, 0, Run([], [])
    key = jax.random.key(seed)
    variables = model.init(key, data.train[0][:1])
    state = tx.init(variables["params"])
    done, marks = 0, {whole(steps * i / 10) for i in range(1, 11)}
    for batches in data.batches(seed, steps, task.batch_size):
        if way is not None and done == first:
            variables, state = grow(task, data, way, variables, state, tx, key)
            model = large
        count = len(batches[0])
        rates = task.rate * schedule((done + np.arange(count) + 0.5) / steps)
        variables, state = train_chunk(
            variables, state, batches, jnp.asarray(rates, jnp.float32), model=model, tx=tx
        )
        done += count
        spent += count * costs["large" if model is large else "small"]
        if done in marks:
            run.budgets.append(spent / full)
            run.losses.append(tested(model, variables, data))
    return run


def grow(
    task: Task, data: Data, way: Way, variables: Variables, state: Any, tx: Any, key: jax.Array
) -> tuple[Variables, Any]:
    """Grows the small network and its optimizer's state."""
    batch = data.train[0][: task.batch_size], data.train[1][: task.batch_size]
    large, small = task.large, task.small[way.lacks]
    target = jax.eval_shape(large.init, key, batch[0])
    growth = dw.plan(
        dw.trace(small.apply, variables, batch[0]),
        target=target,
        target_apply=large.apply,
        strategy=way.strategy(lambda v, *batch: loss_of(large, v, batch)[0], batch),
        depth=way.depth,
    )
    wide = dw.grow(variables, growth, key=jax.random.fold_in(key, 1))
    return wide, dw.grow_opt_state(state, growth, tx)


# What comes of it ---------------------------------------------------------------------------------


class Result(NamedTuple):
    """A run of the table."""

    task: str
    schedule: str
    way: str
    seed: int
    run: Run

    @property
    def budget(self) -> float:
        """The share of the full budget that it took."""
        return self.run.budgets[-1]

    @property
    def loss(self) -> float:
        """The test loss that it ended with."""
        return self.run.losses[-1]


SCRATCH = "from scratch"


def equivalent(loss: float, scratch: Sequence[Result]) -> float:
    """Returns the budget with which training from scratch ends with a loss, on average.

    Between the budgets that were tried it is interpolated. It is infinite for a loss that no budget
    came to, and zero for a loss that is worse than with the smallest one.
    """
    budgets = sorted({round(result.budget, 6) for result in scratch})
    means = [np.mean([r.loss for r in scratch if round(r.budget, 6) == b]) for b in budgets]
    # Of budgets that end alike, or worse than a smaller one, the smallest counts.
    best = [i for i, mean in enumerate(means) if mean < min(means[:i], default=np.inf)]
    if loss > means[best[0]]:
        return 0.0
    if loss < means[best[-1]]:
        return float("inf")
    losses = [-means[i] for i in best]
    return float(np.interp(-loss, losses, [budgets[i] for i in best]))


def ratio(results: Sequence[Result], scratch: Sequence[Result]) -> str:
    """Returns the ratio of a way: its budget by that from scratch for the same mean loss."""
    budget = np.mean([result.budget for result in results])
    budgets = [result.budget for result in scratch]
    loss = float(np.mean([result.loss for result in results]))
    needed = equivalent(loss, scratch)
    if needed == 0:
        return f"> {budget / min(budgets):.2f}"
    return f"< {budget / max(budgets):.2f}" if needed == np.inf else f"{budget / needed:.2f}"


def of(results: Sequence[Result], task: str, schedule: str, way: str) -> list[Result]:
    """Returns the runs of one way."""
    wanted = (task, schedule, way)
    return [r for r in results if (r.task, r.schedule, r.way) == wanted]


def table(results: Sequence[Result]) -> str:
    """Returns a row for each task, schedule and way: budget, loss, ratio."""
    lines = [f"{'task':<19}{'schedule':<17}{'way':<23}{'budget':>7}{'test loss':>18}{'ratio':>9}"]
    for task, schedule, way in dict.fromkeys((r.task, r.schedule, r.way) for r in results):
        runs = of(results, task, schedule, way)
        scratch = of(results, task, schedule, SCRATCH)
        for budget in sorted({round(r.budget, 3) for r in runs}):
            some = [r for r in runs if round(r.budget, 3) == budget]
            losses = np.array([r.loss for r in some])
            spread = losses.std(ddof=1) if len(losses) > 1 else 0.0
            line = f"{task:<19}{schedule:<17}{way:<23}{budget:>7.2f}"
            line += f"{losses.mean():>10.4f} ± {spread:.4f}"
            if way != SCRATCH:
                line += f"{ratio(some, scratch):>9}"
            lines.append(line)
    return "\n".join(lines)


def picture(results: Sequence[Result], task: str, schedule: str) -> Any:
    """Returns a figure of the losses as the runs went on: from scratch and the best ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    ways = dict.fromkeys(r.way for r in results if (r.task, r.schedule) == (task, schedule))
    ends = {
        way: np.mean([r.loss for r in of(results, task, schedule, way)])
        for way in ways
        if way != SCRATCH
    }
    default = [way for way in ends if way.startswith(("default", "one layer, silent"))]
    best = [way for way in sorted(ends, key=lambda way: ends[way]) if way not in default]
    shown = [SCRATCH, *default, *best][:5]
    for color, way in zip(("black", "C0", "C1", "C2", "C3"), shown):
        runs = of(results, task, schedule, way)
        if way == SCRATCH:
            last = max(r.budget for r in runs)
            runs = [r for r in runs if r.budget == last]
        budgets = np.mean([r.run.budgets for r in runs], axis=0)
        losses = np.mean([r.run.losses for r in runs], axis=0)
        ax.plot(budgets, losses, color=color, marker=".")
        ax.annotate(way, (budgets[-1], losses[-1]), xytext=(5, 0), textcoords="offset points")
    ax.set(
        xlabel="share of the FLOPs", ylabel="test loss", yscale="log", title=f"{task}, {schedule}"
    )
    ax.set(yscale="log", xlim=(0, 1.3))
    return figure


def main(arguments: list[str] | None = None) -> list[Result]:
    """Runs the bench; returns all runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed and an eighth of the steps")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="of each run; 3 of the transformer")
    parser.add_argument(
        "--data",
        choices=["subset", "tfds"],
        default="tfds",
        help="all 70,000 digits of tensorflow-datasets, or the 12,000 that come with the package",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    started = time.perf_counter()
    for task in (TASKS[name] for name in options.tasks):
        data = task.load(options.data)
        seeds = min(options.seeds, 3) if "transformer" in task.name else options.seeds
        schedules, budgets = SCHEDULES, [*BUDGETS]
        if options.quick:
            task, seeds = dataclasses.replace(task, steps=whole(task.steps / 8)), 1
            schedules, budgets = {"constant, decay": constant}, [0.25, 0.5, 1.0]
        ways = [way for way in WAYS if way.lacks in task.small]
        for name, schedule in schedules.items():
            runs: list[tuple[str, float, Way | None]]
            runs = [(SCRATCH, budget, None) for budget in budgets]
            runs += [(way.name, task.budget, way) for way in ways]
            for label, budget, way in runs:
                for seed in range(seeds):
                    run = train(task, data, seed, schedule, budget, way, task.moment)
                    results.append(Result(task.name, name, label, seed, run))
            picture(results, task.name, name).savefig(
                options.out / f"growbench_{task.name}_{name}.png".replace(", ", "_"), dpi=120
            )
        print(f"{task.name}: {time.perf_counter() - started:.0f} s", flush=True)
    with (options.out / "growbench.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "schedule", "way", "seed", "budget", "loss"])
        rows.writerows([r.task, r.schedule, r.way, r.seed, r.budget, r.loss] for r in results)
    print(table(results))
    return results


if __name__ == "__main__":
    main()
