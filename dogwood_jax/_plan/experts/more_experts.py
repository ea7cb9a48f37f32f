"""More experts, by a larger model's arrays or by number: ``more_experts``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.experts.copied import (
    STAYS,
    Attempts,
    Copied,
    in_turn,
    notes_of,
    ways_to_copy,
)
from dogwood_jax._plan.experts.found_mixtures import Mixtures, RoutedExperts, closest
from dogwood_jax._plan.target import sizes_of_target
from dogwood_jax._widths.layout import Concat, Units
from dogwood_jax._widths.widths import Widths


def more_experts(
    widths: Widths,
    larger: Widths | None,
    shapes: Mapping[str, Any],
    sizes: Mapping[str, int] | None,
    problems: list[str],
    *,
    usefulness: PyTree = None,
) -> Attempts:
    """Returns the growths to more experts, without the target's structure.

    In their widths, every axis that counts experts is one width.

    Args:
        widths: the network's widths.
        larger: the larger model's widths, or None if its program is not known.
        shapes: the shapes of the larger model's arrays, by path; empty if ``sizes`` are given.
        sizes: new numbers of experts by name of the width, or None.
        problems: receives a line for each problem.
        usefulness: see ``upcycle``.
    """
    longer = _longer(widths, shapes)
    network = Mixtures(widths, longer)
    theirs = Mixtures(larger, longer) if larger is not None else None
    whole, widths = widths, network.widths
    new = dict(sizes) if sizes is not None else _sizes(widths, shapes, problems)
    every = list[Copied]()
    # An axis that is longer in a target may count something else than experts.
    unsure = whole if sizes is None else ()
    groups = _groups(widths, network.experts, new, unsure, problems)
    for group in groups:
        own = theirs.like(group) if theirs is not None else None
        if theirs is not None and own is None:
            problems.append(f"{group.router}: the larger model has no router with the same arrays")
            continue
        count = new[group.router]
        sources = _sources(widths, group, count, usefulness, problems)
        every.append(Copied(group, count, own, sources))
    if not every and not problems:
        problems.append("there are as many experts as before")
    notes = notes_of({copied.experts.router: copied.note for copied in every})
    unshown = tuple(notes_of({copied.experts.router: copied.unshown for copied in every}))
    growths = [
        Growth(widths, tuple(way[name] for name in widths if name in way), unshown)
        for way in ways_to_copy(widths, every)
    ]
    if any(copied.reasons for copied in every):  # even if they are rescaled
        return Attempts(growths[:1], [STAYS])
    return Attempts(growths, notes)


def counted_in_one(widths: Widths, shapes: Mapping[str, Any]) -> Widths:
    """Returns widths in which each axis that counts experts is one width, if experts are added.

    A program may take experts out of their array one by one. Such an axis has the length of a
    router's axis, before and after the growth.

    Args:
        widths: the network's widths.
        shapes: the shapes of the larger model's arrays, by path.
    """
    longer = {
        (path, axis): widths.leaf(path).shape[axis]
        for path, axis in _longer(widths, shapes)
        if isinstance(widths.leaf(path).axes[axis], Concat)
    }
    if widths.network is None or not longer:
        return widths
    network, counts, own = Mixtures(widths), set[tuple[int, int]](), set[tuple[str, int]]()
    for group in network.experts:
        for place in network.widths[group.router].occurrences:
            own.add((place.path, place.axis))
            if place.path in shapes:
                counts.add((group.count, shapes[place.path].shape[place.axis]))
    places = [
        (path, axis)
        for (path, axis), old in longer.items()
        if (path, axis) not in own and (old, shapes[path].shape[axis]) in counts
    ]
    return Mixtures(widths, places).widths if places else widths


def _longer(widths: Widths, shapes: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Returns the axes that have another length in a target, each by path and axis.

    Arrays with another number of axes are left out.
    """
    return [
        (leaf.path, axis)
        for leaf in widths.leaves
        if leaf.path in shapes and len(shapes[leaf.path].shape) == len(leaf.shape)
        for axis, length in enumerate(shapes[leaf.path].shape)
        if length != leaf.shape[axis]
    ]


def _sizes(widths: Widths, shapes: Mapping[str, Any], problems: list[str]) -> dict[str, int]:
    """Returns the sizes of the widths that change in a target."""
    sizes = sizes_of_target(widths, shapes, {}, problems)
    return {name: size for name, size in sizes.items() if size != widths[name].size}


def _groups(
    widths: Widths,
    every: Sequence[RoutedExperts],
    sizes: dict[str, int],
    unsure: Collection[str],
    problems: list[str],
) -> list[RoutedExperts]:
    """Returns the experts that grow; adds the sizes of widths that grow with a router's width.

    Widths that the program does not tie to a router belong to the router with the closest arrays by
    path, unless it is not certain that they count experts.
    """
    routers = [group for group in every if group.router in sizes]
    stacks = {name: group for group in every for name in group.stacks}
    found = {group.router: group for group in routers}
    for name in [name for name in sizes if name not in found]:
        group = stacks.get(name)
        if group is None and name not in unsure:
            group = closest(widths, name, routers)
        if group is None or group.router not in found:
            problems.append(
                f"{name}: no router that grows chooses along this width; the routers are "
                f"{[group.router for group in every]}; other widths grow by dw.plan"
            )
            continue
        group = found[group.router]
        found[group.router] = replace(group, stacks=tuple(dict.fromkeys((*group.stacks, name))))
    for group in found.values():
        old, new = widths[group.router].size, sizes[group.router]
        if new < old:
            problems.append(f"{group.router}: {new} experts are fewer than today's {old}")
        if not group.stacks:
            problems.append(
                f"{group.router}: the program does not show which arrays hold its experts; name "
                "their widths, too, or pass target=, the larger model's variables"
            )
        for name in group.stacks:
            if (widths[name].size, sizes.setdefault(name, new)) != (old, new):
                problems.append(
                    f"{name}: would grow from {widths[name].size} to {sizes[name]}, but its router "
                    f"{group.router} from {old} to {new}"
                )
    return [] if problems else list(found.values())


def _sources(
    widths: Widths, group: RoutedExperts, new: int, usefulness: PyTree, problems: list[str]
) -> tuple[int, ...]:
    """Returns the old expert that each expert after the growth copies, by usefulness if given."""
    old = group.count
    if usefulness is None:
        return in_turn(old, new)
    values = leaves_by_path(usefulness)
    score, copies = np.zeros(old), np.ones(old, int)
    for leaf in group.arrays(widths):
        if leaf.path not in values or np.shape(values[leaf.path]) != leaf.shape:
            problems.append(f"{leaf.path}: usefulness= must have an array of shape {leaf.shape}")
            continue
        for axis, layout in enumerate(leaf.axes):
            if isinstance(layout, Units) and layout.width in group.stacks:
                others = tuple(other for other in range(len(leaf.shape)) if other != axis)
                score += np.sum(np.asarray(values[leaf.path], float), axis=others)
    extra = []
    for _ in range(new - old):  # copy the expert with the most usefulness per copy
        extra.append(int(np.argmax(np.abs(score) / copies)))
        copies[extra[-1]] += 1
    return (*range(old), *extra)
