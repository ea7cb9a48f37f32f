"""Computes shapes and boundaries in new sizes: ``shape_out``, ``places_along``, ``moved``."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from dogwood_jax._program.dims import Dim
from dogwood_jax._program.values import Step

SizeOf = Callable[[Dim], int]


class CannotResize(ValueError):
    """The program cannot be rewritten in other sizes."""


def shape_out(step: Step, size_of: SizeOf, place: int = 0) -> tuple[int, ...]:
    """Returns the new shape of a result of a step."""
    return tuple(map(size_of, step.results[place].dims))


def new_shape(step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
    """Returns ``shape``, the parameter that holds the shape of the result."""
    return {"shape": shape_out(step, size_of)}


def places_along(dim: Dim, size_of: SizeOf) -> np.ndarray:
    """Maps the new positions along a dimension to old positions, -1 for a new unit."""
    dim = dim.root
    if dim.kind is None:
        places = np.arange(size_of(dim))
        return np.where(places < dim.size, places, -1)
    parts = [(part.root.size, places_along(part, size_of)) for part in dim.parts]
    if dim.kind == "concat":
        starts = np.cumsum([0, *(size for size, _ in parts)])
        pieces = [np.where(p < 0, -1, p + start) for (_, p), start in zip(parts, starts)]
        return np.concatenate(pieces)
    found = np.zeros(1, int)
    for size, places in parts:
        both = found[:, None] * size + places
        found = np.where((found[:, None] < 0) | (places < 0), -1, both).ravel()
    return found


def moved(dim: Dim, offset: int, size_of: SizeOf) -> int | None:
    """Returns the new offset of a boundary between units; None if ``offset`` is no boundary."""
    dim = dim.root
    if offset in (0, dim.size):
        return 0 if offset == 0 else size_of(dim)
    if dim.kind is None:
        return offset if size_of(dim) == dim.size else None
    if dim.kind == "concat":
        start = before = 0
        for part in dim.parts:
            if offset <= start + part.root.size:
                inside = moved(part, offset - start, size_of)
                return None if inside is None else before + inside
            start, before = start + part.root.size, before + size_of(part)
    first, *rest = dim.parts
    inner = prod(part.root.size for part in rest)
    if offset % inner:
        return None
    outside = moved(first, offset // inner, size_of)
    return None if outside is None else outside * prod(map(size_of, rest))
