"""Pytrees by path: the only place that defines the names of leaves."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
V = TypeVar("V")
# JAX's keys from a tree to a part of it.
Keys = tuple[Any, ...]


def leaf_path(keys: Sequence[Any]) -> str:
    """Returns the name of a leaf: its keys joined by slashes, ``"params/dense_1/kernel"``.

    The boxes in which Flax keeps variables (``nnx.Param``, ``nn.Partitioned``) are left out.
    """
    boxed = len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value")
    return jax.tree_util.keystr(tuple(keys[:-1] if boxed else keys), simple=True, separator="/")


def level(tree: PyTree) -> tuple[list[tuple[Keys, Any]], Any]:
    """Returns the children of a tree's root with their keys, and the structure of the root.

    A leaf is its own only child, without a key.
    """
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is not tree)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or the shape of an array, rather than, say, a function."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def apart(tree: PyTree) -> tuple[list[Any], Callable[[Iterable[Any]], PyTree]]:
    """Returns the arrays of a tree in order, and a function that replaces them by other arrays."""
    leaves, structure = jax.tree.flatten(tree)

    def back(arrays: Iterable[Any]) -> PyTree:
        those = iter(arrays)
        return jax.tree.unflatten(structure, [next(those) if is_array(x) else x for x in leaves])

    return [leaf for leaf in leaves if is_array(leaf)], back


def only_data(tree: PyTree) -> PyTree:
    """Returns a tree in which leaves that JAX cannot trace, such as functions, are None."""
    return jax.tree.map(
        lambda leaf: leaf if is_array(leaf) or isinstance(leaf, int | float | complex) else None,
        tree,
    )


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in the order of ``jax.tree.leaves``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return by_path((leaf_path(keys), leaf) for keys, leaf in leaves)


def by_path(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns leaves by path, after checking that no two have the same path."""
    leaves: dict[str, Any] = {}
    for path, leaf in items:
        if path in leaves:
            raise ValueError(
                f"two leaves have the path {path!r}, so paths cannot tell them apart; rename a key "
                "that holds a slash"
            )
        leaves[path] = leaf
    return leaves


def by_ending(paths: Iterable[str], items: Mapping[str, V]) -> dict[str, V]:
    """Returns the items of the variables that leaves of another tree mirror, by the leaf's path.

    The tree is, for example, an optimizer's state. A leaf mirrors the variable whose path, with or
    without its collection, is the longest end of the leaf's path. Other leaves are left out.

    Args:
        paths: paths of the leaves.
        items: an item for each variable, by path.
    """
    inner = Counter(name.partition("/")[2] for name in items)
    known = {name.partition("/")[2]: item for name, item in items.items()}
    # In variables without collections, this cuts off the layer, and many layers have a "kernel".
    known = {name: item for name, item in known.items() if inner[name] == 1} | dict(items)
    found: dict[str, V] = {}
    for path in paths:
        keys = path.split("/")
        ends = ("/".join(keys[i:]) for i in range(len(keys)))
        if (end := next((end for end in ends if end in known), None)) is not None:
            found[path] = known[end]
    return found


def arrays_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves that are arrays."""
    return {path: leaf for path, leaf in leaves.items() if is_array(leaf)}


def mirrors(
    outputs: Mapping[str, tuple[int, ...]], leaves: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Finds outputs that are new values, or gradients, of all variables or of a collection.

    They grow with the variables, so their widths are not fixed as an interface.

    Args:
        outputs: shapes of the outputs by path.
        leaves: shapes of the variables by path.

    Returns:
        The path of the variable behind each of these outputs.
    """
    collections: dict[str, dict[str, tuple[int, ...]]] = {"": dict(leaves)}
    for path, shape in leaves.items():
        collection, _, rest = path.partition("/")
        if rest:
            collections.setdefault(collection, {})[rest] = shape
    below: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in outputs.items():
        keys = path.split("/")
        for n in range(len(keys)):
            below.setdefault("/".join(keys[:n]), {})["/".join(keys[n:])] = shape
    return {
        f"{start}/{path}".strip("/"): f"{collection}/{path}".strip("/")
        for start, paths in below.items()
        for collection, members in collections.items()
        if members and members.items() <= paths.items()
        for path in members
    }


def is_traced(array: Any) -> bool:
    """Whether the array is traced, as inside of ``jax.jit``."""
    return isinstance(array, jax.core.Tracer)


def concrete(array: Any) -> np.ndarray | None:
    """Returns the values of an array, or None if the array is traced."""
    try:
        return np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None


def rebuilt(structure: Any, leaves: Mapping[str, Any]) -> PyTree:
    """Returns a tree of a given structure with the leaves placed by their paths."""
    return jax.tree.unflatten(
        structure, [leaves[path] for path in leaves_by_path(tree_of_indices(structure))]
    )


def nested(leaves: Mapping[str, Any]) -> PyTree:
    """Returns nested dicts of leaves by path, with lists where the keys are 0, 1 and so on."""
    if "" in leaves:
        return leaves[""]
    below: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        key, _, rest = path.partition("/")
        below.setdefault(key, {})[rest] = leaf
    parts = {key: nested(inner) for key, inner in below.items()}
    numbers = [str(number) for number in range(len(parts))]
    return [parts[key] for key in numbers] if parts and {*parts} == {*numbers} else parts


def tree_of_indices(structure: Any) -> PyTree:
    """Returns a tree of a given structure whose leaves are 0, 1, ..., to read paths from it."""
    return jax.tree.unflatten(structure, range(structure.num_leaves))


def in_order_of(template: PyTree, tree: PyTree) -> PyTree:
    """Returns the tree with the keys of its plain dicts in the template's order.

    JAX rebuilds dicts with sorted keys, but readers and file formats rely on the order of layers.
    Dicts inside of other containers keep JAX's order.
    """
    if type(tree) is dict and isinstance(template, Mapping) and tree.keys() == template.keys():
        return {key: in_order_of(template[key], tree[key]) for key in template}
    return tree


def struct_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype that an array has inside of a traced function."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    dtype = leaf.dtype
    if not jnp.issubdtype(dtype, jax.dtypes.extended):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return struct(leaf.shape, dtype)


def struct(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array without its values."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype)  # type: ignore[no-untyped-call]
