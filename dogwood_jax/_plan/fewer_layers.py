"""A deep network with fewer layers, to try a growth on: ``FewerLayers``.

Many functions take as many layers as their variables have. Such a function need not be traced in
larger sizes with all 126 layers, if a few of them stand for the others. That the function takes
fewer layers is not taken for granted: its program must be the known one without the other layers,
but for sizes. A function that takes no fewer is traced with all layers, but only a few are
compared.

So a number is not seen that only some layers compute with, and only in other sizes: neither the
layers in today's sizes nor the few that are tried show it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import jax
from jax.tree_util import DictKey, SequenceKey

from dogwood_jax._base.trees import PyTree, leaf_path
from dogwood_jax._program.like_layers import LikeLayers, find_like_layers
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import numbers_of
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.trace import read_program
from dogwood_jax._widths.widths import Deep, Widths

# How many more layers may be kept because they grow otherwise than the second one.
_MOST_OTHERS = 6


@dataclass(frozen=True)
class FewerLayers:
    """Layers of a network that stand for all of them in a growth.

    Attributes:
        widths: the widths of the whole network.
        deep: its program.
        kept: the layers.
    """

    widths: Widths
    deep: Deep
    kept: tuple[int, ...]

    def cut(self, variables: PyTree) -> PyTree:
        """Returns variables of the whole network, in any sizes, without the other layers."""
        return _cut(variables, self.deep.layers, self.kept)

    @property
    def program(self) -> Program:
        """The network's program without the other layers."""
        return self.deep.layers.keeping(self.deep.program, self.kept)

    def called(self, program: Program) -> Program | None:
        """Returns a program of variables that were cut, with arrays called as in the network.

        They are in the order of the network's program, too. It is None if it takes other arrays.
        """
        assert self.widths.network is not None
        places = _places(self.widths.network.variables, self.deep.layers, self.kept)
        known = {place: path for path, place in places.items()}
        paths = [None if path is None else known.get(path) for path, _ in program.arguments]
        own = _paths(self.program)
        if sorted(path for path in paths if path is not None) != sorted(own):
            return None
        return program.called(paths).in_order(own)

    def is_like_all(self, larger: Program, sizes: Mapping[str, int]) -> bool:
        """Whether the network's own function computes with fewer layers as it does with all.

        It need not if a number follows from how many layers there are.

        Args:
            larger: its program with fewer layers, in other sizes.
            sizes: the other sizes by name of the width.
        """
        network = self.widths.network
        assert network is not None
        try:
            own = Program(network.apply, self.cut(network.variables), network.inputs)
        except Exception:  # any function may raise that knows its sizes
            return False
        ours, cut, theirs = ({*numbers_of(p.jaxpr)} for p in (own, self.program, larger))
        pairs = [(float(self.widths.sizes[name]), float(new)) for name, new in sizes.items()]
        pairs += [(1 / old, 1 / new) for old, new in pairs if old and new]

        def are_sizes(numbers: set[float], known: Sequence[float]) -> bool:
            return all(any(isclose(n, size, rel_tol=1e-6) for size in known) for n in numbers)

        olds, news = ([pair[side] for pair in pairs] for side in (0, 1))
        return ours == cut and are_sizes(ours - theirs, olds) and are_sizes(theirs - ours, news)

    def of(self, whole: Program) -> Program | None:
        """Returns a program of the whole network, in other sizes, without the other layers.

        It is None if these sizes have other like layers.
        """
        layers = self.deep.layers
        return layers.keeping(whole, self.kept) if find_like_layers(whole) == layers else None

    @property
    def read(self) -> Widths:
        """The widths of these layers, read in the order of the network's own program."""
        is_read = self.kept == self.deep.layers.few
        traced = self.deep.few if is_read else read_program(self.program)[0]
        return _with_layers(self.widths, traced)

    def read_like(self, other: Program, *, is_cut: bool) -> Widths | None:
        """Returns the widths of these layers, read in the order in which a program takes arrays.

        Args:
            other: the program of these layers in other sizes.
            is_cut: whether its variables were cut, so that arrays may have other names.

        Returns:
            The widths, called as in the whole network; None if the program takes other arrays.
        """
        program = self.program
        paths = _paths(program)
        if is_cut:
            assert self.widths.network is not None
            places = _places(self.widths.network.variables, self.deep.layers, self.kept)
            known = {places[path]: path for path in paths if path in places}
            if sorted(known) != sorted(_paths(other)):
                return None
            paths = [known[path] for path in _paths(other)]
        is_read = self.kept == self.deep.layers.few and paths == _paths(program)
        traced = self.deep.few if is_read else read_program(program.in_order(paths))[0]
        return _with_layers(self.widths, traced)


def fewer_layers(widths: Widths, sizes: Mapping[str, int]) -> FewerLayers | None:
    """Returns the layers that stand for all in a growth, or None if so few do not.

    Args:
        widths: the widths of the whole network.
        sizes: new sizes by name of the width.
    """
    deep = None if widths.network is None else widths.network.deep
    kept = None if deep is None else _representing(widths, sizes, deep.layers)
    return None if deep is None or kept is None else FewerLayers(widths, deep, kept)


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
