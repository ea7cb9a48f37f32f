"""Changes in which widths lose units: ``removals``."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dogwood_jax import strategies
from dogwood_jax._base.arguments import is_integer
from dogwood_jax._growth.by_layer import stack_of
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.obstacles import fixed, unasked
from dogwood_jax._plan.searching import for_removal
from dogwood_jax._plan.silence import heard
from dogwood_jax._plan.sizes import by_name
from dogwood_jax._program.dims import LAYERS
from dogwood_jax._widths.widths import Width, Widths

NO_MERGE = "dw.narrow still removes the units, and reports how far outputs move"


def removals(
    widths: Widths,
    keep: Mapping[Any, Any],
    merge: Mapping[Any, Sequence[Sequence[int]]],
    interface: bool,
    growing: Collection[str],
    problems: list[str],
) -> dict[str, Change]:
    """Returns the changes of widths that lose units, by name.

    Args:
        widths: the network's widths.
        keep: the units that stay, by width.
        merge: groups of units that become one unit each, by width.
        interface: whether widths that are dimensions of inputs or outputs may change.
        growing: names of the widths that get more units.
        problems: receives the reasons why widths cannot change.
    """
    changes: dict[str, Change] = {}
    for asked, change in ((keep, _kept), (merge, _merged)):
        for name, units in by_name(widths, asked, problems):
            if name in changes or name in growing:
                problems.append(
                    f"{name}: is to change in two ways, by sizes=, target=, keep= or merge=; "
                    "plan one after the other"
                )
            changes[name] = change(widths, widths[name], units, interface, problems)
    return changes


def _kept(widths: Widths, width: Width, units: Any, interface: bool, problems: list[str]) -> Change:
    """Returns the change of a width if only some of its units stay."""
    asked = np.asarray(units)
    if asked.ndim == 2:
        return _kept_by_layer(widths, width, asked, interface, problems)
    if asked.dtype == bool and asked.shape == (width.size,):
        asked = np.flatnonzero(asked)
    kept = tuple(asked.tolist()) if asked.ndim == 1 else (-1,)
    whole = np.issubdtype(asked.dtype, np.integer) or not asked.size
    if not whole or {*kept} - {*range(width.size)} or len({*kept}) < len(kept):
        problems.append(
            f"{width.name}: keep takes distinct indices below {width.size}, or a boolean mask of "
            f"{width.size} units; got {units!r}"
        )
        kept = ()
    elif width.size and not kept:
        problems.append(
            f"{width.name}: keep leaves none of its {width.size} units; keep one at least, because "
            "a width without units cannot grow again, or write the network without these layers"
        )
    if width.fixed != LAYERS:  # a loop runs over any number of layers
        problems += fixed(width, len(kept), "change")
    problems += unasked(width, interface, "remove some of its units")
    recipe = for_removal(widths, width.name) if kept and heard(widths, [width.name]) else None
    return Change(width.name, width.size, len(kept), strategies.KEEP, kept, recipe=recipe)


def _kept_by_layer(
    widths: Widths, width: Width, asked: np.ndarray, interface: bool, problems: list[str]
) -> Change:
    """Returns the change of a width if each layer of a stack keeps different units."""
    stack = stack_of(widths, width)
    layers = 0 if stack is None else widths[stack[0]].size
    if asked.dtype == bool and asked.shape[1:] == (width.size,) and len({*asked.sum(1)}) == 1:
        asked = np.stack([np.flatnonzero(row) for row in asked])
    first = _kept(widths, width, np.arange(asked.shape[1]), interface, problems)
    if stack is None:
        problems.append(
            f"{width.name}: its units are not in one stack over which a loop runs, so keep takes "
            f"one row of units; got shape {asked.shape}"
        )
    elif asked.dtype.kind not in "iu" or any(
        {*row} - {*range(width.size)} or len({*row}) < len(row) for row in asked.tolist()
    ):
        problems.append(
            f"{width.name}: keep takes rows of distinct indices below {width.size}, equally many "
            f"for each layer, or a boolean mask [layers, units]; got {asked!r}"
        )
    elif len(asked) != layers:
        problems.append(
            f"{width.name}: keep takes a row for each of the {layers} layers of {stack[0]}; got "
            f"{len(asked)}"
        )
    return replace(first, by_layer=tuple(map(tuple, asked.tolist())))


def _merged(
    widths: Widths,
    width: Width,
    groups: Sequence[Sequence[int]],
    interface: bool,
    problems: list[str],
) -> Change:
    """Returns the change of a width if groups of its units become one unit each."""
    grouped = isinstance(groups, Iterable) and all(isinstance(group, Iterable) for group in groups)
    members = [unit for group in groups for unit in group] if grouped else [None]
    whole = all(map(is_integer, members))
    if not whole or {*members} - {*range(width.size)} or len({*members}) < len(members):
        problems.append(
            f"{width.name}: merge takes groups of distinct units below {width.size}, such as "
            f"[(0, 1)]; got {groups!r}"
        )
        groups = ()
    first = {unit: group[0] for group in groups for unit in group}
    sources = tuple(unit for unit in range(width.size) if first.get(unit, unit) == unit)
    place = {unit: index for index, unit in enumerate(sources)}
    into = tuple(place[first.get(unit, unit)] for unit in range(width.size))
    problems += fixed(width, len(sources), "change") + unasked(
        width, interface, "merge some of its units"
    )
    return Change(width.name, width.size, len(sources), strategies.MERGE, sources, into)
