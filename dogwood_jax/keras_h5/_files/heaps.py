"""Strings in HDF5 files, checked before HDF5 reads them.

HDF5 keeps strings of variable length, such as a model's configuration, in global heaps; attributes
say where in them, and how long. HDF5 allocates whatever length an attribute says, and goes round in
circles for ever in a heap with an object that takes no space. So both are read here first, as the
HDF5 file format specification 3.0 has them: global heaps in section III.E, object headers in
IV.A.1, attribute messages in IV.A.2.m. Objects are looked at by their identifiers, without h5py's
own groups and datasets around them: every file is looked through in this way whole.
"""

import math
from collections.abc import Iterator, Mapping
from typing import IO, Any, TypeAlias

import h5py

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._files.hdf5 import MAX_DEPTH, deeper

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER = 16  # bytes of the header of a heap, and of that of an object in it
_POINTER = 16  # bytes of a string's length, its heap's address and its number in it
_PIECE = 1 << 20  # bytes looked through at a time
_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C  # types of messages in object headers
_MAX_BLOCKS = 1024  # parts of an object's header

ObjectID: TypeAlias = Any  # of a group, dataset or datatype, as h5py.h5o.open returns it

# The sizes of the strings in a heap by their numbers, for every heap by its place in the file.
Heaps = Mapping[int, Mapping[int, int]]


def check_strings(file: h5py.File, stream: IO[bytes], limit: int) -> None:
    """Raises if strings in attributes are not where they should be, or longer than they are.

    Args:
        file: the file.
        stream: its bytes.
        limit: bytes that all strings may take together.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise KerasFileError("at byte 0: expected addresses and lengths of 8 bytes")
    end = stream.seek(0, 2)
    items = _everything(file.id)
    heaps = {
        place: _objects(stream, place, end)
        for start, stop in _gaps(items, end)
        for place in _signatures(stream, start, stop)
    }
    total = 0
    for item in items:
        total += _strings(item, stream, heaps, file.userblock_size)
        if total > limit:
            raise KerasFileError(
                f"at {_name(item)}: expected strings of at most {limit:,} bytes altogether; found "
                "more (if you trust the file, pass limit= the bytes you allow)"
            )


def _everything(root: ObjectID) -> list[ObjectID]:
    """Returns all that is in a file, each once, in time linear in its size."""
    start = h5py.h5o.open(root, b"/")
    seen = {h5py.h5o.get_info(start).addr}
    items = level = [start]
    for _ in range(MAX_DEPTH):
        inside = []
        for group in level:
            for key in group if isinstance(group, h5py.h5g.GroupID) else ():
                if group.links.get_info(key).type == h5py.h5l.TYPE_HARD:
                    place = h5py.h5o.get_info(group, key).addr
                    if place not in seen:
                        seen.add(place)
                        inside.append(h5py.h5o.open(group, key))
        items, level = items + inside, inside
    if level:
        raise deeper(_name(level[0]))
    return items


def _name(item: ObjectID) -> str:
    return str(h5py.h5i.get_name(item).decode(errors="replace"))


def _gaps(items: list[ObjectID], end: int) -> Iterator[tuple[int, int]]:
    """Yields the parts of a file between its arrays, where heaps can be."""
    arrays = [
        (item.get_offset(), item.get_storage_size())
        for item in items
        if isinstance(item, h5py.h5d.DatasetID) and item.get_offset() is not None
    ]
    start = 0
    for offset, size in sorted(arrays):
        if offset > start:
            yield start, offset
        start = max(start, offset + size)
    if end > start:
        yield start, end


def _signatures(stream: IO[bytes], start: int, stop: int) -> Iterator[int]:
    """Yields where heaps begin."""
    while start < stop:
        stream.seek(start)
        piece = stream.read(min(_PIECE, stop - start) + len(_SIGNATURE) - 1)
        found = piece.find(_SIGNATURE)
        while found >= 0:
            yield start + found
            found = piece.find(_SIGNATURE, found + 1)
        start += _PIECE


def _objects(stream: IO[bytes], place: int, end: int) -> dict[int, int]:
    """Returns the sizes of the objects in a heap by their numbers."""
    stream.seek(place)
    heap = stream.read(_HEADER)
    size = _number(heap[8:])
    if len(heap) < _HEADER or not _HEADER <= size <= end - place:
        raise _damaged(place, f"a size within the file; found {size:,}")
    heap += stream.read(size - _HEADER)
    objects = {}
    at = _HEADER
    while at + _HEADER <= size:
        index, length = _number(heap[at : at + 2]), _number(heap[at + 8 : at + _HEADER])
        space = _HEADER + _padded(length) if index else length  # 0 is the free space
        if not _HEADER <= space <= size - at:
            raise _damaged(place, f"objects that fill it; found one of {space:,} bytes")
        objects[index] = length
        at += space
    return objects


def _strings(item: ObjectID, stream: IO[bytes], heaps: Heaps, base: int) -> int:
    """Returns the bytes of an object's strings, once all of them are in their heaps.

    Args:
        item: the object.
        stream: the file's bytes.
        heaps: all heaps in it.
        base: where in the file HDF5's own addresses begin.
    """
    pointers = None
    total = 0
    for number in range(h5py.h5a.get_num_attrs(item)):
        attribute = h5py.h5a.open(item, index=number)
        kind = attribute.get_type()
        text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
        if not text and not isinstance(kind, h5py.h5t.TypeVlenID):
            continue
        if pointers is None:
            pointers = _attributes(stream, h5py.h5o.get_info(item).addr, base)
        name = attribute.name.decode(errors="replace")
        data = pointers.get(attribute.name, b"")
        count = int(math.prod(attribute.shape or ()))
        if len(data) < count * _POINTER:
            raise KerasFileError(f"at {_name(item)}: expected attribute {name} in its header")
        unit = 1 if text else kind.get_super().get_size()
        for at in range(0, count * _POINTER, _POINTER):
            length = unit * _number(data[at : at + 4])
            heap = _number(data[at + 4 : at + 12]) + base
            if length > heaps.get(heap, {}).get(_number(data[at + 12 : at + 16]), 0):
                raise KerasFileError(
                    f"at {_name(item)}: expected attribute {name} to have its strings in the file; "
                    f"found one of {length:,} bytes that is not there"
                )
            total += length
    return total


def _attributes(stream: IO[bytes], place: int, base: int) -> dict[bytes, bytes]:
    """Returns the raw values of the attributes in an object's header, by their names."""
    messages = _messages(stream, place + base, base)
    return dict(_attribute(data) for kind, data in messages if kind == _ATTRIBUTE)


def _messages(stream: IO[bytes], place: int, base: int) -> Iterator[tuple[int, bytes]]:
    """Yields the messages of an object's header: their types and contents."""
    stream.seek(place)
    head = stream.read(_HEADER + 16)
    new = head.startswith(b"OHDR")
    if new:
        flags = head[5]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        blocks = [(place + at + width, _number(head[at : at + width]))]
        header = 6 if flags & 4 else 4
    else:
        blocks, header = [(place + 16, _number(head[8:12]))], 8
    for start, size in blocks:  # which grows
        stream.seek(start)
        block = stream.read(min(size, 1 << 20))
        at = 0
        while at + header <= len(block):
            kind = block[at] if new else _number(block[at : at + 2])
            length = _number(block[at + 1 : at + 3] if new else block[at + 2 : at + 4])
            data = block[at + header : at + header + length]
            at += header + length
            if kind == _CONTINUATION and len(blocks) < _MAX_BLOCKS:
                further, room = _number(data[:8]) + base, _number(data[8:16])
                # New ones are in a frame: a signature of four bytes, and as long a checksum.
                blocks.append((further + 4, max(room - 8, 0)) if new else (further, room))
            yield kind, data


def _attribute(data: bytes) -> tuple[bytes, bytes]:
    """Returns the name of an attribute and its raw value."""
    version = data[0] if data else 0
    sizes = [_number(data[at : at + 2]) for at in (2, 4, 6)]  # of name, datatype and dataspace
    start = 9 if version == 3 else 8
    name = data[start : start + sizes[0]].partition(b"\0")[0]
    return name, data[start + sum(map(_padded, sizes) if version == 1 else sizes) :]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


def _damaged(place: int, expected: str) -> KerasFileError:
    return KerasFileError(f"at byte {place:,}: expected a heap of strings with {expected}")
