"""Position embeddings and patch kernels for images of another size: ``by_widths``.

``resample`` and ``resample_patch`` are requested by the path of an array. The widths along the
array's axes are fixed for all other strategies, because they are sizes of images, not of layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt, prod
from typing import Any

import jax

from dogwood_jax._base.problems import Refused
from dogwood_jax._base.trees import arrays_of, is_array, leaves_by_path
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._plan.asked import Request
from dogwood_jax._plan.target import sizes_of_target
from dogwood_jax._program.dims import SPATIAL, Dim
from dogwood_jax._widths.layout import Concat, Product, Units, size_of
from dogwood_jax._widths.widths import Leaf, Widths
from dogwood_jax.strategies import Start

# By name of the width: the new size, and how entries along the width are resampled.
_Resampled = dict[str, tuple[int, Start]]


def by_widths(request: Request) -> Request:
    """Returns a request that resamples widths, with their new sizes, instead of arrays by path.

    Raises:
        Refused: if resampling is not requested by the path of an array, there is no target, or
            sizes do not fit; all reasons in one message.
    """
    asked = request.strategy
    if isinstance(asked, Start):
        if asked.method is not None:
            raise Refused(
                [f"strategies.{asked}() is for one array: pass strategy={{path of the array: it}}"]
            )
        return request
    if not isinstance(asked, Mapping):
        return request
    chosen = {k: s for k, s in asked.items() if isinstance(s, Start) and s.method is not None}
    if not chosen:
        return request
    if request.target is None:
        raise Refused(
            f"{path}: strategies.{strategy}() goes with target=, the variables of the model for "
            "images or patches of another size, instead of sizes="
            for path, strategy in chosen.items()
        )
    shapes = {p: tuple(a.shape) for p, a in arrays_of(leaves_by_path(request.target)).items()}
    known = {leaf.path for leaf in request.widths.leaves}
    problems = [
        f"{path}: only in the target; insert layers in a growth of its own, before or afterwards"
        for path in [path for path in shapes if path not in known][:1]
    ]
    found: _Resampled = {}
    paths = set[str]()
    for path, strategy in chosen.items():
        try:
            leaf = request.widths.leaf(path)
            new = shapes.get(leaf.path, ())
            if len(new) != len(leaf.shape):
                raise ValueError(f"{leaf.path}: is not in the target with {len(leaf.shape)} axes")
            if strategy.of_patches:
                its = _patches(leaf, new, strategy, request.widths)
            else:
                its = _positions(leaf, new, strategy)
            if twice := [name for name in its if found.get(name, its[name]) != its[name]]:
                raise ValueError(f"{leaf.path}: another array resamples {twice[0]} differently")
        except (KeyError, ValueError) as error:
            problems.append(str(error.args[0]))
        else:
            found |= its
            paths.add(leaf.path)
    for name in found:
        others = {o.path for o in request.widths[name].occurrences} - paths
        problems += [
            f"{path}: has {name} along an axis, too; if the array holds a vector for each "
            "position, pass strategies.resample() for it; other arrays cannot be resampled"
            for path in sorted(others)
        ]
    if problems:
        raise Refused(problems)
    rest = {name: strategy for name, strategy in asked.items() if name not in chosen}
    return replace(
        request,
        sizes={**request.sizes, **{name: size for name, (size, _) in found.items()}},
        strategy={**rest, **{name: strategy for name, (_, strategy) in found.items()}},
    )


def _positions(leaf: Leaf, new: tuple[int, ...], strategy: Start) -> _Resampled:
    """Returns the changes of the widths along the axis of positions."""
    axis, prefix = len(leaf.shape) - 2, strategy.prefix
    if axis < 0:
        raise ValueError(f"{leaf.path}: has shape {leaf.shape}, but needs [positions, features]")
    layout, place = leaf.axes[axis], f"{leaf.path}[{axis}]"
    *before, last = layout.parts if isinstance(layout, Concat) else (layout,)
    factors = last.parts if isinstance(last, Product) else (last,)
    names = [part.width for part in factors if isinstance(part, Units)]
    first, traced = sum(map(size_of, before)), tuple(map(size_of, factors))
    is_grid = len(factors) > 1  # else the network has one axis for rows and columns
    if len(names) < len(factors) or first > prefix or (is_grid and first < prefix):
        raise ValueError(
            f"{place}: is {layout} in the network, which is no grid after {prefix} positions"
            + f"; pass prefix={first}" * is_grid
        )
    grid = strategy.grid or (traced if is_grid else ())
    grid = _grid(place, leaf.shape[axis], grid, prefix, "grid")
    to = _grid(f"{place} of the target", new[axis], strategy.to, prefix, "to")
    if is_grid and grid != traced:
        raise ValueError(f"{place}: is a grid of {_by(traced)} in the network, not of {_by(grid)}")
    if len(grid) != len(to):
        raise ValueError(f"{place}: a grid of {_by(grid)} cannot become one of {_by(to)}")
    if grid == to:
        raise ValueError(f"{leaf.path}: has the target's grid already; leave it out of strategy=")
    if not is_grid:
        its = replace(strategy, grid=grid, to=to, prefix=prefix - first)
        return {names[0]: (new[axis] - first, its)}
    if len({*zip(names, to, strict=True)}) > len({*names}):
        raise ValueError(f"{place}: rows and columns share a width, so cannot be {_by(to)}")
    its = replace(strategy, grid=(), to=(), prefix=0)
    return {name: (size, its) for name, size in zip(names, to, strict=True)}


def _grid(place: str, count: int, grid: tuple[int, ...], prefix: int, what: str) -> tuple[int, ...]:
    """Returns the rows and columns of a grid of positions; a square if none are given."""
    if not grid:
        side = isqrt(max(count - prefix, 0))
        if not side or side**2 != count - prefix:
            raise ValueError(
                f"{place}: {count} positions are no square after a prefix of {prefix}; pass "
                f"{what}=(rows, columns), or another prefix="
            )
        return (side, side)
    if prod(grid) + prefix != count:
        raise ValueError(
            f"{place}: {what}={grid} and prefix={prefix} are {prod(grid) + prefix} positions, but "
            f"it has {count}"
        )
    return grid


def _patches(leaf: Leaf, new: tuple[int, ...], strategy: Start, widths: Widths) -> _Resampled:
    """Returns the changes of the widths along the sides of patches."""
    spatial = {
        axis: layout.width
        for axis, layout in enumerate(leaf.axes)
        if isinstance(layout, Units) and SPATIAL in (widths[layout.width].fixed or "")
    }
    if not spatial:
        raise ValueError(f"{leaf.path}: is no kernel of a convolution, so it has no patches")
    if all(new[axis] == leaf.shape[axis] for axis in spatial):
        raise ValueError(f"{leaf.path}: has the target's size already; leave it out of strategy=")
    return {width: (new[axis], strategy) for axis, width in spatial.items()}


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def inputs_of(request: Request, shapes: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Returns the larger model's inputs if positions or patches are resampled, otherwise None.

    Images get the sides from which a convolution makes the new grid if its patches do not overlap.
    """
    widths, network = request.widths, request.widths.network
    asked = request.strategy if isinstance(request.strategy, Mapping) else {}
    starts = ((name, one) for name, one in asked.items() if isinstance(one, Start))
    changed = {name: start for name, start in starts if start.method is not None}
    if network is None or not changed:
        return None
    grid, patch = list[tuple[int, int]](), list[tuple[int, int]]()
    for name, strategy in changed.items():
        change = (widths.sizes[name], request.sizes[name])
        if strategy.of_patches:
            patch.append(change)
        else:
            grid += zip(strategy.grid, strategy.to, strict=True) if strategy.grid else [change]
    sides: dict[Dim, int] = {}
    dims = iter(network.traced.trace.inputs)
    for leaf in filter(is_array, jax.tree.leaves(network.inputs)):
        own = [next(dims).root for _ in leaf.shape]
        spatial = [dim for dim in own if dim.kind is None and SPATIAL in dim.fixed]
        same = [(1, 1)] * len(spatial)
        for dim, (rows, to), (size, new) in zip(spatial, grid or same, patch or same, strict=False):
            sides[dim] = dim.size // rows * new // size * to
    sizes = {name: request.sizes[name] for name in changed}
    return GrownSizes(widths, sizes_of_target(widths, shapes, sizes, []), sides).inputs()
