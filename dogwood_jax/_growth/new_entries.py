"""Marks the entries of arrays that a growth has added: ``new_entries``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._base.arguments import expect_arrays
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, by_ending, in_order_of, leaves_by_path, rebuilt
from dogwood_jax._growth.edit import Edit, Repetition
from dogwood_jax._growth.leaf_map import AlongAxis, AxisMap


@dataclass(frozen=True)
class NewEntries:
    """The new entries of one array: an entry is new if it is new along any axis.

    Attributes:
        along: booleans that mark the new entries along each axis.
        is_whole: whether the whole array is new.
        experts: the repetition of an old array by experts; None if there is none.
    """

    along: tuple[np.ndarray, ...]
    is_whole: bool = False
    experts: Repetition | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.along))

    def mask(self) -> Array:
        """Returns booleans in the array's shape. Under ``jit``, only vectors are constants."""
        found = jnp.full(self.shape, self.is_whole)
        for axis, new in enumerate(self.along):
            found |= jnp.expand_dims(new, [other for other in range(found.ndim) if other != axis])
        return found | drawn_anew(self.experts, self.shape) if self.experts else found


def entries_of(edit: Edit) -> NewEntries:
    """Returns the new entries of an array of the larger model."""
    if edit.is_whole:
        return NewEntries(tuple(np.ones(n, bool) for n in edit.shape), is_whole=True)
    along = [np.zeros(n, bool) for n in edit.shape[1 if edit.experts else 0 :]]
    if edit.map is not None:
        along = [~_is_old(axis) for axis in edit.map.axes]
    if edit.layers is not None:
        along[edit.layers.axis] = np.array(edit.entries) < 0
    if edit.experts is None:
        return NewEntries(tuple(along))
    return NewEntries((np.zeros(edit.experts.count, bool), *along), experts=edit.experts)


def drawn_anew(experts: Repetition, shape: tuple[int, ...]) -> Array:
    """Returns which entries of repeated experts belong to hidden units that are redrawn.

    Each expert redraws a different range of units, so that all units are redrawn about equally
    often. The arrays on both sides of a unit agree, because only sizes decide.

    Args:
        experts: the repetition of the old array.
        shape: the shape of the experts.
    """
    if not experts.anew:
        return jnp.zeros(shape, bool)
    count = shape[experts.units]
    expert = lax.broadcasted_iota(jnp.int32, shape, 0)
    unit = lax.broadcasted_iota(jnp.int32, shape, experts.units)
    first = expert * count // experts.count
    return (unit - first) % count < round(experts.anew * count)


def _is_old(axis: AlongAxis) -> np.ndarray:
    """Returns which entries along an axis come from old entries: ``[new]``."""
    if isinstance(axis, AxisMap):
        return np.arange(axis.new) < axis.new - axis.rest
    parts = [_is_old(part) for part in axis.parts]
    if axis.kind == "concat":
        return np.concatenate(parts)
    along = np.ones(1, bool)
    for part in parts:
        along = np.outer(along, part).ravel()
    return along


def of_larger_model(
    call: str, tree: PyTree, known: Mapping[str, NewEntries]
) -> dict[str, NewEntries]:
    """Returns the new entries of the arrays in a tree that mirrors the larger model's, by path.

    Raises:
        ValueError: if no path in the tree ends like a known path, or shapes differ.
    """
    leaves = leaves_by_path(tree)
    found = by_ending(leaves, known)
    if leaves and not found:
        expect_arrays(call, "tree", tree, leaves, known)
    problems = [
        f"{path}: has shape {np.shape(leaves[path])}, expected {new.shape}"
        for path, new in found.items()
        if np.shape(leaves[path]) != new.shape
    ]
    if problems:
        raise ValueError(listed(f"{call}: pass a tree of the larger model", problems))
    return found


def new_entries(tree: PyTree, known: Mapping[str, NewEntries]) -> PyTree:
    """Returns a tree of booleans, see ``Growth.is_new``.

    Args:
        tree: the larger model's arrays, or a tree whose paths end like theirs.
        known: the new entries of each array, by path.

    Raises:
        ValueError: if no path in the tree ends like a known path, or shapes differ.
    """
    leaves = leaves_by_path(tree)
    found = of_larger_model("growth.is_new(tree)", tree, known)
    masks: dict[str, Any] = {
        path: found[path].mask() if path in found else jnp.zeros(np.shape(leaf), bool)
        for path, leaf in leaves.items()
    }
    return in_order_of(tree, rebuilt(jax.tree.structure(tree), masks))
