"""A training loop for any ``apply`` and any Optax optimizer, one compiled call an epoch.

The data set lives on the device in its own dtype, uint8 for images, and is converted a batch at a
time. Its first axis runs over samples: inputs are ``[n, ...]``, labels are ``[n]`` for classes and
whatever the loss takes otherwise.

What is trained: every floating-point (or complex) leaf of ``variables``; leaves of other dtypes
pass through unchanged. In a Flax mapping ``{"params": ..., "batch_stats": ...}`` only the leaves
under ``"params"`` are trained and the other collections pass through: ``apply`` returns outputs
alone, so running statistics keep their values. The optimizer sees the tree of ``variables`` with
None in place of each leaf that is not trained. To hold back more, close over it in ``apply`` or
give it ``optax.set_to_zero()`` by ``optax.multi_transform``.
"""

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from numpy.typing import NDArray

from dogwood_jax._tree import PyTree, in_order_of, leaf_path, leaves_by_path

Apply = Callable[[Any, jax.Array], Any]
Loss = Callable[[Any, jax.Array], jax.Array]
Preprocess = Callable[[jax.Array], jax.Array]
Data = tuple[ArrayLike, ArrayLike]


class Run(NamedTuple):
    """What `fit` returns.

    Attributes:
        variables: The trained variables, in the tree of those given.
        opt_state: The optimizer's state, to train on with.
        history: ``"loss"`` and ``"accuracy"``, each float64 ``[epochs]``: means over the samples
            of an epoch, each taken just before the step that learned from it.
    """

    variables: PyTree
    opt_state: optax.OptState
    history: dict[str, NDArray[np.float64]]


def scale_uint8(inputs: jax.Array) -> jax.Array:
    """Returns uint8 inputs as float32 in [0, 1], those of any other dtype as they are.

    Example:
        >>> scale_uint8(jnp.array([0, 255], jnp.uint8))
        Array([0., 1.], dtype=float32)
    """
    return inputs.astype(jnp.float32) / 255 if inputs.dtype == jnp.uint8 else inputs


def fit(
    apply: Apply,
    variables: PyTree,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
    opt_state: optax.OptState | None = None,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    preprocess: Preprocess = scale_uint8,
    progress: bool = True,
) -> Run:
    """Trains variables on shuffled batches and returns them with the learning curves.

    Each epoch visits every sample once, in a new order drawn from ``key``; where the batch size
    does not divide the data, the last batch is smaller. The same arguments give the same result,
    bit for bit, on the same machine. Nothing given is changed or donated away: ``variables``,
    ``opt_state`` and the data can be used again.

    The compiled epoch is kept for later calls with the same ``apply``, ``tx``, ``loss`` and
    ``preprocess`` *objects* and the same shapes: make these once, not anew for each call.

    Ctrl-C ends the run after the epoch under way and returns what is trained so far, with as many
    entries in the history.

    Args:
        apply: The model, ``apply(variables, inputs) -> outputs``.
        variables: Any pytree of arrays that ``apply`` takes; see the module for what is trained.
        tx: An Optax optimizer. It may use the loss, the gradients and the loss function too, as
            ``optax.contrib.reduce_on_plateau`` and ``optax.lbfgs`` do.
        data: Inputs ``[n, ...]`` and labels ``[n, ...]``, NumPy or JAX arrays of any dtype.
        epochs: How many times to go through the data; 0 returns a copy of what came in.
        batch_size: Samples a step.
        key: A JAX random key, for the order of the samples.
        opt_state: The state to go on from; by default a new one, ``tx.init`` of the trained leaves.
        loss: ``loss(outputs, labels)``, a loss for each sample or one for the batch; its mean is
            minimized. By default the cross-entropy of outputs as logits ``[n, classes]`` with
            class labels ``[n]``.
        preprocess: Applied to the inputs of each batch. By default uint8 becomes float32 in [0, 1]
            and other dtypes stay.
        progress: Whether to show a bar, where standard error is a terminal and tqdm is installed.

    Returns:
        A `Run`. Its accuracy is the share of samples whose largest output is the labelled class,
        and NaN where labels are not classes, integers of the shape of the outputs less the last
        axis.

    Raises:
        ValueError: Arguments that do not fit together, all named at once before any work.
        FloatingPointError: The loss became infinite or NaN; names the epoch and the step.

    Example:
        >>> inputs = jax.random.normal(jax.random.key(0), (100, 2))
        >>> labels = (inputs[:, 0] > inputs[:, 1]).astype(jnp.int32)
        >>> run = fit(lambda weights, inputs: inputs @ weights, jnp.zeros((2, 2)), optax.adam(0.1),
        ...           (inputs, labels), epochs=5, batch_size=32, key=jax.random.key(1))
        >>> run.history["loss"].shape, bool(run.history["accuracy"][-1] > 0.9)
        ((5,), True)
    """
    trained, frozen = _partition(variables)
    problems = _data_problems(data, batch_size) + _variables_problems(variables, trained)
    if not _is_count(epochs, at_least=0):
        problems.append(f"epochs: expected an integer, 0 or more, got {epochs!r}")
    problems += _key_problems(key)
    if opt_state is not None and not problems:
        problems += _opt_state_problems(opt_state, tx, trained)
    _raise_if(problems, "training.fit")

    inputs, labels = _on_device(data)
    size = len(inputs)
    batch_size = min(batch_size, size)
    batch_sizes = _batch_sizes(size, batch_size)
    # On the host a shuffle takes a fraction of the time that sorting random numbers takes XLA.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    losses: list[np.floating[Any]] = []
    accuracies: list[np.floating[Any]] = []
    # Epochs donate their state to the next; the caller's arrays are copied so that they stay.
    trained, opt_state = _initial_state(trained, opt_state, tx=tx)
    with _progress_bar(epochs, progress) as bar, _interrupt_held_back() as interrupted:
        for epoch in range(1, epochs + 1):
            trained, opt_state, values = _train_epoch(
                trained,
                opt_state,
                frozen,
                inputs,
                labels,
                rng.permutation(size).astype(np.int32),
                apply=apply,
                tx=tx,
                loss=loss,
                preprocess=preprocess,
                batch_size=batch_size,
            )
            batch_losses, correct = jax.device_get(values)
            _raise_if_not_finite(batch_losses, epoch, epochs)
            losses.append(np.average(batch_losses, weights=batch_sizes))
            accuracies.append(correct.sum() / labels.size)
            if bar is not None:
                means = {"loss": f"{losses[-1]:.4f}", "accuracy": f"{accuracies[-1]:.4f}"}
                bar.set_postfix(means, refresh=False)
                bar.update()
            if interrupted.is_set():
                break
    history = {"loss": np.array(losses, float), "accuracy": np.array(accuracies, float)}
    return Run(in_order_of(variables, _combine(trained, frozen)), opt_state, history)


def evaluate(
    apply: Apply,
    variables: PyTree,
    data: Data,
    *,
    batch_size: int = 1000,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    preprocess: Preprocess = scale_uint8,
) -> tuple[float, float]:
    """Returns the mean loss and the accuracy over all samples.

    Every sample counts the same, whatever the batch size. Arguments are those of `fit`, and as
    there the compiled call is kept for the same functions and shapes.

    Args:
        apply: The model, ``apply(variables, inputs) -> outputs``.
        variables: Any pytree of arrays that ``apply`` takes.
        data: Inputs ``[n, ...]`` and labels ``[n, ...]``.
        batch_size: Samples at a time; bounds the memory, not the result.
        loss: ``loss(outputs, labels)``, a loss for each sample or the mean of a batch.
        preprocess: Applied to the inputs of each batch.

    Returns:
        The loss, and the accuracy in [0, 1], NaN where labels are not classes.

    Raises:
        ValueError: Arguments that do not fit together, all named at once before any work.

    Example:
        >>> inputs, labels = jnp.array([[2.0], [3.0], [-1.0]]), jnp.array([1, 1, 1])
        >>> loss, accuracy = evaluate(lambda weights, inputs: inputs @ weights,
        ...                           jnp.array([[0.0, 1.0]]), (inputs, labels))
        >>> f"{loss:.3f} {accuracy:.3f}"
        '0.496 0.667'
    """
    _raise_if(_data_problems(data, batch_size), "training.evaluate")
    inputs, labels = _on_device(data)
    batch_size = min(batch_size, len(inputs))
    values = _evaluate_batches(
        variables,
        inputs,
        labels,
        apply=apply,
        loss=loss,
        preprocess=preprocess,
        batch_size=batch_size,
    )
    losses, correct = jax.device_get(values)
    mean_loss = np.average(losses, weights=_batch_sizes(len(inputs), batch_size))
    return float(mean_loss), float(correct.sum() / labels.size)


# The functions are static arguments of jits made once, here, so that a compiled epoch outlives a
# call of fit.


@functools.partial(
    jax.jit,
    static_argnames=("apply", "tx", "loss", "preprocess", "batch_size"),
    donate_argnames=("trained", "opt_state"),
)
def _train_epoch(
    trained: PyTree,
    opt_state: optax.OptState,
    frozen: PyTree,
    inputs: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    *,
    apply: Apply,
    tx: optax.GradientTransformation,
    loss: Loss,
    preprocess: Preprocess,
    batch_size: int,
) -> tuple[PyTree, optax.OptState, tuple[jax.Array, jax.Array]]:
    tx = optax.with_extra_args_support(tx)

    def step(state: tuple[PyTree, optax.OptState], samples: jax.Array) -> Any:
        trained, opt_state = state
        batch = preprocess(inputs[samples]), labels[samples]

        def objective(trained: PyTree) -> tuple[jax.Array, jax.Array]:
            outputs = apply(_combine(trained, frozen), batch[0])
            return _score(outputs, batch[1], loss)

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
        return (optax.apply_updates(trained, updates), opt_state), (value, correct)

    state, values = _scan_batches(step, (trained, opt_state), order, batch_size)
    return *state, values


@functools.partial(jax.jit, static_argnames=("apply", "loss", "preprocess", "batch_size"))
def _evaluate_batches(
    variables: PyTree,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    apply: Apply,
    loss: Loss,
    preprocess: Preprocess,
    batch_size: int,
) -> tuple[jax.Array, jax.Array]:
    def step(state: None, samples: jax.Array) -> Any:
        outputs = apply(variables, preprocess(inputs[samples]))
        return state, _score(outputs, labels[samples], loss)

    _, values = _scan_batches(step, None, jnp.arange(len(inputs)), batch_size)
    return values


@functools.partial(jax.jit, static_argnames="tx")
def _initial_state(
    trained: PyTree, opt_state: optax.OptState | None, *, tx: optax.GradientTransformation
) -> tuple[PyTree, optax.OptState]:
    """Returns copies, strongly typed as what an epoch returns, or else the second one retraces."""
    state = trained, tx.init(trained) if opt_state is None else opt_state
    trained, opt_state = jax.tree.map(
        lambda leaf: jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True), state
    )
    return trained, opt_state


def _scan_batches(
    step: Callable[[Any, jax.Array], Any], state: Any, order: jax.Array, batch_size: int
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Runs a step over all batches, the last and smaller one included, and stacks its values."""
    whole = len(order) - len(order) % batch_size
    state, values = jax.lax.scan(step, state, order[:whole].reshape(-1, batch_size))
    if whole < len(order):
        state, last = step(state, order[whole:])
        values = jax.tree.map(lambda value, last: jnp.append(value, last), values, last)
    return state, values


def _batch_sizes(size: int, batch_size: int) -> NDArray[np.int64]:
    return np.diff(np.append(np.arange(0, size, batch_size), size))


def _on_device(data: Data) -> tuple[jax.Array, jax.Array]:
    # Unlike jnp.asarray, device_put copies no NumPy memory that the device can use as it is.
    inputs, labels = (a if isinstance(a, jax.Array) else np.asarray(a) for a in data)
    return jax.device_put(inputs), jax.device_put(labels)


def _score(outputs: Any, labels: jax.Array, loss: Loss) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss of a batch and the number of labels that the outputs get right."""
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
    """Splits variables in trained and frozen ones: two trees, None where the other has a leaf."""
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


def _is_count(value: Any, *, at_least: int) -> bool:
    return isinstance(value, (int, np.integer)) and bool(value >= at_least)


def _raise_if(problems: list[str], caller: str) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{caller} cannot start:", *problems]))


def _data_problems(data: Data, batch_size: int) -> list[str]:
    problems = []
    inputs, labels = (np.shape(array) for array in data)
    if inputs[:1] != labels[:1] or not inputs:
        problems.append(
            "data: expected inputs and labels with the same number of samples as first axis, "
            f"got shapes {inputs} and {labels}"
        )
    elif inputs[0] == 0:
        problems.append(f"data: expected at least one sample, got inputs of shape {inputs}")
    if not _is_count(batch_size, at_least=1):
        problems.append(f"batch_size: expected an integer, 1 or more, got {batch_size!r}")
    return problems


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


def _opt_state_problems(
    opt_state: optax.OptState, tx: optax.GradientTransformation, trained: PyTree
) -> list[str]:
    def specs(tree: PyTree) -> dict[str, str]:
        return {
            path: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            for path, leaf in leaves_by_path(tree).items()
        }

    expected, got = specs(jax.eval_shape(tx.init, trained)), specs(opt_state)
    problems = [
        f"opt_state/{path}: expected {expected.get(path, 'nothing')}, "
        f"got {got.get(path, 'nothing')}"
        for path in expected | got
        if expected.get(path) != got.get(path)
    ]
    if problems:
        problems.append(
            "pass the opt_state of a run with this tx and variables of these shapes, grown with "
            "them if they grew, or leave it out to start anew"
        )
    return problems


def _raise_if_not_finite(losses: NDArray[Any], epoch: int, epochs: int) -> None:
    finite = np.isfinite(losses)
    if not finite.all():
        step = int(np.argmin(finite))
        raise FloatingPointError(
            f"the loss became {losses[step]} in epoch {epoch} of {epochs}, step {step + 1} of "
            f"{len(losses)}; the variables given to fit are as they were. Try a lower learning "
            "rate or optax.chain(optax.clip_by_global_norm(1.0), tx); check that the inputs are "
            "finite and that class labels are in [0, classes); "
            "jax.config.update('jax_debug_nans', True) finds the operation that fails first"
        )


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[threading.Event]:
    """Yields an event that a first Ctrl-C sets; a second one interrupts at once.

    Raised wherever it strikes, KeyboardInterrupt could fall between donating the state to an epoch
    and getting the new one, and all would be lost.
    """
    interrupted = threading.Event()

    def hold_back(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Python handles signals in the main thread only, and another's handler is not ours to replace.
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


def _progress_bar(epochs: int, progress: bool) -> contextlib.AbstractContextManager[Any]:
    if progress and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar: contextlib.AbstractContextManager[Any] = tqdm(total=epochs, unit="epoch")
            return bar
    return contextlib.nullcontext()
