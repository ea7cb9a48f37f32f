"""A deep network with fewer layers, to try a growth on: ``fewer_layers``.

Many functions take as many layers as their variables have. Such a function need not be traced in
larger sizes with all 126 layers, if a few of them stand for the others. That the function takes
fewer layers is not taken for granted: in today's sizes, its program must be the known one without
these layers. A function that takes no fewer is traced with all layers, but only a few are compared.

So a number is not seen that only some layers compute with, and only in other sizes: neither the
layers in today's sizes nor the few that are tried show it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.tree_util import DictKey, SequenceKey

from dogwood_jax._base.trees import PyTree, leaf_path
from dogwood_jax._program.like_layers import LikeLayers, find_like_layers
from dogwood_jax._program.program import Program
from dogwood_jax._program.sameness import Sameness
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.trace import read_program
from dogwood_jax._widths.widths import Network, Widths

# How many more layers may be kept because they grow otherwise than the second one.
_MOST_OTHERS = 6


@dataclass(frozen=True)
class FewerLayers:
    """A network with fewer layers.

    Attributes:
        widths: its widths, called as in the whole network.
        layers: the like layers of the whole network.
        kept: the layers that it has.
        is_taken: whether the function takes variables of fewer layers.
    """

    widths: Widths
    layers: LikeLayers
    kept: tuple[int, ...]
    is_taken: bool

    def cut(self, variables: PyTree) -> PyTree:
        """Returns variables without the layers that are not kept, if the function takes these."""
        return _cut(variables, self.layers, self.kept) if self.is_taken else variables

    def shortened(self, program: Program) -> Program | None:
        """Returns the program of variables that were cut, in some sizes, with these layers only.

        It is None if the program has all layers, and has other like layers than today.
        """
        if self.is_taken:
            return program
        found = find_like_layers(program)
        return self.layers.keeping(program, self.kept) if found == self.layers else None


def fewer_layers(widths: Widths, sizes: Mapping[str, int]) -> FewerLayers | None:
    """Returns a network with fewer layers that stands for another one in a growth.

    Args:
        widths: the widths of the whole network.
        sizes: new sizes by name of the width.

    Returns:
        The network; None if some of its layers do not stand for all.
    """
    network = widths.network
    if network is None or network.deep is None:
        return None
    layers = network.deep.layers
    kept = _representing(widths, sizes, layers)
    if kept is None:
        return None
    known = network.deep.tried
    if kept not in known:
        program = layers.keeping(network.deep.program, kept)
        taken = _taken(network, layers, kept, program)
        is_read = kept == layers.few and (taken is None or _paths(taken) == _paths(program))
        traced = network.deep.few if is_read else read_program(taken or program)[0]
        known[kept] = traced, taken is not None
    traced, is_taken = known[kept]
    return FewerLayers(_with_layers(widths, traced), layers, kept, is_taken)


def read_so_far(widths: Widths) -> Widths:
    """Returns the widths of the layers whose equations were read, without reading others."""
    assert widths.network is not None
    deep = widths.network.deep
    return widths if deep is None else _with_layers(widths, deep.few)


def _with_layers(widths: Widths, traced: Any) -> Widths:
    """Returns the widths of a network of which only some layers were read."""
    return replace(
        widths,
        leaves=tuple(leaf for leaf in widths.leaves if leaf.path in traced.leaves),
        network=replace(widths.network, read=traced, deep=None),  # type: ignore[type-var]
    )


def _taken(
    network: Network, layers: LikeLayers, kept: tuple[int, ...], program: Program
) -> Program | None:
    """Returns the program with fewer layers, its arguments as the function takes these.

    It is None if the function does not take fewer layers, or does something else then.
    """
    try:
        variables = _cut(network.variables, layers, kept)
        own = Program(network.apply, variables, network.inputs)
    except Exception:  # any function may raise that knows how many layers there are
        return None
    places = _places(network.variables, layers, kept)
    known = {places[path]: path for path in _paths(program) if path in places}
    if sorted(known) != sorted(_paths(own)):
        return None
    ordered = program.in_order([known[path] for path in _paths(own)])
    same = Sameness()
    numbers = {same.program(p.jaxpr.jaxpr, p.jaxpr.consts) for p in (ordered, own)}
    return ordered if len(numbers) == 1 else None


def _paths(program: Program) -> list[str]:
    return [path for path, _ in program.arguments if path is not None]


def _representing(
    widths: Widths, sizes: Mapping[str, int], layers: LikeLayers
) -> tuple[int, ...] | None:
    """Returns layers among which there is one for each way in which a layer grows."""
    grown: list[list[int]] = [[] for _ in range(len(layers))]
    for leaf in widths.leaves:
        if (layer := layers.layer_of(leaf.path)) is not None:
            grown[layer] += (
                sizes.get(units.width, units.size)
                for layout in leaf.axes
                for units in units_of(layout)
            )
    kept = {*layers.few}
    known = {tuple(grown[layer]) for layer in kept - {0, len(layers) - 1}}
    for layer in range(1, len(layers) - 1):
        if tuple(grown[layer]) not in known:
            known.add(tuple(grown[layer]))
            kept.add(layer)
    return tuple(sorted(kept)) if len(kept) <= len(layers.few) + _MOST_OTHERS else None


def _places(variables: PyTree, layers: LikeLayers, kept: Sequence[int]) -> dict[str, str]:
    """Returns what the arrays of a network are called in the one with fewer layers."""
    paths = [leaf_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(variables)]
    called = jax.tree.unflatten(jax.tree.structure(variables), paths)
    found = jax.tree_util.tree_leaves_with_path(_cut(called, layers, kept))
    return {path: leaf_path(keys) for keys, path in found}


def _cut(variables: PyTree, layers: LikeLayers, kept: Sequence[int]) -> PyTree:
    """Returns variables without the layers that are not kept.

    Layers are entries of lists, tuples and dicts. The entries after them move up: in a dict, the
    numbers in their keys become smaller.
    """
    gone = {
        prefix for layer in {*range(len(layers))} - {*kept} for prefix in layers.prefixes[layer]
    }

    def cut(tree: PyTree, above: tuple[Any, ...]) -> PyTree:
        def one(keys: tuple[Any, ...], node: Any) -> Any:
            keys = above + keys
            if type(node) is dict:
                left = [key for key in node if leaf_path((*keys, DictKey(key))) not in gone]
                names = _moved_up([*node], left)
                return {
                    name: cut(node[key], (*keys, DictKey(key)))
                    for key, name in zip(left, names, strict=True)
                }
            if type(node) in (list, tuple):
                entries = ((cut_keys, value) for cut_keys, value in _entries(node, keys))
                return type(node)(
                    cut(value, its) for its, value in entries if leaf_path(its) not in gone
                )
            return node

        return jax.tree_util.tree_map_with_path(
            one, tree, is_leaf=lambda node: type(node) in (dict, list, tuple)
        )

    return cut(variables, ())


def _entries(node: Sequence[Any], keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for index, value in enumerate(node):
        yield (*keys, SequenceKey(index)), value


def _moved_up(names: Sequence[Any], left: Sequence[Any]) -> list[Any]:
    """Returns the names of the entries that are left, with the numbers of those that are gone."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        if (parts := _numbered(name)) is not None and name not in left:
            numbers.setdefault(parts[0] + "#" + parts[2], []).append(parts[1])
    found = []
    for name in left:
        parts = _numbered(name)
        gone = numbers.get(parts[0] + "#" + parts[2], ()) if parts is not None else ()
        if parts is None or not gone:
            found.append(name)
            continue
        number = parts[1] - sum(other < parts[1] for other in gone)
        found.append(number if isinstance(name, int) else f"{parts[0]}{number}{parts[2]}")
    return found


def _numbered(name: Any) -> tuple[str, int, str] | None:
    """Returns what stands before a number in a name, the number, and what stands after it."""
    match = re.fullmatch(r"(\D*)(\d+)(\D*)", str(name))
    return (match[1], int(match[2]), match[3]) if match and isinstance(name, int | str) else None
