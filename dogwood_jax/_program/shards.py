"""Turns a program for several devices into a program for one device: ``in_one_program``.

Inside of ``shard_map``, a program computes with shards of arrays. The same program with one more
axis for each axis of the mesh computes with all shards at once: ``jax.vmap`` names these axes, and
replaces communication between devices by sums and reshapes along them. Shards and collectives
therefore need no rules of their own, and no devices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dogwood_jax._base.trees import struct
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.subprograms import computed_by

# Prefix of the name of a value whose first axes are axes of a mesh; their number follows.
_ON_MESH = "axes of a mesh: "

# The names of the mesh axes that split an array, by axis of the array.
_Split = Mapping[int, Sequence[str]]


def in_one_program(eqn: Any) -> Any:
    """Returns an equation without a mesh that computes the same as a ``shard_map`` equation.

    Returns the equation itself if a shard uses a collective that is not known here.
    """
    try:
        return computed_by(_of_all_shards(eqn), eqn)
    except NotImplementedError:
        return eqn


def _of_all_shards(eqn: Any) -> Callable[..., list[Any]]:
    """Returns a function without a mesh that computes the same as a ``shard_map`` equation."""
    params, jaxpr = eqn.params, eqn.params["jaxpr"]
    mesh = params["mesh"]
    auto = params.get("auto", frozenset())  # before JAX 0.7
    manual = params.get("newly_manual_axes", {*mesh.axis_names} - auto)
    axes = {name: mesh.shape[name] for name in mesh.axis_names if name in manual}
    ins, outs = (_splits(params, which) for which in ("in", "out"))

    def run(*arrays: Any) -> list[Any]:
        shards: Callable[..., Any] = lambda *local: tuple(_run(jaxpr, (), local))  # noqa: E731
        for name in reversed(axes):
            along = tuple(0 if name in _names(split) else None for split in ins)
            size = axes[name]
            shards = jax.vmap(shards, along, axis_name=name, axis_size=size)
        results = shards(*(_divided(a, split, axes) for a, split in zip(arrays, ins, strict=True)))
        return [_joined(a, split, axes) for a, split in zip(results, outs, strict=True)]

    return run


def mesh_axes(name: str) -> int:
    """Returns the number of mesh axes that come first in a value of this name."""
    return int(name.removeprefix(_ON_MESH)) if name.startswith(_ON_MESH) else 0


def _splits(params: Mapping[str, Any], which: str) -> list[_Split]:
    if f"{which}_names" in params:  # before JAX 0.7
        return list(params[f"{which}_names"])
    specs = ([() if e is None else e for e in spec] for spec in params[f"{which}_specs"])
    return [{n: (e,) if isinstance(e, str) else e for n, e in enumerate(spec)} for spec in specs]


def _names(split: _Split) -> set[str]:
    return {name for names in split.values() for name in names}


def _divided(array: Any, split: _Split, axes: Mapping[str, int]) -> Any:
    """Returns an array with one more leading axis for each axis of the mesh that splits it."""
    shape: list[int] = []
    where: dict[str, int] = {}
    for axis, size in enumerate(array.shape):
        for name in split.get(axis, ()):
            where[name] = len(shape)
            shape.append(axes[name])
            size //= axes[name]
        shape.append(size)
    if not where:
        return array
    front = [where[name] for name in axes if name in where]
    shards = jnp.moveaxis(array.reshape(shape), front, range(len(front)))
    return checkpoint_name(shards, f"{_ON_MESH}{len(front)}")  # type: ignore[no-untyped-call]


def _joined(array: Any, split: _Split, axes: Mapping[str, int]) -> Any:
    """Joins shards into one array; along mesh axes that do not split it, all shards are equal."""
    for axis, name in reversed([*enumerate(axes)]):
        if name not in _names(split):
            array = jax.lax.index_in_dim(array, 0, axis, keepdims=False)
    front = [name for name in axes if name in _names(split)]
    local = array.shape[len(front) :]
    order, shape = [], []
    for axis, size in enumerate(local):
        for name in split.get(axis, ()):
            order.append(front.index(name))
            size *= axes[name]
        order.append(len(front) + axis)
        shape.append(size)
    return array.transpose(order).reshape(shape) if front else array


# One shard ----------------------------------------------------------------------------------------


def _run(jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """Runs the program of a shard without the mesh."""

    def constant(array: Any, aval: Any) -> Any:
        return jnp.asarray(array, aval.dtype)

    return interpret(jaxpr, consts, arrays, constant=constant, equation=_equation)


def _equation(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _SAME:
        return operands
    if name == "shard_map":
        return _of_all_shards(eqn)(*operands)
    if (collective := _COLLECTIVES.get(name)) is not None:
        return collective(operands, params)
    if _mesh_axes_of(params) and name not in _BY_JAX:
        raise NotImplementedError(name)
    if (program := called(eqn)) is not None:
        return _run(*program, operands)
    changed = {key: None for key in ("sharding", "out_sharding") if key in params}
    changed |= {key: _rerun(value) for key, value in params.items() if key not in changed}
    results = eqn.primitive.bind(*operands, **changed)
    return results if eqn.primitive.multiple_results else [results]


def _rerun(value: Any) -> Any:
    """Returns a parameter whose programs, such as the body of a loop, run without the mesh."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(map(_rerun, value))
    if not isinstance(value, jex.ClosedJaxpr):
        return value
    structs = [struct(aval.shape, aval.dtype) for aval in value.in_avals]
    return jax.make_jaxpr(lambda *arrays: _run(value.jaxpr, value.consts, arrays))(*structs)


# Collectives --------------------------------------------------------------------------------------


def _mesh_axes_of(params: Mapping[str, Any]) -> list[str]:
    """Returns the names of mesh axes among an equation's parameters."""
    if params.get("axis_index_groups") is not None:
        raise NotImplementedError("axis_index_groups")
    named = params.get("axis_name", params.get("axes", ()))
    return [axis for axis in (named if isinstance(named, tuple) else (named,)) if axis == str(axis)]


def _psum(operands: list[Any], params: Mapping[str, Any]) -> list[Any]:
    return list(jax.lax.psum(operands, params["axes"]))  # type: ignore[no-untyped-call]


def _reduced(reduce: Callable[..., Any]) -> Any:
    def run(operands: list[Any], params: Mapping[str, Any]) -> list[Any]:
        for axis in _mesh_axes_of(params):
            operands = [reduce(jax.lax.all_gather(a, axis), axis=0) for a in operands]
        return operands

    return run


def _all_gather(operands: list[Any], params: Mapping[str, Any]) -> list[Any]:
    (axis,) = _mesh_axes_of(params)
    place, tiled = params["all_gather_dimension"], params["tiled"]
    return [jax.lax.all_gather(a, axis, axis=place, tiled=tiled) for a in operands]


def _ppermute(operands: list[Any], params: Mapping[str, Any]) -> list[Any]:
    """A device that receives nothing gets zeros; JAX takes only full permutations here."""
    (axis,) = _mesh_axes_of(params)
    size = jax.lax.psum(1, axis)  # type: ignore[no-untyped-call]
    given = dict(params["perm"])
    left = iter({*range(size)} - {*given.values()})
    whole = [(n, given[n] if n in given else next(left)) for n in range(size)]
    moved = [jax.lax.ppermute(a, axis, whole) for a in operands]  # type: ignore[no-untyped-call]
    if len(given) == size:
        return moved
    receives = jnp.asarray([n in given.values() for n in range(size)])[jax.lax.axis_index(axis)]
    return [jnp.where(receives, a, jnp.zeros_like(a)) for a in moved]


# Primitives that only declare where values lie, or which devices have equal values.
_SAME = frozenset(("pvary", "pbroadcast", "pcast", "reshard", "mesh_cast", "sharding_constraint"))
# Collectives that JAX computes along a named axis.
_BY_JAX = frozenset(("all_to_all", "reduce_scatter", "axis_index", "psum"))
# Collectives that JAX computes only on a mesh, or only for some arguments.
_COLLECTIVES: dict[str, Callable[[list[Any], Mapping[str, Any]], list[Any]]] = {
    "psum_invariant": _psum,
    "pmax": _reduced(jnp.max),
    "pmin": _reduced(jnp.min),
    "all_gather": _all_gather,
    "all_gather_invariant": _all_gather,
    "ppermute": _ppermute,
}
