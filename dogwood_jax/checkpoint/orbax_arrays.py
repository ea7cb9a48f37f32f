"""Arrays of a checkpoint of Orbax, read and written in parts.

Orbax keeps an array in the format Zarr, as chunks of equal shapes, most often one. The chunks of
all arrays are in files of the format OCDBT, or each is in a file of its own. TensorStore reads and
writes whole chunks. So an old chunk is held in memory while it is read. A new array is one chunk in
a file of its own and not encoded, as by ``PyTreeCheckpointHandler(use_ocdbt=False,
use_compression=False)``. Such a file holds the entries one after another, so parts of it can be
written. (Many small chunks in OCDBT would have been written through TensorStore, but that takes
several times as long as copying.)

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

# Decoded chunks that are kept beside those in use.
_KEPT = 1 << 26


@dataclass(frozen=True)
class Folder:
    """The folder of a tree that Orbax saved.

    Attributes:
        path: the folder.
        is_ocdbt: whether all chunks share files.
        is_zarr3: whether arrays are in version 3 of Zarr. Otherwise it is version 2.
    """

    path: Path
    is_ocdbt: bool
    is_zarr3: bool

    @classmethod
    def of(cls, path: Path, name: str) -> "Folder":
        """Returns what the folder of a saved tree is like, in which an array has this name."""
        import tensorstore

        folder = cls(path, is_ocdbt=(path / "manifest.ocdbt").exists(), is_zarr3=False)
        try:
            found = tensorstore.KvStore.open(folder.files(name)).result().read("zarr.json").result()
        except ValueError as error:  # so says TensorStore, whatever it is
            raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
        return replace(folder, is_zarr3=found.state == "value")

    def header(self, name: str) -> str:
        """Returns which file says what an array is like, if it has files of its own."""
        return f"{name}/{'zarr.json' if self.is_zarr3 else '.zarray'}"

    def files(self, name: str) -> dict[str, Any]:
        """Returns where TensorStore finds an array."""
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
        """Reads all of it."""
        return Old(self).all()

    def chunks(self) -> list[tuple[str, Callable[[], bytes]]]:
        """Returns what it consists of in the files: their names, and what reads them."""
        import tensorstore

        store = self.waited(tensorstore.KvStore.open(self.folder.files(self.name)))

        def read(name: bytes) -> bytes:
            value: bytes = self.waited(store.read(name)).value
            return value

        return [(n.decode(), functools.partial(read, n)) for n in self.waited(store.list())]

    def opened(self, context: Any) -> Any:
        """Opens it."""
        import tensorstore

        spec = self.folder.spec(self.name)
        kept = {"recheck_cached_data": False, "recheck_cached_metadata": False}
        future = tensorstore.open({**spec, **kept}, open=True, read=True, context=context)
        return self.waited(future)

    def waited(self, future: Any) -> Any:
        """Returns what TensorStore reads, as soon as it has.

        Raises:
            CheckpointError: if it cannot.
        """
        try:
            return future.result()
        except ValueError as error:  # so says TensorStore, whatever it is
            raise CheckpointError(
                f"{self.folder.path}: expected {self.name} complete and intact; it cannot be read: "
                f"{error}"
            ) from error


class Old:
    """An old array that is read in parts; see ``made.Stored``.

    Attributes:
        held: how many bytes of it are in memory, at most.
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
        """Whether two such arrays at a time could be too much for the memory."""
        return self.held > _KEPT

    def all(self) -> np.ndarray:
        """Reads all of it."""
        array: np.ndarray = self._saved.waited(self._array.read())
        return array

    def read(self, start: int, into: np.ndarray) -> None:
        """Reads whole rows, from this entry on."""
        if not self.shape:
            rows = self.all()
        else:
            row = prod(self.shape[1:])
            rows = self._array[start // row : (start + into.size) // row]
            rows = self._saved.waited(rows.read())
        into.view(np.uint8)[...] = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


class NewArray:
    """An array that is written, as the one chunk of a file; see ``writers.New``.

    Args:
        folder: the folder of the new tree.
        name: what Orbax calls the array.
        shape: its shape.
        dtype: its dtype.
        names: what the journal calls it.
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
        """Begins the array, without anything that an interrupted run has left of it."""
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
        """Yields what copies an array as it is, chunk by chunk."""
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
        """Returns how many bytes behind the beginning of a page an entry lies in its file."""
        return int(start * self._dtype.itemsize % PAGE)

    def write(self, start: int, entries: np.ndarray) -> None:
        """Writes entries from this one on."""
        data = np.ascontiguousarray(entries).reshape(-1).view(np.uint8).data
        self._entries.write(start * self._dtype.itemsize, data)

    def leave_zeros(self, start: int, size: int) -> None:
        """Leaves a hole in the file."""
        self._entries.leave_zeros((start + size) * self._dtype.itemsize)

    def done(self) -> None:
        """Brings it to the disk and closes the file, because there may be many."""
        self.close()

    def close(self, error: object = None, *_: object) -> None:
        """Closes the file, if it is open."""
        if self._file is not None:
            self._file.__exit__(error)
            self._file = None

    def _clear(self) -> Any:
        """Removes what there is of the array; returns where its chunks go."""
        import tensorstore

        store = self._waited(tensorstore.KvStore.open(self._folder.files(self._name)))
        self._waited(store.delete_range(tensorstore.KvStore.KeyRange()))
        return store

    def _waited(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:  # so says TensorStore, whatever it is
            code = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(code, f"{self._name} cannot be written: {error}") from error
