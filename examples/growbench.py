"""Does growing pay? Ways to grow against training the large network from scratch.

From scratch, the large network is trained with several budgets of floating-point operations, each
with a full schedule of its own, decay included. A grown run with the share b of the full budget
that ends with the loss that from scratch needs the share c for has the ratio b / c: below 1,
growing pays. All that a run has cost counts: the small network's training too, and a growth as one
step of the large network, because gradmax takes as much. Learning rates are tuned for from scratch,
and all ways take the same.

There are three commands: ``table`` compares the ways to grow, ``rates`` what other learning rates
come to, and ``map`` how large the small network is best, and when it grows best.
"""

import argparse
import csv
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import advance, bar, run, say

import dogwood_jax as dw
from dogwood_jax import mnist, strategies

Variables = Any
BUDGETS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # of from scratch, as shares of the full one
FEW_BUDGETS = (0.25, 0.5, 1.0)  # in short
SCRATCH = "from scratch"
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
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{i}")
            x = nn.relu(norm(x))
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


def moved_digits(data: str) -> Data:
    """Returns the digits, each moved by up to three pixels up or down, left or right."""
    rng = np.random.default_rng(0)

    def moved(images: np.ndarray) -> np.ndarray:
        by = rng.integers(-3, 4, (len(images), 2))
        return np.stack([np.roll(image, at, (0, 1)) for image, at in zip(images, by, strict=True)])

    (images, labels), (test_images, test_labels) = digits(data)
    return Data((moved(images), labels), (moved(test_images), test_labels))


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
    tests = np.arange(cut, len(inputs), 4 * CONTEXT)[:500]
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
        moments: the share of their steps that the small network takes, by schedule.
        b2: the decay of second moments in Adam.
        rates: others to try.
        seeds: how often each run is made.
    """

    name: str
    large: nn.Module
    small: dict[str, nn.Module]
    load: Callable[[str], Data]
    steps: int
    batch_size: int
    rate: float
    budget: float = 0.55
    moments: tuple[float, ...] = (0.15, 0.15)
    b2: float = 0.999
    rates: tuple[float, ...] = ()
    seeds: int = 5


MNIST_MLP = Task(
    "MNIST, MLP",
    MLP(128),
    {"width": MLP(32)},
    digits,
    steps=2800,
    batch_size=128,
    rate=2e-3,
    rates=(1e-3, 2e-3, 4e-3, 8e-3),
)
TASKS = {
    task.name: task
    for task in (
        MNIST_MLP,
        dataclasses.replace(MNIST_MLP, name="moved digits, MLP", load=moved_digits),
        Task(
            "MNIST, CNN",
            CNN(16),
            {"width": CNN(4)},
            digits,
            steps=2000,
            batch_size=64,
            rate=2e-2,
            rates=(5e-3, 1e-2, 2e-2, 4e-2),
        ),
        Task(
            "MNIST, GRU",
            GRU(64),
            {"width": GRU(16)},
            digits,
            steps=1500,
            batch_size=64,
            rate=6e-3,
            moments=(0.3, 0.3),
            rates=(3e-3, 6e-3, 1e-2, 2e-2),
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
            steps=1000,
            batch_size=16,
            rate=6e-3,
            budget=0.42,
            moments=(0.9, 0.5),
            b2=0.99,
            rates=(3e-3, 6e-3, 1e-2),
            seeds=3,
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
        stays: whether the small network never grows. Where it ends as well, growing is needless.
    """

    name: str
    lacks: str
    strategy: Callable[[Callable[..., Any], Any], Any] = lambda loss, batch: None
    depth: strategies.DepthStrategy | None = None
    warmup: int = 0
    stays: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nothing is said of how to grow."""
        return self == Way(self.name, self.lacks)


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
    Way("small alone", "width", stays=True),
    Way("one layer alone", "layers", stays=True),
)
BY_NAME = {way.name: way for way in WAYS}


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
    # Within a loop, XLA on CPU computes convolutions nine times as slowly.
    unroll = isinstance(model, CNN)
    (params, others, state), _ = jax.lax.scan(step, carry, (batches, rates), unroll=unroll)
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
    after_chunk: Callable[[float], None] = lambda spent: None,
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
        after_chunk: called after some steps with the share of the full budget that they took.
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
        moment = 1.0 if way.stays else moment
        mean = moment * costs["small"] + (1 - moment) * costs["large"]
        steps = max(whole(budget * full / mean), 2 * CHUNK)
        first = steps if way.stays else min(whole(moment * steps), steps - CHUNK)
    model, spent, run = small, 0, Run([], [])
    key = jax.random.key(seed)
    variables = model.init(key, data.train[0][:1])
    state = tx.init(variables["params"])
    points = 5 if steps >= 20 * CHUNK else 2  # tests take longer than a few steps
    done, marks = 0, {whole(steps * (i + 1) / points) for i in range(points)}
    for batches in data.batches(seed, steps, task.batch_size):
        if done == first and way is not None:
            variables, state = grow(task, data, way, variables, state, tx, key)
            model = large
            spent += costs["large"]
        count = len(batches[0])
        rates = task.rate * schedule((done + np.arange(count) + 0.5) / steps)
        variables, state = train_chunk(
            variables, state, batches, jnp.asarray(rates, jnp.float32), model=model, tx=tx
        )
        done += count
        cost = count * costs["large" if model is large else "small"]
        spent += cost
        after_chunk(cost / full)
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


class Trial(NamedTuple):
    """A run to make: the way is the name of one, or ``SCRATCH``."""

    task: Task
    schedule: str
    way: str
    seed: int
    budget: float
    moment: float = 0.0

    @property
    def small(self) -> nn.Module | None:
        """The small network, or None from scratch."""
        return None if self.way == SCRATCH else self.task.small[BY_NAME[self.way].lacks]

    @property
    def begins(self) -> str:
        """What the small network's configuration says."""
        if self.small is None:
            return ""
        names = [field.name for field in dataclasses.fields(self.small)]
        names = [name for name in names if name not in ("parent", "name")]  # of any Flax module
        return " ".join(f"{name}={getattr(self.small, name)}" for name in names)

    @property
    def grows_at(self) -> str:
        """The share of the steps after which the network grows, if it does."""
        if self.way == SCRATCH or BY_NAME[self.way].stays:
            return ""
        return f"{self.moment:.0%}"


def from_scratch(task: Task, schedule: str, budgets: Sequence[float]) -> list[Trial]:
    """Returns the runs from scratch with some budgets, for all seeds."""
    seeds = range(task.seeds)
    return [Trial(task, schedule, SCRATCH, seed, budget) for budget in budgets for seed in seeds]


def grown(task: Task, schedule: str, ways: Sequence[Way]) -> list[Trial]:
    """Returns the runs of some ways to grow, as the task says, for all seeds."""
    moment = task.moments[list(SCHEDULES).index(schedule)]
    return [
        Trial(task, schedule, way.name, seed, task.budget, moment)
        for way in ways
        for seed in range(task.seeds)
    ]


class Result(NamedTuple):
    """A run that was made."""

    trial: Trial
    run: Run

    @property
    def budget(self) -> float:
        """The share of the full budget that it took."""
        return self.run.budgets[-1]

    @property
    def loss(self) -> float:
        """The test loss that it ended with."""
        return self.run.losses[-1]


def made(trials: Sequence[Trial], data: Data) -> list[Result]:
    """Makes the runs of one task, as many at once as there are processors."""

    def one(trial: Trial) -> Result:
        task, schedule, way, seed, budget, moment = trial
        rates = SCHEDULES[schedule]
        run = train(task, data, seed, rates, budget, BY_NAME.get(way), moment, advance)
        return Result(trial, run)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, trials))


def needed(loss: float, budgets: Sequence[float], losses: Sequence[float]) -> float:
    """Returns the budget that it takes to end with a loss.

    Between the budgets that were tried it is interpolated. It is infinite for a loss that no budget
    came to, and zero for a loss that is worse than with the smallest one. A budget that ends worse
    than a smaller one counts as if it ended alike.

    Args:
        loss: the loss.
        budgets: those that were tried, in rising order.
        losses: what they ended with.
    """
    best = np.minimum.accumulate(losses)
    if loss > best[0]:
        return 0.0
    if loss < best[-1]:
        return float("inf")
    first = int(np.argmax(best <= loss))  # that ends as well
    around = [max(first - 1, 0), first]
    return float(np.interp(-loss, -best[around], np.asarray(budgets)[around]))


def equivalent(loss: float, scratch: Sequence[Result]) -> float:
    """Returns the budget with which training from scratch ends with a loss, on average."""
    return needed(loss, *ends(scratch))


def ends(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    """Returns the budgets of some runs, and the mean loss that those of each budget end with."""
    budgets = sorted({round(result.budget, 3) for result in results})
    losses = [[r.loss for r in results if round(r.budget, 3) == budget] for budget in budgets]
    return budgets, [float(np.mean(some)) for some in losses]


class Ratio(NamedTuple):
    """A grown budget by the budget that from scratch needs; a bound, where none was tried."""

    value: float
    sign: str = ""  # ``>`` if from scratch ends better with any budget, ``<`` if with none

    def __str__(self) -> str:
        return f"{self.sign}{self.value:.2f}"


def ratio(results: Sequence[Result], scratch: Sequence[Result]) -> Ratio:
    """Returns the ratio of a way: its budget by that from scratch for the same mean loss."""
    budget = float(np.mean([result.budget for result in results]))
    budgets = [result.budget for result in scratch]
    alike = equivalent(float(np.mean([result.loss for result in results])), scratch)
    if alike == 0:
        return Ratio(budget / min(budgets), ">")
    if alike == np.inf:
        return Ratio(budget / max(budgets), "<")
    return Ratio(budget / alike)


Group = tuple[str, str, str]  # task, schedule, way


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """Returns the runs of each task, schedule and way."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        task, schedule, way, *_ = result.trial
        groups.setdefault((task.name, schedule, way), []).append(result)
    return groups


def table(results: Sequence[Result]) -> str:
    """Returns a row for each kind of run: budget, loss, ratio and the ratios of single seeds."""
    lines = [
        f"{'task':<24}{'schedule':<17}{'way':<23}{'small network':<28}{'grown at':>8}{'budget':>8}"
        f"{'test loss':>18}{'ratio':>8}  of single seeds"
    ]
    groups = grouped(results)
    rows: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        task, schedule, way, _, budget, _ = trial = result.trial
        row = task.name, schedule, way, trial.begins, trial.grows_at, budget
        rows.setdefault(row, []).append(result)
    for (name, schedule, way, small, moment, _), runs in rows.items():
        losses = np.array([run.loss for run in runs])
        spread = losses.std(ddof=1) if len(losses) > 1 else 0.0
        line = f"{name:<24}{schedule:<17}{way:<23}{small:<28}"
        line += f"{moment:>8}{np.mean([r.budget for r in runs]):>8.2f}"
        line += f"{losses.mean():>10.4f} ± {spread:.4f}"
        if small:
            scratch = groups[name, schedule, SCRATCH]
            singles = sorted(ratio([run], scratch) for run in runs)
            line += f"{ratio(runs, scratch)!s:>8}  {singles[0]} to {singles[-1]}"
        lines.append(line)
    return "\n".join(lines)


def write(results: Sequence[Result], path: Path) -> None:
    """Writes all runs as a CSV."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow("task schedule way rate small moment seed budget loss".split())
        for trial, run in results:
            task, schedule, way, seed, _, moment = trial
            end = run.budgets[-1], run.losses[-1]
            rows.writerow([task.name, schedule, way, task.rate, trial.begins, moment, seed, *end])


# The table ----------------------------------------------------------------------------------------


def of_ways(task: Task, quick: bool) -> list[Trial]:
    """Returns the runs from scratch and in all ways."""
    ways = [way for way in WAYS if way.lacks in task.small]
    trials = []
    for schedule in schedules_of(quick):
        trials += from_scratch(task, schedule, FEW_BUDGETS if quick else BUDGETS)
        trials += grown(task, schedule, ways)
    return trials


def draw_ways(results: Sequence[Result], task: Task, out: Path) -> None:
    """Draws a picture for each schedule."""
    for schedule in dict.fromkeys(result.trial.schedule for result in results):
        picture(results, task.name, schedule).savefig(out / file_name(task, schedule), dpi=120)


def schedules_of(quick: bool) -> list[str]:
    """Returns the schedules that are compared, in short the first one alone."""
    return list(SCHEDULES)[: 1 if quick else None]


def file_name(*parts: Task | str) -> str:
    """Returns the name of a picture: the command, and what it shows."""
    names = [part.name if isinstance(part, Task) else part for part in parts]
    return "_".join(["growbench", *names]).replace(",", "").replace(" ", "_") + ".png"


# Gray for networks that never grow; the palette's own gray is left out.
COLORS = {
    way.name: "0.5" if way.stays else f"C{(0, 1, 2, 3, 4, 5, 6, 8, 9)[n % 9]}"
    for n, way in enumerate(WAYS)
}


def picture(results: Sequence[Result], task: str, schedule: str) -> Any:
    """Returns a figure: where from scratch ends with each budget, and how grown runs went on.

    The default ways to grow are shown, the small network alone, and the best of the others. What a
    grown run saves is the distance from its end to the black line along the horizontal.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots()
    groups = {group[2]: runs for group, runs in grouped(results).items() if group[1] == schedule}
    scratch = groups.pop(SCRATCH)
    ax.plot(*ends(scratch), color="black", marker="o", label="from scratch, several budgets")
    rank = {way: float(np.mean([r.loss for r in runs])) for way, runs in groups.items()}
    first = [way for way in rank if BY_NAME[way].is_default or BY_NAME[way].stays]
    others = sorted((way for way in rank if way not in first), key=lambda way: rank[way])
    # The legend has the order in which the curves end, the worst at the top.
    shown = sorted([*first, *others][:4], key=lambda way: rank[way], reverse=True)
    for way in shown:
        budgets = np.mean([r.run.budgets for r in groups[way]], axis=0)
        losses = np.mean([r.run.losses for r in groups[way]], axis=0)
        label = f"{way}: {ratio(groups[way], scratch)}"
        ax.plot(budgets, losses, color=COLORS[way], linewidth=1, label=label)
        ax.plot(budgets[-1], losses[-1], "o", color=COLORS[way])
    ax.set(xlabel="FLOPs, as a share of the full budget", ylabel="test loss", yscale="log")
    ax.set_title(f"{task}; learning rate: {schedule}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    title = (
        "A dot is the end of a run.\nNumbers: FLOPs / FLOPs from\nscratch for the same test loss"
    )
    figure.legend(title=title, loc="outside right upper", alignment="left")
    return figure


# Learning rates -----------------------------------------------------------------------------------


def of_rates(task: Task, quick: bool) -> list[Trial]:
    """Returns the runs with other learning rates, from scratch and in the default ways."""
    (schedule, *_), seeds = SCHEDULES, min(task.seeds, 3)
    trials = []
    for rate in task.rates:
        name = f"{task.name}, {rate:g}"
        tried = dataclasses.replace(task, rate=rate, name=name, seeds=seeds)
        trials += from_scratch(tried, schedule, (0.5, 1.0) if quick else (0.4, 0.55, 0.7, 1.0))
        trials += grown(tried, schedule, defaults(task))
    return trials


def defaults(task: Task) -> list[Way]:
    """Returns the default ways of a task."""
    return [way for way in WAYS if way.lacks in task.small and way.is_default]


# The map ------------------------------------------------------------------------------------------

MOMENTS = (0.05, 0.15, 0.3, 0.5, 0.75, 0.9)
SMALL: dict[str, list[MLP] | list[Transformer]] = {
    "MNIST, MLP": [MLP(units) for units in (8, 16, 32, 64)],
    "text, transformer": [Transformer(layers) for layers in (1, 2, 3)],
}


def size_of(model: Any) -> str:
    """Returns how large a network of a map is."""
    if isinstance(model, MLP):
        return f"{model.units} units"
    return f"{model.layers} layer{'s' * (model.layers > 1)}"


def of_moments(task: Task, quick: bool) -> list[Trial]:
    """Returns the runs that grow by default from several sizes at several moments."""
    if task.name not in SMALL:
        return []
    task = dataclasses.replace(task, seeds=min(task.seeds, 3))
    way = defaults(task)[-1]
    trials = []
    for schedule in schedules_of(quick):
        trials += from_scratch(task, schedule, FEW_BUDGETS if quick else BUDGETS)
        for small in SMALL[task.name]:
            for moment in MOMENTS:
                moments = (moment,) * len(SCHEDULES)
                tried = dataclasses.replace(task, small={way.lacks: small}, moments=moments)
                trials += grown(tried, schedule, [way])
    return trials


def draw_moments(results: Sequence[Result], task: Task, out: Path) -> None:
    """Draws the map of ratios."""
    map_of(results, task, defaults(task)[-1]).savefig(out / file_name("map", task))


def map_of(results: Sequence[Result], task: Task, way: Way) -> Any:
    """Returns a figure of ratios: size of the small network by moment, a panel a schedule."""
    groups = grouped(results)
    ratios = {}
    for schedule in dict.fromkeys(result.trial.schedule for result in results):
        scratch, runs = (groups[task.name, schedule, name] for name in (SCRATCH, way.name))
        ratios[schedule] = [
            [
                ratio([r for r in runs if (r.trial.small, r.trial.moment) == at], scratch)
                for at in ((small, moment) for moment in MOMENTS)
            ]
            for small in SMALL[task.name]
        ]
    return map_of_ratios(ratios, task, len({result.trial.seed for result in results}))


def map_of_ratios(ratios: Mapping[str, Sequence[Sequence[Ratio]]], task: Task, seeds: int) -> Any:
    """Returns the figure of the ratios of each schedule, a row for each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(ratios), 4), layout="constrained", dpi=120)
    for ax, (schedule, cells) in zip(
        figure.subplots(1, len(ratios), squeeze=False)[0], ratios.items()
    ):
        ax.imshow([[cell.value for cell in row] for row in cells], "RdBu_r", vmin=0.3, vmax=1.7)
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                color = "black" if 0.5 < cell.value < 1.5 else "white"
                ax.text(x, y, str(cell), ha="center", va="center", color=color)
        ax.set_xticks(range(len(MOMENTS)), [f"{moment:.0%}" for moment in MOMENTS])
        ax.set_yticks(range(len(cells)), [size_of(small) for small in SMALL[task.name]])
        ax.set(xlabel="share of the steps before it grows", ylabel="size before it grows")
        ax.set_title(f"learning rate: {schedule}")
    units = f" of {task.large.stream} units" if isinstance(task.large, Transformer) else ""
    mean = "one seed" if seeds == 1 else f"mean of {seeds} seeds"
    best = "\n(<: it ends better than from scratch with any budget that was tried)"
    below = any(cell.sign == "<" for cells in ratios.values() for row in cells for cell in row)
    figure.suptitle(
        f"{task.name} that grows to {size_of(task.large)}{units}, {mean}\n"
        "number: its FLOPs / FLOPs from scratch for the same test loss; "
        f"blue, below 1: growing pays{best * below}"
    )
    return figure


class Command(NamedTuple):
    """What the bench can measure: the runs of a task, and the pictures of them."""

    trials: Callable[[Task, bool], list[Trial]]
    draw: Callable[[Sequence[Result], Task, Path], None] = lambda results, task, out: None


COMMANDS = {
    "table": Command(of_ways, draw_ways),
    "rates": Command(of_rates),
    "map": Command(of_moments, draw_moments),
}


def main(arguments: list[str] | None = None) -> list[Result]:
    """Runs the bench; returns all runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("command", nargs="?", default="table", choices=list(COMMANDS))
    parser.add_argument("--quick", action="store_true", help="one seed and few steps")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="of each run, at most; 3 of some")
    parser.add_argument(
        "--data",
        choices=["subset", "tfds"],
        default="tfds",
        help="all 70,000 digits of tensorflow-datasets, or the 12,000 that come with the package",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    command = COMMANDS[options.command]
    tasks: list[tuple[Task, list[Trial]]] = []
    for task in (TASKS[name] for name in options.tasks):
        seeds, steps = min(options.seeds, task.seeds), task.steps
        if options.quick:
            seeds, steps = 1, whole(task.steps / 16)
        task = dataclasses.replace(task, seeds=seeds, steps=steps)
        tasks.append((task, command.trials(task, options.quick)))
    results: list[Result] = []
    started = time.perf_counter()
    with bar(sum(trial.budget for _, trials in tasks for trial in trials)):
        for task, trials in tasks:
            if not trials:
                continue
            found = made(trials, task.load(options.data))
            command.draw(found, task, options.out)
            results += found
            write(results, options.out / f"growbench_{options.command}.csv")
            say(f"{task.name}: {time.perf_counter() - started:.0f} s")
    print(table(results))
    return results


if __name__ == "__main__":
    run(main)
