"""On which devices grown arrays lie: ``grown_shardings`` and ``placement``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from dogwood_jax._insert import Insertion
from dogwood_jax._problems import listed
from dogwood_jax._tree import PyTree, leaves_by_path, rebuilt

if TYPE_CHECKING:
    from dogwood_jax._growth import Growth


_MISFITS = "cannot divide the grown arrays among devices as the old ones are"


@dataclass(frozen=True)
class Placement:
    """Where the results of a computation lie.

    Attributes:
        sharded: whether arrays are, or may be, divided among devices.
        shardings: what to ask for, by path; None to leave it to the program around.
    """

    sharded: bool
    shardings: Mapping[str, Sharding] | None = None


def placement(
    arrays: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    fresh: Mapping[str, Any] | None = None,
) -> Placement:
    """Returns where grown arrays should lie: as the fresh ones do, else as the old ones.

    Args:
        arrays: the old arrays by path.
        shapes: shapes of the grown ones.
        fresh: arrays of the larger model, if there are any.

    Raises:
        ValueError: if a new size cannot be divided as the old one is.
    """
    given = [*arrays.values(), *(fresh or {}).values()]
    if any(isinstance(array, jax.core.Tracer) for array in given):
        # Shardings are only known when this is compiled.
        return Placement(jax.device_count() > 1)
    given = [array.sharding for array in given if isinstance(array, jax.Array)]
    if all(len(sharding.device_set) == 1 for sharding in given):
        return Placement(False)
    shardings = {
        path: array.sharding
        for path, array in {**arrays, **(fresh or {})}.items()
        if isinstance(array, jax.Array)
    }
    problems = [
        problem
        for path, sharding in shardings.items()
        for problem in _misfits(path, sharding, shapes.get(path, ()))
    ]
    if problems:
        raise ValueError(listed(_MISFITS, problems))
    return Placement(not all(sharding.is_fully_replicated for sharding in given), shardings)


def grown_shardings(growth: "Growth", old: PyTree) -> PyTree:
    """Returns the shardings of grown arrays, see ``Growth.shardings``."""
    shardings, structure = leaves_by_path(old), jax.tree.structure(old)
    missing = [leaf.path for leaf in growth.widths.leaves if leaf.path not in shardings]
    problems = [
        f"{path}: expected a jax.sharding.Sharding, got {type(sharding).__name__}; "
        "NamedSharding(mesh, spec) makes one of a PartitionSpec"
        for path, sharding in shardings.items()
        if not isinstance(sharding, Sharding)
    ]
    if missing and growth.insertions:
        problems.append(
            f"{', '.join(missing)}: missing; where layers are inserted, only the shardings of all "
            "variables tell those of the new ones. For an optimizer's state, grow it outside of "
            "jax.jit, or use optax.tree_map_params with the shardings of the grown variables"
        )
    if problems:
        raise ValueError(listed("cannot tell the shardings of grown arrays", problems))
    whole = _whole(shardings)
    # Among arrays on several devices, one on a single device is not tied to it, such as the count
    # of steps in a new optimizer's state.
    shardings = {
        path: whole if len(sharding.device_set) == 1 else sharding
        for path, sharding in shardings.items()
    }
    tree = jax.tree.unflatten(structure, shardings.values())
    if growth.structure is not None and not missing:
        found = shardings | {i.path: _of_new(i, shardings, growth) for i in growth.insertions}
        # An Equinox module's functions have none.
        numbered = jax.tree.unflatten(growth.structure, range(growth.structure.num_leaves))
        tree = rebuilt(growth.structure, dict.fromkeys(leaves_by_path(numbered)) | found)
    shapes = growth.shapes | {i.path: i.shape for i in growth.insertions}
    for place, sharding in leaves_by_path(tree).items():
        if shape := _shape(place, shapes):
            problems += _misfits(place, sharding, shape)
    if problems:
        raise ValueError(listed(_MISFITS, problems))
    return tree


def _shape(place: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Returns the shape of the array that a leaf of a tree follows: the longest path that fits."""
    keys = place.split("/")
    ends = ["/".join(keys[i:]) for i in range(len(keys))]
    # An optimizer's state may follow a collection of the variables.
    inner = {path.partition("/")[2]: shape for path, shape in shapes.items()} | dict(shapes)
    return next((inner[end] for end in ends if end in inner), None)


def _misfits(place: str, sharding: Sharding, shape: tuple[int, ...]) -> Iterator[str]:
    """Yields why an array of a shape cannot have a sharding."""
    if isinstance(sharding, NamedSharding):
        for axis, (names, size) in enumerate(zip(sharding.spec, shape, strict=False)):
            if names is None or names is PartitionSpec.UNCONSTRAINED:
                continue
            names = names if isinstance(names, tuple) else (names,)
            parts = prod(sharding.mesh.shape[name] for name in names)
            if size % parts:
                yield (
                    f"{place}: axis {axis} will have size {size}, which does not divide evenly "
                    f"over the {parts} devices of mesh axis {' and '.join(map(repr, names))}; grow "
                    f"to a multiple of {parts}, or leave this axis whole, as with None in its "
                    f"place in {sharding.spec}"
                )
    else:
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            yield f"{place}: {error}"


def _of_new(insertion: Insertion, shardings: Mapping[str, Sharding], growth: "Growth") -> Sharding:
    """Returns the sharding of an array of a new layer.

    It is that of the array whose values it has; or else of the last array whose path differs only
    in numbers; or else the array is whole on every device.
    """
    if insertion.source is not None:
        return shardings[insertion.source]
    kind = re.sub(r"\d+", "#", insertion.path)
    for leaf in reversed(growth.widths.leaves):
        if re.sub(r"\d+", "#", leaf.path) == kind and len(leaf.shape) == len(insertion.shape):
            alike = shardings[leaf.path]
            if not [*_misfits(leaf.path, alike, insertion.shape)]:
                return alike
    return _whole(shardings)


def _whole(shardings: Mapping[str, Sharding]) -> Sharding:
    """Returns the sharding of an array that is whole on all devices of some shardings."""
    widest = max(shardings.values(), key=lambda sharding: len(sharding.device_set))
    if isinstance(widest, NamedSharding):
        return NamedSharding(widest.mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    return widest
