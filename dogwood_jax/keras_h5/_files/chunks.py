"""Where the chunks of an array in an HDF5 file are: ``chunks``.

In a B-tree, as HDF5 writes them unless it is told that only new versions read the file, or since
1.10 in what fits the shape (specification 3.0, IV.A.2.i and VII): one chunk, chunks one after
another, or a fixed array of their addresses. Where one axis may become longer, an extensible array
has the addresses, which grows by ever larger blocks; where several may, a B-tree of version 2.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dogwood_jax.keras_h5._files.binary import NOWHERE, File, check_sum, damaged, number, refused
from dogwood_jax.keras_h5._files.trees import leaves, records

Extent = tuple[int, int]  # the address of a chunk, and its bytes in the file

_SINGLE, _IMPLICIT, _FIXED, _EXTENSIBLE, _TREE = 1, 2, 3, 4, 5  # kinds of indexes
_HAS_SIZE = 2  # flag of a layout: its one chunk went through filters

# Of extensible arrays, as HDF5 writes all of them: bits of the number of chunks, how many chunks
# the index itself has, pointers of the smallest block of blocks, chunks of the smallest block, and
# bits of the chunks in a page. The index has the blocks of the first four sizes, and blocks of
# blocks for the others. Blocks of the first thirteen sizes fit into a page each.
_EXTENDED, _IN_INDEX, _LEAST = bytes([32, 4, 4, 16, 10]), 4, 16
_SIZES, _SIZES_IN_INDEX, _SIZES_IN_A_PAGE = 29, 4, 13

_INDEX = "chunks in an index that h5py writes; save the file again without maxshape="


@dataclass(frozen=True)
class Entry:
    """How an index says where a chunk is.

    Attributes:
        spare: bytes in which each chunk has its size, if it has one.
        whole: bytes of a chunk without filters.
    """

    spare: int
    whole: int

    @property
    def step(self) -> int:
        """Bytes of an entry: an address, perhaps a size and a mask of filters left out."""
        return 8 + (self.spare + 4 if self.spare else 0)

    def extents(self, data: bytes) -> Iterator[Extent]:
        """Yields the chunks of entries."""
        for at in range(0, len(data), self.step):
            place = at + 8
            length = number(data[place : place + self.spare]) if self.spare else self.whole
            yield number(data[at:place]), length


def chunks(
    file: File, name: str, layout: bytes, shape: Sequence[int], size: int, filtered: bool
) -> Iterator[Extent]:
    """Yields where the chunks of an array are, once their index and they are in the file.

    Args:
        file: the file.
        name: the array's name.
        layout: the message that says how the array is stored.
        shape: the largest that it may become.
        size: bytes of an element.
        filtered: whether chunks go through filters, after which each has a size of its own.

    Raises:
        KerasFileError: if they are not in order.
    """
    found = _by_tree if layout[0] == 3 else _by_index
    for address, length in found(file, name, layout, shape, size, filtered):
        if address != NOWHERE:
            file.within(address, length, "a chunk")
            yield address, length


def _checked(name: str, sizes: Sequence[int], shape: Sequence[int], size: int) -> None:
    """Raises unless these are sizes of chunks; the last one is that of an element."""
    if len(sizes) != len(shape) + 1 or not all(sizes) or sizes[-1] != size:
        raise refused(name, f"chunks of {len(shape)} axes; found {[*sizes[:-1]]}")


def _by_tree(
    file: File, name: str, layout: bytes, shape: Sequence[int], size: int, filtered: bool
) -> Iterator[Extent]:
    rank = layout[2]
    _checked(name, [number(layout[at : at + 4]) for at in range(11, 11 + 4 * rank, 4)], shape, size)
    tree = number(layout[3:11])
    for place, key in leaves(file, tree, 1, 8 + 8 * rank) if tree != NOWHERE else ():
        yield place, number(key[:4])


def _by_index(
    file: File, name: str, layout: bytes, shape: Sequence[int], size: int, filtered: bool
) -> Iterator[Extent]:
    flags, rank, width = layout[2], layout[3], layout[4]
    end = 5 + rank * width
    sizes = [number(layout[at : at + width]) for at in range(5, end, width)] if width else []
    _checked(name, sizes, shape, size)
    whole, kind = math.prod(sizes), layout[end]
    count = math.prod(-(-n // chunk) for n, chunk in zip(shape, sizes))
    address = number(layout[-8:])
    options = layout[end + 1 : -8]
    expected = {_IMPLICIT: 0, _FIXED: 1, _EXTENSIBLE: len(_EXTENDED), _TREE: 6}
    expected[_SINGLE] = 12 if flags & _HAS_SIZE else 0
    if len(options) != expected.get(kind, -1):
        raise refused(name, _INDEX)
    if kind == _SINGLE:
        if count != 1 or bool(options) != filtered:
            raise refused(name, f"{count:,} chunks; found one")
        yield address, number(options[:8]) if options else whole
    elif kind == _IMPLICIT:
        if filtered:
            raise refused(name, "chunks with their sizes, because they are compressed")
        yield address, count * whole
    elif address != NOWHERE:
        # A size that may not be smaller after filters is in one byte more than it needs.
        # (HDF5 2.0 writes version 5 of the layout for such chunks, with eight bytes.)
        spare = 8 if layout[0] == 5 else min(1 + (whole.bit_length() + 7) // 8, 8)
        entry = Entry(spare if filtered else 0, whole)
        if kind == _FIXED:
            yield from _fixed(file, address, count, options[0], entry)
        elif kind == _EXTENSIBLE and options == _EXTENDED:
            yield from _extensible(file, name, address, entry)
        elif kind == _TREE:
            size = entry.step + 8 * len(shape)  # with the place of the chunk
            for record in records(file, address, {11 if filtered else 10: size}):
                yield from entry.extents(record[: entry.step])
        else:
            raise refused(name, _INDEX)


def _block(file: File, address: int, name: bytes, head: int, size: int, entry: Entry) -> bytes:
    """Returns what is in a block of an array of chunks.

    Args:
        file: the file.
        address: that of the block.
        name: four letters with which it begins.
        head: the address of the array's header, to which the block refers.
        size: bytes of what is in it.
        entry: of the array.
    """
    what = "an array of chunks"
    data = file.once(address, 14 + size + 4, what)
    check_sum(data, address)
    start = name + bytes([0, entry.spare > 0])
    if data[:6] != start or number(data[6:14]) != head:
        raise damaged(address, f"{what}; found none")
    return data[14:-4]


def _fixed(file: File, address: int, count: int, page_bits: int, entry: Entry) -> Iterator[Extent]:
    """Yields the chunks in a fixed array.

    Args:
        file: the file.
        address: that of its header.
        count: how many chunks there are.
        page_bits: a page of the array has two to the power of this.
        entry: of a chunk.
    """
    what = "an array of chunks"
    head = file.once(address, 28, what)
    check_sum(head, address)
    start = b"FAHD\0" + bytes([entry.spare > 0, entry.step, page_bits])
    if head[:8] != start or number(head[8:16]) != count or page_bits > 32:
        raise damaged(address, f"{what} for {count:,} of them; found another")
    block = number(head[16:24])
    if block == NOWHERE:
        return
    page = 1 << page_bits
    pages = -(-count // page) if count > page else 0
    marks = -(-pages // 8)  # bytes of bits that say which pages there are
    size = marks + (0 if pages else count * entry.step)
    data = _block(file, block, b"FADB", address, size, entry)
    yield from entry.extents(data[marks:])
    at = block + 14 + size + 4
    for index in range(pages):
        length = min(page, count - index * page) * entry.step + 4
        if data[index // 8] >> (7 - index % 8) & 1:
            part = file.once(at, length, what)
            check_sum(part, at)
            yield from entry.extents(part[:-4])
        at += length


def _extensible(file: File, name: str, address: int, entry: Entry) -> Iterator[Extent]:
    """Yields the chunks in an extensible array, whose header is at an address."""
    what = "an extensible array of chunks"
    head = file.once(address, 72, what)
    check_sum(head, address)
    bits, own, pointers, least, page_bits = _EXTENDED  # the header has them in another order
    start = bytes([entry.spare > 0, entry.step, bits, own, least, pointers, page_bits])
    if head[:12] != b"EAHD\0" + start:
        raise damaged(address, f"{what}; found another")
    index, count = number(head[60:68]), number(head[44:52])
    # Blocks of each size, and chunks of such a block.
    sizes = [(1 << n // 2, _LEAST << (n + 1) // 2) for n in range(_SIZES)]
    found, end = [], 0
    if index != NOWHERE:
        inside = sum(n for n, _ in sizes[:_SIZES_IN_INDEX]) + _SIZES - _SIZES_IN_INDEX
        first = _IN_INDEX * entry.step
        data = _block(file, index, b"EAIB", address, first + 8 * inside, entry)
        yield from entry.extents(data[:first])
        places, end = _addresses(data[first:]), _IN_INDEX
        for level, (n, length) in enumerate(sizes):
            if level < _SIZES_IN_INDEX:
                found += [(places.pop(0), length) for _ in range(n)]
                continue
            inner, place = [NOWHERE] * n, places.pop(0)
            if place != NOWHERE and level >= _SIZES_IN_A_PAGE:
                raise refused(name, _INDEX)
            if place != NOWHERE:  # a number is before the addresses
                inner = _addresses(_block(file, place, b"EASB", address, 4 + 8 * n, entry)[4:])
            found += [(place, length) for place in inner]
    passed = end
    for place, length in found:
        passed += length
        if place != NOWHERE:
            data = _block(file, place, b"EADB", address, 4 + length * entry.step, entry)
            yield from entry.extents(data[4:])
            end = passed
    if count > end:  # HDF5 goes through as many
        raise damaged(address, f"{what} with {count:,} of them; found room for {end:,}")


def _addresses(data: bytes) -> list[int]:
    return [number(data[at : at + 8]) for at in range(0, len(data), 8)]
