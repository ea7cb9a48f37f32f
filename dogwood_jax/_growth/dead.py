"""Whether new units can ever learn: ``dead_in``, and ``has_weights`` for old ones, too."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dogwood_jax._growth.growth import Growth
from dogwood_jax._widths.layout import resized, units_along


def dead_in(fresh: Mapping[str, Any], growth: Growth) -> dict[str, list[str]]:
    """Finds widths whose new units are dead if their free weights are those of a larger model.

    This happens if the larger model itself starts with zeros there. Then one side of the new units
    has only biases, and the other side only zeros. All new units get the same gradient, or under
    most activations none, so they never become different.

    Args:
        fresh: the larger model's arrays by path, not computed by a program around this one.
        growth: how the network grows.

    Returns:
        For each such width, the paths of the arrays that are zero where its new units are.
    """
    dead = {}
    for change in growth.changes:
        fates = {"incoming": change.strategy.incoming, "outgoing": change.strategy.outgoing}
        fates["both"] = fates["incoming" if change.writes("both") else "outgoing"]
        roles = {occurrence.role for occurrence in growth.widths[change.width].occurrences}
        if not {*fates.values()} <= {"free", "zero", "opposed"} or roles <= {"incoming"}:
            continue  # copies learn as old units do, and so do outputs
        # The units of a pair part by their outgoing weights.
        deciding = "opposed" if "opposed" in fates.values() else "free"
        free = {role for role, fate in fates.items() if fate == deciding}
        recipe = change.recipe
        filled = (*recipe.blank, *(path for path, _ in recipe.zeros)) if recipe else ()
        places = [
            (leaf.path, axis, new)
            for leaf in growth.widths.leaves
            if leaf.kind == "random" and len(leaf.shape) > 1 and leaf.path not in filled
            for axis, layout in enumerate(leaf.axes)
            for units in [units_along(resized(layout, growth.sizes), change.width, free)]
            if (new := np.flatnonzero(units >= change.old)).size
        ]
        if places and not any(has_weights(fresh[path], axis, new) for path, axis, new in places):
            dead[change.width] = list(dict.fromkeys(path for path, _, _ in places))
    return dead


def has_weights(array: Any, axis: int, places: np.ndarray) -> bool:
    """Whether anything but zero lies at some places along an axis."""
    parts = [(0, array)]
    if isinstance(array, jax.Array):  # looked at where its parts lie
        parts = [(shard.index[axis].start or 0, shard.data) for shard in array.addressable_shards]
    for some in (places[-1:], places):  # one unit of a new network tells as a rule
        for start, part in parts:
            inside = some[(some >= start) & (some < start + part.shape[axis])] - start
            if inside.size and (part[(slice(None),) * axis + (inside,)] != 0).any():
                return True
    return False
