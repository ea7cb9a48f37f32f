"""Places the arrays of a training loop on a mesh: as they are split, or whole on every device."""

import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dogwood_jax._base.trees import PyTree

Shardings: TypeAlias = tuple[NamedSharding, ...]


def automatic(sharding: NamedSharding) -> NamedSharding:
    """Returns the same sharding on a mesh of automatic axes, on which any function runs.

    With the explicit axes of ``jax.make_mesh``, a model would have to declare the sharding of each
    sum over a split axis.
    """
    assert isinstance(sharding.mesh, Mesh)
    mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def context(sharding: NamedSharding | None) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which to call compiled functions; it replaces the caller's mesh."""
    if sharding is None:
        return contextlib.nullcontext()
    # Before JAX 0.7, ``set_mesh`` was ``use_mesh``.
    set_mesh: Any = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    manager: contextlib.AbstractContextManager[Any] = set_mesh(automatic(sharding).mesh)
    return manager


def without_mesh() -> contextlib.AbstractContextManager[Any]:
    """Returns a context without the mesh that the caller has set."""
    if not hasattr(jax.sharding, "use_abstract_mesh"):  # before JAX 0.7
        return contextlib.nullcontext()
    nowhere: contextlib.AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((), ())
    )
    return nowhere


def parts(sharding: NamedSharding) -> int:
    """Returns the number of parts into which the first axis of an array is split."""
    size = sharding.mesh.size
    return size // sharding.shard_shape((size,))[0]


def on_axes(sharding: NamedSharding, *axes: Any) -> NamedSharding:
    """Returns a sharding on the same mesh that splits leading axes over mesh axes, if any."""
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]


def on_mesh(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Returns a tree on the mesh. Arrays already on it stay; others are copied to each device.

    If several processes share the mesh, all must pass the same arrays, or global arrays.
    """
    whole = on_axes(automatic(sharding))

    def put(leaf: Any) -> Any:
        return jax.device_put(leaf, _sharding_on(whole.mesh, leaf) or whole)

    return jax.tree.map(put, tree)


def handed_back(tree: PyTree, shardings: Shardings, sharding: NamedSharding) -> PyTree:
    """Returns arrays of ``on_mesh`` with given shardings, on the caller's mesh and types of axes.

    Also restores the given specs, since a compiled function may return equivalent ones.
    """
    own = [NamedSharding(sharding.mesh, given.spec) for given in shardings]
    return jax.device_put(tree, jax.tree.unflatten(jax.tree.structure(tree), own))


def shardings_of(tree: PyTree) -> Shardings:
    """Returns the shardings of a tree's arrays."""
    return tuple(leaf.sharding for leaf in jax.tree.leaves(tree))


def constrained(tree: PyTree, sharding: NamedSharding | Shardings | None) -> PyTree:
    """Returns arrays of a compiled function with one sharding for all, one for each, or any."""
    if sharding is None:
        return tree
    if isinstance(sharding, tuple):
        sharding = jax.tree.unflatten(jax.tree.structure(tree), sharding)
    return jax.lax.with_sharding_constraint(tree, sharding)  # type: ignore[no-untyped-call]


def mesh_problems(leaves: Mapping[str, Any], sharding: Any) -> list[str]:
    """Returns problems: arrays, by path, that are on several devices but not on the given mesh."""
    spread = {
        path: leaf.sharding
        for path, leaf in leaves.items()
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    }
    if sharding is None:
        return [
            f"sharding: {path} lies on several devices; define how they share a batch, such as "
            "sharding=NamedSharding(mesh, PartitionSpec('data'))"
            for path in list(spread)[:1]
        ]
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) > 1:
        return [
            "sharding: expected the sharding of a batch along its first axis, such as "
            f"NamedSharding(mesh, PartitionSpec('data')), got {sharding!r}"
        ]
    mesh = automatic(sharding).mesh
    return [
        f"{path}: expected on one device or on the mesh of sharding, {sharding.mesh}, got {other}"
        for path, other in spread.items()
        if _sharding_on(mesh, leaves[path]) is None
    ]


def _sharding_on(mesh: Any, leaf: Any) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding):
        return None
    sharding = automatic(leaf.sharding)
    return sharding if sharding.mesh == mesh else None
