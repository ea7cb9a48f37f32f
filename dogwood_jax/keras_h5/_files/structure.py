"""Checks the structure of an HDF5 file before HDF5 follows its addresses.

HDF5 trusts addresses in a file: it descends into a B-tree that is its own child until the stack is
full, and loops for ever in a heap whose free blocks form a cycle. Therefore every structure that
refers to another is checked here first, by the HDF5 file format specification 3.0: the superblock
(II), B-trees, local heaps and symbol tables of groups (III.A to III.D) and object headers with
their messages (IV.A); for names that are not ASCII, also B-trees of version 2 and fractal heaps
(III.A.2, III.G). Each part must lie in the file, and none may be in a cycle.

Supported are files as Keras writes them, through h5py with its defaults. Structures that only newer
versions of HDF5 read, such as headers of version 2, are refused.

Not checked here: HDF5 itself decodes arrays and types, record types above all. Read files that may
be attacks in a separate process, as the docstring of ``load`` describes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from dogwood_jax.keras_h5._files.binary import (
    NOWHERE,
    OTHERWISE,
    REPACKED,
    File,
    damaged,
    number,
    refused,
    text,
)
from dogwood_jax.keras_h5._files.hdf5 import MAX_DEPTH, deeper
from dogwood_jax.keras_h5._files.trees import Heap, leaves, records

# Types of messages in object headers.
_SPACE, _LINKS, _TYPE, _OLD_FILL, _FILL, _LINK, _EXTERNAL, _LAYOUT = 1, 2, 3, 4, 5, 6, 7, 8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOLS, _ATTRIBUTES = 0x0B, 0x0C, 0x10, 0x11, 0x15
_SHARED = 2  # flag of a message that is stored elsewhere

# Classes of types.
_INTEGER, _FLOAT, _STRING, _BITS, _COMPOUND, _ENUM, _VARIABLE, _ARRAY = 0, 1, 3, 4, 6, 8, 9, 10

_COMPACT, _CONTIGUOUS, _CHUNKED = range(3)  # classes of layouts

Extent = tuple[int, int]  # the address of an array or a chunk, and its size in bytes


@dataclass(frozen=True)
class Strings:
    """Pointers to values of variable length, strings or lists.

    Attributes:
        place: the attribute or array that has the values, for errors.
        unit: bytes of an element, 1 for strings.
        pointers: for each value its count of elements, its heap's address and its index there.
    """

    place: str
    unit: int
    pointers: bytes


@dataclass(frozen=True)
class Object:
    """A group, dataset or datatype.

    Attributes:
        name: a path to the object.
        strings: strings of its attributes and of its own array.
        links: names and addresses of the objects in a group; a name may occur twice.
        extents: address and size of an array, or of each of its chunks.
    """

    name: str
    strings: list[Strings]
    links: list[tuple[str, int]]
    extents: list[Extent]


def read_objects(stream: IO[bytes]) -> tuple[list[Object], int]:
    """Returns all objects in a file, each once, and the place from which its addresses count.

    Raises:
        KerasFileError: if a part lies outside the file, in a cycle or in the place of another part.
    """
    file = File(stream)
    root, table = _root(file)
    found = []
    seen, level = {root}, [("/", root)]
    for _ in range(MAX_DEPTH):
        inside = []
        for name, address in level:
            try:
                item = _object(file, name, address, table if address == root else None)
            except IndexError:
                raise refused(name, "a header with messages; found one that is cut off") from None
            found.append(item)
            for key, target in item.links:
                if target not in seen:
                    seen.add(target)
                    inside.append((f"{name.rstrip('/')}/{key}", target))
        level = inside
    if level:
        raise deeper(level[0][0])
    return found, file.base


def _root(file: File) -> tuple[int, bytes | None]:
    """Returns the address of the root group's header, and the addresses of its table if stored."""
    what = "a superblock"
    version = file.read(8, 1, what)[0]
    if version > 1:
        raise damaged(8, f"a superblock of version 0 or 1, {REPACKED}; found {version}")
    if file.read(13, 2, what) != b"\x08\x08":
        raise damaged(8, "addresses and lengths of 8 bytes")
    block = file.read(24 + 4 * version, 56, what)
    file.check_end(number(block[16:24]))
    if number(block[24:32]) != NOWHERE:
        raise damaged(48, "a single file; found a part of a family of files")
    table = file.read(80 + 4 * version, 16, what) if number(block[48:52]) == 1 else None
    return number(block[40:48]), table


def _object(file: File, name: str, address: int, table: bytes | None) -> Object:
    """Returns an object, after it has checked everything to which its header refers.

    Args:
        file: the file.
        name: the object's name.
        address: address of its header.
        table: the addresses of its table of links, if the superblock has them.
    """
    strings: list[Strings] = []
    links: list[tuple[str, int]] = []
    messages: dict[int, bytes] = {}
    for kind, data in _messages(file, address):
        if kind == _ATTRIBUTE:
            strings += _attribute(data, name)
        elif kind == _LINK:
            links += _link(data, name)
        elif kind == _SYMBOLS:
            links += _symbols(file, number(data[:8]), number(data[8:16]))
        elif kind == _LINKS:
            links += _many_links(file, data, name)
        elif kind == _ATTRIBUTES:
            raise refused(name, f"attributes in its header, {REPACKED}")
        elif kind == _EXTERNAL:
            _local_heap(file, number(data[8:16]))
        messages.setdefault(kind, data)  # HDF5, too, uses the first message of a kind
    # A group without a table has names that are not ASCII; HDF5 ignores the superblock's then.
    if table is not None and messages.get(_SYMBOLS, table) != table:
        raise refused(name, "the table of links that the superblock refers to; found another")
    extents: list[Extent] = []
    if _LAYOUT in messages:
        extents = _array(file, name, messages)
        strings += _own_strings(file, name, messages, extents)
    elif _TYPE in messages:
        _type(messages[_TYPE], name)
    return Object(name, strings, links, extents)


def _messages(file: File, address: int) -> Iterator[tuple[int, bytes]]:
    """Yields the messages of an object's header: their types and contents."""
    what = "an object's header"
    head = file.once(address, 16, what)
    if head.startswith(b"OHDR"):
        raise damaged(address, f"{what} of version 1, {REPACKED}; found one of version 2")
    if head[0] != 1:
        raise damaged(address, f"{what}; found none")
    blocks = [(address + 16, number(head[8:12]))]
    for start, size in blocks:  # which grows
        block, at = file.read(start, size, what), 0
        while at + 8 <= len(block):
            kind, length = number(block[at : at + 2]), number(block[at + 2 : at + 4])
            shared, data = block[at + 4] & _SHARED, block[at + 8 : at + 8 + length]
            at += 8 + length
            if at > len(block):
                raise damaged(start, f"{what} that holds its messages; found a longer message")
            if shared:
                raise damaged(start, f"{what} with all of its messages, {OTHERWISE}")
            if kind == _CONTINUATION:
                further = number(data[:8])
                file.once(further, 4, what)
                blocks.append((further, number(data[8:16])))
            yield kind, data


def _link(data: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yields the name and address of a hard link, and nothing for a link to a path."""
    flags = data[1] if len(data) > 1 else 0
    at = 2 + (flags >> 3 & 1) + (flags << 1 & 8) + (flags >> 4 & 1)
    width = 1 << (flags & 3)
    length = number(data[at : at + width])
    end = at + width + length
    if end + 2 > len(data):
        raise refused(name, "links with complete names")
    if not flags & 8 or data[2] == 0:
        yield text(data[at + width : end]), number(data[end : end + 8])


def _many_links(file: File, data: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yields the links that a group keeps in a heap, because a name is not ASCII.

    Args:
        file: the file.
        data: the message with the addresses of the heap and its B-trees.
        name: the group's name.
    """
    flags = data[1]
    start = 2 + 8 * (flags & 1)  # after the largest index in the order of creation
    heap, *trees = (number(data[at : at + 8]) for at in range(start, len(data) - 7, 8))
    if heap == NOWHERE:
        return
    links = Heap(file, heap, "a heap of links")
    for tree in trees[: 1 + (flags >> 1 & 1)]:  # ordered by name, and by creation
        for record in records(file, tree, {5: 11, 6: 15}):
            yield from _link(links.read(record[-7:]), name)


def _symbols(file: File, tree: int, heap: int) -> Iterator[tuple[str, int]]:
    """Yields the links of a group, except links to paths."""
    names = _local_heap(file, heap)
    what = "a table of links"
    for node, _ in leaves(file, tree, 0, 8):
        head = file.once(node, 8, what)
        if not head.startswith(b"SNOD\x01"):
            raise damaged(node, f"{what}; found none")
        entries = file.read(node + 8, 40 * number(head[6:8]), what)
        for at in range(0, len(entries), 40):
            name = _string(names, number(entries[at : at + 8]), heap)
            if number(entries[at + 16 : at + 20]) == 2:  # a link to a path
                _string(names, number(entries[at + 24 : at + 28]), heap)
            else:
                yield name, number(entries[at + 8 : at + 16])


def _local_heap(file: File, address: int) -> bytes:
    """Returns the bytes of a heap; raises if its list of free blocks does not end."""
    what = "a heap of names"
    head = file.read(address, 32, what)
    if not head.startswith(b"HEAP\0"):
        raise damaged(address, f"{what}; found none")
    size, free, place = (number(head[at : at + 8]) for at in (8, 16, 24))
    heap = file.read(place, size, what)
    seen = set()
    while free != 1:
        if free in seen or free + 16 > size:
            raise damaged(address, f"{what} with a list of free blocks that ends; found a cycle")
        seen.add(free)
        free = number(heap[free : free + 8])
    return heap


def _string(heap: bytes, start: int, address: int) -> str:
    end = heap.find(b"\0", start)
    if end < 0:
        raise damaged(address, "names inside their heap; found one outside")
    return text(heap[start:end])


def _attribute(data: bytes, owner: str) -> list[Strings]:
    """Checks an attribute and returns its strings."""
    version = data[0] if data else 0
    lengths = [number(data[at : at + 2]) for at in (2, 4, 6)]  # of name, type and dataspace
    steps = [(n + 7) // 8 * 8 for n in lengths] if version == 1 else lengths
    ends = [sum(steps[:i], 9 if version == 3 else 8) for i in range(4)]
    name, kind, space = (data[at : at + n] for at, n in zip(ends, lengths))
    shown = text(name.partition(b"\0")[0])
    if version not in (1, 2, 3) or version > 1 and data[1]:
        raise refused(owner, f"attribute {shown} with its type, {OTHERWISE}")
    class_, size = _type(kind, f"{owner}, attribute {shown}")
    if class_ in (_COMPOUND, _ARRAY):
        raise refused(owner, f"numbers or strings in attribute {shown}; found a record")
    count = math.prod(_shape(space, owner))
    values = data[ends[3] :]
    if count * size > len(values):
        raise refused(owner, f"all values of attribute {shown} in its header")
    return _strings(f"attribute {shown}", kind, values[: count * size])


def _strings(place: str, kind: bytes, values: bytes) -> list[Strings]:
    """Returns the values as ``Strings`` if their type has variable length, else nothing."""
    return [Strings(place, number(kind[12:16]), values)] if kind[0] & 15 == _VARIABLE else []


def _own_strings(
    file: File, name: str, messages: Mapping[int, bytes], extents: list[Extent]
) -> list[Strings]:
    """Returns the strings of an array, which HDF5 reads when a whole file is copied."""
    kind, layout = messages[_TYPE], messages[_LAYOUT]
    if kind[0] & 15 != _VARIABLE:
        return []
    if layout[1] == _CHUNKED and _FILTERS in messages:
        raise refused(name, f"strings that are not compressed, {OTHERWISE}")
    pieces = [file.read(*extent, "strings") for extent in extents]
    return _strings("the array", kind, layout[4:] if layout[1] == _COMPACT else b"".join(pieces))


def _shape(data: bytes, name: str) -> tuple[int, ...]:
    """Returns the shape in a dataspace; ``(0,)`` if there is no data."""
    if len(data) < 4 or data[0] not in (1, 2) or data[1] > 32:
        raise refused(name, "a shape of at most 32 axes")
    start, rank = 8 if data[0] == 1 else 4, data[1]
    sizes = data[start : start + 8 * rank * (1 + (data[2] & 1))]
    if len(sizes) < 8 * rank * (1 + (data[2] & 1)):
        raise refused(name, f"a shape of {rank} axes")
    if data[0] == 2 and data[3] == 2:
        return (0,)
    return tuple(number(sizes[at : at + 8]) for at in range(0, 8 * rank, 8))


def _type(data: bytes, name: str, inside: bool = False) -> tuple[int, int]:
    """Checks that the parts of a type fit into a value; returns its class and the value's bytes."""
    class_, size = data[0] & 15 if data else -1, number(data[4:8])
    bits = 8 * size
    fits = len(data) >= 8 and size > 0
    if class_ in (_INTEGER, _BITS):
        offset, precision = number(data[8:10]), number(data[10:12])
        fits &= len(data) >= 12 and 0 < precision and offset + precision <= bits
    elif class_ == _FLOAT:
        offset, precision = number(data[8:10]), number(data[10:12])
        fits &= len(data) >= 20 and offset + precision <= bits and data[2] < precision
        for start, length in (data[12:14], data[14:16]):  # of exponent and mantissa
            fits &= 0 < length and start + length <= offset + precision
    elif class_ == _ENUM:
        fits = fits and not inside and _type(data[8:], name, True) == (_INTEGER, size)
    elif class_ == _STRING:
        fits &= data[1] & 15 <= 2 and data[1] >> 4 <= 1  # padding, and character set
    elif class_ == _VARIABLE:
        fits = fits and not inside and size == 16 and data[1] & 15 <= 1  # a list or a string
        fits = fits and data[1] >> 4 <= 2 and data[2] <= 1
        inner = _type(data[8:], name, True) if fits else (_ARRAY, 0)
        fits = inner[0] not in (_COMPOUND, _ARRAY) and (data[1] & 15 == 0 or inner[1] == 1)
    if not fits:
        raise refused(name, "a type that HDF5 can read; found one that contradicts itself")
    return class_, size


def _array(file: File, name: str, messages: Mapping[int, bytes]) -> list[Extent]:
    """Checks an array and returns its extents in the file."""
    if not messages.keys() >= {_TYPE, _SPACE}:
        raise refused(name, "an array with a type and a shape")
    layout = messages[_LAYOUT]
    shape, (kind_, size) = _shape(messages[_SPACE], name), _type(messages[_TYPE], name)
    variable = kind_ == _VARIABLE
    for kind, start in ((_OLD_FILL, 0), (_FILL, 4)):
        fill = messages.get(kind, b"")
        if kind == _FILL and fill[:1] == b"\3":  # flags, then a value if there is one
            fill = fill[:2] + b"\0\0" + fill[2:] if fill[1] & 0x20 else b""
        length = number(fill[start : start + 4])
        if variable and length not in (0, (1 << 32) - 1):
            raise refused(name, "strings without a fill value; found one")
        if length not in (0, size, (1 << 32) - 1) or length == size > len(fill) - start - 4:
            raise refused(name, f"a fill value of {size} bytes; found one of {length:,}")
    whole = math.prod(shape) * size
    version, class_ = layout[:2].ljust(2, b"\xff")
    if version != 3 or class_ > _CHUNKED:
        raise refused(name, f"an array in a layout {REPACKED}")
    if class_ == _COMPACT:
        if whole > len(layout) - 4:
            raise refused(name, "all of its values in its header")
    elif class_ == _CONTIGUOUS:
        extent = number(layout[2:10]), number(layout[10:18])
        if extent[0] != NOWHERE:
            file.within(*extent, "an array")
            if extent[1] < whole:
                raise refused(name, f"an array of {whole:,} bytes; found {extent[1]:,}")
            return [extent]
    else:
        return [*_chunks(file, name, layout, len(shape), size)]
    return []


def _chunks(file: File, name: str, layout: bytes, rank: int, size: int) -> Iterator[Extent]:
    """Yields the extents of the chunks of an array, after it has checked that they lie in the file.

    Args:
        file: the file.
        name: the array's name.
        layout: the message that describes how the array is stored.
        rank: number of axes of the array.
        size: bytes of an element, which HDF5 stores as one more axis.
    """
    sizes = [number(layout[at : at + 4]) for at in range(11, 11 + 4 * layout[2], 4)]
    if len(sizes) != rank + 1 or not all(sizes) or sizes[-1] != size:
        raise refused(name, f"chunks of {rank} axes; found {[*sizes[:-1]]}")
    tree = number(layout[3:11])
    for place, key in leaves(file, tree, 1, 16 + 8 * rank) if tree != NOWHERE else ():
        extent = place, number(key[:4])
        if place != NOWHERE:
            file.within(*extent, "a chunk")
            yield extent
