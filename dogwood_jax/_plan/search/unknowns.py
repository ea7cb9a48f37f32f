"""Which factors on arrays may compensate for a size: ``unknowns``."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.search.starts import is_vector
from dogwood_jax._widths.layout import Concat, Layout, Units, units_of
from dogwood_jax._widths.widths import Leaf

# The rank of arrays that training does not learn; shares of means come before them.
_MIXES, _FIRST = -2, -1


@dataclass(frozen=True)
class Unknown:
    """An unknown number for an array of the larger network.

    Attributes:
        path: path of the array.
        kind: what the number multiplies: ``"factor"`` all old entries, ``"part"`` the entries along
            a part of an axis, ``"offset"`` the array plus a constant. For ``"mix"``, it is the
            share of the mean that new entries have: 0 or 1.
        axis: the axis of the part or of the new entries.
        alike: a text that arrays of like layers share; they have the same number.
        added: the constant of ``"offset"``.
    """

    path: str
    kind: Literal["factor", "part", "offset", "mix"]
    axis: int
    alike: str
    added: float = 1.0


def unknowns(
    growth: Growth,
    floats: Collection[str],
    mixing: Collection[str],
    alike: Callable[[str], str],
    statistics: Mapping[str, float],
    *,
    every: bool,
) -> list[list[Unknown]]:
    """Returns the unknowns in groups by preference: later groups are used only if needed.

    Arrays that training does not learn come first, because a factor on an array that it learns
    would change what the statistics of a batch make of the units. Then come scales, then arrays
    that write units, then biases, then arrays that read units. If outgoing weights silence new
    units, arrays that read units come before arrays that write them.

    Args:
        growth: the growth, with recipes for the initial values of new entries.
        floats: the paths of float arrays; arrays of integers or keys are not rescaled.
        mixing: the widths for which new entries of vectors may be zero instead of means.
        alike: maps the paths of arrays in like layers to the same text.
        statistics: the arrays that training does not learn, each with the constant added to it.
        every: whether to add scales as one plus the array, fused arrays as a whole, and vectors
            that do not grow.
    """
    found: dict[int, list[Unknown]] = {}
    for leaf in (leaf for leaf in growth.widths.leaves if leaf.path in floats):
        added = statistics.get(leaf.path)
        for rank, kind, axis in _of_array(growth, leaf, mixing, every):
            unknown = Unknown(leaf.path, kind, axis, alike(leaf.path))  # type: ignore[arg-type]
            if added is not None and kind == "factor":
                rank = _FIRST
                unknown = replace(unknown, kind="offset", added=added) if added else unknown
            found.setdefault(rank, []).append(unknown)
    return [found[rank] for rank in sorted(found)]


def _of_array(
    growth: Growth, leaf: Leaf, mixing: Collection[str], every: bool
) -> Iterator[tuple[int, str, int]]:
    """Yields the unknowns of one array: rank, kind and axis of each."""
    grows = growth.change
    units = [(axis, u) for axis, layout in enumerate(leaf.axes) for u in units_of(layout)]
    own = [(a, u) for a, u in units if u.width in grows and grows[u.width].old < grows[u.width].new]
    if not own:
        if every and is_vector(leaf):
            yield 8, "factor", 0
        return
    roles, axis, first = {u.role for _, u in own}, own[0][0], own[0][1].width
    is_written = roles == {"incoming"}
    is_row = is_vector(leaf) and is_written
    if all(c.strategy.incoming == "free" for c in grows.values() if c.recipe):
        rank = 1 if is_written else 0
    elif is_row:
        rank = 0 if leaf.kind == "ones" else 3
    else:
        rank = 2 if is_written else 4
    beside = {u.width for a, u in units if a == axis} - {u.width for _, u in own}
    if (beside or len(roles) > 1) and _is_fused(leaf.axes[axis]):
        if not any(grows[u.width].strategy.incoming == "copy" for _, u in own):
            yield rank, "part", axis
        if every:
            yield rank, "factor", axis
    else:
        yield rank, "factor", axis
        if every and is_row and leaf.kind == "ones":
            yield rank, "offset", axis
    recipe = grows[first].recipe
    if is_row and recipe is not None and first in mixing and isinstance(leaf.axes[axis], Units):
        if leaf.path not in (*recipe.blank, *dict(recipe.weighed).values()):
            yield _MIXES, "mix", axis


def _is_fused(layout: Layout) -> bool:
    parts = () if isinstance(layout, Units) else layout.parts
    return isinstance(layout, Concat) or any(map(_is_fused, parts))
