"""Prepares an optimizer's grown moments for a whole-model file: ``replaced_moments``."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import KerasFileError, NotSavable
from dogwood_jax.keras_h5._front.optimizer import (
    check_kind,
    in_units,
    moments_in,
    moments_of,
    state_class,
    unit_of,
)
from dogwood_jax.keras_h5._weights.convert import leaves_of
from dogwood_jax.keras_h5._weights.copy import Replacement
from dogwood_jax.keras_h5._weights.layers import weights_of
from dogwood_jax.keras_h5._weights.layouts import Contents

Place = tuple[str, ...]


def replaced_moments(
    opt_state: Any, old: Contents, new: Contents, params: Mapping[Place, Any], filename: str
) -> list[Replacement]:
    """Returns the new arrays that replace those of a file's optimizer.

    Args:
        opt_state: the state, as ``save`` takes it.
        old: contents of the file.
        new: contents of the new file: the same layers, with configs of the new sizes.
        params: the new parameters by path, without the collection.
        filename: the file, for errors.

    Raises:
        NotSavable: if the state belongs to another optimizer or to other parameters, or if the
            file has no place for it.
    """
    try:
        check_kind(old)
        kept = state_class(old)
        state = _state_in(opt_state, kept, old.optimizer_class or "Adam")
        unit = unit_of(old)
        place, *slots = moments_in(old)
    except KerasFileError as error:
        raise NotSavable(f"opt_state: has no place in {filename}: {error}") from error
    if beside := _beside(old, {place.name, *(d.name for slot in slots for d in slot.values())}):
        raise NotSavable(
            f"opt_state: {filename} has {beside}, which Optax's state lacks, so it would no longer "
            "fit the weights; compile the model without, save it, and pass like= that file"
        )
    if not old.optimizer_config:
        warnings.warn(
            f"{filename}: does not record the optimizer its model was compiled with, so Keras may "
            "create one other than Adam and ignore opt_state; save the model again in Keras",
            RuntimeWarning,
            stacklevel=3,
        )
    moments = {name: getattr(state, name) for name in moments_of(kept)}
    trees = {
        name: tree.get("params", tree) if isinstance(tree, Mapping) else {}
        for name, tree in moments.items()
    }
    count = getattr(state, "count", None) if "count" in kept._fields else None
    if problems := [*_problems(count, trees, params)]:
        raise NotSavable(listed("cannot save this opt_state", problems))
    replacements: list[Replacement] = []
    if count is not None:
        replacements.append((place, "count", np.asarray(count).astype(place.dtype)))
    for slot, (name, tree) in zip(slots, trees.items()):
        arrays = jax.tree.map(lambda array: in_units(np.asarray(array), unit), tree)
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


def _state_in(opt_state: Any, kept: Any, name: str) -> Any:
    """Returns the one state of class ``kept`` that an optimizer's state contains."""
    from dogwood_jax._optimizer.growable import GrowableState

    def is_kept(node: Any) -> bool:
        return isinstance(node, kept)

    nodes = jax.tree.leaves(opt_state, is_leaf=lambda n: is_kept(n) or isinstance(n, GrowableState))
    if any(isinstance(node, GrowableState) and node.step_counts for node in nodes):
        warnings.warn(
            "opt_state: comes from dw.growable, which counts the steps of new entries from zero; "
            "Keras has one count for all entries, so new ones take larger steps at first",
            RuntimeWarning,
            stacklevel=4,
        )
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=is_kept) if is_kept(node)]
    if len(states) != 1:
        raise NotSavable(
            f"opt_state: expected the state of {name}, as keras_h5.load_optimizer returns it, or "
            f"an Optax state that contains one {kept.__name__}, such as that of "
            f"optax.{name.lower()}; got {described(opt_state)} with {len(states)} of them"
        )
    return states[0]


def _beside(found: Contents, known: set[str]) -> str:
    """Returns the names of arrays or options that Keras's optimizer has and Optax's has not."""
    options = [name for name in ("amsgrad", "use_ema") if found.optimizer_config.get(name)]
    # Without amsgrad, Keras 2 stores a single value in place of each of its arrays.
    others = [
        name
        for name, dataset in found.optimizer.items()
        if dataset.name not in known and math.prod(dataset.shape) > 1
    ]
    return " and ".join(options) or ", ".join(others)


def _problems(
    count: Any, trees: Mapping[str, Mapping[str, Any]], params: Mapping[Place, Any]
) -> Iterator[str]:
    """Yields the ways in which moments do not match the parameters."""
    if count is not None and np.shape(count) != ():
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
                    f"{params[path].shape}; grow the state with dw.grow_opt_state and the same "
                    "growth as the variables"
                )
