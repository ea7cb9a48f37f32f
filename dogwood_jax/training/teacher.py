"""A network whose predictions another network learns: ``Teacher``."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax._base.described import described
from dogwood_jax._base.failed_calls import explaining
from dogwood_jax._base.trees import PyTree
from dogwood_jax._front.stages import Apply

Loss = Callable[[Any, jax.Array], jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables"],
    meta_fields=["apply", "temperature", "share", "loss"],
)
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network whose predictions another network learns, in addition to the labels.

    ``distill`` passes it to ``fit`` in place of the loss.

    Attributes:
        variables: the teacher's variables.
        apply: the teacher's function of variables and inputs.
        temperature: divisor of the logits.
        share: the teacher's share of the objective.
        loss: the loss of outputs and labels.
    """

    variables: PyTree
    apply: Apply
    temperature: float
    share: float
    loss: Loss

    def __call__(self, outputs: Any, labels: jax.Array) -> jax.Array:
        """Returns the loss of the labels."""
        return self.loss(outputs, labels)

    def objective(self, value: jax.Array, outputs: Any, predicted: Any) -> jax.Array:
        """Returns the objective of a batch.

        Args:
            value: the mean loss of the labels.
            outputs: logits ``[n, ..., classes]``.
            predicted: the teacher's logits.
        """
        ours, theirs = (
            logits.astype(value.dtype) / self.temperature for logits in (outputs, predicted)
        )
        chances, log_ours = jax.nn.softmax(theirs), jax.nn.log_softmax(ours)
        # Both logarithms are infinite for a masked class.
        terms = jnp.where(chances > 0, chances * (jax.nn.log_softmax(theirs) - log_ours), 0)
        divergence = jnp.sum(terms, axis=-1)
        taught = self.temperature**2 * jnp.mean(divergence)
        if self.share in (0, 1):  # the other term may be infinite
            return taught if self.share else value
        return (1 - self.share) * value + self.share * taught

    def problems(self) -> list[str]:
        """Returns problems of the temperature and the share."""
        problems = []
        if not 0 < self.temperature < float("inf"):
            problems.append(f"temperature: expected a positive number, got {self.temperature}")
        if not 0 <= self.share <= 1:
            problems.append(f"share: expected a number between 0 and 1, got {self.share}")
        return problems

    def logits_problems(self, apply: Apply, variables: PyTree, inputs: Any) -> list[str]:
        """Returns a problem if a network does not return logits of the teacher's shape."""
        call, its = "training.distill", (self.apply, self.variables)
        with explaining(call, "apply", apply, variables, (inputs,), variables_are="variables"):
            ours = jax.eval_shape(apply, variables, inputs)
        with explaining(call, "teacher_apply", *its, (inputs,), variables_are="teacher"):
            theirs = jax.eval_shape(*its, inputs)
        shapes = [getattr(logits, "shape", None) for logits in (ours, theirs)]
        if None not in shapes and shapes[0] == shapes[1]:
            return []
        return [
            f"teacher_apply: expected logits like those of apply, {described(ours)}, got "
            f"{described(theirs)}"
        ]
