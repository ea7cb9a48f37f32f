"""Arrays of a checkpoint of Orbax, read and written in parts by TensorStore.

Orbax keeps an array in the format Zarr, as chunks of equal shapes, and the chunks of all arrays in
files of the format OCDBT, or each in a file of its own. A chunk is read and written as a whole.
Orbax itself makes one chunk of each array of a device. New arrays have chunks of 4 MiB, so that
none of them is ever in memory. What reads a checkpoint finds in it how chunks are cut and encoded.

Reference:
    https://google.github.io/tensorstore describes the drivers ``zarr``, ``zarr3`` and ``ocdbt``.
"""

import errno
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.deferred import Deferred
from dogwood_jax.checkpoint.errors import CheckpointError

# Bytes of a new chunk: as many as are made at a time.
_CHUNK = 1 << 22
# Decoded chunks that are kept beside those in use.
_KEPT = 1 << 26
# Weights hardly shrink. This level finds long repetitions such as zeros, and copies all else.
_LEVEL = -1000


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

    def files(self, name: str, data: str = "") -> dict[str, Any]:
        """Returns where TensorStore finds an array, and where it puts the data of new chunks."""
        base = {"driver": "file", "path": f"{self.path}/"}
        if self.is_ocdbt:
            own = {"value_data_prefix": data} if data else {}
            return {"driver": "ocdbt", "base": base, "path": f"{name}/", **own}
        return base | {"path": f"{self.path}/{name}/"}

    def spec(self, name: str, data: str = "") -> dict[str, Any]:
        """Returns the specification of an array for TensorStore."""
        driver = "zarr3" if self.is_zarr3 else "zarr"
        return {"driver": driver, "kvstore": self.files(name, data)}


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
    """An old array of which parts are read; see ``made.Stored``.

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
    """An array that is written; see ``writers.New``.

    Args:
        folder: the folder of the new tree.
        name: what Orbax calls the array.
        shape: its shape.
        dtype: its dtype.
        data: where its data go in the folder, apart from those of other arrays.
        names: what the journal calls it.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        data: str,
        names: Iterable[tuple[str, str]],
    ) -> None:
        self.names, self._folder, self._name, self._data = [*names], folder, name, data
        self._shape, self._dtype = tuple(shape), jnp.dtype(dtype)
        # A chunk is some places along this axis.
        sizes = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        limit = _CHUNK // self._dtype.itemsize
        self._axis = next((axis for axis, size in enumerate(sizes) if size <= limit), 0)
        self._size = self._shape[self._axis] if shape else 1
        self._place = sizes[self._axis] if shape else 1
        parts = -(-self._size * self._place // limit)
        self._places = -(-self._size // max(parts, 1))
        # Chunks of which some entries are still missing, and how many.
        self._begun: dict[int, tuple[np.ndarray, int]] = {}
        self._lock = threading.Lock()
        self._array: Any = None

    def lead(self, start: int) -> int:
        """Returns no bytes, because TensorStore does not write from the entries' own memory."""
        return 0

    def create(self) -> None:
        """Begins the array, without anything that an interrupted run has left of it."""
        import tensorstore

        self._clear()
        zstd = {"level": _LEVEL}
        bytes_ = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs = {"codecs": [bytes_, {"name": "zstd", "configuration": zstd}]}
        chunk = (1,) * self._axis + (self._places, *self._shape[self._axis + 1 :])
        self._array = self._waited(
            tensorstore.open(
                {
                    **self._folder.spec(self._name, self._data),
                    # Where a chunk is missing, Orbax takes the checkpoint for damaged.
                    "store_data_equal_to_fill_value": True,
                    "recheck_cached_data": False,
                    "recheck_cached_metadata": False,
                    "metadata": codecs
                    if self._folder.is_zarr3
                    else {"compressor": {"id": "zstd", **zstd}},
                },
                create=True,
                shape=self._shape,
                dtype=self._dtype.name,
                chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk[: len(self._shape)]),
                context=_context(),
            )
        )

    def copies(self, old: Saved) -> Iterator[tuple[Callable[[], None], bool]]:
        """Yields what copies an array as it is, chunk by chunk, and whether that may be large."""
        store = self._clear()

        def copy(name: str, read: Callable[[], bytes]) -> None:
            self._waited(store.write(name, read()))

        is_large = prod(self._shape) * self._dtype.itemsize > _CHUNK
        for name, read in old.chunks():
            yield functools.partial(copy, name, read), is_large

    def write(self, start: int, entries: np.ndarray) -> None:
        """Writes entries from this one on: each chunk when all of it has come."""
        entries = np.ascontiguousarray(entries).reshape(-1)
        while entries.size:
            first, offset, rows = self._chunk(start)
            size = min(rows * self._place - offset, entries.size)
            chunk: np.ndarray | None = entries[:size]
            if size < rows * self._place:
                chunk = self._collected(first, offset, rows, entries[:size])
            if chunk is not None:
                self._put(first, rows, chunk)
            start, entries = start + size, entries[size:]

    def leave_zeros(self, start: int, size: int) -> None:
        """Writes zeros, of which hardly anything is left when they are encoded."""
        while size:
            _, offset, rows = self._chunk(start)
            part = min(rows * self._place - offset, size)
            self.write(start, np.zeros(part, self._dtype))
            start, size = start + part, size - part

    def _chunk(self, start: int) -> tuple[int, int, int]:
        """Returns which chunk an entry is in.

        Returns:
            The number of the chunk's first place along its axis, counted through all outer axes;
            the entry's place in the chunk; how many places the chunk has.
        """
        place, rest = divmod(start, self._place)
        outer, inner = divmod(place, self._size)
        first = inner - inner % self._places
        offset = (inner - first) * self._place + rest
        return outer * self._size + first, offset, min(self._places, self._size - first)

    def _collected(
        self, first: int, offset: int, rows: int, entries: np.ndarray
    ) -> np.ndarray | None:
        """Keeps a part of a chunk; returns the chunk when it is complete."""
        with self._lock:
            if first not in self._begun:
                self._begun[first] = np.empty(rows * self._place, self._dtype), rows * self._place
            chunk, missing = self._begun[first]
            chunk.view(np.uint8)[_bytes(offset, entries)] = entries.view(np.uint8)
            if missing > entries.size:
                self._begun[first] = chunk, missing - entries.size
                return None
            del self._begun[first]
            return chunk

    def _put(self, first: int, rows: int, chunk: np.ndarray) -> None:
        outer, inner = divmod(first, self._size)
        place: tuple[Any, ...] = ()
        if self._shape:
            place = (*np.unravel_index(outer, self._shape[: self._axis]),) if self._axis else ()
            place = (*map(int, place), slice(inner, inner + rows))
        shape = (rows, *self._shape[self._axis + 1 :]) if self._shape else ()
        self._waited(self._array[place].write(chunk.reshape(shape)))

    def _clear(self) -> Any:
        """Removes what there is of the array; returns where its chunks go."""
        import tensorstore

        if self._folder.is_ocdbt:
            shutil.rmtree(self._folder.path / self._data, ignore_errors=True)
        files = self._folder.files(self._name, self._data)
        store = self._waited(tensorstore.KvStore.open(files, context=_context()))
        self._waited(store.delete_range(tensorstore.KvStore.KeyRange()))
        return store

    def _waited(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:  # so says TensorStore, whatever it is
            code = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(code, f"{self._name} cannot be written: {error}") from error


def _bytes(start: int, entries: np.ndarray) -> slice:
    """Returns where the bytes of some entries are, of which the first is this one."""
    return slice(start * entries.itemsize, (start + entries.size) * entries.itemsize)


@functools.cache
def _context() -> Any:
    import tensorstore

    # All is brought to the disk at the end, before the folder gets its name.
    return tensorstore.Context({"file_io_sync": False})
