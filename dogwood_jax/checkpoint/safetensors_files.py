"""Grow a safetensors checkpoint of one or more files: ``grow_files``."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import struct
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.shardings import most_like
from dogwood_jax.checkpoint import config_json
from dogwood_jax.checkpoint.draft import draft, fingerprint
from dogwood_jax.checkpoint.made import PAGE, Made, made_of, pieces_of, whole_of
from dogwood_jax.checkpoint.names import Rows, StoredLeaf, Table
from dogwood_jax.checkpoint.new_files import NewFile
from dogwood_jax.checkpoint.tensors import Headers, Tensor, header_for, headers_of
from dogwood_jax.checkpoint.writers import Writers

# Bytes that are copied at a time.
_COPIED = 1 << 23


def shapes_of_files(source: Path, names: Rows | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of every leaf of a checkpoint, by path."""
    return _shapes(_leaves(headers_of(source), names)[1])


def arrays_of_files(source: Path, names: Rows | None) -> dict[str, np.ndarray]:
    """Returns every leaf of a checkpoint, by path."""
    return dict(one_by_one(source, names))


def one_by_one(
    source: Path, names: Rows | None, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields paths and leaves of a checkpoint: all leaves, or those with paths in ``wanted``."""
    headers = headers_of(source)
    with _Old(headers) as files:
        for path, leaf in _leaves(headers, names)[1].items():
            if wanted is None or path in wanted:
                yield path, whole_of(_Leaf(leaf, files))


def _leaves(headers: Headers, names: Rows | None) -> tuple[Table, dict[str, StoredLeaf]]:
    separator = "/" if any("/" in name for name in headers.tensors) else "."
    table = Table(names, separator)
    return table, table.leaves(headers.tensors.values())


def _shapes(leaves: Mapping[str, StoredLeaf]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: struct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def grow_files(
    source: Path,
    growth: Growth,
    out: Path,
    key: Array | None,
    names: Rows | None,
    config: Mapping[str, Any] | None,
) -> None:
    """Grows a safetensors checkpoint, as documented in ``dw.checkpoint.grow``."""
    headers = headers_of(source)
    for file in headers.metadata:
        if out.exists() and os.path.samefile(headers.folder / file, out):
            raise ValueError(f"{out}: is the source, which is never overwritten; use another name")
    table, old = _leaves(headers, names)
    every = jax.tree.leaves(made_of(_shapes(old), growth, key))
    new = _stored(every, old, table)
    texts: dict[str, bytes] = {}
    places: dict[str, Tensor] = {}
    for file, metadata in headers.metadata.items():
        mine = [tensor for leaf in new for tensor in leaf.tensors if tensor.file == file]
        texts[file], placed = header_for(mine, metadata)
        places |= {tensor.name: tensor for tensor in placed}
    new = [replace(leaf, tensors=tuple(places[t.name] for t in leaf.tensors)) for leaf in new]
    said, beside = _beside(source, headers, places, config, growth)
    size = sum(map(len, texts.values())) + sum(tensor.nbytes for tensor in places.values())
    size += sum(path.stat().st_size for path in beside)
    paths = [*(headers.folder / file for file in headers.metadata), *beside]
    what = fingerprint(growth, key, paths, headers, None if names is None else dict(names), said)
    is_folder = source.is_dir() or headers.index is not None
    with draft(out, what, is_folder=is_folder, size=size) as begun:
        with ExitStack() as stack:
            files = stack.enter_context(_Old(headers))
            larger = {f: stack.enter_context(NewFile(begun.folder / f)) for f in texts}
            writers = stack.enter_context(Writers(begun))
            for file, text in texts.items():
                larger[file].write(0, text)
            for made, leaf in sorted(zip(every, new, strict=True), key=lambda one: _place(one[1])):
                before, scale = old.get(made.source or ""), old.get(made.scale or "")
                _make(made, before, scale, leaf, files, _NewLeaf(leaf, larger), writers)
        if headers.index is not None:
            index = _index(headers.index, places)
            begun.folder.joinpath(headers.index_name).write_text(index)
        if said is not None:
            begun.folder.joinpath(config_json.NAME).write_text(said)
        for path in beside:
            shutil.copyfile(path, begun.folder / path.name)


def _beside(
    source: Path,
    headers: Headers,
    places: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    growth: Growth,
) -> tuple[str | None, list[Path]]:
    """Returns the text of the new ``config.json``, or None, and the files that are copied."""
    if not source.is_dir():
        if config is not None:
            raise ValueError(f"{source}: config= is for folders; leave it out for a file")
        return None, []
    old, new = headers.tensors.values(), places.values()
    kept = next((its.kept for its in growth.layers), None)
    said = config_json.config_of(source, old, new, config, kept)
    return said, [] if said is None else config_json.files_beside(source)


def _make(
    made: Made,
    old: StoredLeaf | None,
    scale: StoredLeaf | None,
    new: StoredLeaf,
    files: "_Old",
    target: "_NewLeaf",
    writers: Writers,
) -> None:
    """Begins to write an array, unless the draft has it."""
    if target.may_be_there and writers.has(target):
        return
    if made.is_copy and old is not None and old.layout == new.layout:
        writers.begin(target, target.copies(old, files))
        return
    stored, weights = (None if leaf is None else _Leaf(leaf, files) for leaf in (old, scale))
    pieces = pieces_of(made, stored, new.order, weights)
    writers.begin(target, (functools.partial(writers.write, made, p, target) for p in pieces))


def _stored(every: Sequence[Made], old: Mapping[str, StoredLeaf], table: Table) -> list[StoredLeaf]:
    """Returns how the new checkpoint stores each array, in the file of the most similar old array.

    Raises:
        ValueError: if arrays match no row of the table, with all of them in one message.
    """
    problems, stored = list[str](), list[StoredLeaf]()
    shapes = {path: leaf.shape for path, leaf in old.items()}
    files = {tensor.name: tensor.file for leaf in old.values() for tensor in leaf.tensors}
    for made in every:
        try:
            leaf = table.stored(made.path, made.shape, str(made.dtype))
        except ValueError as error:
            problems.append(str(error))
            continue
        like = old[made.source or most_like(made.path, made.shape, shapes)]
        named = [
            replace(tensor, file=files.get(tensor.name, like.tensors[-1].file))
            for tensor in leaf.tensors
        ]
        stored.append(replace(leaf, tensors=tuple(named)))
    if problems:
        raise ValueError(listed("names= lacks arrays of the larger model", problems))
    return stored


def _place(leaf: StoredLeaf) -> tuple[str, int]:
    """Returns the file and offset at which a leaf begins; leaves are written in this order."""
    return leaf.tensors[0].file, leaf.tensors[0].start


def _index(index: Mapping[str, Any], places: Mapping[str, Tensor]) -> str:
    """Returns the text of the new index."""
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(tensor.nbytes for tensor in places.values())
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(prod(tensor.shape) for tensor in places.values())
    weight_map = {name: places[name].file for name in sorted(places)}
    return json.dumps({**index, "metadata": metadata, "weight_map": weight_map}, indent=2) + "\n"


class _Leaf:
    """A stored leaf whose entries can be read; see ``made.Stored``."""

    def __init__(self, leaf: StoredLeaf, files: "_Old") -> None:
        self.shape, self.dtype, self.order = leaf.shape, np.dtype(leaf.dtype), leaf.order
        self._leaf, self._files = leaf, files

    def read(self, start: int, into: np.ndarray) -> None:
        data = into.reshape(-1).view(np.uint8).data
        start *= self.dtype.itemsize
        for tensor, offset, part in _ranges(self._leaf, start, len(data)):
            self._files.read(tensor.file, offset, data[part])


def _ranges(leaf: StoredLeaf, start: int, size: int) -> Iterator[tuple[Tensor, int, slice]]:
    """Yields the places of bytes: the tensor, the offset in its file, and the slice of the bytes.

    Args:
        leaf: the leaf.
        start: index of the first byte in the leaf.
        size: number of bytes.
    """
    done, each = 0, leaf.tensors[0].nbytes
    while done < size:
        number, inner = divmod(start + done, each)
        stop = min(done + each - inner, size)
        tensor = leaf.tensors[number]
        yield tensor, tensor.start + inner, slice(done, stop)
        done = stop


class _NewLeaf:
    """A new leaf whose entries can be written; see ``writers.New``."""

    def __init__(self, leaf: StoredLeaf, files: Mapping[str, NewFile]) -> None:
        self.names = [(tensor.file, tensor.name) for tensor in leaf.tensors]
        self._leaf, self._files = leaf, files

    @property
    def may_be_there(self) -> bool:
        """Whether the draft's files were long enough to hold the leaf when they were opened."""
        files, tensors = self._files, self._leaf.tensors
        return all(t.start + t.nbytes <= files[t.file].length for t in tensors)

    def done(self) -> None:
        """Leaves the files open, because they also hold other leaves."""

    def copies(self, old: StoredLeaf, files: "_Old") -> Iterator[Callable[[], None]]:
        """Yields functions that copy an unchanged leaf, part by part."""
        for before, after in zip(old.tensors, self._leaf.tensors, strict=True):
            assert before.nbytes == after.nbytes, before.name
            for start in range(0, before.nbytes, _COPIED):
                size = min(_COPIED, before.nbytes - start)
                handle, here = files.handle(before.file), before.start + start
                new, there = self._files[after.file], after.start + start
                read = functools.partial(files.read, before.file)
                yield functools.partial(new.copy, handle, here, there, size, read)

    def lead(self, start: int) -> int:
        itemsize = self._leaf.tensors[0].itemsize
        _, offset, _ = next(_ranges(self._leaf, start * itemsize, itemsize))
        return offset % PAGE

    def write(self, start: int, entries: np.ndarray) -> None:
        data = np.ascontiguousarray(entries).reshape(-1).view(np.uint8).data
        start *= entries.dtype.itemsize
        for tensor, offset, part in _ranges(self._leaf, start, len(data)):
            self._files[tensor.file].write(offset, data[part])

    def leave_zeros(self, start: int, size: int) -> None:
        itemsize = self._leaf.tensors[0].itemsize
        for tensor, offset, part in _ranges(self._leaf, start * itemsize, size * itemsize):
            self._files[tensor.file].leave_zeros(offset + part.stop - part.start)


class _Old:
    """The old files, open for reading."""

    def __init__(self, headers: Headers) -> None:
        self._folder = headers.folder
        self._old = {file: os.open(headers.folder / file, os.O_RDONLY) for file in headers.metadata}

    def __enter__(self) -> "_Old":
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        for handle in self._old.values():
            os.close(handle)

    def handle(self, file: str) -> int:
        """Returns the descriptor of a file."""
        return self._old[file]

    def read(self, file: str, offset: int, into: memoryview) -> None:
        """Reads bytes of an old file."""
        handle = self._old[file]
        while into:
            count = os.preadv(handle, [into], offset)
            if not count:
                raise OSError(
                    f"{self._folder / file}: ends too early; it changed while it was read"
                )
            offset, into = offset + count, into[count:]
