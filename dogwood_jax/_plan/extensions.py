"""How widths get more units: ``extensions``."""

from collections.abc import Mapping
from typing import NamedTuple

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.obstacles import refusals


class Extensions(NamedTuple):
    """How widths get more units.

    Attributes:
        changes: the changes by name of the width.
        refusals: why some cannot.
    """

    changes: Mapping[str, Change]
    refusals: list[str]


def extensions(asked: Asked, sizes: Mapping[str, int], interface: bool) -> Extensions:
    """Returns how widths get more units.

    Args:
        asked: what the growth is asked for.
        sizes: the new sizes of these widths, by name.
        interface: whether widths that are dimensions of inputs or outputs may change.
    """
    changes, refused = dict[str, Change](), list[str]()
    for name, width in asked.widths.items():
        new = sizes.get(name, width.size)
        if new != width.size:
            strategy = asked.strategies.get(name) or strategies.zero_outgoing()
            sources = strategy.sources(width.size, new)
            changes[name] = change = Change(name, width.size, new, strategy, sources)
            if strategy.method is None:
                refused += refusals(width, change, interface)
    return Extensions(changes, refused)
