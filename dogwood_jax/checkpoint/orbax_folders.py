"""Grow an Orbax checkpoint, variables and optimizer state: ``grow_folder``.

Orbax reads and saves the tree. TensorStore reads and saves its arrays (``orbax_arrays``).
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.deferred import Deferred
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_array, leaves_by_path, nested
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.pieces import parts_of
from dogwood_jax.checkpoint.draft import draft, expect_free, fingerprint
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.checkpoint.made import Made, Piece, made_of, pieces_of
from dogwood_jax.checkpoint.names import Rows
from dogwood_jax.checkpoint.orbax_arrays import Folder, NewArray, Old, Saved
from dogwood_jax.checkpoint.orbax_names import (
    STATE,
    expect_all,
    grown_state,
    home_of_state,
    named_table,
    names_of,
    stored_names,
    table_of,
    with_leaves,
)
from dogwood_jax.checkpoint.writers import Writers


def tree_of_folder(folder: Path, names: Rows | None = None) -> PyTree:
    """Returns the tree of a checkpoint, with deferred arrays; numbers and strings are read.

    With ``names``, it is a tree of the leaves that ``names`` lists.
    """
    tree = _tree_of(folder)[1]
    if names is None:
        return tree
    leaves = leaves_by_path(tree)
    stored = stored_names(tree, named_table(names))
    return nested({path: leaves[name] for path, name in stored.items()})


def _tree_of(folder: Path) -> tuple[Folder, PyTree]:
    """Returns the folder's format and the tree of a checkpoint; see ``tree_of_folder``."""
    import orbax.checkpoint as ocp
    from etils import epath  # type: ignore[import-untyped]

    path = epath.Path(folder.resolve())
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(path)
        # Orbax reads nothing where the tree has placeholders.
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
    """Returns whether a node of Orbax's metadata describes an array."""
    return hasattr(node, "storage") and hasattr(node, "shape")


def _placeholder(leaf: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.PLACEHOLDER if _is_array(leaf) else 0


class _Grown(Deferred):
    """An array of the larger network, made from stored arrays when it is needed."""

    def __init__(self, one: Made, old: Saved | None, scale: Saved | None) -> None:
        super().__init__(one.shape, one.dtype, self._make)
        self.made, self.old, self._scale = one, old, scale

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
        """Yields the array piece by piece, see ``pieces_of``."""
        scale = None if self._scale is None else Old(self._scale)
        return pieces_of(self.made, old, order, scale)


def grow_folder(
    folder: Path,
    growth: Growth,
    out: Path,
    key: Array | None,
    tx: Any,
    step: Path | None,
    names: Rows | None,
) -> None:
    """Grows an Orbax checkpoint, as documented in ``dw.checkpoint.grow``.

    Args:
        folder: the folder of the tree.
        growth: the growth.
        out: path of the larger tree, or of the larger step.
        key: as for ``dw.grow``.
        tx: the optimizer, or None.
        step: the folder of the step that holds the tree; None if there is none.
        names: maps arrays of the tree to leaves, or None.
    """
    expect_free(out.resolve(), is_folder=True)
    saved, tree = _tree_of(folder)
    leaves, table = leaves_by_path(tree), table_of(tree, growth, names)
    stored = stored_names(tree, table)
    expect_all(growth, stored)
    old = {path: leaves[name] for path, name in stored.items()}
    variables = nested(old)

    def grown(one: Made) -> _Grown:
        source, scale = (None if path is None else old[path] for path in (one.source, one.scale))
        return _Grown(one, source, scale)

    wide = jax.tree.map(grown, made_of(variables, growth, key))
    new = leaves_by_path(wide)
    written = names_of(new, table)
    changes = {written[path]: leaf for path, leaf in new.items()}
    home = home_of_state(tree, stored.values(), tx is not None)
    if (tx is None) != (home is None):
        raise ValueError(
            f"{folder}: holds the state of an optimizer at {home}; pass the optimizer as tx="
            if tx is None
            else f"{folder}: expected the state of an optimizer at {STATE}, next to the variables; "
            "found none; leave out tx="
        )
    gone = {*stored.values(), *filter(table.is_left_out, leaves)}
    if home is not None:
        inside = {p.removeprefix(f"{home}/"): leaves[p] for p in leaves if p.startswith(f"{home}/")}
        state = grown_state(inside, growth, tx, (variables, wide), (stored, written))
        changes |= {f"{home}/{path}".rstrip("/"): leaf for path, leaf in state.items()}
        gone |= {f"{home}/{path}" for path in inside}
    _write(saved, growth, out, key, with_leaves(tree, gone, changes), step)


# Writing ------------------------------------------------------------------------------------------

# The file by which Orbax recognizes a saved tree.
_TREE = "_METADATA"


def _write(
    source: Folder,
    growth: Growth,
    out: Path,
    key: Array | None,
    tree: PyTree,
    step: Path | None,
) -> None:
    """Writes a tree with deferred arrays, one after another.

    Orbax saves the tree with a scalar in place of each array. Then each array is written over its
    scalar, under the name that Orbax gives it. All other items of a step are copied.
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
                # Without facts about its content, an array in the draft might be outdated.
                header = str(Path(item, folder.header(names[path])))
                noted = [(header, names[path])] if told[path] else []
                new = NewArray(folder, names[path], array.shape, array.dtype, noted)
                if not writers.has(new):
                    opened.push(new.close)
                    _write_array(array, new, writers)


def _expect_apart(names: Iterable[str]) -> None:
    """Raises a ``CheckpointError`` unless each name can be a folder of its own in the tree's."""
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
    """Returns facts that identify a leaf's content, given the growth; None if there are none."""
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


def _write_array(array: Deferred, new: NewArray, writers: Writers) -> None:
    """Begins to write an array: copies it, or makes it piece by piece or as a whole."""
    order = tuple(range(len(array.shape)))
    one, old = Made(Edit("", array.shape), array.dtype), None
    if isinstance(array, _Grown):
        one, old = array.made, array.old
    elif isinstance(array, Saved):
        one, old = Made(Edit("", array.shape, source=array.name), array.dtype), array
    elif array.mapped and isinstance(array.mapped[0], Saved) and parts_of(array.mapped[1], order):
        old, leaf_map = array.mapped
        edit = Edit("", array.shape, source=old.name, map=leaf_map)
        one = Made(edit, array.dtype, is_finite=False)
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
        pieces = pieces_of(one, stored, order)
    else:
        make = partial(_all_of, array)
        pieces = iter([Piece(0, make, prod(array.shape), is_large=True)])
    writers.begin(new, (partial(writers.write, one, piece, new) for piece in pieces))


def _all_of(array: Deferred, lead: int) -> tuple[np.ndarray, bool]:
    entries = np.asarray(array.make())
    assert entries.dtype == array.dtype, (entries.dtype, array.dtype)
    return entries, True


def _number(leaf: Any) -> Any:
    """Returns a scalar that Orbax saves in the same way as the array."""
    if not isinstance(leaf, Deferred):
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
    # JAX would truncate other dtypes.
    kind = jnp if jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype else np
    return kind.zeros((), leaf.dtype)


def _save(folder: Folder, tree: PyTree) -> None:
    """Saves a tree into a cleared folder, with a scalar in place of each array.

    Orbax's separate record of array shapes is optional and left out.
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
