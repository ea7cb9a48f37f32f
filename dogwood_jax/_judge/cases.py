"""Makes a claim of a growth and two programs: ``case_of``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dogwood_jax._base.trees import mirrors
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.leaf_map import old_places
from dogwood_jax._judge.judge import Case, Compared, Side
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._widths.dims import Dim
from dogwood_jax._widths.trace import Traced


def case_of(growth: Growth, traced: Traced, new: Side, sizes: GrownSizes) -> Case:
    """Returns the claim that a larger program computes what the network does.

    Args:
        growth: what becomes of the network's variables.
        traced: the network's program, as it was read.
        new: the larger program.
        sizes: the sizes of the network's dimensions after the growth.
    """
    program = traced.program
    old = Side(program.jaxpr, program.arguments, program.results)
    arguments = iter(traced.trace.arguments)
    inputs = [
        tuple(_places(dim, sizes) for dim in next(arguments).dims)
        for path, _ in program.arguments
        if path is None
    ]
    return Case(old, new, growth, [*_outputs(growth, traced, old, new, sizes)], inputs)


def _places(dim: Dim, sizes: GrownSizes) -> np.ndarray | None:
    return old_places(sizes.along(dim)) if sizes(dim) != dim.size else None


def _outputs(
    growth: Growth, traced: Traced, old: Side, new: Side, sizes: GrownSizes
) -> Sequence[Compared]:
    ours = _mirrored(old)
    theirs = {path: place for place, path in enumerate(new.results)}
    found = []
    for place, path in enumerate(old.results):
        leaf = ours.get(path)
        if leaf is None:
            if path in theirs:
                value = traced.outputs.get(path)
                dims = () if value is None else value.dims
                found.append(
                    Compared(path, place, theirs[path], tuple(_places(d, sizes) for d in dims))
                )
            continue
        where = theirs.get(_place(path, leaf, growth))
        axes = _old_part(leaf, growth)
        if where is not None and axes is not None:
            found.append(Compared(path, place, where, axes))
    return found


def _mirrored(side: Side) -> Mapping[str, str]:
    """Returns the results that mirror variables, with the path of the variable."""
    avals = [var.aval for var in side.jaxpr.jaxpr.outvars]
    results = {path: tuple(aval.shape) for path, aval in zip(side.results, avals, strict=True)}
    leaves = {path: tuple(array.shape) for path, array in side.arguments if path is not None}
    return mirrors(results, leaves)


def _place(path: str, leaf: str, growth: Growth) -> str:
    """Returns where the larger network has the result that mirrors a variable."""
    if (place := growth.place(leaf)) == leaf:
        return path
    if f"/{path}".endswith(f"/{leaf}"):
        return path.removesuffix(leaf) + place
    inside, place_inside = (name.partition("/")[2] for name in (leaf, place))
    return path.removesuffix(inside) + place_inside


def _old_part(path: str, growth: Growth) -> tuple[Any, ...] | None:
    """Returns where the old entries of a mirrored variable are, or None if none are the same."""
    moved, leaf_map = growth.moved.get(path), growth.maps.get(path)
    if leaf_map is None or (moved is not None and moved.layers):
        return None
    if leaf_map.rescales or not all(axis.appends for axis in leaf_map.maps()):
        return None
    return tuple(old_places(along) if along.changes else None for along in leaf_map.axes)
