"""Does growing pay on MNIST? Compares growing during training with training from scratch.

The large network is trained from scratch with several budgets of floating-point operations. A small
network is trained for an epoch, grows and trains on, with comparable budgets. Each run has its own
full schedule: a constant rate, then a linear decay. The horizontal distance between the two curves
is what growing saves. See `growbench.py` for more tasks and ways to grow.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, parse, run, say
from growing.results import needed

import dogwood_jax as dw
from dogwood_jax import mnist, training
from dogwood_jax.training import Stage

Variables = Mapping[str, Any]
BATCH_SIZE = 128
RATE = 1e-3
SHARES = (0.4, 0.55, 0.7, 0.85, 1.0)  # of the full budget
IMAGE = jax.ShapeDtypeStruct((1, 28, 28), jnp.float32)


class MLP(nn.Module):
    """784 pixels, a hidden layer of relu units, 10 digits."""

    units: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        x = images.reshape(len(images), -1)
        return nn.Dense(10, name="digits")(nn.relu(nn.Dense(self.units, name="hidden")(x)))


def apply(variables: Variables, images: jax.Array) -> Any:
    """Applies a network of any size; `fit` keeps its compiled programs for this one function."""
    return MLP(variables["params"]["hidden"]["kernel"].shape[1]).apply(variables, images)


class End(NamedTuple):
    """The end of a run."""

    budget: float  # spent, in epochs of the large network
    loss: float  # on the test images, like the accuracy
    accuracy: float


def trained(digits: mnist.Digits, units: int, stages: Sequence[Stage], key: jax.Array) -> Any:
    """Trains a network through stages, with a schedule over all of them; returns the variables."""
    data = digits.train_images, digits.train_labels
    steps = sum(stage.epochs or 0 for stage in stages) * -(-len(data[0]) // BATCH_SIZE)
    decay = optax.linear_schedule(RATE, 0, steps // 5)
    tx = dw.growable(optax.adam(optax.join_schedules([lambda _: RATE, decay], [steps * 4 // 5])))
    init_key, fit_key = jax.random.split(key)
    return fit(
        apply,
        MLP(units).init(init_key, jnp.zeros(IMAGE.shape)),
        tx,
        data,
        stages=stages,
        batch_size=BATCH_SIZE,
        key=fit_key,
    ).variables


def cost_of_small(units: int, wide: int) -> float:
    """Returns the cost of a small network's step, in steps of the large network."""
    variables = jax.eval_shape(MLP(units).init, jax.random.key(0), IMAGE)
    flops = dw.cost(dw.trace(apply, variables, IMAGE), {"hidden": wide}).flops
    assert flops is not None  # always known for a traced network
    return flops[0] / flops[1]


def budgets_of(epochs: int) -> list[int]:
    """Returns each budget, in epochs of the large network."""
    return list(dict.fromkeys(max(1, round(share * epochs)) for share in SHARES))


def measured(
    digits: mnist.Digits, keys: Sequence[jax.Array], units: int, wide: int, epochs: int
) -> dict[str, list[list[End]]]:
    """Returns the ends of runs from scratch and of grown ones: by budget, then by seed."""
    cost, test = cost_of_small(units, wide), (digits.test_images, digits.test_labels)
    ends: dict[str, list[list[End]]] = {"from scratch": [], "grown": []}
    for share in budgets_of(epochs):
        ways = {
            "from scratch": (wide, [Stage(epochs=share)], float(share)),
            "grown": (
                units,
                [Stage(epochs=1), Stage(sizes={"hidden": wide}, epochs=share)],
                share + cost,
            ),
        }
        for name, (first, stages, budget) in ways.items():
            found = []
            for key in keys:
                variables = trained(digits, first, stages, key)
                found.append(End(budget, *training.evaluate(apply, variables, test)))
            ends[name].append(found)
            say(row(name, found))
    return ends


HEADER = f"{'':<14}{'budget':>8}{'test loss':>18}{'accuracy':>18}"


def row(name: str, ends: Sequence[End]) -> str:
    """Returns a row of the table."""
    budget, loss, accuracy = np.mean(ends, axis=0)
    _, loss_spread, spread = np.std(ends, axis=0, ddof=1) if len(ends) > 1 else np.zeros(3)
    return (
        f"{name:<14}{budget:>8.2f}{loss:>9.4f} ± {loss_spread:.4f}{accuracy:>9.2%} ± {spread:.2%}"
    )


def verdict(ends: Mapping[str, list[list[End]]]) -> list[str]:
    """Returns a sentence for each budget: what growing saves."""
    budgets, losses = np.mean(ends["from scratch"], axis=1)[:, :2].T
    lines = []
    for budget, loss, _ in np.mean(ends["grown"], axis=1):
        start = f"Grown with a budget of {budget:.2f} epochs: "
        alike = needed(loss, budgets, losses)
        if alike == 0:
            lines.append(f"{start}from scratch ends better with every budget.")
        elif alike == np.inf:
            lines.append(f"{start}from scratch ends worse with every budget.")
        else:
            lines.append(
                f"{start}from scratch needs {alike:.2f}, the ratio is {budget / alike:.2f}."
            )
    return lines


def picture(ends: Mapping[str, list[list[End]]], units: int, wide: int) -> Any:
    """Returns a figure of the test loss by budget, with all seeds as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    ax = figure.subplots()
    names = {
        "from scratch": f"from scratch: {wide} units",
        "grown": f"grown: {units} units for an epoch, then {wide}",
    }
    for color, (name, found) in zip(("black", "C0"), ends.items(), strict=True):
        every = np.array(found)
        budgets, losses = np.mean(every, axis=1)[:, :2].T
        ax.plot(budgets, losses, color=color, marker="o", label=names[name])
        ax.plot(*every[..., :2].reshape(-1, 2).T, ".", color=color, alpha=0.3)
    seeds = len(next(iter(ends.values()))[0])
    single = f"single runs, {seeds} seed{'s' * (seeds > 1)} each"
    ax.plot([], [], ".", color="0.5", alpha=0.6, label=f"the ends of {single}")
    ax.set(
        xlabel="FLOPs of a run, in epochs of the large network",
        ylabel="test loss at the end of the run",
    )
    figure.legend(loc="outside upper left")
    return figure


def main(arguments: list[str] | None = None) -> dict[str, list[list[End]]]:
    """Runs the example; returns the measurements."""
    options = parse(
        __doc__,
        arguments,
        counts={
            "epochs": (10, "epochs of the full budget, from scratch"),
            "seeds": (5, "number of seeds for each run"),
            "units": (32, "hidden units of the small network"),
            "wide": (128, "hidden units of the large network"),
        },
    )
    digits = options.digits._replace(
        train_images=jnp.asarray(options.digits.train_images),
        train_labels=jnp.asarray(options.digits.train_labels),
    )
    keys = list(jax.random.split(jax.random.key(options.seed), options.seeds))
    print(HEADER)
    with bar(options.seeds * sum(2 * share + 1 for share in budgets_of(options.epochs))):
        ends = measured(digits, keys, options.units, options.wide, options.epochs)
    print("\nA budget is in epochs of the large network, all training of the small one included.\n")
    print("\n".join(verdict(ends)))
    picture(ends, options.units, options.wide).savefig(
        options.out / "growth_vs_scratch.png", dpi=150
    )
    print(f"\nwritten to {options.out}: growth_vs_scratch.png")
    return ends


if __name__ == "__main__":
    run(main)
