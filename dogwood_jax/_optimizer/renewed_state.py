"""An optimizer's state in which the entries of some units are reset: ``renewed_state``."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.described import described, is_train_state
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_array, leaf_path, leaves_by_path, level, rebuilt
from dogwood_jax._growth.moves import along
from dogwood_jax._optimizer.factored import joined, parted
from dogwood_jax._optimizer.fields import Field, fields_in
from dogwood_jax._optimizer.growable import (
    has_growable,
    is_growable,
    rewrapped_state,
    unwrapped_state,
    with_step_counts_of,
)
from dogwood_jax._optimizer.step_counts import Moments, StepCounts, renewed_step_counts
from dogwood_jax._widths.widths import Leaf

_WAY_OUT = (
    "wrap the optimizer before training, tx = dw.growable(tx, renewable=True), and start with "
    "tx.init(variables)"
)


def expect_renewable(
    opt_state: PyTree, tx: Any, variables: PyTree, known: Mapping[str, Leaf]
) -> None:
    """Raises if units cannot be renewed in a state.

    Args:
        opt_state: the state.
        tx: the optimizer.
        variables: the network's variables.
        known: the arrays of the network by path.
    """
    if is_train_state(opt_state):
        raise TypeError(
            f"renew: opt_state must be the state of an optimizer, got {described(opt_state)}; pass "
            "its opt_state, and its params as the variables"
        )
    if not has_growable(opt_state):
        raise ValueError(f"renew: the optimizer of this state cannot renew units; {_WAY_OUT}")
    for node in jax.tree.leaves(opt_state, is_leaf=is_growable):
        if is_growable(node) and Moments(node.inner_state, known).counted:
            if not (isinstance(node.step_counts, StepCounts) and node.step_counts.is_renewable):
                raise ValueError(f"renew: this state has no step count for each unit; {_WAY_OUT}")
    plain = unwrapped_state(opt_state)
    if found := list(fields_in(plain, known)):
        begun = jax.eval_shape(tx.init, _followed(variables, found))
        trees = unwrapped_state(begun), plain
        structures, shapes = ([*map(f, trees)] for f in (jax.tree.structure, _shapes))
        if structures[0] == structures[1] and shapes[0] != shapes[1] and has_growable(begun):
            places = leaves_by_path(plain)
            raise ValueError(
                listed(
                    "renew: this state has other sizes than the variables; after a growth, use "
                    "dw.grow_opt_state(state, growth, tx)",
                    [
                        f"{place}: expected shape {wanted}, got {came}"
                        for place, wanted, came in zip(places, *shapes, strict=True)
                        if wanted != came
                    ],
                )
            )
        if structures[0] != structures[1] or shapes[0] != shapes[1] or not has_growable(begun):
            raise ValueError(
                f"renew: this state does not belong to tx: expected {described(begun)}, got "
                f"{described(opt_state)}; pass the optimizer whose init made it"
            )
    arrays = leaves_by_path(plain)
    unknown = [
        f"{field.place}: has no known meaning"
        for field in found
        if field.known({})[0] is None and jnp.shape(arrays[field.place]) == field.leaf.shape
    ]
    if unknown:
        raise ValueError(listed("renew: cannot reset entries of this state", unknown))


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def renewed_state(
    opt_state: PyTree,
    tx: Any,
    variables: PyTree,
    known: Mapping[str, Leaf],
    new: Mapping[str, Sequence[Array]],
) -> PyTree:
    """Returns a state in which the entries of some units have their initial values.

    Args:
        opt_state: the state.
        tx: the optimizer.
        variables: the network's variables, after the units were renewed.
        known: the arrays of the network by path.
        new: for each array with such units, by path, booleans along each axis: ``[n]``.
    """
    plain = unwrapped_state(opt_state)
    arrays, found = leaves_by_path(plain), list(fields_in(plain, known))
    if not found:
        return opt_state
    begun = leaves_by_path(unwrapped_state(tx.init(_followed(variables, found))))
    state = dict(arrays)
    for field in found:
        path, own = field.leaf.path, arrays[field.place]
        if path not in new or field.is_factor:
            continue
        if field.axis is not None:
            is_new = new[path][field.axis]
            state[field.place] = jnp.where(is_new, begun[field.place], own)
        elif field.factored or jnp.shape(own) == field.leaf.shape:  # else one value for an array
            places, shape = field.places(path), field.leaf.shape
            array, fresh = (joined([of[p] for p in places], shape) for of in (arrays, begun))
            fresh = jnp.asarray(fresh, array.dtype)
            for axis, is_new in enumerate(new[path]):
                array = jnp.where(along(is_new, axis, array.ndim), fresh, array)
            parts = parted(array, jnp.shape(own), is_factored=field.factored)
            state |= zip(places, parts, strict=True)
    inner = {field.leaf.path: field.inner for field in found}
    masks = {inner[path]: places for path, places in new.items() if path in inner}

    def with_renewed_counts(node: Any) -> Any:
        if not is_growable(node) or not node.step_counts:
            return node
        return node._replace(
            step_counts=renewed_step_counts(node.step_counts, node.inner_state, known, masks)
        )

    counted = jax.tree.map(with_renewed_counts, opt_state, is_leaf=is_growable)
    renewed = rewrapped_state(rebuilt(jax.tree.structure(plain), state), opt_state)
    return with_step_counts_of(renewed, counted)


def _followed(variables: PyTree, found: Sequence[Field]) -> PyTree:
    """Returns the arrays that an optimizer gets: all variables, or one collection of them."""
    name = found[0].collection.rstrip("/")
    parts = {leaf_path(keys): part for keys, part in level(variables)[0]} if name else {}
    return jax.tree.map(
        lambda leaf: leaf if is_array(leaf) else None, parts[name] if name else variables
    )
