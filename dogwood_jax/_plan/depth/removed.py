"""Removes layers with numbers in their names: ``without_layers_of``, ``smaller_program``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.problems import Refused
from dogwood_jax._base.trees import leaves_by_path, rebuilt, struct
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.modules.resizing import Resizing, modules_say_numbers
from dogwood_jax._program.left_out import kinds_of_layers, without_layers
from dogwood_jax._program.numbered import KeptLayers, NumberedLayers, numbered_layers
from dogwood_jax._program.program import Program
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.widths import Network, Widths


def layers_of(widths: Widths) -> dict[str, NumberedLayers]:
    """Returns the layers of a network that have numbers in their names, by name."""
    return numbered_layers(leaf.path for leaf in widths.leaves)


def whole_program(network: Network) -> Program:
    """Returns the program of a network with all its layers."""
    program: Program = network.traced.program
    return program


def without_layers_of(growth: Growth, keep: Mapping[str, Any], *, check: bool) -> Growth:
    """Returns a growth that also removes layers with numbers in their names.

    The layers that stay are renumbered from the first number on. Outputs change.

    Args:
        growth: the changes of units.
        keep: by name of the layers, the layers that stay: indices, or a boolean mask.
        check: whether the network must be able to run without the other layers: its own function
            accepts the variables without them, or its program can be rewritten without them.

    Raises:
        Refused: if layers cannot be removed.
    """
    widths, network, problems = growth.widths, growth.widths.network, list[str]()
    every = layers_of(widths)
    # Inner layers come first, because their names begin with those of the outer layers.
    asked = sorted(keep, key=len, reverse=True)
    kept = tuple(_kept(every[name], keep[name], problems) for name in asked)
    if network is None:
        problems.append(
            f"{', '.join(asked)}: layers are removed only from a network whose function is known; "
            "use dw.trace"
        )
    if problems or network is None:
        raise Refused(problems)
    if not any(its.gone for its in kept):
        return growth
    found = _removing(growth, network, kept)
    if not check:
        return found
    alone = _removing(Growth(widths, ()), network, kept)
    own = _own_program(alone, network)
    smaller = own or _without_removed(alone, network)
    if smaller is None:
        raise Refused(
            [
                f"{', '.join(asked)}: nothing shows how the network runs without these layers: its "
                "function does not take variables without them, and in its program, later layers "
                "do not read the results of the layers before them; name all arrays of a layer, as "
                'in keep={"up": ..., "down": ...}, or pass check=False to remove the arrays anyway'
            ]
        )
    # Inner layers have other names in the smaller network.
    outer = [
        its
        for its in kept
        if not any(one.layers.layer_of(its.layers.heads[0]) is not None for one in kept)
    ]
    notes = [
        note for its in outer for note in _of_other_kinds(whole_program(network), smaller, its)
    ]
    if own is None and modules_say_numbers(found.structure):
        # One of these numbers may be the number of layers.
        found = replace(found, structure=None)
    return replace(found, notes=(*found.notes, *notes))


def _kept(layers: NumberedLayers, asked: Any, problems: list[str]) -> KeptLayers:
    """Returns the layers that stay; adds a problem if ``asked`` is not valid."""
    units = np.asarray(asked)
    if units.dtype == bool and units.shape == (len(layers),):
        units = np.flatnonzero(units)
    is_whole = units.ndim == 1 and bool(units.size) and np.issubdtype(units.dtype, np.integer)
    kept = tuple(units.tolist()) if is_whole else ()
    if not kept or {*kept} - {*range(len(layers))} or [*kept] != sorted({*kept}):
        problems.append(
            f"{layers.name}: keep takes distinct indices below {len(layers)} in ascending order, "
            f"or a boolean mask of {len(layers)} layers, and one layer at least; got {asked!r}"
        )
    return KeptLayers(layers, kept)


def _removing(growth: Growth, network: Network, kept: tuple[KeptLayers, ...]) -> Growth:
    """Returns the growth that also removes layers.

    Raises:
        Refused: if layers are not in dicts, lists or tuples, or a width should grow whose arrays
            are all removed.
    """
    widths, variables = growth.widths, network.variables
    leaves = leaves_by_path(variables)
    resizing = Resizing(widths.leaves, growth.sizes)
    smaller = resizing.resized(variables)
    called = jax.tree.unflatten(jax.tree.structure(variables), [*leaves])
    for its in kept:
        smaller, called = (its.layers.keeping(tree, its.kept) for tree in (smaller, called))
    found = replace(growth, structure=jax.tree.structure(smaller), layers=kept, evidence=None)
    places = {path: place for place, path in leaves_by_path(called).items()}
    problems = [*resizing.problems]
    problems += [
        f"{path}: is in an attribute of a class, so it cannot be removed; layers are removed only "
        "from dicts, lists and tuples"
        for path in places
        if found.place(path) is None
    ]
    stay = (leaf for leaf in widths.leaves if leaf.path in places)
    left = {units.width for leaf in stay for layout in leaf.axes for units in units_of(layout)}
    problems += [
        f"{change.width}: should grow, but it is only in layers that are removed"
        for change in growth.changes
        if change.width not in left and change.new > change.old
    ]
    if problems:
        raise Refused(problems)
    return replace(
        found,
        changes=tuple(change for change in growth.changes if change.width in left),
        notes=(*growth.notes, *map(_note, kept)),
    )


def smaller_program(growth: Growth) -> Program | None:
    """Returns the program of a network without the layers that a growth removes, or None.

    This is the program of the network's own function, if it accepts the remaining variables.
    Otherwise it is the network's program, rewritten without the layers.
    """
    network = growth.widths.network
    assert network is not None
    own = _own_program(growth, network)
    return own if own is not None or growth.changes else _without_removed(growth, network)


def _own_program(growth: Growth, network: Network) -> Program | None:
    """Returns the program of the network's own function without layers, or None."""
    old = leaves_by_path(network.variables)
    left = {place: leaf for path, leaf in old.items() if (place := growth.place(path))}
    for path, edit in growth.held.items():
        left[edit.path] = struct(edit.shape, old[path].dtype)
    whole = whole_program(network)
    try:
        found = Program(network.apply, rebuilt(growth.structure, left), whole.inputs)
    except Exception:  # a function with a fixed number of layers may raise anything
        return None
    # Arrays that are no longer read belong to the layers, too, but were not named.
    read = {place for path in whole.reading_order() if (place := growth.place(path))}
    return found if read <= {*found.reading_order()} else None


def _without_removed(growth: Growth, network: Network) -> Program | None:
    """Returns a network's program, rewritten without the removed layers, with the new paths."""
    program, kept = whole_program(network), growth.layers
    found = _without_all(program, kept)
    if found is None and len({(len(its.layers), its.kept) for its in kept}) == 1:
        # The arrays of one layer may have several names, such as up_0 and down_0.
        together = kept[0].layers.beside(its.layers for its in kept[1:])
        found = _without_all(program, [KeptLayers(together, kept[0].kept)])
    return found and found.called([p and growth.place(p) for p, _ in found.arguments])


def _without_all(program: Program, kept: Sequence[KeptLayers]) -> Program | None:
    fewer: Program | None = program
    for its in kept:
        fewer = fewer and without_layers(fewer, its.layers, its.gone)
    return fewer


def _note(its: KeptLayers) -> str:
    layers, kept = its.layers, its.kept
    numbers = ", ".join(str(layer + layers.start) for layer in kept)
    return f"the smaller model has {len(kept)} layers in {layers.name}: these were {numbers}"


def _of_other_kinds(program: Program, smaller: Program, its: KeptLayers) -> list[str]:
    """Returns a note on layers that compute something else than the old layers of their numbers."""
    were = kinds_of_layers(program, its.layers)
    become = kinds_of_layers(smaller, replace(its.layers, count=len(its.kept)))
    others = [
        str(layer + its.layers.start)
        for place, layer in enumerate(its.kept)
        if not were[layer] == become[place] == were[place]
    ]
    if not others:
        return []
    return [
        f"layers {', '.join(others)} of {its.layers.name} compute something else than the layers "
        "whose numbers they get: settings of the smaller model by number of the layer must follow "
        "the new numbers"
    ]
