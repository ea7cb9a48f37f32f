"""Finds the network and the optimizer's state in a tree that Orbax saved.

Names are paths in the saved tree. ``names=`` maps its arrays to leaves of the network. Without it,
the network is searched at the top of the tree, and one or two keys below. The optimizer's state
names parameters by the ends of these paths: ``params/params/decoder/kernel`` of the network is
``0/mu/params/decoder/kernel`` in Adam's state.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax

from dogwood_jax._base.deferred import made
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path, nested, rebuilt
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.growable import unwrapped, with_stored_step_counts
from dogwood_jax._optimizer.opt_state import grow_opt_state
from dogwood_jax.checkpoint.names import Rows, Table

STATE = "opt_state"
# NNX's variables are boxes in a saved tree; the array has this key in its box.
_BOX = "/value"
# Upper limit on the first keys that parameters share, such as a model and a collection.
_DEEPEST = 3
# Marks a leaf that is removed from a tree.
_GONE = object()


# The network's arrays -----------------------------------------------------------------------------


def table_of(tree: PyTree, growth: Growth, names: Rows | None) -> Table:
    """Returns the table of names that a saved tree has for the leaves of the growth's network.

    Raises:
        ValueError: if ``names`` cannot be read, or if it is None and the network is not found.
    """
    if names is not None:
        return named_table(names)
    known, found = {leaf.path for leaf in growth.widths.leaves}, leaves_by_path(tree).keys()
    for place in _places(tree):
        for box in ("", _BOX):
            if known and {_joined(*place, path) + box for path in known} <= found:
                firsts = {path.partition("/")[::2] for path in known}
                ends = {f"{first}/{{*rest}}" if rest else first for first, rest in firsts}
                return Table({_joined(*place, end) + box: end for end in ends}, "/")
    raise _absent(known - found)


def named_table(names: Rows) -> Table:
    """Returns the table of ``names``.

    Raises:
        ValueError: if ``names`` cannot be read, or has layouts of arrays.
    """
    table = Table(names, "/")
    table.expect_names_alone()
    return table


def stored_names(tree: PyTree, table: Table) -> dict[str, str]:
    """Returns the names of leaves in a saved tree, by path.

    Raises:
        ValueError: if leaves would be written under other names.
    """
    names, problems = dict[str, str](), list[str]()
    for name in leaves_by_path(tree):
        try:
            if (path := table.leaf(name)) is not None:
                names[path] = name
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError(listed("names= cannot be read", problems))
    return names


def expect_all(growth: Growth, paths: Iterable[str]) -> None:
    """Raises a ``ValueError`` unless these paths include all leaves of the growth's network."""
    if missing := {leaf.path for leaf in growth.widths.leaves}.difference(paths):
        raise _absent(missing)


def names_of(paths: Iterable[str], table: Table) -> dict[str, str]:
    """Returns the names of the larger network's leaves in the larger tree, by path.

    Raises:
        ValueError: if a leaf matches no row.
    """
    names = {path: table.name(path) for path in paths}
    if unknown := [path for path, name in names.items() if name is None]:
        problems = (f"{path}: no row gives its name; add one" for path in unknown)
        raise ValueError(listed("names= lacks arrays of the larger network", problems))
    return {path: str(name) for path, name in names.items()}


def _absent(paths: Iterable[str]) -> ValueError:
    problems = (f"{path}: not in the checkpoint" for path in sorted(paths))
    return ValueError(
        listed("the checkpoint lacks arrays of the growth's network; names= may map them", problems)
    )


def _places(tree: PyTree) -> Iterator[tuple[str, ...]]:
    """Yields the keys of subtrees that may hold the network: the top, and one or two keys below."""
    top = {key: part for key, part in _mapping(tree).items() if key != STATE}
    yield ()
    yield from ((key,) for key in top)
    yield from ((key, inner) for key in top for inner in _mapping(top[key]) if inner != STATE)


# The optimizer's state ----------------------------------------------------------------------------


def home_of_state(tree: PyTree, names: Iterable[str], is_wanted: bool) -> str | None:
    """Returns the path of the optimizer's state that belongs to a network; None if there is none.

    The state is next to the variables or above them. If ``is_wanted``, it may also be in a neighbor
    of the variables, as in ``{"model": ..., "optimizer": {"opt_state": ...}}``.
    """
    common = os.path.commonprefix([name.split("/")[:-1] for name in names])
    above = [common[:n] for n in range(len(common), -1, -1)]
    homes = [keys for keys in above if STATE in _mapping(_at(tree, keys))]
    if is_wanted and not homes:
        beside = [[*keys, key] for keys in above for key in _mapping(_at(tree, keys))]
        homes = [keys for keys in beside if STATE in _mapping(_at(tree, keys))]
        homes = homes if len(homes) == 1 else []
    return _joined(*homes[0], STATE) if homes else None


def grown_state(
    state: Mapping[str, Any],
    growth: Growth,
    tx: Any,
    variables: tuple[PyTree, PyTree],
    names: tuple[Mapping[str, str], Mapping[str, str]],
) -> Mapping[str, Any]:
    """Returns the leaves of the grown state, by path; or the whole state under the empty path.

    Args:
        state: the leaves of the saved state, by path.
        growth: the growth.
        tx: the optimizer.
        variables: the network's variables, old and new.
        names: their names in the saved tree, by path, old and new.

    Raises:
        ValueError: if the state is another optimizer's.
    """
    box = _BOX if state and all(path.endswith(_BOX) for path in state) else ""
    # Arrays with several axes stay deferred. Counts and step counts of units are read now.
    state = {
        path.removesuffix(box): leaf if getattr(leaf, "ndim", 0) > 1 else made(leaf)
        for path, leaf in state.items()
    }
    old = leaves_by_path(variables[0])
    for optimizer, layout in product((tx, unwrapped(tx)), _layouts(names[0], box, state)):
        ends, own = layout.ends(names[0]), layout.own(names[0])
        found = _renamed(state, {end: own[path] for path, end in ends.items()})
        params = nested({name: old[path] for path, name in own.items()})
        like = with_stored_step_counts(jax.eval_shape(optimizer.init, params), nested(found))
        expected = leaves_by_path(like).keys()
        if expected == found.keys():
            break
    else:
        problems = [f"{path}: not in the state that tx.init returns" for path in found - expected]
        problems += [f"{path}: not in the checkpoint" for path in expected - found.keys()]
        raise ValueError(listed("the checkpoint's opt_state does not match tx", sorted(problems)))
    before = rebuilt(jax.tree.structure(like), found)
    after = grow_opt_state(before, growth, tx, variables=variables[1])
    ends, own = layout.ends(names[1]), layout.own(names[1])
    if optimizer is not tx and ends == own and not box:
        return {"": after}  # the saved state was unwrapped; the grown one is that of tx
    back = _renamed(leaves_by_path(after), {name: ends[path] for path, name in own.items()})
    return {path + box: leaf for path, leaf in back.items()}


@dataclass(frozen=True)
class _Layout:
    """How a state may name parameters: as the tree does, without some of the first keys.

    Attributes:
        head: the keys of the subtree that holds the parameters.
        cut: how many of these keys the state omits.
        box: end of the tree's names that the state omits, too.
    """

    head: tuple[str, ...]
    cut: int
    box: str

    def ends(self, names: Mapping[str, str]) -> dict[str, str]:
        """Returns the ends of paths in the state, by the parameters' paths in the network."""
        keys = {path: name.removesuffix(self.box).split("/") for path, name in names.items()}
        size = len(self.head)
        return {p: "/".join(k[self.cut :]) for p, k in keys.items() if (*k[:size],) == self.head}

    def own(self, names: Mapping[str, str]) -> dict[str, str]:
        """Returns the names of parameters for ``tx.init``, by path: the ends, or else the paths."""
        ends = self.ends(names)
        fits = all(f"/{path}".endswith(f"/{end}") for path, end in ends.items())
        return ends if fits else {path: path for path in ends}


def _layouts(names: Mapping[str, str], box: str, state: Mapping[str, Any]) -> Iterator[_Layout]:
    """Yields layouts that the state may have; the last one is for a state without parameters."""
    ends = {
        _joined(*keys[n:]) for path in state for keys in [path.split("/")] for n in range(len(keys))
    }
    keys = [name.split("/")[:-1] for name in names.values()]
    for size in range(_DEEPEST + 1):
        for head in sorted({(*each[:size],) for each in keys if len(each) >= size}):
            for cut in range(size + 1):
                layout = _Layout(head, cut, box)
                if not ends.isdisjoint(layout.ends(names).values()):
                    yield layout
    yield _Layout((), 0, box)


def _renamed(leaves: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the leaves with paths in which the longest end that has a name is replaced by it."""
    renamed = {}
    for path, leaf in leaves.items():
        keys = path.split("/")
        for n in range(len(keys)):
            if (name := names.get("/".join(keys[n:]))) is not None:
                path = _joined(*keys[:n], name)
                break
        renamed[path] = leaf
    return renamed


# Trees --------------------------------------------------------------------------------------------


def with_leaves(tree: PyTree, gone: Iterable[str], new: Mapping[str, Any]) -> PyTree:
    """Returns a tree without the leaves ``gone`` and with the leaves ``new``, both by path."""
    return _placed(tree, {**dict.fromkeys(gone, _GONE), **new})


def _placed(node: PyTree, new: Mapping[str, Any]) -> PyTree:
    """Returns a subtree with new leaves, or ``_GONE`` if it becomes empty."""
    if "" in new:
        return new[""]
    if node is None:
        left = {path: leaf for path, leaf in new.items() if leaf is not _GONE}
        return nested(left) if left else _GONE
    below = dict[str, dict[str, Any]]()
    for path, leaf in new.items():
        key, _, rest = path.partition("/")
        below.setdefault(key, {})[rest] = leaf
    is_list = isinstance(node, list | tuple)
    parts = {str(n): part for n, part in enumerate(node)} if is_list else dict(_mapping(node))
    parts |= {key: _placed(parts.get(key), inner) for key, inner in below.items()}
    parts = {key: part for key, part in parts.items() if part is not _GONE}
    if not parts:
        return _GONE
    numbers = [str(n) for n in range(len(parts))]
    return [parts[n] for n in numbers] if is_list and {*numbers} == parts.keys() else parts


def _at(tree: PyTree, keys: Iterable[str]) -> PyTree:
    for key in keys:
        tree = tree[int(key) if isinstance(tree, list | tuple) else key]
    return tree


def _mapping(node: PyTree) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _joined(*keys: str) -> str:
    return "/".join(filter(None, keys))
