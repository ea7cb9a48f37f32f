"""Arrays of an Orbax checkpoint, read and written in parts.

Orbax stores an array in the Zarr format, as chunks of equal shapes, usually as one chunk. The
chunks of all arrays share OCDBT files, or each chunk has a file of its own. TensorStore reads and
writes whole chunks, so an old chunk is in memory while it is read. A new array is one chunk in a
file of its own, not encoded, as with ``PyTreeCheckpointHandler(use_ocdbt=False,
use_compression=False)``. This file holds the entries one after another, so parts of it can be
written. (Many small chunks in OCDBT could be written through TensorStore, but that takes several
times as long as copying.)

Reference:
    https://zarr-specs.readthedocs.io describes both versions of Zarr.
    https://google.github.io/tensorstore describes the drivers ``zarr``, ``zarr3`` and ``ocdbt``.
"""

import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.deferred import Deferred
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.checkpoint.made import PAGE
from dogwood_jax.checkpoint.new_files import NewFile

# Bytes of decoded chunks that are cached in addition to those in use.
_KEPT = 1 << 26


@dataclass(frozen=True)
class Folder:
    """The folder of a tree that Orbax saved.

    Attributes:
        path: the folder.
        is_ocdbt: whether all chunks share files.
        is_zarr3: whether arrays are in version 3 of Zarr, rather than version 2.
    """

    path: Path
    is_ocdbt: bool
    is_zarr3: bool

    @classmethod
    def of(cls, path: Path, name: str) -> "Folder":
        """Returns the format of a saved tree's folder; ``name`` is one of its arrays."""
        import tensorstore

        folder = cls(path, is_ocdbt=(path / "manifest.ocdbt").exists(), is_zarr3=False)
        try:
            found = tensorstore.KvStore.open(folder.files(name)).result().read("zarr.json").result()
        except ValueError as error:  # TensorStore raises this for all failures
            raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
        return replace(folder, is_zarr3=found.state == "value")

    def header(self, name: str) -> str:
        """Returns the path of an array's metadata file, if the array has files of its own."""
        return f"{name}/{'zarr.json' if self.is_zarr3 else '.zarray'}"

    def files(self, name: str) -> dict[str, Any]:
        """Returns the specification of an array's files for TensorStore."""
        if self.is_ocdbt:
            return {"driver": "ocdbt", "base": f"file://{self.path}/", "path": f"{name}/"}
        return {"driver": "file", "path": f"{self.path}/{name}/"}

    def spec(self, name: str) -> dict[str, Any]:
        """Returns the specification of an array for TensorStore."""
        driver = "zarr3" if self.is_zarr3 else "zarr"
        return {"driver": driver, "kvstore": self.files(name)}


class Saved(Deferred):
    """An array that Orbax saved."""

    def __init__(self, shape: Sequence[int], dtype: Any, folder: Folder, name: str) -> None:
        super().__init__(shape, dtype, self.all)
        self.folder, self.name = folder, name

    def all(self) -> np.ndarray:
        """Reads the whole array."""
        return Old(self).all()

    def chunks(self) -> list[tuple[str, Callable[[], bytes]]]:
        """Returns the array's stored items: the name of each, and a function that reads it."""
        import tensorstore

        store = self.waited(tensorstore.KvStore.open(self.folder.files(self.name)))

        def read(name: bytes) -> bytes:
            value: bytes = self.waited(store.read(name)).value
            return value

        return [(n.decode(), functools.partial(read, n)) for n in self.waited(store.list())]

    def opened(self, context: Any) -> Any:
        """Opens the array in TensorStore."""
        import tensorstore

        spec = self.folder.spec(self.name)
        kept = {"recheck_cached_data": False, "recheck_cached_metadata": False}
        future = tensorstore.open({**spec, **kept}, open=True, read=True, context=context)
        return self.waited(future)

    def waited(self, future: Any) -> Any:
        """Waits for TensorStore to read; returns the result.

        Raises:
            CheckpointError: if TensorStore cannot read it.
        """
        try:
            return future.result()
        except ValueError as error:  # TensorStore raises this for all failures
            raise CheckpointError(
                f"{self.folder.path}: expected {self.name} complete and intact; it cannot be read: "
                f"{error}"
            ) from error


class Old:
    """An old array that is read in parts; see ``made.Stored``.

    Attributes:
        held: upper limit on its bytes in memory.
    """

    def __init__(self, saved: Saved) -> None:
        import tensorstore

        self.shape, self.dtype = saved.shape, jnp.dtype(saved.dtype)
        self.order = tuple(range(len(saved.shape)))
        chunk = saved.opened(tensorstore.Context()).chunk_layout.read_chunk.shape or ()
        rows = min(chunk[0], self.shape[0]) if chunk else 1
        # Rows are read one after another, and each may lie in many chunks.
        self.held = int(rows * prod(self.shape[1:]) * self.dtype.itemsize)
        pool = {"total_bytes_limit": self.held + _KEPT}
        self._saved, context = saved, tensorstore.Context({"cache_pool": pool})
        self._array = saved.opened(context)

    @property
    def is_large(self) -> bool:
        """Whether two arrays of this size at the same time could exceed the memory."""
        return self.held > _KEPT

    def all(self) -> np.ndarray:
        """Reads the whole array."""
        array: np.ndarray = self._saved.waited(self._array.read())
        return array

    def read(self, start: int, into: np.ndarray) -> None:
        """Reads whole rows, from entry ``start`` on."""
        if not self.shape:
            rows = self.all()
        else:
            row = prod(self.shape[1:])
            rows = self._array[start // row : (start + into.size) // row]
            rows = self._saved.waited(rows.read())
        into.view(np.uint8)[...] = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


class NewArray:
    """An array that is written as the single chunk of a file; see ``writers.New``.

    Args:
        folder: the folder of the new tree.
        name: the name that Orbax gives the array.
        shape: its shape.
        dtype: its dtype.
        names: its names in the journal.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        names: Iterable[tuple[str, str]],
    ) -> None:
        self.names, self._folder, self._name = [*names], folder, name
        self._shape, self._dtype = tuple(shape), jnp.dtype(dtype)
        self._file: NewFile | None = None

    def create(self) -> None:
        """Creates the array; removes what an interrupted run has left of it."""
        import tensorstore

        self._clear()
        codec: dict[str, Any] = {"compressor": None}
        chunk = ".".join("0" * len(self._shape)) or "0"
        if self._folder.is_zarr3:
            codec = {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}
            chunk = "/".join("c" + "0" * len(self._shape))
        future = tensorstore.open(
            {**self._folder.spec(self._name), "metadata": codec},
            create=True,
            shape=self._shape,
            dtype=self._dtype.name,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=self._shape),
        )
        self._waited(future)
        path = self._folder.path / self._name / chunk
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = NewFile(path)

    def copies(self, old: Saved) -> Iterator[Callable[[], None]]:
        """Yields functions that copy an unchanged array, chunk by chunk."""
        store = self._clear()

        def copy(name: str, read: Callable[[], bytes]) -> None:
            self._waited(store.write(name, read()))

        for name, read in old.chunks():
            yield functools.partial(copy, name, read)

    @property
    def _entries(self) -> NewFile:
        assert self._file is not None, self._name
        return self._file

    def lead(self, start: int) -> int:
        """Returns the offset of an entry from the beginning of its page in the file, in bytes."""
        return int(start * self._dtype.itemsize % PAGE)

    def write(self, start: int, entries: np.ndarray) -> None:
        """Writes entries from ``start`` on."""
        data = np.ascontiguousarray(entries).reshape(-1).view(np.uint8).data
        self._entries.write(start * self._dtype.itemsize, data)

    def leave_zeros(self, start: int, size: int) -> None:
        """Leaves a hole in the file, which reads as zeros."""
        self._entries.leave_zeros((start + size) * self._dtype.itemsize)

    def done(self) -> None:
        """Flushes the file to the disk and closes it, because there may be many files."""
        self.close()

    def close(self, error: object = None, *_: object) -> None:
        """Closes the file, if it is open."""
        if self._file is not None:
            self._file.__exit__(error)
            self._file = None

    def _clear(self) -> Any:
        """Removes everything stored of the array; returns the store for its chunks."""
        import tensorstore

        store = self._waited(tensorstore.KvStore.open(self._folder.files(self._name)))
        self._waited(store.delete_range(tensorstore.KvStore.KeyRange()))
        return store

    def _waited(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:  # TensorStore raises this for all failures
            code = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(code, f"{self._name} cannot be written: {error}") from error
