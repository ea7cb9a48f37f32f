"""A law of loss, fitted to short runs, that says from which budget on the large network wins.

The loss of a network with ``depth`` layers and ``width`` units after some tokens is taken as
``E + a / width + b / depth + c tokens**(-1/3)``. The form is that of arXiv 2606.25008, 2026. For
the exponent of tokens see Universal One-third Time Scaling, arXiv 2602.03685, 2026.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    """What a short run ended with."""

    width: int
    depth: int
    tokens: float
    loss: float


class Law(NamedTuple):
    """The law's numbers; print it to read it."""

    rest: float
    width: float
    depth: float
    tokens: float
    error: float  # root of the mean square of what is not explained

    def loss(self, width: float, depth: float, tokens: float) -> float:
        """Returns the loss that it predicts."""
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
        ValueError: if the runs do not tell the law's numbers.
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
    """A network that the law knows: its sizes, and the FLOPs of a token."""

    width: int
    depth: int
    flops: float


def crossing(law: Law, small: Kind, large: Kind) -> float:
    """Returns the FLOPs from which on the large network ends lower; infinite if it never does."""

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
