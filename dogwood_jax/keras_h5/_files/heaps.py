"""Checks the strings in an HDF5 file before HDF5 reads them.

HDF5 keeps strings of variable length, such as a model's configuration, in global heaps; attributes
hold their places and lengths. HDF5 allocates any length that an attribute declares, and loops for
ever in a heap with an object of no size. Both are therefore checked here first, by section III.E of
the HDF5 file format specification 3.0. ``structure`` finds the strings.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from dogwood_jax.keras_h5._files.binary import number
from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._files.structure import Object, read_objects

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER = 16  # bytes of the header of a heap, and of the header of an object in it
_POINTER = 16  # bytes of a pointer: a string's length, its heap's address, its index in the heap
_PIECE = 1 << 20  # bytes searched at a time

# For each heap, by its place in the file: the sizes of its strings, by their index in the heap.
Heaps = Mapping[int, Mapping[int, int]]


def check_file(stream: IO[bytes], limit: int) -> None:
    """Raises ``KerasFileError`` if the structure or the strings of an HDF5 file are damaged.

    Args:
        stream: the bytes of the file.
        limit: bytes that all strings together may take.
    """
    items, base = read_objects(stream)
    end = stream.seek(0, 2)
    arrays = ((place + base, size) for item in items for place, size in item.extents)
    heaps = {
        place: _objects(stream, place, end)
        for start, stop in _gaps(arrays, end)
        for place in _signatures(stream, start, stop)
    }
    total = 0
    for item in items:
        total += _strings(item, heaps, base)
        if total > limit:
            raise KerasFileError(
                f"at {item.name}: expected strings of at most {limit:,} bytes altogether; found "
                "more (if you trust the file, pass limit= the bytes you allow)"
            )


def _gaps(arrays: Iterable[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """Yields the (start, end) of the parts of a file between its arrays, where heaps can be."""
    start = 0
    for offset, size in sorted(arrays):
        if offset > start:
            yield start, offset
        start = max(start, offset + size)
    if end > start:
        yield start, end


def _signatures(stream: IO[bytes], start: int, stop: int) -> Iterator[int]:
    """Yields the places where heaps begin."""
    while start < stop:
        stream.seek(start)
        piece = stream.read(min(_PIECE, stop - start) + len(_SIGNATURE) - 1)
        found = piece.find(_SIGNATURE)
        while found >= 0:
            yield start + found
            found = piece.find(_SIGNATURE, found + 1)
        start += _PIECE


def _objects(stream: IO[bytes], place: int, end: int) -> dict[int, int]:
    """Returns the sizes of the objects in a heap, by their index."""
    stream.seek(place)
    heap = stream.read(_HEADER)
    size = number(heap[8:])
    if len(heap) < _HEADER or not _HEADER <= size <= end - place:
        raise _damaged(place, f"a size within the file; found {size:,}")
    heap += stream.read(size - _HEADER)
    objects = {}
    at = _HEADER
    while at + _HEADER <= size:
        index, length = number(heap[at : at + 2]), number(heap[at + 8 : at + _HEADER])
        space = _HEADER + _padded(length) if index else length  # index 0: the free space
        if not _HEADER <= space <= size - at:
            raise _damaged(place, f"objects of valid sizes; found one of {space:,} bytes")
        objects[index] = length
        at += space
    return objects


def _strings(item: Object, heaps: Heaps, base: int) -> int:
    """Returns the total bytes of an object's strings; raises if one of them is not in its heap.

    Args:
        item: the object.
        heaps: all heaps in the file.
        base: place in the file from which HDF5's own addresses count.
    """
    total = 0
    for strings in item.strings:
        data = strings.pointers
        for at in range(0, len(data) - _POINTER + 1, _POINTER):
            length = strings.unit * number(data[at : at + 4])
            heap = number(data[at + 4 : at + 12]) + base
            # HDF5 1.14.2 copies the whole object of the heap, even if it has allocated less.
            if length != heaps.get(heap, {}).get(number(data[at + 12 : at + 16]), 0):
                raise KerasFileError(
                    f"at {item.name}: expected {strings.place} to have its strings in the file; "
                    f"found one of {length:,} bytes that is not there"
                )
            total += length
    return total


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


def _damaged(place: int, expected: str) -> KerasFileError:
    return KerasFileError(f"at byte {place:,}: expected a heap of strings with {expected}")
