"""A law of loss, fitted to short runs, that predicts the budget above which the large network wins.

The loss of a network with ``depth`` layers and ``width`` units after some tokens is assumed to be
``E + a / width + b / depth + c tokens**(-1/3)``. The form is that of arXiv 2606.25008, 2026. For
the exponent of tokens see Universal One-third Time Scaling, arXiv 2602.03685, 2026.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    """The result of a short run."""

    width: int
    depth: int
    tokens: float
    loss: float


class Law(NamedTuple):
    """The coefficients of the law; printing shows the formula."""

    rest: float
    width: float
    depth: float
    tokens: float
    error: float  # root mean square of the residuals

    def loss(self, width: float, depth: float, tokens: float) -> float:
        """Returns the predicted loss."""
        return float(
            self.rest + self.width / width + self.depth / depth + self.tokens * tokens ** (-1 / 3)
        )

    def __str__(self) -> str:
        return (
            f"loss = {self.rest:.3f} + {self.width:.3g} / width + {self.depth:.3g} / depth + "
            f"{self.tokens:.3g} tokens^(-1/3), off by {self.error:.3f} nats"
        )


def fitted(runs: Sequence[Measured]) -> Law:
    """Returns the law that fits some runs best, by least squares; no term is negative.

    Raises:
        ValueError: if the runs do not determine the coefficients.
    """
    terms = np.array([[1, 1 / run.width, 1 / run.depth, run.tokens ** (-1 / 3)] for run in runs])
    losses = np.array([run.loss for run in runs])
    used = [0, 1, 2, 3]
    while True:
        found, _, rank, _ = np.linalg.lstsq(terms[:, used], losses, rcond=None)
        if rank < len(used):
            raise ValueError("the runs must differ in width, depth and tokens")
        if (found >= 0).all():
            break
        used.pop(int(found.argmin()))
    numbers = np.zeros(4)
    numbers[used] = found
    error = float(np.sqrt(np.mean((terms @ numbers - losses) ** 2)))
    rest, width, depth, tokens = map(float, numbers)
    return Law(rest, width, depth, tokens, error)


class Kind(NamedTuple):
    """A network in the law: its sizes, and the FLOPs of a token."""

    width: int
    depth: int
    flops: float


def crossing(law: Law, small: Kind, large: Kind) -> float:
    """Returns the FLOPs above which the large network ends lower; infinite if it never does."""

    def ahead(budget: float) -> float:
        losses = (law.loss(k.width, k.depth, budget / k.flops) for k in (small, large))
        return next(losses) - next(losses)

    low, high = large.flops, large.flops * 1e15
    if ahead(high) <= 0:
        return float("inf")
    if ahead(low) > 0:
        return low
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if ahead(middle) > 0 else (middle, high)
    return high
