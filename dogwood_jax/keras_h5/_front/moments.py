"""Adam's moments back into a file of a whole model, in new sizes: ``replaced_moments``."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import KerasFileError, NotSavable
from dogwood_jax.keras_h5._front.optimizer import check_kind, moments_in
from dogwood_jax.keras_h5._weights.convert import leaves_of
from dogwood_jax.keras_h5._weights.copy import Replacement
from dogwood_jax.keras_h5._weights.layers import weights_of
from dogwood_jax.keras_h5._weights.layouts import Contents

Place = tuple[str, ...]


def replaced_moments(
    opt_state: Any, old: Contents, new: Contents, params: Mapping[Place, Any], filename: str
) -> list[Replacement]:
    """Returns what takes the place of the arrays of a file's optimizer.

    Args:
        opt_state: the state, as ``save`` takes it.
        old: what the file holds.
        new: what the new one shall hold: the same layers, with configs of the new sizes.
        params: the new parameters by path, without the collection.
        filename: the file, for errors.

    Raises:
        NotSavable: if the state is not Adam's or not that of these parameters, or if the file has
            no place for it.
    """
    count, *moments = _adam(opt_state)
    try:
        check_kind(old)
        place, *slots = moments_in(old)
    except KerasFileError as error:
        raise NotSavable(f"opt_state: has no place in {filename}: {error}") from error
    if beside := _beside(old, {place.name, *(d.name for slot in slots for d in slot.values())}):
        raise NotSavable(
            f"opt_state: {filename} has {beside} beside Adam's moments, which would no longer "
            "belong to the weights; compile the model without, and save it for like="
        )
    if not old.optimizer_config:
        warnings.warn(
            f"{filename}: does not say which optimizer its model was compiled with, so that Keras "
            "may make another than Adam and leave opt_state alone; save it in Keras once more",
            RuntimeWarning,
            stacklevel=3,
        )
    trees = [tree.get("params", tree) if isinstance(tree, Mapping) else {} for tree in moments]
    if problems := [*_problems(count, dict(zip(("mu", "nu"), trees)), params)]:
        raise NotSavable(listed("cannot save this opt_state", problems))
    replacements = [(place, "count", np.asarray(count).astype(place.dtype))]
    for name, slot, tree in zip(("mu", "nu"), slots, trees):
        arrays = jax.tree.map(np.asarray, tree)
        weights = {
            layer.name: weights_of(
                layer.class_name, layer.config, {"params": arrays.get(layer.name, {})}
            )
            for layer in new.layers
        }
        replacements += [
            (dataset, f"{name} of {layer}/{weight}", weights[layer][weight])
            for (layer, weight), dataset in slot.items()
        ]
    return replacements


def _adam(opt_state: Any) -> Any:
    """Returns the state of ``optax.scale_by_adam`` that is in an optimizer's."""
    import optax

    from dogwood_jax._optimizer.growable import GrowableState

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    nodes = jax.tree.leaves(opt_state, is_leaf=lambda n: is_adam(n) or isinstance(n, GrowableState))
    if any(isinstance(node, GrowableState) and node.ages for node in nodes):
        warnings.warn(
            "opt_state: is of dw.growable, which counts steps anew for entries that have grown; "
            "Keras has one count for all entries, so that new ones take larger steps at first",
            RuntimeWarning,
            stacklevel=4,
        )
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    if len(states) != 1:
        raise NotSavable(
            "opt_state: expected the state of Adam, as keras_h5.load_optimizer returns it, or of "
            "an optimizer of Optax's with one in it, such as optax.adam; got "
            f"{described(opt_state)} with {len(states)} of them"
        )
    return states[0]


def _beside(found: Contents, known: set[str]) -> str:
    """Returns what an optimizer keeps of each weight that Optax's Adam does not."""
    options = [name for name in ("amsgrad", "use_ema") if found.optimizer_config.get(name)]
    # Without amsgrad, Keras 2 has one number in the place of each of its arrays.
    others = [
        name
        for name, dataset in found.optimizer.items()
        if dataset.name not in known and math.prod(dataset.shape) > 1
    ]
    return " and ".join(options) or ", ".join(others)


def _problems(
    count: Any, trees: Mapping[str, Mapping[str, Any]], params: Mapping[Place, Any]
) -> Iterator[str]:
    """Yields in what moments are not those of the parameters."""
    if np.shape(count) != ():
        yield f"count: expected one number, got shape {np.shape(count)}"
    for name, tree in trees.items():
        found = dict(leaves_of(tree))
        for path in dict.fromkeys([*params, *found]):
            where = f"{name} of {'/'.join(path)}"
            if path not in found:
                yield f"{where}: is missing"
            elif path not in params:
                yield f"{where}: is not among the variables"
            elif np.shape(found[path]) != params[path].shape:
                yield (
                    f"{where}: has shape {np.shape(found[path])}, its weight "
                    f"{params[path].shape}; grow the state by dw.grow_opt_state, with the same "
                    "growth as the variables"
                )
