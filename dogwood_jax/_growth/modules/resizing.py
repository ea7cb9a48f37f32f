"""Resizes modules, both their arrays and the numbers stored next to them: ``Resizing``.

An Equinox module stores numbers such as ``num_heads`` in the structure of its tree, and nothing
marks those that are sizes. A number may be a size if it equals a size that changes. The module's
class then decides (``remaking``). If it cannot, the larger model is needed.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from dogwood_jax._base.trees import Keys, PyTree, is_array, leaf_path, level, struct
from dogwood_jax._growth.modules.remaking import CannotRemake, Remaker, is_number, shapes_in
from dogwood_jax._widths.layout import Layout, Units, size_of, units_of
from dogwood_jax._widths.widths import Leaf


class Resizing:
    """Resizes trees.

    Args:
        leaves: the arrays of the network, with the layouts of their axes.
        sizes: new sizes by name of the width.
        collection: prefix of the network's paths that the paths of the trees lack.
        remaker: makes modules again by their classes.

    Attributes:
        problems: modules with numbers whose new values are unknown, and why.
    """

    def __init__(
        self,
        leaves: Iterable[Leaf],
        sizes: Mapping[str, int],
        collection: str = "",
        remaker: Remaker | None = None,
    ) -> None:
        self.problems: list[str] = []
        self._remaker = remaker or Remaker()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._changes: dict[str, set[tuple[int, int]]] = {}
        self._along: dict[str, set[tuple[int, int]]] = {}
        self._stay: dict[str, set[tuple[int, str]]] = {}
        for leaf in leaves:
            if not leaf.path.startswith(collection):
                continue
            path = leaf.path.removeprefix(collection)
            units = {(u.size, u.width) for axis in leaf.axes for u in units_of(axis)}
            self._stay[path] = {(size, width) for size, width in units if width not in sizes}
            if len(self._stay[path]) < len(units) and (changes := changes_of(leaf, sizes)):
                self._shapes[path] = tuple(size_of(axis, sizes) for axis in leaf.axes)
                self._changes[path], self._along[path] = changes, changes_along(leaf, sizes)

    def resized(self, tree: PyTree) -> PyTree:
        """Returns a tree in its new sizes; arrays that change shape are ``jax.ShapeDtypeStruct``.

        Args:
            tree: pytree of arrays or ``jax.ShapeDtypeStruct``.
        """
        return self._resized(tree, ()) if says_numbers(tree) else self.reshaped(tree)

    def reshaped(self, tree: PyTree, keys: Keys = ()) -> PyTree:
        """Returns a tree with the new shapes; everything else stays the same.

        Args:
            tree: pytree of arrays or ``jax.ShapeDtypeStruct``, or a part of one.
            keys: the keys of that part in the whole tree.
        """

        def one(inside: Keys, leaf: Any) -> Any:
            shape = self._shapes.get(leaf_path((*keys, *inside)))
            return leaf if shape is None else struct(shape, leaf.dtype)

        return jax.tree_util.tree_map_with_path(one, tree)

    def _resized(self, node: PyTree, keys: Keys) -> PyTree:
        sizes: dict[int, set[int]] = {}
        paths = [leaf_path((*keys, *at)) for at, _ in jax.tree_util.tree_leaves_with_path(node)]
        for path in paths:
            for old, new in self._changes.get(path, ()):
                sizes.setdefault(old, set()).add(new)
        if not sizes or is_array(node):
            return self.reshaped(node, keys)
        outdated = {n for n in _said(node) if n in sizes}
        if not outdated:
            return self._resized_parts(node, keys)
        same_tree = self.reshaped(node, keys)
        try:
            return self._remaker.remade(node, shapes_in(same_tree), sizes)
        except CannotRemake as why:
            stay = {size for path in paths for size, _ in self._stay.get(path, ())}
            along = {old for path in paths for old, _ in self._along.get(path, ())}
            if outdated <= stay - along:  # sizes that stay, equal to changing products by chance
                return self._resized_parts(node, keys)
            where = f"{leaf_path(keys)}: " if keys else ""
            name, said = self._remaker.class_of(node).__name__, ", ".join(_named(node, outdated))
            pairs = {pair for path in paths for pair in self._stay.get(path, ())}
            alike = sorted(width for size, width in pairs if size in outdated)
            more = f"; grow {', '.join(alike)}, too, if they have one size" if alike else ""
            self.problems.append(f"{where}{name} stores {said}, but {why}{more}")
            return same_tree

    def _resized_parts(self, node: PyTree, keys: Keys) -> PyTree:
        parts, structure = level(node)
        resized = [self._resized(part, (*keys, *key)) for key, part in parts]
        return jax.tree.unflatten(structure, resized)


def outdated_leaves(
    leaves: Mapping[str, Any], known: Iterable[Leaf], sizes: Mapping[str, int]
) -> list[str]:
    """Returns problems: leaves that are numbers and equal a changing size of nearby arrays.

    Args:
        leaves: the leaves of a tree, by path.
        known: the arrays of the network.
        sizes: new sizes by name of the width.
    """
    changes = {leaf.path: changes_of(leaf, sizes) for leaf in known}
    problems = []
    for path, number in leaves.items():
        if not is_number(number):
            continue
        start, beside = path, set[int]()
        while start and not beside:  # find the smallest part of the tree in which arrays change
            start = start.rpartition("/")[0]
            inside = (p for p in changes if not start or p.startswith(f"{start}/"))
            beside = {old for p in inside for old, _ in changes[p]}
        if number in beside:
            problems.append(f"{path}: is {number}, which equals a size that changes")
    return problems


def says_numbers(tree: PyTree) -> bool:
    """Whether a tree holds any number besides its arrays; keys of dicts do not count."""
    leaves, structure = jax.tree.flatten(tree)
    return any(map(is_number, leaves)) or modules_say_numbers(structure)


def modules_say_numbers(structure: Any) -> bool:
    """Whether the structure of a tree holds any number, as in Equinox modules."""
    kind = structure.node_data()
    if kind is not None and kind[0] is not dict and any(True for _ in _numbers(kind[1])):
        return True
    return any(map(modules_say_numbers, structure.children()))


def changes_of(leaf: Leaf, sizes: Mapping[str, int]) -> set[tuple[int, int]]:
    """Returns the sizes of an array that change, as pairs (old, new).

    Considers the sizes of its axes, of the parts of axes, and the products of neighbouring axes,
    such as heads * head_dim.
    """
    pairs = changes_along(leaf, sizes)
    axes = [(size_of(axis), size_of(axis, sizes)) for axis in leaf.axes]
    for start, stop in itertools.combinations(range(len(axes) + 1), 2):
        old, new = zip(*axes[start:stop], strict=True)
        pairs.add((math.prod(old), math.prod(new)))
    return {(old, new) for old, new in pairs if old != new}


def changes_along(leaf: Leaf, sizes: Mapping[str, int]) -> set[tuple[int, int]]:
    """Returns the sizes of axes and of their parts that change, as pairs (old, new)."""
    pairs = {pair for axis in leaf.axes for pair in sizes_in(axis, sizes)}
    return {(old, new) for old, new in pairs if old != new}


def sizes_in(layout: Layout, sizes: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yields the old and new sizes of an axis and of its parts."""
    yield size_of(layout), size_of(layout, sizes)
    for part in () if isinstance(layout, Units) else layout.parts:
        yield from sizes_in(part, sizes)


# Numbers in trees ---------------------------------------------------------------------------------


def _said(node: PyTree) -> Iterator[float]:
    """Yields the numbers that a node stores itself, or in parts without arrays."""
    if isinstance(node, dict | list | tuple) and not hasattr(node, "_fields"):
        return  # a number in a plain container is the caller's own
    parts, structure = level(node)
    if (kind := structure.node_data()) is not None:
        # The structure of a dict or similar node holds its keys.
        keys = {key.key for (key,), _ in parts if isinstance(key, jax.tree_util.DictKey)}
        yield from (number for number in _numbers(kind[1]) if number not in keys)
        for _, part in parts:
            if not _holds_arrays(part):
                yield from _all_said(part)


def _all_said(tree: PyTree) -> Iterator[float]:
    """Yields all numbers in a tree, except those in arrays."""
    if is_number(tree):
        yield tree
    yield from _said(tree)
    for _, part in level(tree)[0]:
        if part is not tree and _holds_arrays(part):
            yield from _all_said(part)


def _holds_arrays(tree: PyTree) -> bool:
    return any(map(is_array, jax.tree.leaves(tree)))


def _numbers(value: Any, depth: int = 8) -> Iterator[float]:
    """Yields the numbers in static data, such as a configuration, but not those in functions."""
    if is_number(value):
        yield value
    elif isinstance(value, Mapping):
        yield from _numbers([*value, *value.values()], depth)
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value if depth else ():
            yield from _numbers(item, depth - 1)
    elif not callable(value) and not type(value).__module__.startswith("jax"):
        yield from _numbers(getattr(value, "__dict__", {}), depth)


def _named(node: PyTree, numbers: set[float]) -> list[str]:
    """Returns the numbers as ``field=value``, or alone if no field of the module holds them."""
    return [*_fields(node, numbers, "")] or [f"{number:g}" for number in sorted(numbers)]


def _fields(value: Any, numbers: set[float], name: str, depth: int = 8) -> Iterator[str]:
    for key, field in getattr(value, "__dict__", {}).items() if depth else ():
        path = f"{name}.{key}" if name else key
        if _holds_arrays(field) or numbers.isdisjoint(_numbers(field)):
            continue
        if hasattr(field, "__dict__"):  # it may refer back to its owner, so the depth is limited
            yield from _fields(field, numbers, path, depth - 1)
        else:
            yield f"{path}={field!r}"
