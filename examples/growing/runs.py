"""Runs: a network is trained, and may grow during training.

A run has one *trunk*, on which the learning rate is constant after a short warmup. For each budget
of floating-point operations, an *end* forks from the trunk, and its rate decays to zero over the
last fifth of the budget. So a run gives the whole curve of loss against budget, and each end equals
the result of a run with this budget alone.
"""

import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dogwood_jax as dw
from dogwood_jax import strategies
from growing.data import Batch, Data

Variables = Any
Loss = Callable[..., jax.Array]
Strategies = strategies.Start | Mapping[str, strategies.Start]

CHUNK = 20  # steps of a compiled call
DECAY = 0.2  # the share of a budget over which the rate decays
WARMUP = 200  # steps in which the rate rises; fewer in short runs


@dataclass(frozen=True)
class Size:
    """A network, and how the previous network grows into it.

    Attributes:
        model: the network.
        at: the share of the full budget that is spent before training in this size starts.
        strategy: how new units are initialized, for all widths or by name of the width; or a
            function that makes this from the network's loss and a batch.
        depth: how new layers are initialized; None for silent layers after the old ones.
        warmup: number of steps in which the rate of new weights rises.
        rate: factor on the learning rate while the network has this size.
    """

    model: nn.Module
    at: float = 0.0
    strategy: Strategies | Callable[[Loss, Batch], Strategies] | None = None
    depth: strategies.DepthStrategy | None = None
    warmup: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Way:
    """A way to train a network: its sizes, one after the other.

    Attributes:
        name: its name.
        sizes: the sizes; from scratch, only the large network.
    """

    name: str
    sizes: tuple[Size, ...]

    @property
    def grows(self) -> bool:
        """Whether it has more than one size."""
        return len(self.sizes) > 1

    def reaches(self, budget: float) -> bool:
        """Whether it has its last size before the rate decays, for a share of the full budget."""
        return self.sizes[-1].at < (1 - DECAY) * budget


@dataclass(frozen=True)
class Task:
    """A data set, and the ways to train on it.

    Attributes:
        name: its name.
        load: a function from the command line's options and the half to the data.
        steps: number of steps of the large network with the full budget.
        batch_size: number of samples in a step.
        rate: the learning rate, tuned for training from scratch.
        ways: the ways; the first one is from scratch. All ways end with the large network, except
            small networks that never grow.
        budgets: the budgets of the ends, as shares of the full budget.
        until: the accuracy at which a run ends; its budget is the result. None if the result is
            the loss for each budget.
        b2: the decay of second moments in Adam.
        baselines: the number of ways from scratch, which come first; one or two.
    """

    name: str
    load: Callable[[Any, int], Data]
    steps: int
    batch_size: int
    rate: float
    ways: tuple[Way, ...]
    budgets: tuple[float, ...]
    until: float | None = None
    b2: float = 0.99
    baselines: int = 1

    @property
    def large(self) -> nn.Module:
        """The large network."""
        return self.ways[0].sizes[-1].model


class End(NamedTuple):
    """The result of a run for a budget; a row of the file of results.

    Attributes:
        key: hash of the configuration: task and way with all their numbers.
        task: name of the task.
        way: name of the way.
        seed: seed of the first weights, the batches and the growth.
        asked: the requested budget, as a share of the full budget.
        budget: the budget that was spent; infinite if ``Task.until`` was not reached.
        before: the part of the budget that was spent before the last growth.
        steps: number of steps.
        loss: the test loss.
        last: the test loss over the last quarter of the positions.
        accuracy: the test accuracy over the last quarter of the positions.
        seconds: time since the start of the run.
        device: kind of the device.
    """

    key: str
    task: str
    way: str
    seed: int
    asked: float
    budget: float
    before: float
    steps: int
    loss: float
    last: float
    accuracy: float
    seconds: float
    device: str


def key_of(task: Task, way: Way, half: int) -> str:
    """Returns a hash of a run's configuration."""
    numbers = [task.name, half, task.steps, task.batch_size, task.rate, task.b2, task.until]
    sizes = [[_shown(getattr(size, part.name)) for part in fields(size)] for size in way.sizes]
    return hashlib.sha256(repr([numbers, way.name, sizes]).encode()).hexdigest()[:12]


def _shown(part: Any) -> str:
    """Returns a text for a part of a configuration, which is the same in each process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(part))


def losses_of(model: nn.Module, variables: Variables, batch: Any, train: bool = False) -> Any:
    """Returns losses of a batch, whether answers are right, and BatchNorm's new statistics."""
    inputs, labels = batch
    outputs, seen = model.apply(variables, inputs, train=train, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return losses, outputs.argmax(-1) == labels, seen


@functools.partial(
    jax.jit, static_argnames=("model", "tx", "unroll"), donate_argnames=("variables", "state")
)
def train_chunk(
    variables: Variables,
    state: Any,
    batches: Batch,
    rates: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    unroll: bool,
) -> tuple[Variables, Any]:
    """Takes a training step for each batch."""

    def step(carry: Any, now: Any) -> Any:
        (params, others, state), (batch, rate) = carry, now

        def objective(params: Any) -> Any:
            losses, _, seen = losses_of(model, {"params": params, **others}, batch, train=True)
            return losses.mean(), seen

        gradients, seen = jax.grad(objective, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates))
        return (params, {**others, **seen}, state), None

    others = {name: tree for name, tree in variables.items() if name != "params"}
    carry = (variables["params"], others, state)
    (params, others, state), _ = jax.lax.scan(step, carry, (batches, rates), unroll=unroll)
    return {"params": params, **others}, state


@functools.partial(jax.jit, static_argnames="model")
def test_chunk(variables: Variables, batch: Batch, *, model: nn.Module) -> jax.Array:
    """Returns loss, loss over the last quarter of positions, and accuracy there."""
    losses, right, _ = losses_of(model, variables, batch)
    last = losses.shape[-1] * 3 // 4 if losses.ndim > 1 else 0
    return jnp.stack([losses.mean(), losses[..., last:].mean(), right[..., last:].mean()])


def tested(model: nn.Module, variables: Variables, batch: Batch) -> list[float]:
    """Returns loss, loss over the last quarter of positions, and accuracy there."""
    size = 250
    parts = [
        test_chunk(variables, (batch[0][i : i + size], batch[1][i : i + size]), model=model)
        for i in range(0, len(batch[0]) - size + 1, size)
    ]
    return [float(value) for value in np.mean(parts, 0)]


@functools.cache
def optimizer(b2: float, warmup: int) -> optax.GradientTransformation:
    """Returns Adam without a learning rate; the same object for the same arguments."""
    return dw.growable(optax.scale_by_adam(b2=b2), warmup=warmup)


@functools.cache
def flops(model: nn.Module, shape: tuple[int, ...], dtype: Any) -> int:
    """Returns the FLOPs of a step."""
    inputs = jax.eval_shape(lambda: jnp.zeros(shape, dtype))
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    found = dw.cost(dw.trace(model.apply, variables, inputs)).flops
    assert found is not None
    return found[0]


def grown(
    before: nn.Module, size: Size, variables: Variables, state: Any, tx: Any, batch: Batch, key: Any
) -> tuple[Variables, Any]:
    """Returns the grown variables and the grown optimizer state."""

    def loss(variables: Variables, *batch: Any) -> jax.Array:
        mean: jax.Array = losses_of(size.model, variables, batch)[0].mean()
        return mean

    chosen = size.strategy
    if not (chosen is None or isinstance(chosen, strategies.Start | Mapping)):
        chosen = chosen(loss, batch)
    growth = dw.plan(
        dw.trace(before.apply, variables, batch[0]),
        target=jax.eval_shape(size.model.init, key, batch[0]),
        target_apply=size.model.apply,
        strategy=chosen,
        depth=size.depth,
    )
    wide = dw.grow(variables, growth, key=key)
    return wide, dw.grow_opt_state(state, growth, tx)


@dataclass
class _Training:
    """A network in training.

    Attributes:
        task: the task.
        data: the data of the task.
        seed: seed of the first weights, the batches and the growth.
        tx: the optimizer.
        model: the network.
        variables: its arrays.
        state: the optimizer's state.
        rate: the factor on the learning rate in the current size.
        spent: the share of the full budget that is spent.
        before: the share that was spent before the last growth.
        steps: number of steps taken.
        advance: called after some steps, with their share of the full budget.
    """

    task: Task
    data: Data
    seed: int
    tx: optax.GradientTransformation
    model: nn.Module
    variables: Variables
    state: Any
    rate: float
    advance: Callable[[float], None]
    spent: float = 0.0
    before: float = 0.0
    steps: int = 0

    def fork(self) -> "_Training":
        """Returns a copy that continues from this state."""
        copies = jax.tree.map(jnp.copy, (self.variables, self.state))
        kept = {part.name: getattr(self, part.name) for part in fields(self)}
        return _Training(**kept | {"variables": copies[0], "state": copies[1]})

    def cost_of_a_step(self) -> float:
        """Returns the share of the full budget that a step takes."""
        inputs = self.data.test[0][: self.task.batch_size]
        each, full = (
            flops(model, inputs.shape, inputs.dtype) for model in (self.model, self.task.large)
        )
        return each / (full * self.task.steps)

    def has_spent(self, share: float) -> bool:
        """Whether a share of the full budget is spent, to half a step."""
        return self.spent + self.cost_of_a_step() / 2 >= share

    def train(self, until: float, decays_from: float | None = None) -> None:
        """Trains until a share of the full budget is spent.

        Args:
            until: the share.
            decays_from: the share at which the rate starts to decay, to zero at the end.
        """
        cost = self.cost_of_a_step()
        warmup = max(1, min(WARMUP, self.task.steps // 40))
        while not self.has_spent(until):
            # Only two lengths, because each is compiled.
            count = CHUNK if round((until - self.spent) / cost) >= CHUNK else 1
            rates = np.minimum(1, (self.steps + np.arange(count) + 1) / warmup)
            rates *= self.rate * self.task.rate
            if decays_from is not None:
                spent = self.spent + (np.arange(count) + 0.5) * cost
                rates *= np.clip((until - spent) / (until - decays_from), 0, 1)
            self.variables, self.state = train_chunk(
                self.variables,
                self.state,
                self.data.batches(self.seed, self.steps, count, self.task.batch_size),
                jnp.asarray(rates, jnp.float32),
                model=self.model,
                tx=self.tx,
                # On CPU, XLA is nine times slower for convolutions within a loop.
                unroll="conv_0" in self.variables["params"],
            )
            self.steps += count
            self.spent += count * cost
            self.advance(count * cost)

    def grow(self, size: Size) -> None:
        """Grows to a new size; this costs as much as a step, because gradmax takes a gradient."""
        inputs, labels = self.data.batches(self.seed, self.steps, 1, self.task.batch_size)
        self.before = self.spent
        key = jax.random.fold_in(jax.random.key(self.seed), self.steps)
        self.variables, self.state = grown(
            self.model, size, self.variables, self.state, self.tx, (inputs[0], labels[0]), key
        )
        self.model, self.rate = size.model, size.rate
        self.spent += self.cost_of_a_step()


def ends_of(
    task: Task,
    way: Way,
    seed: int,
    data: Data,
    budgets: Sequence[float],
    half: int = 0,
    advance: Callable[[float], None] = lambda spent: None,
) -> Iterator[End]:
    """Trains in a way, and yields the result for each budget.

    Args:
        task: the task.
        way: the way.
        seed: seed of the first weights, the batches and the growth.
        data: the task's data.
        budgets: shares of the full budget, in rising order.
        half: the half of the data, for the key of the configuration.
        advance: called after some steps, with their share of the full budget.
    """
    started = time.perf_counter()
    first = way.sizes[0]
    tx = optimizer(task.b2, max(size.warmup for size in way.sizes))
    variables = first.model.init(jax.random.key(seed), data.test[0][:1])
    trunk = _Training(
        task,
        data,
        seed,
        tx,
        first.model,
        variables,
        tx.init(variables["params"]),
        first.rate,
        advance,
    )
    device = jax.devices()[0].device_kind

    def end(asked: float, training: _Training, budget: float) -> End:
        loss, last, accuracy = tested(training.model, training.variables, data.test)
        return End(
            key=key_of(task, way, half),
            task=task.name,
            way=way.name,
            seed=seed,
            asked=asked,
            budget=budget,
            before=training.before if way.grows else 0.0,
            steps=training.steps,
            loss=loss,
            last=last,
            accuracy=accuracy,
            seconds=round(time.perf_counter() - started, 1),
            device=device,
        )

    growths = {size.at: size for size in way.sizes[1:]}
    if task.until is not None:
        yield from _until(task, trunk, growths, max(budgets), end)
        return
    forks = {(1 - DECAY) * budget: budget for budget in budgets if way.reaches(budget)}
    for mark in sorted({*growths, *forks}):
        trunk.train(mark)
        if mark in growths:
            trunk.grow(growths[mark])
        if mark in forks:
            fork = trunk.fork()
            fork.train(forks[mark], decays_from=fork.spent)
            yield end(forks[mark], fork, fork.spent)


def _until(
    task: Task, trunk: _Training, growths: dict[float, Size], most: float, end: Callable[..., End]
) -> Iterator[End]:
    """Trains until an accuracy is reached, and yields the end."""
    assert task.until is not None
    for mark in [*sorted(growths), most]:
        while not trunk.has_spent(mark):
            trunk.train(min(mark, trunk.spent + 100 * trunk.cost_of_a_step()))
            if tested(trunk.model, trunk.variables, trunk.data.test)[-1] >= task.until:
                yield end(most, trunk, trunk.spent)
                return
        if mark in growths:
            trunk.grow(growths[mark])
    yield end(most, trunk, np.inf)
