"""The structure of an HDF5 file, read here before HDF5 follows it.

HDF5 trusts addresses in a file: it descends in a B-tree that is its own child until the stack is
full, and goes round for ever in a heap whose free blocks lead to one another. So everything that
leads to something else is looked through here first, as the HDF5 file format specification 3.0 has
it: the superblock (II), B-trees, local heaps and symbol tables of groups (III.A to III.D) and
object headers with their messages (IV.A); B-trees of version 2 and fractal heaps, where names are
not ASCII (III.A.2, III.G). Each part must be in the file, and be there once.

Files are read as Keras writes them, through h5py with its defaults. What only newer versions of
HDF5 read, such as headers of version 2, is refused.

What remains: HDF5 decodes types, above all those of records, and arrays by itself. Read files that
may be attacks in a process of its own, as the docstring of ``load`` says.
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
_SHARED = 2  # flag of a message that is elsewhere

# Classes of types.
_INTEGER, _FLOAT, _STRING, _BITS, _COMPOUND, _ENUM, _VARIABLE, _ARRAY = 0, 1, 3, 4, 6, 8, 9, 10

_COMPACT, _CONTIGUOUS, _CHUNKED = range(3)  # classes of layouts

Extent = tuple[int, int]  # the address of an array or a chunk, and its bytes in the file


@dataclass(frozen=True)
class Strings:
    """Values of variable length, strings or lists, by where they are.

    Attributes:
        place: what has them.
        unit: bytes of an element, 1 for strings.
        pointers: for each value its count of elements, its heap's address and its number there.
    """

    place: str
    unit: int
    pointers: bytes


@dataclass(frozen=True)
class Object:
    """A group, dataset or datatype.

    Attributes:
        name: a path to it.
        strings: those of its attributes, and of itself.
        links: the names and addresses of what is in it; a name may be there twice.
        extents: address and size of an array, or of each of its chunks.
    """

    name: str
    strings: list[Strings]
    links: list[tuple[str, int]]
    extents: list[Extent]


def read_objects(stream: IO[bytes]) -> tuple[list[Object], int]:
    """Returns all that is in a file, each once, and the place where its addresses begin.

    Raises:
        KerasFileError: if some of it is not in the file, in a circle or in another one's place.
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
    """Returns the address of the root group's header, and those of its table if they are said."""
    what = "a superblock"
    version = file.read(8, 1, what)[0]
    if version > 1:
        raise damaged(8, f"a superblock of version 0 or 1, {REPACKED}; found {version}")
    if file.read(13, 2, what) != b"\x08\x08":
        raise damaged(8, "addresses and lengths of 8 bytes")
    block = file.read(24 + 4 * version, 56, what)
    file.check_end(number(block[16:24]))
    if number(block[24:32]) != NOWHERE:
        raise damaged(48, "one file; found one of a family")
    table = file.read(80 + 4 * version, 16, what) if number(block[48:52]) == 1 else None
    return number(block[40:48]), table


def _object(file: File, name: str, address: int, table: bytes | None) -> Object:
    """Returns an object, once all that its header leads to is in order.

    Args:
        file: the file.
        name: the object's name.
        address: where its header is.
        table: the addresses of its table of links, where they are known.
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
        messages.setdefault(kind, data)  # HDF5, too, takes the first one of a kind
    # Without a table, as where a name is not ASCII, HDF5 does not look there.
    if table is not None and messages.get(_SYMBOLS, table) != table:
        raise refused(name, "the table of links that the superblock says; found another")
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
                raise damaged(start, f"{what} that holds its messages; found a longer one")
            if shared:
                raise damaged(start, f"{what} with all of its messages, {OTHERWISE}")
            if kind == _CONTINUATION:
                further = number(data[:8])
                file.once(further, 4, what)
                blocks.append((further, number(data[8:16])))
            yield kind, data


def _link(data: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yields the name of a link and what it leads to, unless it leads to a path."""
    flags = data[1] if len(data) > 1 else 0
    at = 2 + (flags >> 3 & 1) + (flags << 1 & 8) + (flags >> 4 & 1)
    width = 1 << (flags & 3)
    length = number(data[at : at + width])
    end = at + width + length
    if end + 2 > len(data):
        raise refused(name, "links with their names")
    if not flags & 8 or data[2] == 0:
        yield text(data[at + width : end]), number(data[end : end + 8])


def _many_links(file: File, data: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yields the links that a group has in a heap, because one has a name that is not ASCII.

    Args:
        file: the file.
        data: the message that says where the heap and its B-trees are.
        name: the group's name.
    """
    flags = data[1]
    start = 2 + 8 * (flags & 1)  # behind the largest number in the order of creation
    heap, *trees = (number(data[at : at + 8]) for at in range(start, len(data) - 7, 8))
    if heap == NOWHERE:
        return
    links = Heap(file, heap, "a heap of links")
    for tree in trees[: 1 + (flags >> 1 & 1)]:  # by their names, and in the order of creation
        for record in records(file, tree, {5: 11, 6: 15}):
            yield from _link(links.read(record[-7:]), name)


def _symbols(file: File, tree: int, heap: int) -> Iterator[tuple[str, int]]:
    """Yields the links of a group, unless they lead to paths."""
    names = _local_heap(file, heap)
    what = "a table of links"
    for node, _ in leaves(file, tree, 0, 8):
        head = file.once(node, 8, what)
        if not head.startswith(b"SNOD\x01"):
            raise damaged(node, f"{what}; found none")
        entries = file.read(node + 8, 40 * number(head[6:8]), what)
        for at in range(0, len(entries), 40):
            name = _string(names, number(entries[at : at + 8]), heap)
            if number(entries[at + 16 : at + 20]) == 2:  # of a link to a path
                _string(names, number(entries[at + 24 : at + 28]), heap)
            else:
                yield name, number(entries[at + 8 : at + 16])


def _local_heap(file: File, address: int) -> bytes:
    """Returns the bytes of a heap, once its free blocks come to an end."""
    what = "a heap of names"
    head = file.read(address, 32, what)
    if not head.startswith(b"HEAP\0"):
        raise damaged(address, f"{what}; found none")
    size, free, place = (number(head[at : at + 8]) for at in (8, 16, 24))
    heap = file.read(place, size, what)
    seen = set()
    while free != 1:
        if free in seen or free + 16 > size:
            raise damaged(address, f"{what} with free blocks that end; found them in a circle")
        seen.add(free)
        free = number(heap[free : free + 8])
    return heap


def _string(heap: bytes, start: int, address: int) -> str:
    end = heap.find(b"\0", start)
    if end < 0:
        raise damaged(address, "a heap of names; found one that is not in it")
    return text(heap[start:end])


def _attribute(data: bytes, owner: str) -> list[Strings]:
    """Returns the strings of an attribute, once it is in order."""
    version = data[0] if data else 0
    lengths = [number(data[at : at + 2]) for at in (2, 4, 6)]  # of name, type and space
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
        raise refused(owner, f"attribute {shown} in its header")
    return _strings(f"attribute {shown}", kind, values[: count * size])


def _strings(place: str, kind: bytes, values: bytes) -> list[Strings]:
    """Returns values of a type, if they are of variable length."""
    return [Strings(place, number(kind[12:16]), values)] if kind[0] & 15 == _VARIABLE else []


def _own_strings(
    file: File, name: str, messages: Mapping[int, bytes], extents: list[Extent]
) -> list[Strings]:
    """Returns the strings of an array, which are read where the whole file is copied."""
    kind, layout = messages[_TYPE], messages[_LAYOUT]
    if kind[0] & 15 != _VARIABLE:
        return []
    if layout[1] == _CHUNKED and _FILTERS in messages:
        raise refused(name, f"strings that are not compressed, {OTHERWISE}")
    pieces = [file.read(*extent, "strings") for extent in extents]
    return _strings("the array", kind, layout[4:] if layout[1] == _COMPACT else b"".join(pieces))


def _shape(data: bytes, name: str) -> tuple[int, ...]:
    """Returns the sizes of an array, as its dataspace says them; ``(0,)`` if it has no data."""
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
    """Returns the class of a type and the bytes of a value, once its parts fit into these."""
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
        fits &= data[1] & 15 <= 2 and data[1] >> 4 <= 1  # ways to end it, and sets of characters
    elif class_ == _VARIABLE:
        fits = fits and not inside and size == 16 and data[1] & 15 <= 1  # a list or a string
        fits = fits and data[1] >> 4 <= 2 and data[2] <= 1
        inner = _type(data[8:], name, True) if fits else (_ARRAY, 0)
        fits = inner[0] not in (_COMPOUND, _ARRAY) and (data[1] & 15 == 0 or inner[1] == 1)
    if not fits:
        raise refused(name, "a type that HDF5 can read; found one that contradicts itself")
    return class_, size


def _array(file: File, name: str, messages: Mapping[int, bytes]) -> list[Extent]:
    """Returns where an array is in the file, once it is in order."""
    if not messages.keys() >= {_TYPE, _SPACE}:
        raise refused(name, "an array with a type and a shape")
    layout = messages[_LAYOUT]
    shape, (kind_, size) = _shape(messages[_SPACE], name), _type(messages[_TYPE], name)
    variable = kind_ == _VARIABLE
    for kind, start in ((_OLD_FILL, 0), (_FILL, 4)):
        fill = messages.get(kind, b"")
        if kind == _FILL and fill[:1] == b"\3":  # flags, and a value only where there is one
            fill = fill[:2] + b"\0\0" + fill[2:] if fill[1] & 0x20 else b""
        length = number(fill[start : start + 4])
        if variable and length not in (0, (1 << 32) - 1):
            raise refused(name, "strings that are there; found one in place of what is not")
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
    """Yields where the chunks of an array are, once their B-tree and they are in the file.

    Args:
        file: the file.
        name: the array's name.
        layout: the message that says how the array is stored.
        rank: how many axes it has.
        size: bytes of an element, which is like one more axis.
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
