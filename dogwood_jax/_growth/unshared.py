"""Copies of the arrays that two trees share: ``unshared``."""

from typing import Any

import jax

from dogwood_jax._base.trees import PyTree, is_array, is_traced


def unshared(tree: PyTree, *others: PyTree) -> PyTree:
    """Returns a tree that shares no array with other trees; traced arrays are no buffers yet."""
    held = {id(leaf) for leaf in jax.tree.leaves(others) if is_array(leaf)}

    def own(leaf: Any) -> Any:
        is_shared = id(leaf) in held and not is_traced(leaf)
        return leaf.copy() if is_shared and not isinstance(leaf, jax.ShapeDtypeStruct) else leaf

    return jax.tree.map(own, tree)
