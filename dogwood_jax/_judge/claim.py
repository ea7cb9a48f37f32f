"""What a growth claims: ``Case``, two programs and the outputs that must be equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.samples import Arguments
from dogwood_jax._program.subprograms import Key


@dataclass(frozen=True)
class Side:
    """One of two networks.

    Attributes:
        jaxpr: its program.
        arguments: path of each of its arguments, None for an input, with shape and dtype.
        results: path of each of its results.
        draws: the equations whose random numbers follow from no key of the caller, by ``key_of``.
    """

    jaxpr: Any
    arguments: Arguments
    results: Sequence[str]
    draws: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class ComparedOutput:
    """An output of both networks that must be equal.

    Attributes:
        path: its path in the network.
        old: its place among the results of the network.
        new: its place among those of the larger one.
        places: for each axis, where its old entries are in the larger network; None for all.
    """

    path: str
    old: int
    new: int
    places: tuple[np.ndarray | None, ...] = ()


@dataclass(frozen=True)
class Case:
    """A claim: two networks with a growth between them compute the same.

    Attributes:
        old: the network.
        new: the larger network.
        growth: what becomes of the variables.
        outputs: what is compared.
        inputs: for each input and axis, where old entries are in the larger network; None for all.
        is_twin: whether both programs are in smaller sizes than the network's.
        is_resized: whether the larger program is the network's own one, written in other sizes.
    """

    old: Side
    new: Side
    growth: Growth
    outputs: Sequence[ComparedOutput]
    inputs: Sequence[tuple[np.ndarray | None, ...]]
    is_twin: bool = False
    is_resized: bool = False

    @cached_property
    def has_ids(self) -> bool:
        """Whether there are integers among the inputs."""
        arrays = (array for path, array in self.old.arguments if path is None)
        return any(jnp.issubdtype(array.dtype, jnp.integer) for array in arrays)
