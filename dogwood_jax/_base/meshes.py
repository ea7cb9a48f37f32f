"""Where the arrays of a training loop lie on a mesh: where they are, or whole on every device."""

import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dogwood_jax._base.trees import PyTree

Shardings: TypeAlias = tuple[NamedSharding, ...]


def automatic(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding on a mesh that leaves the rest to XLA, so that any function runs.

    With the explicit axes of ``jax.make_mesh``, a model would have to say how each of its sums
    over a split axis is split.
    """
    assert isinstance(sharding.mesh, Mesh)
    mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def context(sharding: NamedSharding | None) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which to call compiled functions, in place of any mesh around it."""
    if sharding is None:
        return contextlib.nullcontext()
    # Its name before JAX 0.7.
    set_mesh: Any = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    manager: contextlib.AbstractContextManager[Any] = set_mesh(automatic(sharding).mesh)
    return manager


def without_mesh() -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which programs know nothing of the mesh that the caller has set."""
    if not hasattr(jax.sharding, "use_abstract_mesh"):  # before JAX 0.7
        return contextlib.nullcontext()
    nowhere: contextlib.AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((), ())
    )
    return nowhere


def parts(sharding: NamedSharding) -> int:
    """Returns in how many parts the first axis of an array is split."""
    size = sharding.mesh.size
    return size // sharding.shard_shape((size,))[0]


def on_axes(sharding: NamedSharding, *axes: Any) -> NamedSharding:
    """Returns the sharding of an array's leading axes, on the same mesh; by default of no axis."""
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]


def on_mesh(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Returns arrays on the mesh: those on it stay where they are, others go whole to each device.

    Where several processes share the mesh, each passes the same arrays, or global ones.
    """
    whole = on_axes(automatic(sharding))

    def put(leaf: Any) -> Any:
        return jax.device_put(leaf, _sharding_on(whole.mesh, leaf) or whole)

    return jax.tree.map(put, tree)


def handed_back(tree: PyTree, shardings: Shardings, sharding: NamedSharding) -> PyTree:
    """Returns arrays `on_mesh`, split as given, on the sharding's own mesh and its types of axes.

    Also, a compiled function may return the same sharding in other words.
    """
    own = [NamedSharding(sharding.mesh, given.spec) for given in shardings]
    return jax.device_put(tree, jax.tree.unflatten(jax.tree.structure(tree), own))


def shardings_of(tree: PyTree) -> Shardings:
    """Returns the shardings of a tree's arrays."""
    return tuple(leaf.sharding for leaf in jax.tree.leaves(tree))


def constrained(tree: PyTree, sharding: NamedSharding | Shardings | None) -> PyTree:
    """Returns the arrays of a compiled function with a sharding for all, one for each, or any."""
    if sharding is None:
        return tree
    if isinstance(sharding, tuple):
        sharding = jax.tree.unflatten(jax.tree.structure(tree), sharding)
    return jax.lax.with_sharding_constraint(tree, sharding)  # type: ignore[no-untyped-call]


def mesh_problems(leaves: Mapping[str, Any], sharding: Any) -> list[str]:
    """Says, by path, which arrays lie neither on one device nor on the mesh of the sharding."""
    spread = {
        path: leaf.sharding
        for path, leaf in leaves.items()
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    }
    if sharding is None:
        return [
            f"sharding: {path} lies on several devices; say how they share a batch, as in "
            "sharding=NamedSharding(mesh, PartitionSpec('data'))"
            for path in list(spread)[:1]
        ]
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) > 1:
        return [
            "sharding: expected that of the first axis of a batch, such as "
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
