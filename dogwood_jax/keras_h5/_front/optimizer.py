"""The state of optimizers in files of whole models: ``load_optimizer``."""

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

# What Optax keeps for each optimizer of Keras: beside the count, what Keras keeps of each weight.
_STATES = {
    "Adam": "ScaleByAdamState",
    "AdamW": "ScaleByAdamState",
    "RMSprop": "ScaleByRmsState",
    "Adagrad": "ScaleByRssState",
    "SGD": "TraceState",
}

# What Keras calls the moments, depending on its version, where it calls them anything:
# Adam/m/dense/kernel, Adam/dense/kernel/m, Adam/m_0, adam/dense_kernel_momentum.
_FIRST = re.compile(r"/m/|/m(_[0-9]+)?(:0)?$|_momentum(:0)?$")
_SECOND = re.compile(r"/v/|/v(_[0-9]+)?(:0)?$|_velocity(:0)?$")

_MAX_SETTINGS = 4  # scalars before the moments: steps, learning rate, decays in Keras 2.0

Moments = dict[tuple[str, str], Dataset]  # by layer and weight
Slots = Sequence[tuple[str, Dataset]]  # an optimizer's arrays with their names


def load_optimizer(path: str | os.PathLike[str], *, limit: int | None = None) -> Any:
    """Loads an optimizer's moments from a whole model: training goes on where Keras left it.

    Adam's state is that of ``optax.scale_by_adam``, the first part of the state of ``optax.adam``.
    Keras adds epsilon before it corrects for the zeros at the start, Optax after: for the same
    steps pass Optax ``eps / sqrt(1 - b2**step)``. Without that, the difference soon vanishes.
    ``save(path, variables, like=..., opt_state=...)`` writes the state back, grown or not.

    RMSprop without momentum has a ``ScaleByRmsState``, Adagrad a ``ScaleByRssState`` and SGD with
    momentum a ``TraceState``: the first parts of ``optax.rmsprop``, ``optax.adagrad`` and
    ``optax.sgd``. Optax applies the learning rate to what it has summed up, Keras's SGD before it
    sums up: its moments are divided by the learning rate in the file.

    Args:
        path: a file or archive that ``model.save`` wrote after training with one of these, or with
            AdamW.
        limit: as for ``load``.

    Returns:
        The state, for Adam ``count``, the steps taken, and ``mu`` and ``nu``. All moments are in
        the tree of ``load(path)["params"]``, zero for weights that were not trained.

    Warns:
        RuntimeWarning: if the file does not say that the optimizer is Adam, as some of Keras 3.0
            to 3.5 do not, but holds two arrays for every weight.

    Raises:
        KerasFileError: if the file holds no such state, or one that does not fit its weights.
        OSError: if the file is missing or must not be read.

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
            f"{os.fspath(path)}: does not say which optimizer it holds; taken for Adam, as it has "
            "two arrays for every weight",
            RuntimeWarning,
            stacklevel=2,
        )
    return state


def check_kind(found: Contents) -> None:
    """Raises if the file says that its optimizer is not a known one."""
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
    """Returns the class of an optimizer by its class or name, such as ``rm_sprop``."""
    name = name.lower().replace("_", "")
    return next((known for known in _STATES if known.lower() == name), None)


def state_class(found: Contents) -> Any:
    """Returns the class of the state that Optax has for a file's optimizer."""
    import optax

    return getattr(optax, _STATES[_known_name(found.optimizer_class or "Adam") or "Adam"])


def moments_of(kept: Any) -> list[str]:
    """Returns the fields of a class of states that have an array for each weight."""
    return [name for name in kept._fields if name != "count"]


def unit_of(found: Contents) -> float:
    """Returns what Keras has in the place of a one of Optax: in SGD, a step against the gradient.

    Raises:
        KerasFileError: if it has no momentum, or if its learning rate is not one number.
    """
    if _known_name(found.optimizer_class or "Adam") != "SGD":
        return 1.0
    config = found.optimizer_config
    if not config.get("momentum"):
        raise KerasFileError(
            "at /optimizer: found SGD without momentum, which keeps nothing to go on from"
        )
    rate = config.get("learning_rate", config.get("lr"))
    if not isinstance(rate, int | float) or rate <= 0 or config.get("decay"):
        raise KerasFileError(
            "at /optimizer: moments of SGD are sums of steps; to know the gradients, expected one "
            f"learning rate; found {rate!r}" + (" with decay" if config.get("decay") else "")
        )
    return -float(rate)


def moments_in(found: Contents) -> tuple[Dataset, *tuple[Moments, ...]]:
    """Returns the count of steps, and each kind of moments, of the weights that have any."""
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
            f"at /optimizer: expected moments of {len(shapes)} weights that are trained, of shapes "
            f"{shapes}; found {[dataset.shape for _, dataset in slots]}"
            + (", which can be read in several ways" if fitting else "")
        )
    return scalars[0], *fitting.popitem()[1]


def _without_settings(slots: Slots) -> Iterator[Slots]:
    """Yields the arrays without the count of steps, and without the learning rate.

    Both are scalars. Weights that are scalars have moments that are: then only the first scalars
    can be settings.
    """
    yield [slot for slot in slots if slot[1].shape != ()]
    for start, (_, dataset) in enumerate(slots[:_MAX_SETTINGS], 1):
        if dataset.shape != ():
            return
        yield slots[start:]


def _readings(slots: Slots, count: int, found: Contents) -> Iterator[list[list[Dataset]]]:
    """Yields lists of moments: of Adam, first and second ones.

    These are told by their names, or by their order as far as it tells.

    A third array of each weight is the largest second moment (``amsgrad``), after all others, or
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
    """Returns moments in the tree of the parameters, as multiples of a unit."""
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
    """Returns an array times a number, in its own dtype."""
    return array if factor == 1 else (array * np.float64(factor)).astype(array.dtype)
