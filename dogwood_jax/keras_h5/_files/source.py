"""Opens what Keras wrote: an HDF5 file, a ``.keras`` archive or the folder of one.

Files and archives are told apart by their bytes, not by their names.
"""

import contextlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py

from dogwood_jax._base.arguments import INTEGER, PATH, expect, expect_given
from dogwood_jax.keras_h5._files.errors import KerasFileError, NotSavable
from dogwood_jax.keras_h5._files.heaps import check_file

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

# Limit on arrays: this many times the bytes of the file, since they may be compressed, and more.
_INFLATION = 4
_ALLOWANCE = 1 << 26

_MAX_JSON = 1 << 24  # bytes; ten times the configs of the largest models

# Bytes that a Python object takes at least, by the character with which it begins in JSON.
_OBJECTS = {"{": 184, "[": 88, ",": 40, '"': 30, ":": 16}
_MAX_OBJECTS = 1 << 27


@dataclass(frozen=True)
class Source:
    """An open file.

    Attributes:
        weights: the HDF5 file with the arrays.
        limit: bytes that all arrays together may take in memory.
        config: the text of ``config.json``; only archives have one.
        metadata: the bytes of ``metadata.json``; empty if they cannot be read, because weights do
            not need them.
        others: yields (name, bytes) of the archive's other members, such as vocabularies.
    """

    weights: h5py.File
    limit: int
    config: str | None = None
    metadata: bytes | None = None
    others: Callable[[], Iterable[tuple[str, bytes]]] = tuple


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], limit: int | None = None) -> Iterator[Source]:
    """Opens a file for reading; raises ``KerasFileError``, with its path, for a damaged file."""
    expect("keras_h5", path=(PATH, path))
    expect_given("keras_h5", limit=(INTEGER, limit))
    path = Path(path)
    folder = path.is_dir() and (path / CONFIG).exists()
    if not folder:
        # A missing or forbidden file raises Python's own error. Opening a pipe would block.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise KerasFileError(f"{path}: expected a regular file; found a pipe or a device")
        with open(path, "rb"):
            pass
    try:
        with _folder(path, limit) if folder else _file(path, limit) as source:
            yield source
    except (NotSavable, Warning):
        raise
    except KerasFileError as error:
        raise KerasFileError(f"{path}: {error}") from error.__cause__
    except RecursionError as error:
        raise KerasFileError(
            f"{path}: expected layers and groups nested less deeply; found them nested too deep"
        ) from error
    except Exception as error:  # h5py and zipfile raise a dozen kinds for damaged files
        raise KerasFileError(
            f"{path}: expected an HDF5 file or a .keras archive, complete and intact; it cannot be "
            f"read: {type(error).__name__}: {error}"
        ) from error


def parsed(text: str, place: str, limit: int) -> dict[str, Any]:
    """Parses a JSON object from a file."""
    size = len(text) + sum(size * text.count(sign) for sign, size in _OBJECTS.items())
    if size > max(_MAX_OBJECTS, limit):
        raise KerasFileError(
            f"at {place}: expected JSON of at most {max(_MAX_OBJECTS, limit):,} bytes in memory; "
            f"found {size:,} (if you trust the file, pass limit= the bytes you allow)"
        )
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise KerasFileError(f"at {place}: expected JSON; found it nested too deep") from error
    except ValueError as error:
        raise KerasFileError(f"at {place}: expected JSON; found {error}") from error
    if not isinstance(value, dict):
        raise KerasFileError(f"at {place}: expected a JSON object; found {type(value).__name__}")
    return value


@contextlib.contextmanager
def _file(path: Path, limit: int | None) -> Iterator[Source]:
    with path.open("rb") as stream:
        limit = _limit(os.fstat(stream.fileno()).st_size, limit)
        if stream.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(stream) as archive:
                yield from _archive(archive, stream, limit)
            return
    with path.open("rb") as stream:
        check_file(stream, limit)
    with h5py.File(path, "r") as file:
        yield Source(file, limit)


def _limit(size: int, limit: int | None) -> int:
    return _INFLATION * size + _ALLOWANCE if limit is None else limit


def _archive(archive: zipfile.ZipFile, stream: IO[bytes], limit: int) -> Iterator[Source]:
    names = archive.namelist()
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]:
            raise KerasFileError(f"at {name!r}: expected a name inside the archive; found another")
    for name in (CONFIG, WEIGHTS):
        if names.count(name) != 1:
            raise KerasFileError(
                f"at /: expected one member {name!r}, as in the archives that Keras saves; found "
                f"{', '.join(sorted(names)[:8]) or 'nothing'}"
            )
    config = _inflated(archive, CONFIG, _MAX_JSON).decode()
    metadata = None
    if METADATA in names:
        metadata = b""
        with contextlib.suppress(Exception):  # zipfile raises a dozen kinds
            metadata = _inflated(archive, METADATA, _MAX_JSON)
    info = archive.getinfo(WEIGHTS)
    weights: Any  # a file
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        with archive.open(WEIGHTS):  # checks the header
            weights = _Slice(stream, _data_offset(stream, info), info.file_size)
    else:
        weights = io.BytesIO(_inflated(archive, WEIGHTS, limit))

    def others() -> Iterator[tuple[str, bytes]]:
        for name in names:
            if name not in (CONFIG, METADATA, WEIGHTS) and not name.endswith("/"):
                yield name, _inflated(archive, name, limit)

    check_file(weights, limit)
    with h5py.File(weights, "r") as file:
        yield Source(file, limit, config, metadata, others)


def _inflated(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Reads a member of an archive up to a limit, whatever size the archive declares for it."""
    method = archive.getinfo(name).compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others reach a limit too slowly
        raise KerasFileError(
            f"at {name}: expected it stored plainly or deflated; found compression method {method}"
        )
    with archive.open(name) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise KerasFileError(
            f"at {name}: expected at most {limit:,} bytes; found more when decompressed (if you "
            "trust the file, pass limit= the bytes you allow)"
        )
    return data


def _data_offset(stream: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Returns the place of a member's bytes: after its header, which ends with two texts."""
    stream.seek(info.header_offset + 26)
    name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra


class _Slice(io.RawIOBase):
    """A part of a file as a file object: HDF5 reads an archive's arrays directly from the disk."""

    def __init__(self, stream: IO[bytes], start: int, size: int):
        self._stream, self._start, self._size, self._position = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self._size - self._position, 0)]
        self._stream.seek(self._start + self._position)
        count = self._stream.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return int(count)


@contextlib.contextmanager
def _folder(path: Path, limit: int | None) -> Iterator[Source]:
    """Opens the folder that Keras saves with ``zipped=False``."""
    for name in (CONFIG, METADATA, WEIGHTS):
        if (path / name).is_symlink() or (
            (path / name).exists() and not stat.S_ISREG((path / name).stat().st_mode)
        ):
            raise KerasFileError(f"at {name}: expected a file in the folder itself; found a link")
    if (path / CONFIG).stat().st_size > _MAX_JSON:
        raise KerasFileError(f"at {CONFIG}: expected at most {_MAX_JSON:,} bytes; found more")
    config, metadata = (path / CONFIG).read_text(), None
    if (path / METADATA).exists():
        small = (path / METADATA).stat().st_size <= _MAX_JSON
        metadata = (path / METADATA).read_bytes() if small else b""
    limit = _limit((path / WEIGHTS).stat().st_size, limit)
    with (path / WEIGHTS).open("rb") as stream:
        check_file(stream, limit)
        with h5py.File(stream, "r") as file:
            yield Source(file, limit, config, metadata)
