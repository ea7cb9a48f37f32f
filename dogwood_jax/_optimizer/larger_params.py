"""The larger network's parameters, as its optimizer sees them: ``larger_params``."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    Keys,
    PyTree,
    leaf_path,
    leaves_by_path,
    level,
    struct,
    tree_of_indices,
)
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.modules.resizing import Resizing
from dogwood_jax._growth.pairing import closest
from dogwood_jax._optimizer.fields import Field


def larger_params(
    opt_state: PyTree, growth: Growth, found: list[Field], variables: PyTree
) -> PyTree | None:
    """Returns the shapes of the larger network's parameters, from a field laid out like them.

    They have the tree structure of the grown variables or of the larger model, if one is known.

    Raises:
        ValueError: if modules in the state hold sizes, and the larger sizes are not known.
    """
    whole = [field for field in found if field.axis is None]
    if not whole:
        return None
    first, *_ = whole
    paths = {leaf_path(keys): keys for keys, _ in jax.tree_util.tree_leaves_with_path(opt_state)}

    def start(field: Field) -> Keys:
        keys = paths[field.place]
        return keys[: next(i for i in range(len(keys)) if leaf_path(keys[i:]) == field.inner)]

    trees = [part_at(opt_state, keys) for keys in dict.fromkeys(map(start, whole))]
    shapes = {leaf.path: leaf.shape for leaf in growth.widths.leaves}
    tree = _without_masks(trees, first.collection, shapes)
    old = {first.collection + path: leaf for path, leaf in leaves_by_path(tree).items()}
    larger, deeper = None, bool(growth.inserted or growth.layers)
    structure = growth.structure if variables is None or deeper else jax.tree.structure(variables)
    if structure is None and variables is not None:
        structure = jax.tree.structure(variables)
    if structure is not None:
        larger = _collection(tree_of_indices(structure), first.collection)
    if larger is None or not (deeper or _kinds(tree).items() <= _kinds(larger).items()):
        known = growth.widths.leaves
        resizing = Resizing(known, growth.sizes, first.collection)
        larger = resizing.resized(tree)
        if resizing.problems:
            way_out = "pass the grown variables, variables=dw.grow(...)"
            problems = (f"{problem}; {way_out}" for problem in resizing.problems)
            raise ValueError(listed("cannot grow this state", problems))

    def one(keys: Any, _: Any) -> Any:
        path = first.collection + leaf_path(keys)
        edit, like = growth.edits.get(path), [path]
        if edit is not None:
            like = [edit.old] if edit.old else closest(path, shapes)
        found = next((old[p] for p in like if p in old), None)
        # The optimizer keeps nothing for similar arrays, so this array is not a parameter.
        return None if found is None else struct(edit.shape if edit else found.shape, found.dtype)

    return jax.tree_util.tree_map_with_path(one, larger)


def _without_masks(
    trees: Sequence[PyTree], collection: str, shapes: Mapping[str, tuple[int, ...]]
) -> PyTree:
    """Returns the shapes in the first tree; its masked parts come from the other trees.

    Args:
        trees: trees of parameters. A mask in one of them may stand for all arrays below it.
        collection: the prefix of the network's paths that the trees leave out.
        shapes: shapes of the network's arrays, by path.
    """

    def is_masked(node: Any) -> bool:
        return type(node).__name__ == "MaskedNode"

    def own(keys: Keys, leaf: Any) -> PyTree:
        path = collection + leaf_path(keys)
        if not is_masked(leaf):
            return struct(shapes.get(path, jnp.shape(leaf)), jnp.result_type(leaf))
        for tree in trees if path not in shapes else ():
            with suppress(KeyError):
                if not is_masked(part := part_at(tree, keys)):
                    return every(part, keys)
        return struct(shapes.get(path, ()), jnp.float32)

    def every(tree: PyTree, above: Keys = ()) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: own((*above, *keys), leaf), tree, is_leaf=is_masked
        )

    return every(trees[0])


def part_at(tree: PyTree, keys: Keys) -> PyTree:
    """Returns the part of a tree at some keys."""
    for key in keys:
        tree = dict(level(tree)[0])[(key,)]
    return tree


def _kinds(tree: PyTree) -> dict[str, tuple[Any, ...]]:
    """Returns the types of the nodes above each leaf of a tree, by the keys of the leaf."""
    parts, structure = level(tree)
    if structure.node_data() is None:
        return {"": ()}
    return {
        jax.tree_util.keystr(key) + keys: (type(tree), *types)
        for key, part in parts
        for keys, types in _kinds(part).items()
    }


def _collection(tree: PyTree, name: str) -> PyTree:
    """Returns a collection of the variables, such as ``"params/"``; all if they do not have it."""
    parts = ((leaf_path(keys), part) for keys, part in level(tree)[0])
    return next((part for path, part in parts if f"{path}/" == name), tree)


def zeros_of(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def initial_state(tx: Any, state: PyTree, params: PyTree) -> PyTree:
    """Returns the initial state of an optimizer for parameters of these shapes."""
    zeros = zeros_of(params)
    if type(state).__name__ == "LookaheadState":
        import optax

        zeros = optax.LookaheadParams.init_synced(zeros)
    return tx.init(zeros)
