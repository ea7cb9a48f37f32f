"""Placement of grown arrays on devices: ``grown_shardings`` and ``placement``."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from dogwood_jax._base.described import described, optimizer_states
from dogwood_jax._base.meshes import automatic
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    PyTree,
    by_ending,
    is_array,
    is_traced,
    leaves_by_path,
    rebuilt,
    struct,
    tree_of_indices,
)
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.modules.resizing import Resizing, says_numbers
from dogwood_jax._growth.pairing import closest
from dogwood_jax._widths.widths import Leaf

_MISFITS = "cannot divide the grown arrays among devices like the old arrays"


@dataclass(frozen=True)
class Placement:
    """The placement of a compiled function's results on devices.

    Attributes:
        shardings: the required shardings, by path; empty if arrays are on one device, or if an
            enclosing program decides.
    """

    shardings: tuple[tuple[str, Sharding], ...] = ()

    def renamed(self, names: Mapping[str, str]) -> "Placement":
        """Returns the placement of some of the arrays, under new names."""
        wanted = dict(self.shardings)
        return Placement(tuple((names[path], wanted[path]) for path in names if path in wanted))

    def enter(self, arrays: PyTree) -> PyTree:
        """Returns the function's arguments, on the same devices.

        The axes of their meshes become automatic. With the explicit axes of ``jax.make_mesh``, the
        program would have to declare how the result of each operation is divided.
        """

        def entered(array: Any) -> Any:
            if isinstance(array, jax.Array) and isinstance(array.sharding, NamedSharding):
                return jax.device_put(array, _automatic(array.sharding))
            return array  # uncommitted arrays stay uncommitted

        return jax.tree.map(entered, arrays) if self.shardings else arrays

    def constrain(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns results within the compiled function, constrained to these shardings."""
        wanted = dict(self.shardings)
        return {
            path: lax.with_sharding_constraint(array, _automatic(wanted[path]))  # type: ignore[no-untyped-call]
            if path in wanted
            else array
            for path, array in arrays.items()
        }

    def leave(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns results of the compiled function with exactly these shardings."""
        wanted = dict(self.shardings)
        return {
            path: jax.device_put(array, wanted[path]) if path in wanted else array
            for path, array in arrays.items()
        }


ANYWHERE = Placement()


def placement(
    arrays: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    alike: Mapping[str, Any] = MappingProxyType({}),
    repeated: Collection[str] = (),
) -> Placement:
    """Returns the placement of grown arrays.

    Args:
        arrays: old arrays, by the path of the grown array that should be divided like them.
        shapes: shapes of the grown arrays, by path.
        alike: like ``arrays``, for grown arrays that may be whole on each device if they cannot be
            divided.
        repeated: paths of grown arrays that repeat an old array along a new first axis.

    Raises:
        ValueError: if a new size cannot be divided like the old size.
    """
    if any(map(is_traced, (*arrays.values(), *alike.values()))):
        return Placement()
    olds, others = (
        {
            path: _behind_new_axis(array.sharding) if path in repeated else array.sharding
            for path, array in tree.items()
            if isinstance(array, jax.Array) and len(array.sharding.device_set) > 1
        }
        for tree in (arrays, alike)
    )
    problems = [
        problem
        for path, sharding in olds.items()
        if path in shapes
        for problem in _misfits(path, sharding, shapes[path])
    ]
    if problems:
        raise ValueError(listed(_MISFITS, problems))
    fitting = {path: _fitting(sharding, shapes[path]) for path, sharding in others.items()}
    return Placement((*olds.items(), *fitting.items()))


def _automatic(sharding: Sharding) -> Sharding:
    """Returns the same sharding on a mesh whose axes are automatic."""
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return sharding
    return automatic(sharding)


def grown_shardings(
    old: PyTree,
    *,
    leaves: Sequence[Leaf],
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    inserted: Sequence[Edit],
    structure: Any,
) -> PyTree:
    """Returns the shardings of grown arrays, see ``Growth.shardings``.

    Args:
        old: the shardings of the old arrays.
        leaves: the old arrays.
        shapes: their shapes after the growth, by path.
        sizes: the sizes of the widths that change, by name.
        inserted: the edits of arrays of new layers, and of old arrays that move.
        structure: tree structure of the larger model, if it is known.
    """
    shardings, old_structure = leaves_by_path(old), jax.tree.structure(old)
    missing = [leaf.path for leaf in leaves if leaf.path not in shardings]
    problems = [
        f"{path}: expected a jax.sharding.Sharding, got {type(sharding).__name__}; "
        "NamedSharding(mesh, spec) makes a sharding of a PartitionSpec"
        for path, sharding in shardings.items()
        if not isinstance(sharding, Sharding)
    ]
    if missing and inserted:
        problems.append(
            f"{', '.join(missing)}: missing; if layers are inserted, pass the shardings of all "
            "variables. For an optimizer's state, grow it outside of jax.jit, or use "
            "optax.tree_map_params with the shardings of the grown variables"
        )
    if not shardings and optimizer_states(old):
        return old
    if not shardings or all(map(is_array, shardings.values())):
        problems = [
            f"expected a tree of shardings, got {described(old)}; "
            "pass jax.tree.map(lambda array: array.sharding, variables)"
        ]
    if problems:
        raise ValueError(listed("cannot determine the shardings of grown arrays", problems))
    whole = _whole(shardings.values())
    # If other arrays are on several devices, an array on a single device may move, such as the step
    # count in the state of a new optimizer.
    shardings = {
        path: whole if _devices(sharding) == 1 else sharding for path, sharding in shardings.items()
    }
    tree = jax.tree.unflatten(old_structure, shardings.values())
    if structure is not None and not missing:
        known = {leaf.path: leaf.shape for leaf in leaves}
        found = shardings | {
            edit.path: _fitting(
                _behind_new_axis(shardings[path]) if edit.experts else shardings[path], edit.shape
            )
            for edit in inserted
            for path in [edit.source or most_like(edit.path, edit.shape, known)]
        }
        # Leaves that are functions, as in an Equinox module, have no sharding.
        paths = leaves_by_path(tree_of_indices(structure))
        tree = rebuilt(structure, dict.fromkeys(paths) | found)
    elif not missing and says_numbers(tree):
        # The tree structure of a grown module has its new sizes.
        known = {leaf.path: leaf.shape for leaf in leaves}
        arrays = [struct(known.get(path, ()), np.float32) for path in shardings]
        resizing = Resizing(leaves, sizes)
        larger = resizing.resized(jax.tree.unflatten(old_structure, arrays))
        tree = jax.tree.unflatten(jax.tree.structure(larger), shardings.values())
    shapes = {**shapes, **{edit.path: edit.shape for edit in inserted}}
    leaves_of_tree = leaves_by_path(tree)
    followed = by_ending(leaves_of_tree, shapes)
    for place, sharding in leaves_of_tree.items():
        if shape := followed.get(place):
            problems += _misfits(place, sharding, shape)
    if problems:
        raise ValueError(listed(_MISFITS, problems))
    return tree


def _misfits(place: str, sharding: Sharding, shape: tuple[int, ...]) -> Iterator[str]:
    """Yields problems if an array of a shape cannot have a sharding."""
    if isinstance(sharding, NamedSharding):
        if len(sharding.spec) > len(shape):
            yield f"{place}: will have shape {shape}, which has no axes for {sharding.spec}"
        for axis, (names, size) in enumerate(zip(sharding.spec, shape, strict=False)):
            if names is None or names is PartitionSpec.UNCONSTRAINED:
                continue
            names = names if isinstance(names, tuple) else (names,)
            parts = prod(sharding.mesh.shape[name] for name in names)
            if size % parts:
                yield (
                    f"{place}: axis {axis} will have size {size}, which does not divide evenly "
                    f"over the {parts} devices of mesh axis {' and '.join(map(repr, names))}; grow "
                    f"to a multiple of {parts}, or leave this axis whole, with None in its place "
                    f"in {sharding.spec}"
                )
    else:
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            yield f"{place}: {error}"


def most_like(path: str, shape: tuple[int, ...], others: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the path of the array most like a new one: with as many axes, and closest by name."""
    same = [other for other, theirs in others.items() if len(theirs) == len(shape)]
    return closest(path, same or others)[-1]


def _behind_new_axis(sharding: Sharding) -> Sharding:
    """Returns the sharding of an array that repeats another one along a new first axis."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))  # type: ignore[no-untyped-call]


def _fitting(sharding: Sharding, shape: tuple[int, ...]) -> Sharding:
    """Returns a sharding if an array of a shape can have it, else the sharding of a whole array."""
    return _whole([sharding]) if [*_misfits("", sharding, shape)] else sharding


def fitting_shardings(
    old: Mapping[str, Sharding], shapes: Mapping[str, tuple[int, ...]]
) -> list[Sharding]:
    """Returns the sharding of the old array closest by name for each array, or a whole one."""
    return [
        _fitting(old[path if path in old else closest(path, old)[-1]], shape)
        for path, shape in shapes.items()
    ]


def _devices(sharding: Sharding) -> int:
    """Returns the number of devices of a sharding; abstract meshes in a program list no devices."""
    if isinstance(sharding, NamedSharding):
        return sharding.mesh.size
    return len(sharding.device_set)


def _whole(shardings: Collection[Sharding]) -> Sharding:
    """Returns the sharding of an array that is whole on all devices of some shardings."""
    widest = max(shardings, key=_devices)
    if isinstance(widest, NamedSharding):
        return NamedSharding(widest.mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    return widest
