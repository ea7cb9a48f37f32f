"""The loop: ``fit`` and ``evaluate``."""

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from dogwood_jax._base.arguments import (
    DATA,
    FUNCTION,
    NNX,
    OPTIMIZER,
    STATE,
    ArgumentKind,
    expect,
    expect_call,
    expect_given,
    is_count,
    misfit,
)
from dogwood_jax._base.described import described, optimizer_states
from dogwood_jax._base.failed_calls import expect_no_mistakes
from dogwood_jax._base.meshes import (
    Shardings,
    constrained,
    context,
    handed_back,
    mesh_problems,
    on_mesh,
    parts,
    shardings_of,
)
from dogwood_jax._base.trees import PyTree, in_order_of, leaf_path, leaves_by_path
from dogwood_jax._front.stages import (
    Apply,
    Stage,
    length_problems,
    planned,
    stages_problems,
    state_problems,
    steps_of,
)
from dogwood_jax._optimizer.growable import without_step_counts
from dogwood_jax.training.batches import Data, Passes, Piece, batches_of, data_problems
from dogwood_jax.training.teacher import Loss, Teacher


@contextlib.contextmanager
def interrupt_held_back() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C sets; the second one interrupts at once.

    Otherwise KeyboardInterrupt could arrive when the old state has been donated to an epoch and the
    new state is not ready, and both would be lost.
    """
    interrupted = threading.Event()

    def hold_back(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Python handles signals in the main thread only. A handler of the caller's own stays in place.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, hold_back)
    try:
        yield interrupted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def progress_bar(
    total: int | None, unit: str, progress: bool
) -> contextlib.AbstractContextManager[Any]:
    """Returns a context with tqdm's bar, or with None if it is off, invisible or not installed."""
    if progress and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar: contextlib.AbstractContextManager[Any] = tqdm(total=total, unit=unit)
            return bar
    return contextlib.nullcontext()


Preprocess = Callable[[jax.Array], jax.Array]

_LOSS = ArgumentKind(
    "a function of outputs and labels, loss(outputs, labels)",
    lambda value: callable(value) and misfit(value, None, None) is None,
    lambda value: "the loop itself calls apply" if callable(value) else "",
)
_APPLY = ArgumentKind(
    FUNCTION.what,
    FUNCTION.fits,
    lambda value: _OF_NNX if NNX.fits(value) else FUNCTION.way_out(value),
)
_OF_NNX = (
    "split it, graph, state = nnx.split(module), and pass lambda state, x: "
    "nnx.merge(graph, state)(x) and the state; nnx.update(module, run.variables) puts it back"
)
_AFTER_EPOCH = ArgumentKind("a function of the run so far", callable)
_PREPROCESS = ArgumentKind("a function of inputs", callable)

_STEPS_BY_THE_CLOCK = 16  # per compiled call with a time limit, which is checked between calls


class _Run(NamedTuple):
    variables: PyTree
    opt_state: optax.OptState
    history: dict[str, NDArray[np.float64]]


class Run(_Run):
    """The result of `fit`; it unpacks into variables, state and history.

    Attributes:
        variables: The trained variables, in the tree of the given variables or of the larger model.
        opt_state: The optimizer's state, to continue training with.
        history: ``"loss"`` and ``"accuracy"``, each float64 ``[entries]``: means over the samples
            of an epoch, each evaluated just before the step that learns from it. If a stage ends
            within an epoch, there is an entry for its part, and one in the next stage for the rest.
            If ``steps`` or ``seconds`` end stages, there is also ``"steps"``, float64
            ``[entries]``: the number of steps of the run up to each entry. With stages, there is
            also ``"grown_at"``, float64 ``[growths]``: the number of entries before each growth.
        apply: The function of these variables; that of the last stage if stages have their own.
        interrupted: Whether Ctrl-C was pressed. A program that trains more than once can end here.
    """

    apply: Apply
    interrupted: bool

    def __new__(
        cls,
        variables: PyTree,
        opt_state: optax.OptState,
        history: dict[str, NDArray[np.float64]],
        apply: Any = None,
        interrupted: bool = False,
    ) -> "Run":
        """Returns a run."""
        self = super().__new__(cls, variables, opt_state, history)
        self.apply, self.interrupted = apply, interrupted
        return self


def scale_uint8(inputs: jax.Array) -> jax.Array:
    """Returns uint8 inputs as float32 in [0, 1], and inputs of other dtypes unchanged.

    Example:
        >>> scale_uint8(jnp.array([0, 255], jnp.uint8))
        Array([0., 1.], dtype=float32)
    """
    return inputs.astype(jnp.float32) / 255 if inputs.dtype == jnp.uint8 else inputs


class _Curves:
    """The learning curves of a run.

    Args:
        has_steps: whether the history has ``"steps"``.
        has_growths: whether the history has ``"grown_at"``.
    """

    def __init__(self, *, has_steps: bool, has_growths: bool) -> None:
        self._has_steps, self._has_growths = has_steps, has_growths
        self.losses: list[np.floating[Any]] = []
        self.accuracies: list[np.floating[Any]] = []
        self.steps: list[int] = []
        self.grown_at: list[int] = []

    def add(self, loss: Any, accuracy: Any, steps: int) -> None:
        """Adds the means over the last steps."""
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        self.steps.append(steps + (self.steps[-1] if self.steps else 0))

    def last(self) -> dict[str, str]:
        """Returns the last entries, to be shown."""
        return {"loss": f"{self.losses[-1]:.4f}", "accuracy": f"{self.accuracies[-1]:.4f}"}

    def history(self) -> dict[str, NDArray[np.float64]]:
        """Returns the history of a `Run`."""
        curves: dict[str, list[Any]] = {"loss": self.losses, "accuracy": self.accuracies}
        curves |= {"steps": self.steps} if self._has_steps else {}
        curves |= {"grown_at": self.grown_at} if self._has_growths else {}
        return {name: np.array(curve, float) for name, curve in curves.items()}


def fit(
    apply: Apply,
    variables: PyTree,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    stages: Sequence[Stage] | None = None,
    batch_size: int,
    key: jax.Array,
    opt_state: optax.OptState | None = None,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    preprocess: Preprocess = scale_uint8,
    progress: bool = True,
    after_epoch: Callable[[Run], object] | None = None,
    sharding: NamedSharding | None = None,
) -> Run:
    """Trains variables on shuffled batches and returns them with the learning curves.

    Each epoch visits every sample once, in a new order drawn from ``key``. If the batch size does
    not divide the number of samples, the last batch is smaller. The same arguments give the same
    result, bit for bit, on the same machine. Arguments are neither changed nor donated:
    ``variables``, ``opt_state`` and the data can be used again.

    The compiled epoch is kept for later calls with the same ``apply``, ``tx``, ``loss`` and
    ``preprocess`` *objects* and the same shapes. Create these objects once, not for each call.

    With ``stages``, the network and the optimizer's state grow between the stages. Wrap the
    optimizer once, ``dogwood_jax.growable(tx)``, so that new weights take the steps of a new
    optimizer and old weights continue. All growths are planned before any work.

    Ctrl-C ends the run after the current epoch and returns the result so far. The history has an
    entry for each finished epoch, and ``run.interrupted`` is True. A second Ctrl-C raises
    KeyboardInterrupt at once.

    Args:
        apply: The model, ``apply(variables, inputs) -> outputs``.
        variables: Any pytree of arrays that ``apply`` takes. The module docstring lists the leaves
            that are trained.
        tx: An Optax optimizer. It may also use the loss, the gradients and the loss function, like
            ``optax.contrib.reduce_on_plateau`` and ``optax.lbfgs``.
        data: Inputs ``[n, ...]`` and labels ``[n, ...]``, NumPy or JAX arrays of any dtype, or a
            source of samples; see the module docstring.
        epochs: Number of passes over the data; 0 returns a copy of ``variables``.
        steps: In place of ``epochs``, number of batches. The last, smaller batch of an epoch
            counts, too.
        seconds: Time limit of the run in seconds, including compilation; alone, or together with
            ``epochs`` or ``steps``. See `Stage`.
        stages: In place of these three, periods of training with growths between them, see
            `Stage`.
        batch_size: Samples per step.
        key: A JAX random key, for the order of the samples.
        opt_state: The optimizer's state to continue from; by default a new state, ``tx.init`` of
            the trained leaves.
        loss: ``loss(outputs, labels)``, a loss for each sample or one for the batch; its mean is
            minimized. By default the cross-entropy of logits ``[n, classes]`` with class labels
            ``[n]``.
        preprocess: Applied to the inputs of each batch. By default uint8 becomes float32 in [0, 1]
            and other dtypes stay.
        progress: Whether to show a bar if standard error is a terminal and tqdm is installed.
        after_epoch: Called with the `Run` so far after each epoch, and at the end of a stage within
            an epoch, for example to test or save the network. The arrays of this `Run` are deleted
            when training continues: copy the arrays that you keep.
        sharding: How a batch is split over a mesh of devices, ``NamedSharding(mesh,
            PartitionSpec("data"))``; by default one device is used. See the module docstring.

    Returns:
        A `Run`. Its accuracy is the share of samples whose largest output is the labeled class. It
        is NaN if labels are not classes. Classes are integers in the shape of the outputs without
        their last axis.

    Raises:
        TypeError: Arguments of the wrong kind, or in the wrong order.
        ValueError: Arguments that do not fit together; one message lists all, before any work.
        FloatingPointError: The loss became infinite or NaN; names the epoch and the step.

    Example:
        >>> inputs = jax.random.normal(jax.random.key(0), (100, 2))
        >>> labels = (inputs[:, 0] > inputs[:, 1]).astype(jnp.int32)
        >>> run = fit(lambda weights, inputs: inputs @ weights, jnp.zeros((2, 2)), optax.adam(0.1),
        ...           (inputs, labels), epochs=5, batch_size=32, key=jax.random.key(1))
        >>> run.history["loss"].shape, bool(run.history["accuracy"][-1] > 0.9)
        ((5,), True)
        >>> def apply(params, inputs):
        ...     return jnp.tanh(inputs @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 2))}
        >>> stages = [Stage(epochs=2), Stage(sizes={"up": 8}, epochs=3)]
        >>> run = fit(apply, params, optax.adam(0.1), (inputs, labels), stages=stages,
        ...           batch_size=32, key=jax.random.key(1))
        >>> run.variables["up"].shape, run.history["loss"].shape, run.history["grown_at"].tolist()
        ((2, 8), (5,), [2.0])
        >>> tested = []
        >>> run = fit(apply, params, optax.adam(0.1), (inputs, labels), epochs=3, batch_size=32,
        ...           key=jax.random.key(1), after_epoch=lambda run: tested.append(
        ...               evaluate(run.apply, run.variables, (inputs, labels))))
        >>> len(tested)
        3
    """
    caller, teacher = "training.fit", None
    if isinstance(loss, Teacher):
        caller, teacher, loss = "training.distill", loss, loss.loss
    expect(
        f"{caller}(apply, variables, tx, data)",
        apply=(_APPLY, apply),
        variables=(DATA, variables),
        tx=(OPTIMIZER, tx),
    )
    expect_given(
        caller,
        opt_state=(STATE, opt_state),
        loss=(_LOSS, loss),
        preprocess=(_PREPROCESS, preprocess),
        after_epoch=(_AFTER_EPOCH, after_epoch),
    )
    expect_call(caller, "apply", apply, variables, "a batch of inputs")
    trained, frozen = _partition(variables)
    problems = [] if teacher is None else teacher.problems()
    problems += _loop_problems(data, batch_size, sharding, variables=variables, opt_state=opt_state)
    problems += [] if problems else _label_problems(data, loss)
    problems += _variables_problems(variables, trained)
    whole = Stage(epochs=epochs, steps=steps, seconds=seconds)
    problems += _length_problems(whole, stages)
    problems += _key_problems(key)
    if not problems:
        problems += _opt_state_problems(opt_state, tx, trained) + _size_problems(data, batch_size)
    _raise_if(problems, caller)

    batches = batches_of(data, batch_size, sharding)
    inputs = jax.eval_shape(preprocess, batches.inputs)
    expect_no_mistakes(caller, "apply", apply, variables, (inputs,))
    if teacher is not None:
        _raise_if(teacher.logits_problems(apply, variables, inputs), caller)
        teacher = teacher if sharding is None else on_mesh(teacher, sharding)
    schedule, problems = planned(stages or [whole], apply, variables, inputs)
    if stages is not None and not problems:
        start = jax.eval_shape(tx.init, trained) if opt_state is None else opt_state
        problems = state_problems(schedule, start, tx)
    _raise_if(problems, caller)
    passes = Passes(batches, key)
    lengths = [steps_of(one.stage, passes.steps) for one in schedule]
    total = None if inf in lengths else int(sum(lengths))
    epochs = None if total is None else -(-total // passes.steps)
    in_epochs = all(one.stage.epochs is not None for one in schedule)
    may_stop_within = not in_epochs or any(one.stage.seconds for one in schedule)
    curves = _Curves(has_steps=may_stop_within, has_growths=stages is not None)

    def so_far() -> Run:
        ours, state, others = trained, opt_state, frozen
        if sharding is not None and shardings is not None:
            ours, state = handed_back((trained, opt_state), shardings, sharding)
            others = handed_back(frozen, shardings_of(frozen), sharding)
        tree = in_order_of(variables, _combine(ours, others))
        return Run(tree, state, curves.history(), apply, interrupted.is_set())

    bar_of = (epochs, "epoch", progress) if in_epochs else (total, "step", progress)
    with progress_bar(*bar_of) as bar, interrupt_held_back() as interrupted:
        for number, (one, left) in enumerate(zip(schedule, lengths)):
            seconds = one.stage.seconds
            ends = inf if seconds is None else monotonic() + seconds
            if one.growth is not None:
                grow_key = jax.random.fold_in(key, number)
                variables, opt_state = one.grown(variables, opt_state, tx, grow_key)
                curves.grown_at.append(len(curves.losses))
            apply = one.apply
            trained, frozen = _partition(variables)
            trained, frozen, opt_state, shardings = _start(trained, frozen, opt_state, tx, sharding)
            while left and monotonic() < ends:
                values: list[tuple[jax.Array, jax.Array]] = []
                limit = None if seconds is None else _STEPS_BY_THE_CLOCK
                pieces = batches.pieces(passes.samples(left), limit)
                for piece in pieces:
                    with context(sharding):
                        trained, opt_state, value = _train(
                            trained,
                            opt_state,
                            frozen,
                            piece,
                            apply=apply,
                            tx=tx,
                            loss=loss,
                            preprocess=preprocess,
                            shardings=shardings,
                            teacher=teacher,
                        )
                    # Stay at most one piece ahead of the devices, to limit their memory.
                    values[-1:] = jax.device_get(values[-1:])
                    values.append(value)
                    if monotonic() >= ends:
                        pieces.close()
                batch_losses, correct = _joined(values)
                _raise_if_not_finite(batch_losses, passes, epochs)
                taken = len(batch_losses)
                sizes = passes.take(taken)
                left -= taken
                curves.add(
                    np.average(batch_losses, weights=sizes),
                    correct.sum() / (sizes.sum() * batches.labels // batches.size),
                    taken,
                )
                if bar is not None:
                    bar.set_postfix(curves.last(), refresh=False)
                    bar.update(1 if in_epochs else taken)
                if after_epoch is not None:
                    after_epoch(so_far())
                if interrupted.is_set():
                    break
            run = so_far()
            if interrupted.is_set():
                break
            variables, opt_state = run.variables, run.opt_state
    run.interrupted = interrupted.is_set()
    return run


def evaluate(
    apply: Apply,
    variables: PyTree,
    data: Data,
    *,
    batch_size: int = 1000,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    preprocess: Preprocess = scale_uint8,
    sharding: NamedSharding | None = None,
) -> tuple[float, float]:
    """Returns the mean loss and the accuracy over all samples.

    All samples have equal weight, whatever the batch size. As for `fit`, the compiled call is kept
    for later calls with the same functions and shapes.

    Args:
        apply: The model, ``apply(variables, inputs) -> outputs``.
        variables: Any pytree of arrays that ``apply`` takes.
        data: Inputs ``[n, ...]`` and labels ``[n, ...]``, or a source of samples.
        batch_size: Samples at a time; affects the memory, not the result.
        loss: ``loss(outputs, labels)``, a loss for each sample or the mean of a batch.
        preprocess: Applied to the inputs of each batch.
        sharding: How a batch is split over a mesh of devices.

    Returns:
        The loss, and the accuracy in [0, 1], which is NaN if labels are not classes.

    Raises:
        TypeError: Arguments of the wrong kind, or in the wrong order.
        ValueError: Arguments that do not fit together; one message lists all, before any work.

    Example:
        >>> inputs, labels = jnp.array([[2.0], [3.0], [-1.0]]), jnp.array([1, 1, 1])
        >>> loss, accuracy = evaluate(lambda weights, inputs: inputs @ weights,
        ...                           jnp.array([[0.0, 1.0]]), (inputs, labels))
        >>> f"{loss:.3f} {accuracy:.3f}"
        '0.496 0.667'
    """
    expect(
        "training.evaluate(apply, variables, data)",
        apply=(_APPLY, apply),
        variables=(DATA, variables),
    )
    expect_given("training.evaluate", loss=(_LOSS, loss), preprocess=(_PREPROCESS, preprocess))
    expect_call("training.evaluate", "apply", apply, variables, "a batch of inputs")
    problems = _loop_problems(data, batch_size, sharding, variables=variables)
    problems += [] if problems else _label_problems(data, loss)
    _raise_if(problems, "training.evaluate")
    batches = batches_of(data, batch_size, sharding)
    if sharding is not None:
        variables = on_mesh(variables, sharding)
    values: list[tuple[jax.Array, jax.Array]] = []
    for piece in batches.pieces(np.arange(batches.size, dtype=np.int32)):
        with context(sharding):
            value = _evaluate(variables, piece, apply=apply, loss=loss, preprocess=preprocess)
        values[-1:] = jax.device_get(values[-1:])
        values.append(value)
    losses, correct = _joined(values)
    mean_loss = np.average(losses, weights=batches.sizes())
    return float(mean_loss), float(correct.sum() / batches.labels)


# Functions are static arguments of module-level jits, so a compiled loop is kept between calls.


@functools.partial(
    jax.jit,
    static_argnames=("apply", "tx", "loss", "preprocess", "shardings"),
    donate_argnames=("trained", "opt_state"),
)
def _train(
    trained: PyTree,
    opt_state: optax.OptState,
    frozen: PyTree,
    piece: Piece,
    *,
    apply: Apply,
    tx: optax.GradientTransformation,
    loss: Loss,
    preprocess: Preprocess,
    shardings: Shardings | None,
    teacher: Teacher | None = None,
) -> tuple[PyTree, optax.OptState, tuple[jax.Array, jax.Array]]:
    tx = optax.with_extra_args_support(tx)

    def step(state: tuple[PyTree, optax.OptState], batch: PyTree) -> Any:
        trained, opt_state = state
        inputs, labels = piece.inputs_and_labels(batch)
        inputs = preprocess(inputs)
        predicted = None if teacher is None else teacher.apply(teacher.variables, inputs)

        def objective(trained: PyTree) -> tuple[jax.Array, jax.Array]:
            outputs = apply(_combine(trained, frozen), inputs)
            value, correct = _score(outputs, labels, loss)
            if teacher is not None:
                value = teacher.objective(value, outputs, predicted)
            return value, correct

        (value, correct), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        # For complex parameters, descent is along the conjugate of what JAX calls the gradient.
        grads = jax.tree.map(jnp.conj, grads)
        updates, opt_state = tx.update(
            grads,
            opt_state,
            trained,
            value=value,
            grad=grads,
            value_fn=lambda trained: objective(trained)[0],
        )
        state = optax.apply_updates(trained, updates), opt_state
        return constrained(state, shardings), (value, correct)

    state, values = jax.lax.scan(step, (trained, opt_state), piece.batches)
    return *state, piece.whole(values)


@functools.partial(jax.jit, static_argnames=("apply", "loss", "preprocess"))
def _evaluate(
    variables: PyTree,
    piece: Piece,
    *,
    apply: Apply,
    loss: Loss,
    preprocess: Preprocess,
) -> tuple[jax.Array, jax.Array]:
    def step(state: None, batch: PyTree) -> Any:
        inputs, labels = piece.inputs_and_labels(batch)
        return state, _score(apply(variables, preprocess(inputs)), labels, loss)

    _, (losses, correct) = jax.lax.scan(step, None, piece.batches)
    return piece.whole(losses), piece.whole(correct)


def _start(
    trained: PyTree,
    frozen: PyTree,
    opt_state: optax.OptState | None,
    tx: optax.GradientTransformation,
    sharding: NamedSharding | None,
) -> tuple[PyTree, PyTree, optax.OptState, Shardings | None]:
    """Returns the initial state of training, on the mesh if there is one, and its shardings.

    Steps donate their state to the next step, so the caller's arrays are copied.
    """
    shardings = None
    with context(sharding):
        if sharding is not None:
            trained, frozen, opt_state = on_mesh((trained, frozen, opt_state), sharding)
            if opt_state is None:
                # Not compiled, so that arrays made like a parameter are split like it.
                opt_state = on_mesh(tx.init(trained), sharding)
            shardings = shardings_of((trained, opt_state))
        trained, opt_state = _initial_state(trained, opt_state, tx=tx, shardings=shardings)
    return trained, frozen, opt_state, shardings


@functools.partial(jax.jit, static_argnames=("tx", "shardings"))
def _initial_state(
    trained: PyTree,
    opt_state: optax.OptState | None,
    *,
    tx: optax.GradientTransformation,
    shardings: Shardings | None,
) -> tuple[PyTree, optax.OptState]:
    """Returns strongly typed copies, as after an epoch, so that the second one does not retrace."""
    state = trained, tx.init(trained) if opt_state is None else opt_state
    trained, opt_state = jax.tree.map(
        lambda leaf: jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True), state
    )
    trained, opt_state = constrained((trained, opt_state), shardings)
    return trained, opt_state


def _joined(values: list[tuple[jax.Array, jax.Array]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the losses and the numbers of correct labels of all batches, from those of pieces."""
    losses, correct = zip(*jax.device_get(values))
    return np.concatenate(losses), np.concatenate(correct)


def _score(outputs: Any, labels: jax.Array, loss: Loss) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss of a batch and the number of labels that are predicted correctly.

    Raises:
        ValueError: if the default loss gets labels that are not classes. It is raised during
            tracing, when the shapes of outputs are known.
    """
    classes = jnp.shape(outputs)[:-1] if isinstance(outputs, jax.Array) else labels.shape
    if _takes_classes(loss) and len(classes) != labels.ndim:
        raise ValueError(
            f"training: expected a class for each sample, labels of shape {classes}, because "
            f"outputs have shape {outputs.shape}, got {described(labels)}; for one-hot labels or "
            "probabilities pass loss=optax.softmax_cross_entropy"
        )
    values = loss(outputs, labels)
    value = jnp.mean(values, dtype=jnp.promote_types(values.dtype, jnp.float32))
    labels_are_classes = (
        isinstance(outputs, jax.Array)
        and jnp.issubdtype(labels.dtype, jnp.integer)
        and labels.shape == outputs.shape[:-1]
    )
    correct = jnp.sum(jnp.argmax(outputs, -1) == labels) if labels_are_classes else jnp.nan
    return value, jnp.asarray(correct)


def _partition(variables: PyTree) -> tuple[PyTree, PyTree]:
    """Splits variables into two trees, trained and frozen; each has None for the other's leaves."""
    has_collections = isinstance(variables, Mapping) and "params" in variables

    def is_trained(keys: Any, leaf: Any) -> bool:
        collection = leaf_path(keys[:1])
        return _is_inexact(leaf) and (not has_collections or collection == "params")

    mask = jax.tree_util.tree_map_with_path(is_trained, variables)
    trained = jax.tree.map(lambda chosen, leaf: leaf if chosen else None, mask, variables)
    frozen = jax.tree.map(lambda chosen, leaf: None if chosen else leaf, mask, variables)
    return trained, frozen


def _combine(trained: PyTree, frozen: PyTree) -> PyTree:
    return jax.tree.map(
        lambda ours, theirs: theirs if ours is None else ours,
        trained,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def _is_inexact(leaf: Any) -> bool:
    return _is_array(leaf) and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _raise_if(problems: list[str], caller: str) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{caller} cannot start:", *problems]))


def _loop_problems(data: Any, batch_size: Any, sharding: Any, **trees: PyTree) -> list[str]:
    """Returns problems of the arguments that `fit` and `evaluate` share."""
    problems = data_problems(data)
    if not is_count(batch_size, at_least=1):
        problems.append(f"batch_size: expected an integer, 1 or more, got {batch_size!r}")
    if isinstance(data, tuple):
        trees["data"] = data
    problems += mesh_problems(leaves_by_path(trees), sharding)
    if sharding is not None and not problems and batch_size % parts(sharding):
        problems.append(
            f"batch_size: expected a multiple of {parts(sharding)}, the parts in which sharding "
            f"splits a batch, got {batch_size}"
        )
    return problems


def _label_problems(data: Data, loss: Loss) -> list[str]:
    """Returns a problem if the default loss is used and labels are not integers."""
    labels = data[1] if isinstance(data, tuple) else data[0][1]
    dtype = jnp.result_type(labels)
    if not _takes_classes(loss) or jnp.issubdtype(dtype, jnp.integer):
        return []
    return [
        f"data: expected classes as integers, which the default loss takes, got labels {dtype}"
        f"{[*np.shape(labels)]}; for one-hot labels or probabilities pass "
        "loss=optax.softmax_cross_entropy"
    ]


def _takes_classes(loss: Loss) -> bool:
    return loss is optax.softmax_cross_entropy_with_integer_labels


def _variables_problems(variables: PyTree, trained: PyTree) -> list[str]:
    problems = [
        f"variables/{path}: expected an array, got {type(leaf).__name__}; close over it in apply "
        "(equinox.partition(model, equinox.is_array) splits a module)"
        for path, leaf in leaves_by_path(variables).items()
        if not _is_array(leaf)
    ]
    if not problems and not jax.tree.leaves(trained):
        problems.append(
            "variables: expected a floating-point leaf to train (under 'params', where there is "
            "such a collection), got none"
        )
    return problems


def _length_problems(whole: Stage, stages: Any) -> list[str]:
    """Returns problems of the length of a run, given for the whole run or by stages."""
    lengths = whole.epochs, whole.steps, whole.seconds
    if stages is None:
        problems, timed = length_problems(whole), [whole]
    elif lengths != (None, None, None):
        return ["pass either epochs=, steps= or seconds=, or stages= that have their own lengths"]
    else:
        problems = stages_problems(stages)
        timed = [] if problems else stages
    if jax.process_count() > 1 and any(stage.seconds is not None for stage in timed):
        problems.append(
            "seconds: expected None where several processes train, because their clocks would end "
            "a stage at different steps; pass steps="
        )
    return problems


def _key_problems(key: Any) -> list[str]:
    try:
        if jax.random.key_data(key).ndim == 1:
            return []
    except TypeError:
        pass
    return [
        "key: expected one random key, such as jax.random.key(0), "
        f"got {type(key).__name__} of shape {np.shape(key)}"
    ]


def _size_problems(data: Data, batch_size: int) -> list[str]:
    size = len(data[0] if isinstance(data, tuple) else data)
    if batch_size <= size:
        return []
    return [f"batch_size: expected at most {size}, the number of samples, got {batch_size}"]


def _opt_state_problems(
    opt_state: optax.OptState | None, tx: optax.GradientTransformation, trained: PyTree
) -> list[str]:
    if opt_state is None:
        return []

    def specs(tree: PyTree) -> dict[str, str]:
        return {
            path: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            for path, leaf in leaves_by_path(tree).items()
        }

    start = jax.eval_shape(tx.init, trained)
    if {*optimizer_states(start)} != {*optimizer_states(opt_state)}:
        return [
            f"opt_state: expected {described(start)}, got {described(opt_state)}; pass the state "
            "of a run with this tx, or leave it out to start with a new state"
        ]
    expected, got = specs(start), specs(without_step_counts(opt_state))
    problems = [
        f"opt_state/{path}: expected {expected.get(path, 'nothing')}, "
        f"got {got.get(path, 'nothing')}"
        for path in expected | got
        if expected.get(path) != got.get(path)
    ]
    if problems:
        problems.append(
            "pass the opt_state of a run with this tx and variables of these shapes, grown with "
            "them if they grew, or leave it out to start with a new state"
        )
    return problems


def _raise_if_not_finite(losses: NDArray[Any], passes: Passes, epochs: int | None) -> None:
    finite = np.isfinite(losses)
    if not finite.all():
        step = int(np.argmin(finite))
        of_all = "" if epochs is None else f" of {epochs}"
        raise FloatingPointError(
            f"the loss became {losses[step]} in epoch {passes.number}{of_all}, step "
            f"{passes.done + step + 1} of {passes.steps}; the variables given to fit are "
            "unchanged. Try a lower learning rate or "
            "optax.chain(optax.clip_by_global_norm(1.0), tx); check that the inputs are finite "
            "and that class labels are in [0, classes); "
            "jax.config.update('jax_debug_nans', True) finds the operation that fails first"
        )
