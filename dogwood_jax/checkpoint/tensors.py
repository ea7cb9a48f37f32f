"""Tensors in safetensors files: ``Tensor``, ``headers_of`` and ``header_for``.

A file begins with the length of its header in eight bytes, little-endian. The header is a JSON
object with the dtype, the shape and the place of each tensor, and the tensors' bytes follow it. The
safetensors library checks the header. It reads and writes whole tensors only, so this module reads
and writes pieces of tensors itself.

Reference:
    The format is described in the README of https://github.com/huggingface/safetensors.
"""

import json
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dogwood_jax.checkpoint.kinds import CheckpointError

INDEX = "model.safetensors.index.json"
_INDEX_END = ".safetensors.index.json"
# Dtypes that JAX has: their names in safetensors and in JAX.
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "C64": "complex64"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_INDEX = 1 << 28  # bytes; a million tensors take half of it


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        name: its name.
        dtype: JAX's name of its dtype.
        shape: its shape.
        file: the file's name in its folder.
        start: offset of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes per entry."""
        return int(jnp.dtype(self.dtype).itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Headers:
    """The headers of a checkpoint.

    Attributes:
        folder: the folder of its files.
        tensors: all tensors by name, ordered by file and by place in the file.
        metadata: the ``__metadata__`` texts of each file's header, by file.
        index: the index of a sharded checkpoint without its ``weight_map``; None if the checkpoint
            is a single file.
        index_name: name of the index file.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Mapping[str, str]]
    index: Mapping[str, Any] | None = None
    index_name: str = INDEX


def headers_of(source: Path) -> Headers:
    """Reads the headers of a checkpoint: a file, a folder with an index and shards, or the index.

    Raises:
        CheckpointError: if the source is not an intact safetensors checkpoint.
        OSError: if the source is missing or cannot be opened.
    """
    if source.is_dir():
        indexes = sorted(source.glob(f"*{_INDEX_END}"))
        if len(indexes) == 1:
            return _sharded(indexes[0])
        files = sorted(source.glob("*.safetensors"))
        if len(files) != 1 or indexes:
            found = ", ".join(path.name for path in (*indexes, *files)) or "neither"
            raise CheckpointError(
                f"{source}: expected a folder with one index (*{_INDEX_END}) or one .safetensors "
                f"file; found {found}; name the file"
            )
        source = files[0]
    if source.name.endswith(_INDEX_END):
        return _sharded(source)
    tensors, metadata = _header(source)
    return Headers(source.parent, _checked(source, tensors), {source.name: metadata})


def _sharded(path: Path) -> Headers:
    """Reads the index of a sharded checkpoint and the headers of its files."""
    _expect_regular(path)
    if (size := path.stat().st_size) > _MAX_INDEX:
        raise CheckpointError(f"{path}: expected at most {_MAX_INDEX:,} bytes; found {size:,}")
    try:
        index = json.loads(path.read_bytes())
        places, metadata = index.pop("weight_map"), index.get("metadata")
        if not isinstance(metadata, dict | None):
            raise TypeError("metadata is not an object")
        files = sorted({*places.values()}, key=str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object with a weight_map, from tensors to files; it cannot "
            f"be read: {type(error).__name__}: {error}"
        ) from error
    if wrong := [name for name in files if not _is_plain(name)]:
        raise CheckpointError(
            f"{path}: expected names of .safetensors files in the same folder; found "
            f"{_some(map(repr, wrong))}"
        )
    found, texts = dict[str, Tensor](), dict[str, Mapping[str, str]]()
    for file in files:
        tensors, texts[file] = _header(path.parent / file)
        for tensor in tensors:
            if places.get(tensor.name) != file:
                where = places.get(tensor.name, "no file")
                raise CheckpointError(
                    f"{path}: expected {tensor.name} in {where}, as the index says; found it in "
                    f"{file}"
                )
            found[tensor.name] = tensor
    if missing := sorted(places.keys() - found.keys()):
        raise CheckpointError(f"{path}: the files lack tensors of the index: {_some(missing)}")
    return Headers(path.parent, _checked(path, found.values()), texts, index, path.name)


def _header(path: Path) -> tuple[list[Tensor], Mapping[str, str]]:
    """Reads the header of one file; returns its tensors in file order, and its metadata."""
    from safetensors import SafetensorError, safe_open

    _expect_regular(path)
    try:
        with safe_open(path, framework="numpy"):  # checks lengths, places and shapes
            pass
    except (SafetensorError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, complete and intact; it cannot be read: {error}"
        ) from error
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", None) or {}
    unknown = {item["dtype"] for item in header.values()} - _DTYPES.keys()
    if unknown:
        raise CheckpointError(
            f"{path}: expected dtypes {', '.join(_DTYPES)}; found {', '.join(sorted(unknown))}"
        )
    tensors = [
        Tensor(
            name,
            _DTYPES[item["dtype"]],
            tuple(item["shape"]),
            path.name,
            8 + length + item["data_offsets"][0],
        )
        for name, item in header.items()
    ]
    return sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes)), metadata


def header_for(
    tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, list[Tensor]]:
    """Returns the header of a new file with these tensors, and the tensors with their offsets.

    Tensors with larger entries come first, as safetensors writes them, so that all are aligned.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        stop = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start, placed = 8 + len(text), []
    for tensor in tensors:
        placed.append(Tensor(tensor.name, tensor.dtype, tensor.shape, tensor.file, start))
        start += tensor.nbytes
    return struct.pack("<Q", len(text)) + text, placed


def _checked(path: Path, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns tensors by name, after checking that the names are usable as paths."""
    found = {tensor.name: tensor for tensor in tensors}
    wrong = [name for name in found if {"", ".", ".."} & {*name.split("/")} or "\0" in name]
    if wrong:
        raise CheckpointError(
            f"{path}: expected names of tensors without empty parts, '.' and '..'; found "
            f"{_some(map(repr, wrong))}"
        )
    return found


def _expect_regular(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: expected a regular file; found {_kind(mode)}")


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    return next((kind for test, kind in kinds.items() if test(mode)), "a device")


def _is_plain(name: Any) -> bool:
    """Returns whether a value is the name of a safetensors file, without any folder."""
    if not isinstance(name, str) or name != os.path.basename(name) or "\0" in name:
        return False
    return name.endswith(".safetensors") and name.encode(errors="replace").decode() == name


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
