"""The state of Adam in files of whole models: ``load_optimizer``."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._files.hdf5 import Dataset, check_sizes, dtype_of, read_array
from dogwood_jax.keras_h5._files.source import opened
from dogwood_jax.keras_h5._kinds.kind import layout
from dogwood_jax.keras_h5._weights.layers import collections_of
from dogwood_jax.keras_h5._weights.layouts import Contents, contents

if TYPE_CHECKING:
    import optax

# What Keras calls the moments, depending on its version, where it calls them anything:
# Adam/m/dense/kernel, Adam/dense/kernel/m, Adam/m_0, adam/dense_kernel_momentum.
_FIRST = re.compile(r"/m/|/m(_[0-9]+)?(:0)?$|_momentum(:0)?$")
_SECOND = re.compile(r"/v/|/v(_[0-9]+)?(:0)?$|_velocity(:0)?$")

_MAX_SETTINGS = 4  # scalars before the moments: steps, learning rate, decays in Keras 2.0

Moments = dict[tuple[str, str], Dataset]  # by layer and weight
Slots = Sequence[tuple[str, Dataset]]  # an optimizer's arrays with their names


def load_optimizer(
    path: str | os.PathLike[str], *, limit: int | None = None
) -> "optax.ScaleByAdamState":
    """Loads Adam's moments from a whole model, so that training goes on where Keras left it.

    The state is that of ``optax.scale_by_adam``, the first part of the state of ``optax.adam``.
    Keras adds epsilon before it corrects for the zeros at the start, Optax after: for the same
    steps pass Optax ``eps / sqrt(1 - b2**step)``. Without that, the difference soon vanishes.
    ``save(path, variables, like=..., opt_state=...)`` writes the state back, grown or not.

    Args:
        path: a file or archive that ``model.save`` wrote after training with Adam or AdamW.
        limit: as for ``load``.

    Returns:
        ``count``, the steps taken, and ``mu`` and ``nu`` in the tree of ``load(path)["params"]``,
        zero for weights that were not trained.

    Warns:
        RuntimeWarning: if the file does not say that the optimizer is Adam, as some of Keras 3.0
            to 3.5 do not, but holds two arrays for every weight.

    Raises:
        KerasFileError: if the file holds no state of Adam, or one that does not fit its weights.
        OSError: if the file is missing or must not be read.

    Example:
        >>> import optax
        >>> from dogwood_jax import keras_h5
        >>> params = keras_h5.load("model.keras")["params"]  # doctest: +SKIP
        >>> tx = optax.adam(1e-3)
        >>> _, *rest = tx.init(params)  # doctest: +SKIP
        >>> opt_state = (keras_h5.load_optimizer("model.keras"), *rest)  # doctest: +SKIP
    """
    import optax

    with opened(path, limit) as source:
        found = contents(source)
        check_kind(found)
        named = found.optimizer_class is not None
        count, first, second = moments_in(found)
        check_sizes((*first.values(), *second.values()), source.limit)
        mu, nu = _tree(found, first), _tree(found, second)
        state = optax.ScaleByAdamState(np.int32(read_array(count)), mu, nu)
    if not named:
        warnings.warn(
            f"{os.fspath(path)}: does not say which optimizer it holds; taken for Adam, as it has "
            "two arrays for every weight",
            RuntimeWarning,
            stacklevel=2,
        )
    return state


def check_kind(found: Contents) -> None:
    """Raises if the file says that its optimizer is not Adam."""
    name = found.optimizer_class or "adam"
    if found.optimizer_problem is not None:
        raise KerasFileError(found.optimizer_problem)
    if not found.optimizer or found.config is None:
        raise KerasFileError(
            "at /: expected a whole model with its optimizer, as model.save writes it after "
            "training; found none"
        )
    if name.lower() not in ("adam", "adamw"):
        raise KerasFileError(f"at /: expected the optimizer to be Adam or AdamW; found {name!r}")


def moments_in(found: Contents) -> tuple[Dataset, Moments, Moments]:
    """Returns the count of steps, and the first and second moments of the weights that have any."""
    weights = {
        (layer.name, weight.name): layer.weights[weight.name]
        for layer in found.layers
        for weight in layout(layer.class_name, layer.config)
        if weight.trainable and weight.name in layer.weights
    }
    frozen = {n.name for n in found.layers if n.config.get("trainable") is False}
    trained = {place: dataset for place, dataset in weights.items() if place[0] not in frozen}
    slots = list(found.optimizer.items())
    scalars = [dataset for _, dataset in slots if dataset.shape == ()]
    if not scalars:
        raise KerasFileError("at /optimizer: expected a count of steps; found none")
    fitting = {}
    for some in (trained, weights):  # Keras 3.0 has moments of frozen layers as well
        shapes = [dataset.shape for dataset in some.values()]
        for part in _without_settings(slots):
            for moments in _readings(part, len(some), found):
                if all([dataset.shape for dataset in each] == shapes for each in moments):
                    first, second = (dict(zip(some, each)) for each in moments)
                    fitting[str([first, second])] = first, second
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


def _readings(
    slots: Slots, count: int, found: Contents
) -> Iterator[tuple[list[Dataset], list[Dataset]]]:
    """Yields first and second moments, told by their names, or by their order as far as it tells.

    A third array of each weight is the largest second moment (``amsgrad``), after all others, or
    in Keras 3 the moving average of the weight (``use_ema``), before all others.
    """
    first = [dataset for name, dataset in slots if _FIRST.search(name)]
    second = [dataset for name, dataset in slots if _SECOND.search(name)]
    datasets = [dataset for _, dataset in slots]
    if first or second:
        yield first, second
    elif found.layout != "keras":
        if len(datasets) in (2 * count, 3 * count):
            yield datasets[:count], datasets[count : 2 * count]
    elif len(datasets) == 2 * count:
        yield datasets[::2], datasets[1::2]
    elif len(datasets) == 3 * count:
        known = found.optimizer_config
        if not known or known.get("amsgrad"):
            yield datasets[: 2 * count : 2], datasets[1 : 2 * count : 2]
        if not known or known.get("use_ema"):
            yield datasets[count::2], datasets[count + 1 :: 2]


def _tree(found: Contents, moments: Moments) -> dict[str, Any]:
    """Returns moments in the tree of the parameters."""
    tree = {}
    for layer in found.layers:
        arrays = {
            name: read_array(moments[layer.name, name])
            if (layer.name, name) in moments
            else np.zeros(dataset.shape, dtype_of(dataset))
            for name, dataset in layer.weights.items()
        }
        tree[layer.name] = collections_of(layer.class_name, layer.config, arrays)["params"]
    return tree
