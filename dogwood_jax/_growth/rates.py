"""How the best learning rate of each array moves as the network widens: ``rates_of``."""

from collections.abc import Mapping
from math import prod
from typing import Literal

from dogwood_jax._widths.layout import size_of
from dogwood_jax._widths.widths import Leaf

Optimizer = Literal["adam", "sgd"]


def rates_of(
    leaves: tuple[Leaf, ...], sizes: Mapping[str, int], optimizer: Optimizer
) -> dict[str, float]:
    """Returns what to multiply the learning rate of each array by, see ``Growth.rates``.

    Args:
        leaves: the arrays.
        sizes: new sizes by name of the width.
        optimizer: the kind of optimizer.
    """
    return {leaf.path: _rate(leaf, sizes, optimizer) for leaf in leaves}


def _rate(leaf: Leaf, sizes: Mapping[str, int], optimizer: Optimizer) -> float:
    old, new = leaf.shape, [size_of(layout, sizes) for layout in leaf.axes]
    fan_in = prod(new[axis] / max(old[axis], 1) for axis in leaf.fan_in)
    if optimizer == "adam":
        return 1 / fan_in
    # Whatever is no fan-in counts as fan-out.
    fan_out = prod(after / max(before, 1) for before, after in zip(old, new, strict=True)) / fan_in
    return fan_out / fan_in
