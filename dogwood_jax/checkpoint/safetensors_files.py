"""Grow a checkpoint of safetensors, one file or several: ``grow_files``."""

import errno
import functools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from dogwood_jax.checkpoint.draft import Draft, draft, fingerprint
from dogwood_jax.checkpoint.made import PAGE, Made, made_of, pieces_of, scratch, whole_of
from dogwood_jax.checkpoint.names import Rows, StoredLeaf, Table
from dogwood_jax.checkpoint.tensors import Headers, Tensor, header_for, headers_of
from dogwood_jax.checkpoint.writers import Writers

# Bytes that are copied at a time.
_COPIED = 1 << 23


def shapes_of_files(source: Path, names: Rows | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of every leaf of a checkpoint, by path."""
    return _shapes(_leaves(headers_of(source), names)[1])


def arrays_of_files(source: Path, names: Rows | None) -> dict[str, np.ndarray]:
    """Returns every leaf of a checkpoint, by path."""
    headers = headers_of(source)
    with _Old(headers) as files:
        leaves = _leaves(headers, names)[1]
        return {path: whole_of(_Leaf(leaf, files)) for path, leaf in leaves.items()}


def _leaves(headers: Headers, names: Rows | None) -> tuple[Table, dict[str, StoredLeaf]]:
    table = Table(names, headers.tensors)
    return table, table.leaves(headers.tensors.values())


def _shapes(leaves: Mapping[str, StoredLeaf]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: struct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def grow_files(
    source: Path, growth: Growth, out: Path, key: Array | None, names: Rows | None
) -> None:
    """Grows a checkpoint of safetensors; ``dw.checkpoint.grow`` says what is promised."""
    headers = headers_of(source)
    for file in headers.metadata:
        if out.exists() and os.path.samefile(headers.folder / file, out):
            raise ValueError(f"{out}: is the source, which is never overwritten; take another name")
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
    size = sum(map(len, texts.values())) + sum(tensor.nbytes for tensor in places.values())
    paths = [headers.folder / file for file in headers.metadata]
    what = fingerprint(growth, key, paths, headers, None if names is None else dict(names))
    is_folder = source.is_dir() or headers.index is not None
    with draft(out, what, is_folder=is_folder, size=size) as begun:
        with _Files(headers, begun) as files, Writers(begun) as writers:
            for file, text in texts.items():
                files.write(file, 0, text)
            for made, leaf in sorted(zip(every, new, strict=True), key=lambda one: _place(one[1])):
                _make(made, old.get(made.source or ""), leaf, key, files, writers)
        if headers.index is not None:
            index = _index(headers.index, places)
            begun.folder.joinpath(headers.index_name).write_text(index)


def _make(
    made: Made,
    old: StoredLeaf | None,
    new: StoredLeaf,
    key: Array | None,
    files: "_Files",
    writers: Writers,
) -> None:
    """Makes an array and writes it, unless the draft has it."""
    target = _NewLeaf(new, files)
    if files.has(new) and writers.has(target):
        return
    if made.is_copy and old is not None and old.layout == new.layout:
        writers.begin(target, files.copies(old, new))
        return
    stored = None if old is None else _Leaf(old, files)
    pieces = pieces_of(made, stored, new.order, key)
    writers.begin(target, (functools.partial(writers.write, made, p, target) for p in pieces))


def _stored(every: Sequence[Made], old: Mapping[str, StoredLeaf], table: Table) -> list[StoredLeaf]:
    """Returns how the new checkpoint holds each array, in the files of the arrays most like it.

    Raises:
        ValueError: if the table does not say what an array is called, all of them in one message.
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
        raise ValueError(listed("names= does not name these arrays of the larger model", problems))
    return stored


def _place(leaf: StoredLeaf) -> tuple[str, int]:
    """Returns where a leaf begins, for writing in the order of the files."""
    return leaf.tensors[0].file, leaf.tensors[0].start


def _index(index: Mapping[str, Any], places: Mapping[str, Tensor]) -> str:
    """Returns the text of the index of the new files."""
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
    """Yields where bytes of a leaf lie: tensor, place in its file, and which of the bytes.

    Args:
        leaf: the leaf.
        start: the place of the first byte among the leaf's.
        size: how many bytes there are.
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

    def __init__(self, leaf: StoredLeaf, files: "_Files") -> None:
        self.names = [(tensor.file, tensor.name) for tensor in leaf.tensors]
        self._leaf, self._files = leaf, files

    def lead(self, start: int) -> int:
        itemsize = self._leaf.tensors[0].itemsize
        _, offset, _ = next(_ranges(self._leaf, start * itemsize, itemsize))
        return offset % PAGE

    def write(self, start: int, entries: np.ndarray) -> None:
        data = np.ascontiguousarray(entries).reshape(-1).view(np.uint8).data
        start *= entries.dtype.itemsize
        for tensor, offset, part in _ranges(self._leaf, start, len(data)):
            self._files.write(tensor.file, offset, data[part])

    def leave_zeros(self, start: int, size: int) -> None:
        itemsize = self._leaf.tensors[0].itemsize
        for tensor, offset, part in _ranges(self._leaf, start * itemsize, size * itemsize):
            self._files.leave_zeros(tensor.file, offset + part.stop - part.start)


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


class _Files(_Old):
    """The old files and the new ones, to which several threads write."""

    def __init__(self, headers: Headers, begun: Draft) -> None:
        super().__init__(headers)
        flags = os.O_RDWR | os.O_CREAT
        # A file of the draft may have been removed, though the journal says what was in it.
        paths = {file: begun.folder / file for file in headers.metadata}
        self._sizes = {f: path.stat().st_size if path.exists() else 0 for f, path in paths.items()}
        self._new = {file: os.open(begun.folder / file, flags, 0o666) for file in headers.metadata}
        self._direct = {file: _open_directly(paths[file]) for file in headers.metadata}
        # Threads that write to one file at a time stand in each other's way.
        self._writing = threading.Lock()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        try:
            for handle in self._new.values() if error is None else ():
                os.fsync(handle)  # before the files get their names
        finally:
            super().__exit__(error)
            for one in (*self._new.values(), *self._direct.values()):
                if one is not None:
                    os.close(one)

    def has(self, leaf: StoredLeaf) -> bool:
        """Whether the draft's files are so long that a leaf may be there."""
        return all(t.start + t.nbytes <= self._sizes[t.file] for t in leaf.tensors)

    def copies(self, old: StoredLeaf, new: StoredLeaf) -> Iterator[Callable[[], None]]:
        """Yields what copies a leaf as it is."""
        for before, after in zip(old.tensors, new.tensors, strict=True):
            assert before.nbytes == after.nbytes, before.name
            for start in range(0, before.nbytes, _COPIED):
                size = min(_COPIED, before.nbytes - start)
                yield functools.partial(self._copy, before, after, start, size)

    def leave_zeros(self, file: str, stop: int) -> None:
        """Makes a file as long as this; what is written nowhere else is zeros, and takes no time.

        A draft holds nothing else there, because the same run would write the same.
        """
        with self._writing:
            if os.fstat(self._new[file]).st_size < stop:
                os.ftruncate(self._new[file], stop)

    def _copy(self, before: Tensor, after: Tensor, start: int, size: int) -> None:
        """Copies bytes of a tensor, without taking them into memory if they are not written so."""
        while size:
            here, there, copied = before.start + start, after.start + start, 0
            if self._direct[after.file] is None and hasattr(os, "copy_file_range"):
                old, new = self._old[before.file], self._new[after.file]
                with self._writing, suppress(OSError):  # some files of networks
                    copied = os.copy_file_range(old, new, size, here, there)
            if not copied:
                part = scratch("new", (size,), np.uint8, there % PAGE).data
                self.read(before.file, here, part)
                self.write(after.file, there, part)
                copied = size
            start, size = start + copied, size - copied

    def write(self, file: str, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes of a new file: whole pages directly, if the system can, others through it.

        What is written directly is not copied once more into the system's own memory. That is
        possible where pages of the file are pages in memory.
        """
        data = memoryview(data)
        begin = min(-offset % PAGE, len(data))
        end = len(data) - (offset + len(data)) % PAGE
        direct = self._direct[file]
        if direct is None or end <= begin:
            self._put(self._new[file], offset, data)
            return
        pages = data[begin:end]
        self._put(self._new[file], offset, data[:begin])
        self._put(self._new[file], offset + end, data[end:])
        if np.frombuffer(pages, np.uint8).ctypes.data % PAGE == 0:
            self._put_pages(file, offset + begin, pages)
            return
        for start in range(0, len(pages), _COPIED):
            part = pages[start : start + _COPIED]
            held = scratch("pages", (len(part),), np.uint8).data
            held[:] = part
            self._put_pages(file, offset + begin + start, held)

    def _put_pages(self, file: str, offset: int, data: memoryview) -> None:
        """Writes pages directly, or not if the system will not have it."""
        direct = self._direct[file]
        try:
            if direct is not None:
                self._put(direct, offset, data)
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        self._put(self._new[file], offset, data)

    def _put(self, handle: int, offset: int, data: memoryview) -> None:
        with self._writing:
            while data:
                count = os.pwrite(handle, data, offset)
                offset, data = offset + count, data[count:]


def _open_directly(path: Path) -> int | None:
    """Opens a file to be written without the system's memory in between, where that is possible."""
    with suppress(AttributeError, OSError):
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    return None
