"""Where a tree that Orbax saved holds the network and the optimizer's state, and how it calls them.

Paths are those of the saved tree. ``names=`` says which of its arrays are leaves of the network.
Without it, they are looked for at the top, and one or two keys below. An optimizer's state calls
the parameters by ends of the same names: ``params/params/decoder/kernel`` of the network is
``0/mu/params/decoder/kernel`` of Adam's state.
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
from dogwood_jax._optimizer.growable import unwrapped, with_stored_ages
from dogwood_jax._optimizer.opt_state import grow_opt_state
from dogwood_jax.checkpoint.names import Rows, Table

STATE = "opt_state"
# In a tree of NNX's variables, the key of an array in its box.
_BOX = "/value"
# How many keys parameters have in common at most, such as those of a model and a collection.
_DEEPEST = 3
# What no longer is in a tree.
_GONE = object()


# The network's arrays -----------------------------------------------------------------------------


def table_of(tree: PyTree, growth: Growth, names: Rows | None) -> Table:
    """Returns how a saved tree calls the leaves of the growth's network.

    Raises:
        ValueError: if ``names`` cannot be read; without it, if the network is not found.
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
        ValueError: if it cannot be read, or says how arrays lie.
    """
    table = Table(names, "/")
    table.expect_names_alone()
    return table


def stored_names(tree: PyTree, table: Table) -> dict[str, str]:
    """Returns what a saved tree calls leaves, by their paths.

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
    """Raises unless these leaves are all that the growth knows."""
    if missing := {leaf.path for leaf in growth.widths.leaves}.difference(paths):
        raise _absent(missing)


def names_of(paths: Iterable[str], table: Table) -> dict[str, str]:
    """Returns what the larger tree calls leaves of the larger network, by their paths.

    Raises:
        ValueError: if no row says it.
    """
    names = {path: table.name(path) for path in paths}
    if unknown := [path for path, name in names.items() if name is None]:
        problems = (f"{path}: no row says what it is called; add one" for path in unknown)
        raise ValueError(listed("names= lacks arrays of the larger network", problems))
    return {path: str(name) for path, name in names.items()}


def _absent(paths: Iterable[str]) -> ValueError:
    problems = (f"{path}: not in the checkpoint" for path in sorted(paths))
    return ValueError(
        listed("the checkpoint does not hold the growth's network; names= may say where", problems)
    )


def _places(tree: PyTree) -> Iterator[tuple[str, ...]]:
    """Yields the keys of parts of a tree that may hold a network."""
    top = {key: part for key, part in _mapping(tree).items() if key != STATE}
    yield ()
    yield from ((key,) for key in top)
    yield from ((key, inner) for key in top for inner in _mapping(top[key]) if inner != STATE)


# The optimizer's state ----------------------------------------------------------------------------


def home_of_state(tree: PyTree, names: Iterable[str], is_wanted: bool) -> str | None:
    """Returns the path of the state that belongs to a network; None if there is none.

    It is beside the variables or above them. If it is wanted, it may also be alone in a part beside
    them, as in ``{"model": ..., "optimizer": {"opt_state": ...}}``.
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
    """Returns the leaves of a state that has grown, by path; or all of it under the empty path.

    Args:
        state: the leaves of the saved state, by path.
        growth: the growth.
        tx: the optimizer.
        variables: the network's variables, old and new.
        names: what the saved tree calls them, by their paths, old and new.

    Raises:
        ValueError: if it is another optimizer's state.
    """
    box = _BOX if state and all(path.endswith(_BOX) for path in state) else ""
    # What has several axes is large. Counts and the ages of units are needed before.
    state = {
        path.removesuffix(box): leaf if getattr(leaf, "ndim", 0) > 1 else made(leaf)
        for path, leaf in state.items()
    }
    old = leaves_by_path(variables[0])
    for optimizer, layout in product((tx, unwrapped(tx)), _layouts(names[0], box, state)):
        ends, own = layout.ends(names[0]), layout.own(names[0])
        found = _renamed(state, {end: own[path] for path, end in ends.items()})
        params = nested({name: old[path] for path, name in own.items()})
        like = with_stored_ages(jax.eval_shape(optimizer.init, params), nested(found))
        expected = leaves_by_path(like).keys()
        if expected == found.keys():
            break
    else:
        problems = [f"{path}: not in the state that tx.init makes" for path in found - expected]
        problems += [f"{path}: not in the checkpoint" for path in expected - found.keys()]
        raise ValueError(listed("the checkpoint's opt_state is not that of tx", sorted(problems)))
    before = rebuilt(jax.tree.structure(like), found)
    after = grow_opt_state(before, growth, tx, variables=variables[1])
    ends, own = layout.ends(names[1]), layout.own(names[1])
    if optimizer is not tx and ends == own and not box:
        return {"": after}  # tx has wrapped it
    back = _renamed(leaves_by_path(after), {name: ends[path] for path, name in own.items()})
    return {path + box: leaf for path, leaf in back.items()}


@dataclass(frozen=True)
class _Layout:
    """How a state may call parameters: as the tree does, without some first keys.

    Attributes:
        head: the keys of the part of the tree that holds the parameters.
        cut: how many of them the state leaves out.
        box: what else it leaves out, at the end.
    """

    head: tuple[str, ...]
    cut: int
    box: str

    def ends(self, names: Mapping[str, str]) -> dict[str, str]:
        """Returns what paths in the state end with, by the parameters' paths in the network."""
        keys = {path: name.removesuffix(self.box).split("/") for path, name in names.items()}
        size = len(self.head)
        return {p: "/".join(k[self.cut :]) for p, k in keys.items() if (*k[:size],) == self.head}

    def own(self, names: Mapping[str, str]) -> dict[str, str]:
        """Returns what they end with if parameters are called as in the network."""
        ends = self.ends(names)
        fits = all(f"/{path}".endswith(f"/{end}") for path, end in ends.items())
        return ends if fits else {path: path for path in ends}


def _layouts(names: Mapping[str, str], box: str, state: Mapping[str, Any]) -> Iterator[_Layout]:
    """Yields how a state may call parameters; at last, how a state without any does."""
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
    """Returns leaves by other paths: the longest end of a path that has a name becomes its name."""
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
    """Returns a tree without some leaves and with others, by path; all else is as it was."""
    return _placed(tree, {**dict.fromkeys(gone, _GONE), **new})


def _placed(node: PyTree, new: Mapping[str, Any]) -> PyTree:
    """Returns a part of a tree with new leaves, or ``_GONE`` if nothing is left of it."""
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
