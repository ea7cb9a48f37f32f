"""What an equation computes for one layer of many: ``for_one_layer``.

Some networks compute something for all layers at once, along an axis, and each layer takes its own
entry, as Gemma 3n and Gemma 4 do with the embeddings of each layer. An equation computes one entry
by itself if it computes the others in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from dogwood_jax._base.trees import struct
from dogwood_jax._program.elementwise import ELEMENTWISE

Places = tuple[int | None, ...]  # by operand, its axis that counts layers, if it has one


@dataclass(frozen=True)
class Variable:
    """A variable of an equation that no program has."""

    aval: Any


@dataclass(frozen=True)
class Equation:
    """As much of an equation as reading one of its results needs."""

    primitive: Any
    invars: Sequence[Any]
    outvars: Sequence[Any]
    params: Mapping[str, Any] = field(default_factory=dict)


def for_one_layer(eqn: Any, axis: int, layers: int) -> tuple[Places, Equation] | None:
    """Returns the equation that computes what a result has for one layer. The axis stays.

    Args:
        eqn: an equation.
        axis: the axis of its result along which the layers lie, each with as many entries.
        layers: how many layers there are.

    Returns:
        For each operand, the axis along which the equation reads one layer, too, or None if it
        reads the whole operand; and the equation. None if there is no such equation.
    """
    if len(eqn.outvars) != 1 or (places := _places(eqn, axis, layers)) is None:
        return None
    params = dict(eqn.params)
    for name in ("shape", "new_sizes", "limit_indices"):
        if params.get(name) is not None:
            params[name] = _one(params[name], axis, layers)
    if eqn.primitive.name == "gather":
        params["slice_sizes"] = _one(params["slice_sizes"], places[0], layers)
    operands = [
        Variable(of_one_layer(var.aval, place, layers))
        for var, place in zip(eqn.invars, places, strict=True)
    ]
    result = Variable(of_one_layer(eqn.outvars[0].aval, axis, layers))
    return places, Equation(eqn.primitive, operands, [result], params)


def _one(sizes: Sequence[int], axis: int | None, layers: int) -> tuple[int, ...]:
    return tuple(size // layers if a == axis else size for a, size in enumerate(sizes))


def of_one_layer(aval: Any, axis: int | None, layers: int) -> Any:
    """Returns the shape and dtype of one layer along an axis, which stays; of all for None."""
    return aval if axis is None else struct(_one(aval.shape, axis, layers), aval.dtype)


def _places(eqn: Any, axis: int, layers: int) -> Places | None:
    """Returns which axes of its operands become an axis of the result, see ``for_one_layer``."""
    name, p = eqn.primitive.name, eqn.params
    shapes = [tuple(var.aval.shape) for var in eqn.invars]
    out = tuple(eqn.outvars[0].aval.shape)
    if name in ELEMENTWISE:
        aligned = all(not shape or len(shape) == len(out) for shape in shapes)
        read = (axis if shape and shape[axis] == out[axis] else None for shape in shapes)
        return tuple(read) if aligned else None
    if name == "dot_general":
        return _of_product(p["dimension_numbers"], len(shapes[0]), len(shapes[1]), axis)
    if name == "gather":
        return _of_gather(p, shapes[0], out, axis)
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    place: int | None = None
    if name == "broadcast_in_dim":
        if axis in p["broadcast_dimensions"]:
            place = p["broadcast_dimensions"].index(axis)
            place = None if shape[place] < out[axis] else place
        return (place,)
    if name == "transpose":
        place = p["permutation"][axis]
    elif name in ("reduce_sum", "reduce_max", "reduce_min", "squeeze"):
        gone = p["dimensions" if name == "squeeze" else "axes"]
        place = [a for a in range(len(shape)) if a not in gone][axis]
    elif name == "reshape":
        before = prod(out[:axis])
        starts = [a for a in range(len(shape)) if prod(shape[:a]) == before]
        place = next((a for a in starts if shape[a] % layers == 0 and shape[a] >= layers), None)
    elif name == "slice" and shape[axis] == out[axis]:
        place = axis
    return None if place is None else (place,)


def _of_product(numbers: Any, left: int, right: int, axis: int) -> Places | None:
    """Returns the axes that a product has from its factors."""
    contracted, batch = numbers
    of_left, of_right = (
        [a for a in range(ndim) if a not in (*contracted[i], *batch[i])]
        for i, ndim in enumerate((left, right))
    )
    if axis < len(batch[0]):
        return batch[0][axis], batch[1][axis]
    axis -= len(batch[0])
    if axis < len(of_left):
        return of_left[axis], None
    return None, of_right[axis - len(of_left)]


def _of_gather(
    params: Mapping[str, Any], shape: Sequence[int], out: Sequence[int], axis: int
) -> Places | None:
    """Returns the axis of an array that is taken whole by each index."""
    numbers = params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [a for a in range(len(shape)) if a not in gone]
    if axis not in numbers.offset_dims:
        return None
    place = kept[numbers.offset_dims.index(axis)]
    is_whole = place not in numbers.start_index_map and shape[place] == out[axis]
    return (place, None) if is_whole else None
