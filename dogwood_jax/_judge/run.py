"""Runs one of two networks on a sample: ``run``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dogwood_jax._judge.claim import Side
from dogwood_jax._judge.evaluate import evaluate
from dogwood_jax._judge.samples import SampleFamily
from dogwood_jax._judge.watch import Watch


@dataclass(frozen=True)
class Drawn:
    """A sample, with the variables and inputs of both networks, and their outputs.

    Attributes:
        family: the kind of sample.
        variables: the network's variables.
        inputs: its inputs.
        old: its outputs.
        wide: variables of the larger network.
        larger: its inputs.
        new: its outputs, once they are known.
    """

    family: SampleFamily
    variables: dict[str, Any]
    inputs: list[Any]
    old: list[Any]
    wide: dict[str, Any]
    larger: list[Any]
    new: list[Any] = field(default_factory=list)


def run(side: Side, variables: Mapping[str, Any], inputs: Sequence[Any], watch: Any) -> Any:
    """Returns a network's outputs for variables and inputs, as a watch sees them."""
    left = iter(inputs)
    arguments = [next(left) if path is None else variables[path] for path, _ in side.arguments]
    if isinstance(watch, Watch):
        arguments = [watch.nudged(argument) for argument in arguments]
    return evaluate(side.jaxpr, arguments, watch, side.draws)
