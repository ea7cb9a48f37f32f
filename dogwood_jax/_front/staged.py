"""The cost of a training run in stages: ``staged_cost``."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import jax

from dogwood_jax._base.arguments import is_count
from dogwood_jax._base.problems import listed
from dogwood_jax._base.tables import table
from dogwood_jax._base.trees import is_array, leaves_by_path
from dogwood_jax._front.counts import Counts
from dogwood_jax._front.stages import Stage, planned, stages_problems, steps_of
from dogwood_jax._widths.trace import read_network
from dogwood_jax._widths.widths import Widths


@dataclass(frozen=True)
class RunCost:
    """The cost of a training run in stages; ``print`` shows a table.

    Attributes:
        steps: how many steps each stage takes.
        parameters: the number of parameters in each stage, counted as for `Cost`.
        flops_a_step: floating-point operations of one training step in each stage.
    """

    steps: tuple[int, ...]
    parameters: tuple[int, ...]
    flops_a_step: tuple[int, ...]

    @property
    def flops(self) -> tuple[int, ...]:
        """Floating-point operations of each stage."""
        return tuple(map(operator.mul, self.steps, self.flops_a_step))

    @property
    def total(self) -> int:
        """Floating-point operations of the whole run."""
        return sum(self.flops)

    @property
    def from_scratch(self) -> int:
        """Floating-point operations of the same number of steps with the last network."""
        return sum(self.steps) * self.flops_a_step[-1]

    @property
    def ratio(self) -> float:
        """``total / from_scratch``; NaN if there are no FLOPs."""
        return self.total / self.from_scratch if self.from_scratch else nan

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("stage", "steps", "parameters", "FLOPs a step", "FLOPs", "share")
        ]
        of_stages = zip(self.steps, self.parameters, self.flops_a_step, self.flops, strict=True)
        for number, counts in enumerate(of_stages):
            share = f"{counts[-1] / self.total:.1%}" if self.total else ""
            rows.append((str(number), *(f"{count:,}" for count in counts), share))
        rows.append(("sum", f"{sum(self.steps):,}", "", "", f"{self.total:,}", ""))
        last = sum(self.steps), self.parameters[-1], self.flops_a_step[-1], self.from_scratch
        rows.append(("from scratch", *(f"{count:,}" for count in last), ""))
        return f"{table(rows)}\nsum / from scratch: {self.ratio:.3g}"


def staged_cost(widths: Widths, stages: Sequence[Stage], samples: int | None) -> RunCost:
    """Returns the cost of a training run in stages; see ``cost``."""
    problems = _problems(widths, stages, samples)
    network = widths.network
    if problems or network is None:
        raise ValueError(listed("cannot determine this cost", problems))
    an_epoch = -(-(samples or 0) // max(1, _batch_size(network.inputs)))
    schedule, problems = planned(stages, network.apply, network.variables, *network.inputs)
    if problems:
        raise ValueError(listed("cannot determine this cost", problems))
    steps, parameters, flops, apply = [], [], [], network.apply
    for one in schedule:
        if one.growth is not None or one.apply is not apply:
            apply, widths = one.apply, read_network(one.apply, one.variables, *network.inputs)
        counts = Counts(widths)
        steps.append(int(steps_of(one.stage, an_epoch)))
        parameters.append(counts.parameters({}))
        flops.append(counts.flops({}))
    return RunCost(tuple(steps), tuple(parameters), tuple(flops))


def _problems(widths: Widths, stages: Any, samples: Any) -> list[str]:
    problems = stages_problems(stages)
    counts_epochs = False
    for number, stage in enumerate([] if problems else stages):
        counts_epochs |= stage.epochs is not None
        if steps_of(stage, 1) == inf:
            problems.append(
                f"stages[{number}]: ends by the clock alone, so its number of steps is not known; "
                "also pass the epochs= or steps= that it takes at most"
            )
    if counts_epochs and samples is None:
        problems.append("samples: expected the number of samples for stages in epochs, got None")
    if samples is not None and not is_count(samples, at_least=1):
        problems.append(f"samples: expected an integer, 1 or more, got {samples!r}")
    if widths.network is None:
        return [*problems, "widths: expected widths that dw.trace returned in this process"]
    if counts_epochs and not _batch_size(widths.network.inputs):
        problems.append("widths: expected them traced with a batch of inputs, [samples, ...]")
    return problems + [
        f"variables/{path}: expected an array, as for training.fit, got {type(leaf).__name__}; "
        "equinox.partition(model, equinox.is_array) splits a module"
        for path, leaf in leaves_by_path(widths.network.variables).items()
        if not is_array(leaf) and not isinstance(leaf, bool | int | float | complex)
    ]


def _batch_size(inputs: Any) -> int:
    """Returns how many samples a batch holds; zero if the inputs have no axes."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs) if is_array(leaf) and leaf.shape]
    return shapes[0][0] if shapes else 0
