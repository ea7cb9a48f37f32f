"""Programs on meshes with explicit axes, where the type of an array contains its sharding.

``jax.make_mesh`` makes such meshes. A program on such a mesh must declare how the result of each
lookup and selection is divided. Arrays are therefore computed with automatic axes and get their
explicit types at the end.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dogwood_jax._base.trees import PyTree, in_order_of, is_array, is_traced


def explicit_shardings(tree: PyTree) -> PyTree | None:
    """Returns shardings of arrays in a program with explicit axes; None outside of such a program.

    Arrays from outside of the program are whole on each device. Leaves that are no arrays get None.
    """
    if not hasattr(jax.sharding, "auto_axes"):  # before JAX 0.7
        return None
    known = {
        id(leaf): jax.typeof(leaf).sharding for leaf in jax.tree.leaves(tree) if is_traced(leaf)
    }
    meshes = (sharding.mesh for sharding in known.values())
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return None
    whole = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def one(leaf: Any) -> NamedSharding | None:
        sharding = known.get(id(leaf), whole) if is_array(leaf) else None
        return whole if sharding is not None and sharding.mesh != mesh else sharding

    return jax.tree.map(one, tree)


def with_automatic_axes(
    function: Callable[..., PyTree], shardings: PyTree, *trees: PyTree
) -> PyTree:
    """Returns the result of a function of trees, within a program with explicit axes.

    Args:
        function: computes a tree. It is called once, with arrays of automatic axes.
        shardings: the shardings of the arrays in its result, in the order of their leaves.
        *trees: its arguments.
    """
    leaves, structure = jax.tree.flatten(trees)
    result: PyTree = None

    def of_arrays(arrays: list[Any]) -> list[Any]:
        nonlocal result
        result = function(*jax.tree.unflatten(structure, _exchanged(leaves, arrays)))
        return list(filter(is_array, jax.tree.leaves(result)))

    automatic = jax.sharding.auto_axes(of_arrays, out_sharding=jax.tree.leaves(shardings))
    arrays = automatic(list(filter(is_array, leaves)))
    leaves, structure = jax.tree.flatten(result)
    return in_order_of(result, jax.tree.unflatten(structure, _exchanged(leaves, arrays)))


def _exchanged(leaves: list[Any], arrays: list[Any]) -> list[Any]:
    """Returns leaves with their arrays replaced."""
    others = iter(arrays)
    return [next(others) if is_array(leaf) else leaf for leaf in leaves]
