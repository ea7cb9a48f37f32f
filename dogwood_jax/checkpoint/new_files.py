"""A file that several threads write in parts: ``NewFile``."""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from dogwood_jax.checkpoint.made import PAGE, scratch

# Bytes that are copied into page-aligned memory at a time.
_MOVED = 1 << 23


class NewFile:
    """A new file, or the part of it that an interrupted run has written.

    Attributes:
        length: its size in bytes when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._direct = _open_directly(path)
        self.length = os.fstat(self._file).st_size
        # Threads that write to the same file at the same time slow each other down.
        self._writing = threading.Lock()

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        try:
            if error is None:
                os.fsync(self._file)  # before it moves to its final name
        finally:
            for one in (self._file, self._direct):
                if one is not None:
                    os.close(one)

    def leave_zeros(self, stop: int) -> None:
        """Extends the file to ``stop`` bytes; a hole reads as zeros and takes no time.

        A draft holds no other values there, because every run writes the same ones.
        """
        with self._writing:
            if os.fstat(self._file).st_size < stop:
                os.ftruncate(self._file, stop)

    def copy(
        self,
        old: int,
        here: int,
        there: int,
        size: int,
        read: Callable[[int, memoryview], None],
    ) -> None:
        """Copies bytes of an old file, within the system unless this file is written directly.

        Args:
            old: the descriptor of the old file.
            here: offset of the first byte in the old file.
            there: offset of the first byte in this file.
            size: number of bytes.
            read: reads bytes of the old file, from an offset on.
        """
        while size:
            copied = 0
            if self._direct is None and hasattr(os, "copy_file_range"):
                with self._writing, suppress(OSError):  # fails on some network file systems
                    copied = os.copy_file_range(old, self._file, size, here, there)
            if not copied:
                part = scratch("new", (size,), np.uint8, there % PAGE).data
                read(here, part)
                self.write(there, part)
                copied = size
            here, there, size = here + copied, there + copied, size - copied

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes: whole pages directly, if the system can, and the rest through its cache.

        Direct writing saves a copy into the system's page cache. It needs page-aligned memory.
        """
        data = memoryview(data)
        begin = min(-offset % PAGE, len(data))
        end = len(data) - (offset + len(data)) % PAGE
        if self._direct is None or end <= begin:
            self._put(self._file, offset, data)
            return
        pages = data[begin:end]
        self._put(self._file, offset, data[:begin])
        self._put(self._file, offset + end, data[end:])
        if np.frombuffer(pages, np.uint8).ctypes.data % PAGE == 0:
            self._put_pages(offset + begin, pages)
            return
        for start in range(0, len(pages), _MOVED):
            part = pages[start : start + _MOVED]
            held = scratch("pages", (len(part),), np.uint8).data
            held[:] = part
            self._put_pages(offset + begin + start, held)

    def _put_pages(self, offset: int, data: memoryview) -> None:
        """Writes pages directly, or through the cache if the system refuses."""
        try:
            if self._direct is not None:
                self._put(self._direct, offset, data)
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        self._put(self._file, offset, data)

    def _put(self, handle: int, offset: int, data: memoryview) -> None:
        with self._writing:
            while data:
                count = os.pwrite(handle, data, offset)
                offset, data = offset + count, data[count:]


def _open_directly(path: Path) -> int | None:
    """Opens a file for writing past the system's page cache; None where that is impossible."""
    with suppress(AttributeError, OSError):
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    return None
