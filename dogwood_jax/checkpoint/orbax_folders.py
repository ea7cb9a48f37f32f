"""Grow a checkpoint of Orbax, variables and optimizer state: ``grow_folder``.

Orbax saves a tree whose leaves are made while it saves them, one after another. TensorStore reads
the old arrays, each when it is needed.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.deferred import Deferred, made
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_array, leaves_by_path, nested, rebuilt
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.growable import unwrapped, with_stored_ages
from dogwood_jax._optimizer.opt_state import grow_opt_state
from dogwood_jax.checkpoint.draft import expect_free
from dogwood_jax.checkpoint.errors import CheckpointError
from dogwood_jax.checkpoint.made import Made, made_of, pieces_of

_STATE = "opt_state"


def tree_of_folder(folder: Path) -> PyTree:
    """Returns the tree of a checkpoint: arrays deferred, numbers and texts as they are."""
    import orbax.checkpoint as ocp
    from etils import epath  # type: ignore[import-untyped]

    path = epath.Path(folder.resolve())
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(path)
        # Where a tree holds placeholders, nothing is read.
        nothing = jax.tree.map(_placeholder, metadata.tree, is_leaf=_is_array)
        others = ocp.PyTreeCheckpointHandler().restore(path, args=ocp.args.PyTreeRestore(nothing))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{folder}: expected a tree that Orbax saved, complete and intact; it cannot be read: "
            f"{type(error).__name__}: {error}"
        ) from error

    def one(leaf: Any, other: Any) -> Any:
        if other is not ocp.PLACEHOLDER:
            return other
        read = functools.partial(_read, folder.resolve(), leaf.name, metadata.use_zarr3)
        return Deferred(leaf.shape, leaf.dtype, read)

    return jax.tree.map(one, metadata.tree, others, is_leaf=_is_array)


def _is_array(node: Any) -> bool:
    """Whether a node of Orbax's metadata says what an array is like."""
    return hasattr(node, "storage") and hasattr(node, "shape")


def _placeholder(leaf: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.PLACEHOLDER if _is_array(leaf) else 0


def _read(folder: Path, name: str, zarr3: bool) -> np.ndarray:
    """Reads an array."""
    import tensorstore

    files: dict[str, Any] = {"driver": "file", "path": f"{folder}/{name}/"}
    if (folder / "manifest.ocdbt").exists():
        files = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}
    spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": files}
    array: np.ndarray = tensorstore.open(spec, open=True, read=True).result().read().result()
    return array


def grow_folder(folder: Path, growth: Growth, out: Path, key: Array | None, tx: Any) -> None:
    """Grows a checkpoint of Orbax; ``dw.checkpoint.grow`` says what is promised."""
    expect_free(out.resolve(), is_folder=True)
    tree = tree_of_folder(folder)
    keys = _place_of_variables(tree, growth)
    node = _at(tree, keys)
    variables, boxed = _unboxed(_collections(node, growth))
    old = leaves_by_path(variables)

    def grown(one: Made) -> Deferred:
        before = None if one.source is None else old[one.source]
        return Deferred(one.shape, one.dtype, functools.partial(_grown, one, before, key))

    new = jax.tree.map(grown, made_of(variables, growth, key))
    changes = {keys: _merged(node, _boxed(new) if boxed else new)}
    homes = [place for place in (keys, keys[:-1]) if _STATE in _mapping(_at(tree, place))]
    if (tx is None) == bool(homes):
        raise ValueError(
            f"{folder}: holds the state of an optimizer at {_STATE}; pass the optimizer as tx="
            if homes
            else f"{folder}: expected the state of an optimizer at {_STATE}, beside the variables; "
            "found none; leave out tx="
        )
    if homes:
        place = (*homes[0], _STATE)
        state, boxed = _unboxed(_at(tree, place))
        wide = grow_opt_state(_state_of(tx, state, variables), growth, tx, variables=new)
        changes[place] = _boxed(wide) if boxed else wide
    for place, part in sorted(changes.items(), key=lambda change: len(change[0])):
        tree = _with(tree, place, part)
    _save(out.resolve(), tree)


def _grown(one: Made, before: Deferred | None, key: Array | None) -> np.ndarray:
    """Returns the values of an array of the larger model."""
    old = None if before is None else _Held(made(before))
    if one.is_copy and old is not None:
        return old.values
    entries = np.empty(one.shape, one.dtype)
    flat, order = entries.reshape(-1), tuple(range(len(one.shape)))
    for piece in pieces_of(one, old, order, key):
        values = piece.values(one).reshape(-1)
        flat[piece.start : piece.start + values.size] = values
    return entries


class _Held:
    """An old array in memory, of which pieces are read; see ``made.Stored``."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.order = tuple(range(values.ndim))

    def read(self, start: int, into: np.ndarray) -> None:
        into[:] = self.values.reshape(-1)[start : start + into.size]


# Where the variables and the state are ------------------------------------------------------------


def _place_of_variables(tree: PyTree, growth: Growth) -> tuple[str, ...]:
    """Returns the keys of the part that holds the growth's network.

    Raises:
        ValueError: if there is none.
    """
    known = {leaf.path for leaf in growth.widths.leaves}
    top = _mapping(tree)
    places = [(), *((key,) for key in top), *((k, j) for k in top for j in _mapping(top[k]))]
    for place in places:
        if _STATE not in place:
            found = leaves_by_path(_unboxed(_collections(_at(tree, place), growth))[0])
            if known and known <= found.keys():
                return place
    missing = sorted(known - leaves_by_path(tree).keys())
    raise ValueError(
        listed(
            "the checkpoint does not hold the growth's network",
            (f"{path}: not in the checkpoint" for path in missing),
        )
    )


def _collections(node: PyTree, growth: Growth) -> PyTree:
    """Returns those parts of a tree that the growth's variables consist of."""
    first = {leaf.path.partition("/")[0] for leaf in growth.widths.leaves}
    if not isinstance(node, Mapping):
        return node
    return {key: part for key, part in node.items() if str(key) in first}


def _mapping(node: PyTree) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _at(tree: PyTree, keys: tuple[str, ...]) -> PyTree:
    for key in keys:
        tree = tree[key]
    return tree


def _with(tree: PyTree, keys: tuple[str, ...], part: PyTree) -> PyTree:
    """Returns a tree with another part at some keys."""
    if not keys:
        return part
    return {**tree, keys[0]: _with(tree[keys[0]], keys[1:], part)}


def _merged(node: PyTree, new: PyTree) -> PyTree:
    """Returns a part of the tree in which variables have grown, and others are as they were."""
    if not isinstance(node, Mapping):
        return new
    parts = new if isinstance(new, Mapping) else nested(leaves_by_path(new))
    return {**node, **parts}


def _unboxed(tree: PyTree) -> tuple[PyTree, bool]:
    """Returns a tree without the boxes ``{"value": array}`` of NNX, and whether it had them."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_box)
    if not leaves or not all(map(_is_box, leaves)):
        return tree, False
    return jax.tree.map(lambda box: box["value"], tree, is_leaf=_is_box), True


def _boxed(tree: PyTree) -> PyTree:
    leaves = nested(leaves_by_path(tree))
    return jax.tree.map(lambda leaf: {"value": leaf}, leaves)


def _is_box(node: Any) -> bool:
    return isinstance(node, Mapping) and node.keys() == {"value"}


def _state_of(tx: Any, state: PyTree, variables: PyTree) -> PyTree:
    """Returns a stored state in the structure that the optimizer gives it.

    Raises:
        ValueError: if it is another optimizer's.
    """
    # What has several axes is large. Counts and the ages of units are needed before.
    state = jax.tree.map(lambda leaf: leaf if getattr(leaf, "ndim", 0) > 1 else made(leaf), state)
    stored = leaves_by_path(state)
    trees = [variables]
    if isinstance(variables, Mapping) and "params" in variables:
        trees.append(variables["params"])
    for optimizer in (tx, unwrapped(tx)):
        for params in trees:
            like = with_stored_ages(jax.eval_shape(optimizer.init, params), state)
            if leaves_by_path(like).keys() == stored.keys():
                return rebuilt(jax.tree.structure(like), stored)
    expected = leaves_by_path(jax.eval_shape(tx.init, trees[-1]))
    problems = [f"{path}: not in the state that tx.init makes" for path in stored.keys() - expected]
    problems += [f"{path}: not in the checkpoint" for path in expected.keys() - stored]
    raise ValueError(listed("the checkpoint's opt_state is not that of tx", sorted(problems)))


# Saving -------------------------------------------------------------------------------------------


def _savable(leaf: Any) -> Any:
    """Returns an array as one of NumPy if JAX would cut its numbers short, else as one of JAX."""
    if not is_array(leaf):
        return leaf
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        return np.asarray(made(leaf))
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _save(out: Path, tree: PyTree) -> None:
    """Saves a tree whose arrays are deferred."""
    import orbax.checkpoint as ocp

    handlers: Any = ocp.type_handlers

    class DeferredHandler(handlers.ArrayHandler):  # type: ignore[misc]
        """Saves arrays one after another, each when it has been made."""

        async def serialize(
            self, values: Sequence[Any], infos: Sequence[Any], args: Any = None
        ) -> Sequence[Any]:
            for number, value in enumerate(values):
                array = jnp.asarray(made(value))
                arguments = [array], [infos[number]], args and [args[number]]
                for saved in await super().serialize(*arguments):
                    saved.result()
            return []

    numbers = handlers.ScalarHandler()
    registry = handlers.create_type_handler_registry(
        *((kind, DeferredHandler()) for kind in (jax.ShapeDtypeStruct, jax.Array)),
        *((kind, numbers) for kind in (int, float, np.number)),
        (np.ndarray, handlers.NumpyHandler()),
        (str, handlers.StringHandler()),
    )
    tree = jax.tree.map(_savable, tree)
    if out.is_dir():
        out.rmdir()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as saver:
        saver.save(out, args=ocp.args.PyTreeSave(tree))
