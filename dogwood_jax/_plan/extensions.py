"""How widths get more units: ``extensions``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.obstacles import MULTIPLES, TABLE, doubts, refusals
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.widths import Width


@dataclass(frozen=True)
class Extensions:
    """How widths get more units.

    Attributes:
        changes: the changes by name of the width.
        refusals: why some cannot.
        doubts: why outputs may change.
    """

    changes: Mapping[str, Change]
    refusals: Sequence[str] = ()
    doubts: Sequence[str] = ()


def extensions(
    asked: Asked,
    sizes: Mapping[str, int],
    interface: bool,
    *,
    is_compared: bool,
    keeps_tables: bool,
) -> Extensions:
    """Returns how widths get more units.

    Args:
        asked: what the growth is asked for.
        sizes: the new sizes of these widths, by name.
        interface: whether widths that are dimensions of inputs or outputs may change.
        is_compared: whether the larger model's program is compared with the network's.
        keeps_tables: whether old units are taken to keep their numbers in every table.
    """
    changes, refused, doubtful = dict[str, Change](), list[str](), list[str]()
    for name, width in asked.widths.items():
        new = sizes.get(name, width.size)
        if new != width.size:
            known = _cleared(width, new, keeps_tables) if is_compared else width
            strategy = asked.strategies.get(name) or strategies.zero_outgoing()
            sources = strategy.sources(width.size, new)
            change = Change(name, width.size, new, strategy, sources)
            changes[name] = change
            if strategy.method is None:
                refused += refusals(known, change, interface)
                doubtful += doubts(known, change)
    return Extensions(changes, refused, doubtful)


def _cleared(width: Width, new: int, keeps_tables: bool) -> Width:
    """Returns a width with what the larger model's program does not show of its hazards.

    Old units may be taken to keep their numbers in every table.
    """
    multiples = f"; {MULTIPLES}, but {new} is no multiple of {width.size}"
    why = TABLE + multiples * bool(new % max(width.size, 1))
    tables = [hazard for hazard in width.hazards if kind_of(hazard) == "table"]
    hazards = tuple(
        f"{hazard}, and {why}" if hazard in tables else hazard
        for hazard in width.hazards
        if not (keeps_tables and hazard in tables)
    )
    return replace(width, hazards=hazards)
