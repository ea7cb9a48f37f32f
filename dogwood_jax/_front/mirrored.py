"""Which outputs of a larger network are to be those of the old one: ``outputs_to_compare``.

Outputs that mirror variables, such as running statistics, gradients, or the state of a module,
grow along with them. A growth says which of their entries are the old ones.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import mirrors
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.grown_sizes import GrownSizes
from dogwood_jax._widths.layout import Concat, Layout, Units, units_of

Arrays = Mapping[str, Any]


def outputs_to_compare(
    old: Arrays, new: Arrays, variables: Arrays, wide: Arrays, growth: Growth | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the outputs of both networks that are to be equal, under the old paths.

    Outputs that mirror variables are left out where only one network has them, or where the growth
    copies or rescales their entries.

    Args:
        old: outputs by path.
        new: outputs of the larger network.
        variables: the variables by path.
        wide: those of the larger network.
        growth: the growth, if it is known.
    """
    ours, its = mirrors(_shapes(old), _shapes(variables)), mirrors(_shapes(new), _shapes(wide))
    places = {path: _place(path, leaf, growth) for path, leaf in ours.items()}
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
    """Returns the entries of outputs that are not those of new units, where there are any."""
    found = {}
    network, grown = growth.widths.network, GrownSizes(growth.widths, growth.sizes)
    for path, output in network.traced.outputs.items() if network is not None else ():
        if path in before and path in after:
            value, old = after[path], np.shape(before[path])
            for axis, dim in enumerate(output.dims):
                if np.shape(value)[axis] == grown(dim) > old[axis] == dim.size:
                    value = jnp.take(value, grown.old_places(dim), axis)
            found[path] = value
    return found


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {path: np.shape(array) for path, array in arrays.items()}


def _place(path: str, leaf: str, growth: Growth | None) -> str:
    """Returns where the larger network has the output that mirrors a variable."""
    if growth is None or (place := growth.place(leaf)) == leaf:
        return path
    if f"/{path}".endswith(f"/{leaf}"):
        return path.removesuffix(leaf) + place
    inside, place_inside = (name.partition("/")[2] for name in (leaf, place))
    return path.removesuffix(inside) + place_inside


def _old_part(value: Any, path: str, growth: Growth) -> Any:
    """Returns the entries of a mirrored variable that are the old ones, or None if none are."""
    moved = growth.moved.get(path)
    if moved is not None and moved.layers:
        value = _taken(value, 0, np.array(moved.layers) >= 0)
    leaf = next((leaf for leaf in growth.widths.leaves if leaf.path == path), None)
    if leaf is None:
        return value
    changes = [
        growth.change[units.width]
        for layout in leaf.axes
        for units in units_of(layout)
        if units.width in growth.change
    ]
    if path in growth.factors or any(change.sources is not None for change in changes):
        return None
    for axis, layout in enumerate(leaf.axes):
        value = _taken(value, axis, _is_old(layout, growth.sizes))
    return value


def _taken(value: Any, axis: int, chosen: np.ndarray) -> Any:
    return value if chosen.all() else jnp.take(value, np.flatnonzero(chosen), axis)


def _is_old(layout: Layout, sizes: Mapping[str, int]) -> np.ndarray:
    """Returns which entries of a grown axis belong to old units: ``[new size]``, booleans."""
    if isinstance(layout, Units):
        return np.arange(sizes.get(layout.width, layout.size)) < layout.size
    parts = [_is_old(part, sizes) for part in layout.parts]
    if isinstance(layout, Concat):
        return np.concatenate(parts)
    return reduce(np.logical_and.outer, parts).ravel()
