"""Grow a checkpoint of Orbax, variables and optimizer state: ``grow_folder``.

Orbax reads and saves the tree, TensorStore the arrays in it (``orbax_arrays``).
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._arrays.pieces import parts_of
from dogwood_jax._base.deferred import Deferred, made
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_array, leaves_by_path, nested, rebuilt
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.growable import unwrapped, with_stored_ages
from dogwood_jax._optimizer.opt_state import grow_opt_state
from dogwood_jax.checkpoint.draft import draft, expect_free, fingerprint
from dogwood_jax.checkpoint.errors import CheckpointError
from dogwood_jax.checkpoint.made import Made, Piece, made_of, pieces_of
from dogwood_jax.checkpoint.orbax_arrays import Folder, NewArray, Old, Saved
from dogwood_jax.checkpoint.writers import Writers

_STATE = "opt_state"


def tree_of_folder(folder: Path) -> PyTree:
    """Returns the tree of a checkpoint: arrays deferred, numbers and texts as they are."""
    return _tree_of(folder)[1]


def _tree_of(folder: Path) -> tuple[Folder, PyTree]:
    """Returns how a checkpoint is saved, and its tree; see ``tree_of_folder``."""
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

    leaves = jax.tree.leaves(metadata.tree, is_leaf=_is_array)
    place = Folder.of(folder.resolve(), next((a.name for a in leaves if _is_array(a)), ""))

    def one(leaf: Any, other: Any) -> Any:
        if other is not ocp.PLACEHOLDER:
            return other
        return Saved(leaf.shape, leaf.dtype, place, leaf.name)

    return place, jax.tree.map(one, metadata.tree, others, is_leaf=_is_array)


def _is_array(node: Any) -> bool:
    """Whether a node of Orbax's metadata says what an array is like."""
    return hasattr(node, "storage") and hasattr(node, "shape")


def _placeholder(leaf: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.PLACEHOLDER if _is_array(leaf) else 0


class _Grown(Deferred):
    """An array of the larger network, of the stored ones that it is made of."""

    def __init__(
        self, one: Made, old: Saved | None, scale: Saved | None, key: Array | None
    ) -> None:
        super().__init__(one.shape, one.dtype, self._make)
        self.made, self.old, self._scale, self._key = one, old, scale, key

    def _make(self) -> np.ndarray:
        if self.made.is_copy and self.old is not None:
            return self.old.all()
        entries = np.empty(self.shape, self.dtype)
        flat, order = entries.reshape(-1), tuple(range(len(self.shape)))
        old = None if self.old is None else Old(self.old)
        for piece in self.pieces(old, order):
            values = piece.values(self.made).reshape(-1)
            flat[piece.start : piece.start + values.size] = values
        return entries

    def pieces(self, old: Old | None, order: tuple[int, ...]) -> Iterator[Piece]:
        """Yields it piece by piece, see ``pieces_of``."""
        scale = None if self._scale is None else Old(self._scale)
        return pieces_of(self.made, old, order, self._key, scale)


def grow_folder(
    folder: Path, growth: Growth, out: Path, key: Array | None, tx: Any, step: Path | None
) -> None:
    """Grows a checkpoint of Orbax; ``dw.checkpoint.grow`` says what is promised.

    Args:
        folder: the folder of the tree.
        growth: the growth.
        out: where the larger tree goes, or the larger step.
        key: as for ``dw.grow``.
        tx: the optimizer, or None.
        step: the folder of the step that holds the tree; None if there is none.
    """
    expect_free(out.resolve(), is_folder=True)
    saved, tree = _tree_of(folder)
    keys = _place_of_variables(tree, growth)
    node = _at(tree, keys)
    variables, boxed = _unboxed(_collections(node, growth))
    old = leaves_by_path(variables)

    def grown(one: Made) -> _Grown:
        source, scale = (None if path is None else old[path] for path in (one.source, one.scale))
        return _Grown(one, source, scale, key)

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
    _write(saved, growth, out, key, tree, step)


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


# Writing ------------------------------------------------------------------------------------------

# The file that Orbax knows a saved tree by.
_TREE = "_METADATA"


def _write(
    source: Folder,
    growth: Growth,
    out: Path,
    key: Array | None,
    tree: PyTree,
    step: Path | None,
) -> None:
    """Writes a tree whose arrays are deferred, one after another.

    Orbax saves the tree with a number in place of each array. Then each array is written where its
    number is, by the name that Orbax gives it. All else in a step is copied.
    """
    import orbax.checkpoint as ocp

    leaves = leaves_by_path(tree)
    arrays = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Deferred)}
    names = leaves_by_path(ocp.BasePyTreeCheckpointHandler().get_param_names(tree))
    _expect_apart(names.values())
    beside = [] if step is None else [one for one in step.iterdir() if one.name != source.path.name]
    files = sorted(path for path in (step or source.path).rglob("*") if path.is_file())
    told = {path: _told(leaf) for path, leaf in leaves.items()}
    what = fingerprint(growth, key, files, told)
    size = sum(prod(a.shape) * int(jnp.dtype(a.dtype).itemsize) for a in arrays.values())
    with draft(out, what, is_folder=True, size=size) as begun:
        item = "" if step is None else source.path.name
        folder = Folder(begun.folder / item, is_ocdbt=False, is_zarr3=source.is_zarr3)
        metadata = str(Path(item, _TREE))
        if (metadata, "") not in begun.done:
            folder.path.mkdir(exist_ok=True)
            _save(folder, tree)
            for one in beside:
                copy = shutil.copytree if one.is_dir() else shutil.copyfile
                copy(one, begun.folder / one.name)
            begun.note(metadata, "")
        with ExitStack() as opened, Writers(begun) as writers:
            for path, array in arrays.items():
                # What is not known to be the same would not be noticed if it changed.
                header = str(Path(item, folder.header(names[path])))
                noted = [(header, names[path])] if told[path] else []
                new = NewArray(folder, names[path], array.shape, array.dtype, noted)
                if not writers.has(new):
                    opened.push(new.close)
                    _write_array(array, new, key, writers)


def _expect_apart(names: Iterable[str]) -> None:
    """Raises unless each name can be a folder of its own, in the folder of the tree."""
    names, problems = {*names}, list[str]()
    for name in sorted(names):
        parts = name.split("/")
        if {"", ".", ".."} & {*parts} or "\0" in name:
            problems.append(f"{name!r}: expected a name without empty parts, '.' and '..'")
        above = ("/".join(parts[:n]) for n in range(1, len(parts)))
        problems += [f"{name!r}: {one!r} is an array itself" for one in above if one in names]
    if problems:
        raise CheckpointError(listed("cannot be the names of arrays", problems))


def _told(leaf: Any) -> Any:
    """Returns what tells a leaf from others, beside the growth; None if nothing does."""
    if isinstance(leaf, Saved):
        return leaf.name
    if isinstance(leaf, _Grown):
        return leaf.made.path
    if isinstance(leaf, Deferred):
        return leaf.facts and repr((leaf.shape, leaf.dtype, leaf.facts))
    if is_array(leaf):
        entries = np.asarray(leaf)
        return entries.shape, str(entries.dtype), hashlib.sha256(entries.tobytes()).hexdigest()
    return repr(leaf)


def _write_array(array: Deferred, new: NewArray, key: Array | None, writers: Writers) -> None:
    """Begins to write an array."""
    order = tuple(range(len(array.shape)))
    one, old = Made("", array.shape, array.dtype, None), None
    if isinstance(array, _Grown):
        one, old = array.made, array.old
    elif isinstance(array, Saved):
        one, old = replace(one, source=array.name), array
    elif array.mapped and isinstance(array.mapped[0], Saved) and parts_of(array.mapped[1], order):
        old, leaf_map = array.mapped
        one = replace(one, source=old.name, leaf_map=leaf_map, is_finite=False)
    if old is not None and one.is_copy:
        writers.begin(new, (partial(writers.alone, copy) for copy in new.copies(old)))
        return
    new.create()
    stored = None if old is None else Old(old)
    if stored is not None and stored.is_large:
        writers.finish()
    if isinstance(array, _Grown):
        pieces = array.pieces(stored, order)
    elif old is not None:
        pieces = pieces_of(one, stored, order, key)
    else:
        make = partial(_all_of, array)
        pieces = iter([Piece(0, make, prod(array.shape), is_large=True)])
    writers.begin(new, (partial(writers.write, one, piece, new) for piece in pieces))


def _all_of(array: Deferred, lead: int) -> tuple[np.ndarray, bool]:
    entries = np.asarray(array.make())
    assert entries.dtype == array.dtype, (entries.dtype, array.dtype)
    return entries, True


def _number(leaf: Any) -> Any:
    """Returns a number that Orbax saves as it saves the array."""
    if not isinstance(leaf, Deferred):
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
    # JAX would cut other numbers short.
    kind = jnp if jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype else np
    return kind.zeros((), leaf.dtype)


def _save(folder: Folder, tree: PyTree) -> None:
    """Saves a tree into an empty folder, with a number in place of each array.

    What Orbax notes of the shapes of arrays beside the arrays is optional, and left out.
    """
    import orbax.checkpoint as ocp

    handlers: Any = ocp.type_handlers
    numbers = handlers.ScalarHandler()
    registry = handlers.create_type_handler_registry(
        (jax.Array, handlers.ArrayHandler()),
        *((kind, numbers) for kind in (int, float, np.number)),
        (np.ndarray, handlers.NumpyHandler()),
        (str, handlers.StringHandler()),
    )
    for left in folder.path.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=folder.is_ocdbt, use_zarr3=folder.is_zarr3, type_handler_registry=registry
    )
    with tempfile.TemporaryDirectory(dir=folder.path) as place, ocp.Checkpointer(handler) as saver:
        saved = Path(place, "tree")
        saver.save(saved, args=ocp.args.PyTreeSave(jax.tree.map(_number, tree)))
        for file in saved.iterdir():
            file.rename(folder.path / file.name)
