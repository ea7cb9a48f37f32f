"""Where the chunks of an array in an HDF5 file are: ``chunks``.

In a B-tree, as HDF5 writes them unless it is told that only new versions read the file, or since
1.10 in what fits the shape (specification 3.0, IV.A.2.i and VII): one chunk, chunks one after
another, or a fixed array of their addresses. Those of arrays that may become longer, extensible
arrays and B-trees of version 2, are refused.
"""

import math
from collections.abc import Iterator, Sequence

from dogwood_jax.keras_h5._files.binary import NOWHERE, File, check_sum, damaged, number, refused
from dogwood_jax.keras_h5._files.trees import leaves

Extent = tuple[int, int]  # the address of a chunk, and its bytes in the file

_SINGLE, _IMPLICIT, _FIXED = 1, 2, 3  # kinds of indexes
_HAS_SIZE = 2  # flag of a layout: its one chunk went through filters

_INDEX = "chunks of an array of one size; save the file again without maxshape="


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
    expected = {_SINGLE: 12 if flags & _HAS_SIZE else 0, _IMPLICIT: 0, _FIXED: 1}
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
        yield from _fixed(file, address, count, options[0], spare if filtered else 0, whole)


def _fixed(
    file: File, address: int, count: int, page_bits: int, spare: int, whole: int
) -> Iterator[Extent]:
    """Yields the chunks in a fixed array.

    Args:
        file: the file.
        address: that of its header.
        count: how many chunks there are.
        page_bits: a page of the array has two to the power of this.
        spare: bytes in which each chunk has its size, if it has one.
        whole: bytes of a chunk without filters.
    """
    what = "an array of chunks"
    head = file.once(address, 28, what)
    check_sum(head, address)
    step = 8 + (spare + 4 if spare else 0)  # with a mask of filters that were left out
    start = b"FAHD\0" + bytes([spare > 0, step, page_bits])
    if head[:8] != start or number(head[8:16]) != count or page_bits > 32:
        raise damaged(address, f"{what} for {count:,} of them; found another")
    block = number(head[16:24])
    if block == NOWHERE:
        return
    page = 1 << page_bits
    pages = -(-count // page) if count > page else 0
    marks = -(-pages // 8)  # bytes of bits that say which pages there are
    size = 14 + marks + (0 if pages else count * step) + 4
    data = file.once(block, size, what)
    check_sum(data, block)
    if data[:6] != b"FADB\0" + bytes([spare > 0]) or number(data[6:14]) != address:
        raise damaged(block, f"{what}; found none")
    parts = [] if pages else [data[14:-4]]
    at = block + size
    for index in range(pages):
        length = min(page, count - index * page) * step + 4
        if data[14 + index // 8] >> (7 - index % 8) & 1:
            part = file.once(at, length, what)
            check_sum(part, at)
            parts.append(part[:-4])
        at += length
    for part in parts:
        for place in range(0, len(part), step):
            length = number(part[place + 8 : place + 8 + spare]) if spare else whole
            yield number(part[place : place + 8]), length
