"""Training on the predictions of a larger network: ``distill``."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import NamedSharding

from dogwood_jax._base.arguments import DATA, FUNCTION, NUMBER, expect_call, expect_given
from dogwood_jax._base.trees import PyTree
from dogwood_jax._front.stages import Apply
from dogwood_jax.training.batches import Data
from dogwood_jax.training.loop import Preprocess, Run, fit, scale_uint8
from dogwood_jax.training.teacher import Loss, Teacher


def distill(
    apply: Apply,
    variables: PyTree,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    teacher: PyTree,
    teacher_apply: Apply | None = None,
    temperature: float = 1.0,
    share: float = 0.7,
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int,
    key: jax.Array,
    opt_state: optax.OptState | None = None,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    preprocess: Preprocess = scale_uint8,
    progress: bool = True,
    after_epoch: Callable[[Run], object] | None = None,
    sharding: NamedSharding | None = None,
) -> Run:
    """Trains variables to predict what a teacher predicts, for example after ``shrink``.

    A network that has lost units or layers heals on fewer samples if it learns the predictions of
    the large network. The objective is ``(1 - share) * loss(outputs, labels) + share * T**2 * KL``.
    KL is the divergence of the outputs' softmax from the teacher's, both at the temperature T. The
    factor ``T**2`` scales its gradients to the size of the loss's gradients. The teacher predicts
    each batch when it is needed, so no predictions are stored.

    Args:
        apply: The model, ``apply(variables, inputs) -> logits [n, ..., classes]``.
        variables: Any pytree of arrays that ``apply`` takes, as for `fit`.
        tx: An Optax optimizer.
        data: Inputs and labels, or a source of samples, as for `fit`.
        teacher: Variables of the teacher. They do not change.
        teacher_apply: The teacher's function of variables and inputs; by default ``apply``. Its
            logits have the shape of the model's.
        temperature: Divisor of both networks' logits, positive. At higher temperatures, unlikely
            classes matter more.
        share: The share of the teacher in the objective, between 0 and 1. With 1, labels are not
            used.
        epochs: Number of passes over the data.
        steps: In place of ``epochs``, number of batches.
        seconds: Time limit of the run in seconds, as for `fit`.
        batch_size: Samples per step.
        key: A JAX random key, for the order of the samples.
        opt_state: The optimizer's state to continue from, such as the result of
            ``grow_opt_state``; by default a new state.
        loss: The loss of outputs and labels, as for `fit`.
        preprocess: Applied to the inputs of each batch, for both networks.
        progress: Whether to show a progress bar.
        after_epoch: Called with the `Run` so far after each epoch.
        sharding: How a batch is split over a mesh of devices.

    Returns:
        A `Run`, as for `fit`. The loss in its history is the objective.

    Raises:
        TypeError: Arguments of the wrong kind, or in the wrong order.
        ValueError: Arguments that do not fit together, such as logits of different shapes.
        FloatingPointError: The objective became infinite or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> inputs = jax.random.normal(jax.random.key(0), (100, 2))
        >>> labels = (inputs[:, 0] > inputs[:, 1]).astype(jnp.int32)
        >>> linear = lambda weights, inputs: inputs @ weights
        >>> teacher = jnp.array([[4.0, -4.0], [-4.0, 4.0]])
        >>> run = distill(linear, jnp.zeros((2, 2)), optax.adam(0.1), (inputs, labels), share=1.0,
        ...               teacher=teacher, epochs=40, batch_size=20, key=jax.random.key(1))
        >>> predicted, wanted = (linear(weights, inputs) for weights in (run.variables, teacher))
        >>> close = jnp.abs(jax.nn.softmax(predicted) - jax.nn.softmax(wanted)) < 0.1
        >>> bool(close.all())
        True

    Reference:
        Hinton, Vinyals and Dean, 2015, Distilling the Knowledge in a Neural Network; Muralidharan
        et al., 2024, Compact Language Models via Pruning and Knowledge Distillation.
    """
    teacher_apply = apply if teacher_apply is None else teacher_apply
    expect_given(
        "training.distill",
        teacher=(DATA, teacher),
        teacher_apply=(FUNCTION, teacher_apply),
        temperature=(NUMBER, temperature),
        share=(NUMBER, share),
    )
    expect_call("training.distill", "teacher_apply", teacher_apply, teacher, "a batch of inputs")
    return fit(
        apply,
        variables,
        tx,
        data,
        epochs=epochs,
        steps=steps,
        seconds=seconds,
        batch_size=batch_size,
        key=key,
        opt_state=opt_state,
        loss=Teacher(teacher, teacher_apply, float(temperature), float(share), loss),
        preprocess=preprocess,
        progress=progress,
        after_epoch=after_epoch,
        sharding=sharding,
    )
