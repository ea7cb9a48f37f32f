"""Loads the optimizer state of a whole-model file: ``load_optimizer``."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._files.hdf5 import Dataset, check_sizes, dtype_of, read_array
from dogwood_jax.keras_h5._files.source import opened
from dogwood_jax.keras_h5._kinds.kind import layout
from dogwood_jax.keras_h5._weights.layers import collections_of
from dogwood_jax.keras_h5._weights.layouts import Contents, contents

# Optax's state class for each Keras optimizer: both keep the same arrays for each weight.
_STATES = {
    "Adam": "ScaleByAdamState",
    "AdamW": "ScaleByAdamState",
    "RMSprop": "ScaleByRmsState",
    "Adagrad": "ScaleByRssState",
    "SGD": "TraceState",
}

# Names of moments, in those versions of Keras that name them:
# Adam/m/dense/kernel, Adam/dense/kernel/m, Adam/m_0, adam/dense_kernel_momentum.
_FIRST = re.compile(r"/m/|/m(_[0-9]+)?(:0)?$|_momentum(:0)?$")
_SECOND = re.compile(r"/v/|/v(_[0-9]+)?(:0)?$|_velocity(:0)?$")

_MAX_SETTINGS = 4  # scalars before the moments: steps, learning rate, decays in Keras 2.0

Moments = dict[tuple[str, str], Dataset]  # by layer and weight
Slots = Sequence[tuple[str, Dataset]]  # an optimizer's arrays with their names


def load_optimizer(path: str | os.PathLike[str], *, limit: int | None = None) -> Any:
    """Loads an optimizer's moments from a whole model, to continue the training in Optax.

    Adam's state is that of ``optax.scale_by_adam``, the first part of the state of ``optax.adam``.
    Keras adds epsilon before bias correction, Optax after it: for identical steps, pass Optax
    ``eps / sqrt(1 - b2**step)``. Otherwise the steps differ at first, but the difference vanishes.
    ``save(path, variables, like=..., opt_state=...)`` writes the state back, grown or not.

    RMSprop without momentum has a ``ScaleByRmsState``, Adagrad a ``ScaleByRssState`` and SGD with
    momentum a ``TraceState``: the first parts of ``optax.rmsprop``, ``optax.adagrad`` and
    ``optax.sgd``. Optax's SGD sums gradients and then applies the learning rate; Keras sums steps.
    So Keras's moments are divided by minus the learning rate in the file.

    Args:
        path: a file or archive that ``model.save`` wrote after training with one of these
            optimizers or AdamW.
        limit: as for ``load``.

    Returns:
        The state; for Adam: ``count``, the number of steps taken, ``mu`` and ``nu``. Moments have
        the tree of ``load(path)["params"]``, with zeros for weights that were not trained.

    Warns:
        RuntimeWarning: if the file does not name its optimizer, as some files of Keras 3.0 to 3.5
            do not, but holds two arrays for every weight: it is read as Adam.

    Raises:
        KerasFileError: if the file holds no such state, or one that does not fit its weights.
        OSError: if the file is missing or may not be read.

    Example:
        >>> import optax
        >>> from dogwood_jax import keras_h5
        >>> params = keras_h5.load("model.keras")["params"]  # doctest: +SKIP
        >>> tx = optax.adam(1e-3)
        >>> _, *rest = tx.init(params)  # doctest: +SKIP
        >>> opt_state = (keras_h5.load_optimizer("model.keras"), *rest)  # doctest: +SKIP
    """
    with opened(path, limit) as source:
        found = contents(source)
        check_kind(found)
        named = found.optimizer_class is not None
        kept, unit = state_class(found), unit_of(found)
        count, *slots = moments_in(found)
        check_sizes([dataset for slot in slots for dataset in slot.values()], source.limit)
        counted = {"count": np.int32(read_array(count))} if "count" in kept._fields else {}
        trees = [_tree(found, slot, unit) for slot in slots]
        state = kept(**counted, **dict(zip(moments_of(kept), trees)))
    if not named:
        warnings.warn(
            f"{os.fspath(path)}: does not name its optimizer; read as Adam, because it has two "
            "arrays for every weight",
            RuntimeWarning,
            stacklevel=2,
        )
    return state


def check_kind(found: Contents) -> None:
    """Raises if the file has no optimizer that can be read, or one of an unknown class."""
    name = found.optimizer_class or "Adam"
    if found.optimizer_problem is not None:
        raise KerasFileError(found.optimizer_problem)
    if not found.optimizer or found.config is None:
        raise KerasFileError(
            "at /: expected a whole model with its optimizer, as model.save writes it after "
            "training; found none"
        )
    if _known_name(name) is None:
        *others, last = _STATES
        raise KerasFileError(
            f"at /: expected the optimizer to be {', '.join(others)} or {last}; found {name!r}"
        )


def _known_name(name: str) -> str | None:
    """Returns the optimizer class for a class name or an instance name such as ``rm_sprop``."""
    name = name.lower().replace("_", "")
    return next((known for known in _STATES if known.lower() == name), None)


def state_class(found: Contents) -> Any:
    """Returns Optax's state class for a file's optimizer."""
    import optax

    return getattr(optax, _STATES[_known_name(found.optimizer_class or "Adam") or "Adam"])


def moments_of(kept: Any) -> list[str]:
    """Returns the fields of a state class that hold an array for each weight."""
    return [name for name in kept._fields if name != "count"]


def unit_of(found: Contents) -> float:
    """Returns the factor from Optax's moments to Keras's: minus the learning rate for SGD, else 1.

    Raises:
        KerasFileError: if SGD has no momentum, or if its learning rate is not one number.
    """
    if _known_name(found.optimizer_class or "Adam") != "SGD":
        return 1.0
    config = found.optimizer_config
    if not config.get("momentum"):
        raise KerasFileError(
            "at /optimizer: expected SGD with momentum; found it without, so it has no state"
        )
    rate = config.get("learning_rate", config.get("lr"))
    if not isinstance(rate, int | float) or rate <= 0 or config.get("decay"):
        raise KerasFileError(
            "at /optimizer: moments of SGD are sums of steps; to compute the gradients, expected "
            f"one learning rate; found {rate!r}" + (" with decay" if config.get("decay") else "")
        )
    return -float(rate)


def moments_in(found: Contents) -> tuple[Dataset, *tuple[Moments, ...]]:
    """Returns the count of steps, and each kind of moments by layer and weight."""
    weights = {
        (layer.name, weight.name): layer.weights[weight.name]
        for layer in found.layers
        for weight in layout(layer.class_name, layer.config)
        if weight.trainable and not weight.quantized and weight.name in layer.weights
    }
    frozen = {n.name for n in found.layers if n.config.get("trainable") is False}
    trained = {place: dataset for place, dataset in weights.items() if place[0] not in frozen}
    slots = list(found.optimizer.items())
    scalars = [dataset for _, dataset in slots if dataset.shape == ()]
    if not scalars:
        raise KerasFileError("at /optimizer: expected a count of steps; found none")
    fitting: dict[str, list[Moments]] = {}
    for some in (trained, weights):  # Keras 3.0 has moments of frozen layers as well
        shapes = [dataset.shape for dataset in some.values()]
        for part in _without_settings(slots):
            for moments in _readings(part, len(some), found):
                if all([dataset.shape for dataset in each] == shapes for each in moments):
                    fitting[str(moments)] = [dict(zip(some, each)) for each in moments]
    if len(fitting) != 1:
        shapes = [dataset.shape for dataset in trained.values()]
        raise KerasFileError(
            f"at /optimizer: expected moments of {len(shapes)} trained weights, of shapes "
            f"{shapes}; found {[dataset.shape for _, dataset in slots]}"
            + (", which can be read in several ways" if fitting else "")
        )
    return scalars[0], *fitting.popitem()[1]


def _without_settings(slots: Slots) -> Iterator[Slots]:
    """Yields the arrays without settings, such as the step count and the learning rate.

    Settings are scalars. Moments of scalar weights are scalars too: if there are such weights, only
    the leading scalars can be settings.
    """
    yield [slot for slot in slots if slot[1].shape != ()]
    for start, (_, dataset) in enumerate(slots[:_MAX_SETTINGS], 1):
        if dataset.shape != ():
            return
        yield slots[start:]


def _readings(slots: Slots, count: int, found: Contents) -> Iterator[list[list[Dataset]]]:
    """Yields possible lists of moments; for Adam, of first and of second moments.

    Names tell the two apart. Without names, their order does, if it is unambiguous.

    A third array for each weight is the largest second moment (``amsgrad``), after all others, or
    in Keras 3 the moving average of the weight (``use_ema``), before all others.
    """
    first = [dataset for name, dataset in slots if _FIRST.search(name)]
    second = [dataset for name, dataset in slots if _SECOND.search(name)]
    datasets = [dataset for _, dataset in slots]
    if len(moments_of(state_class(found))) == 1:
        yield [datasets]
    elif first or second:
        yield [first, second]
    elif found.layout != "keras":
        if len(datasets) in (2 * count, 3 * count):
            yield [datasets[:count], datasets[count : 2 * count]]
    elif len(datasets) == 2 * count:
        yield [datasets[::2], datasets[1::2]]
    elif len(datasets) == 3 * count:
        known = found.optimizer_config
        if not known or known.get("amsgrad"):
            yield [datasets[: 2 * count : 2], datasets[1 : 2 * count : 2]]
        if not known or known.get("use_ema"):
            yield [datasets[count::2], datasets[count + 1 :: 2]]


def _tree(found: Contents, moments: Moments, unit: float) -> dict[str, Any]:
    """Returns moments in the tree of the parameters, divided by ``unit``."""
    tree = {}
    for layer in found.layers:
        arrays = {
            name: in_units(read_array(moments[layer.name, name]), 1 / unit)
            if (layer.name, name) in moments
            else np.zeros(dataset.shape, dtype_of(dataset))
            for name, dataset in layer.weights.items()
        }
        tree[layer.name] = collections_of(layer.class_name, layer.config, arrays)["params"]
    return tree


def in_units(array: np.ndarray, factor: float) -> np.ndarray:
    """Returns an array multiplied by a number, in its own dtype."""
    return array if factor == 1 else (array * np.float64(factor)).astype(array.dtype)
