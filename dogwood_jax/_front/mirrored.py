"""Finds the outputs of a larger network that must equal the old ones: ``outputs_to_compare``.

Outputs that mirror variables, such as running statistics, gradients, or the state of a module, grow
with these variables. A growth shows which of their entries are the old ones.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import mirrors
from dogwood_jax._check.claim import place_of_mirror
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.leaf_map import old_places

Arrays = Mapping[str, Any]


def outputs_to_compare(
    old: Arrays, new: Arrays, variables: Arrays, wide: Arrays, growth: Growth | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the outputs of both networks that must be equal, by their old paths.

    Outputs that mirror variables are left out if only one network has them, or if the growth copies
    or rescales their entries.

    Args:
        old: outputs by path.
        new: outputs of the larger network.
        variables: the variables by path.
        wide: the variables of the larger network by path.
        growth: the growth, if it is known.
    """
    ours, its = mirrors(_shapes(old), _shapes(variables)), mirrors(_shapes(new), _shapes(wide))
    places = {
        path: path if growth is None else place_of_mirror(path, leaf, growth)
        for path, leaf in ours.items()
    }
    before = {path: value for path, value in old.items() if path not in ours}
    aside = {*its, *places.values()} - before.keys()
    after = {path: value for path, value in new.items() if path not in aside}
    if growth is not None and growth.widths.network is not None:
        after |= _old_entries(before, after, growth)
    for path, leaf in ours.items():
        value = new.get(places[path])
        if value is not None and growth is not None:
            value = _old_part(value, leaf, growth)
        if value is not None:
            before[path], after[path] = old[path], value
    return before, after


def _old_entries(before: Arrays, after: Arrays, growth: Growth) -> dict[str, Any]:
    """Returns outputs without the entries of new units."""
    found = {}
    network, grown = growth.widths.network, GrownSizes(growth.widths, growth.sizes)
    for path, output in network.traced.outputs.items() if network is not None else ():
        if path in before and path in after:
            value, old = after[path], np.shape(before[path])
            for axis, dim in enumerate(output.dims):
                if np.shape(value)[axis] == grown(dim) > old[axis] == dim.size:
                    value = jnp.take(value, old_places(grown.along(dim)), axis)
            found[path] = value
    return found


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {path: np.shape(array) for path, array in arrays.items()}


def _old_part(value: Any, path: str, growth: Growth) -> Any:
    """Returns the old entries of a mirrored variable, or None if there are none."""
    if (edit := growth.held.get(path)) is None:
        return value
    if edit.old_places is None:
        return None
    for axis, places in enumerate(edit.old_places):
        if places is not None:
            value = jnp.take(value, places, axis)
    return value
