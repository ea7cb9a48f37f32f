"""Reads and checks the B-trees of both versions and the fractal heaps of HDF5 files."""

from collections.abc import Iterator, Mapping

from dogwood_jax.keras_h5._files.binary import (
    NOWHERE,
    OTHERWISE,
    File,
    check_sum,
    checksum,
    damaged,
    number,
)

_WIDTH = 4  # bytes of an object's place in the blocks of a heap; its size takes two bytes
_LEVELS = 4  # upper limit on levels of a B-tree above its leaves: enough for millions of records


def leaves(file: File, root: int, kind: int, key: int) -> Iterator[tuple[int, bytes]]:
    """Yields the addresses in the leaves of a B-tree, each with its key of ``key`` bytes."""
    what = "a B-tree"
    nodes: list[tuple[int, int | None]] = [(root, None)]
    while nodes:
        address, level = nodes.pop()
        head = file.once(address, 24, what)
        if head[:5] != b"TREE" + bytes([kind]) or level not in (None, head[5]):
            raise damaged(address, f"{what} of kind {kind} and level {level or 0}; found none")
        step = key + 8
        body = file.read(address + 24, number(head[6:8]) * step + key, what)
        for at in range(0, len(body) - key, step):
            child = number(body[at + key : at + step])
            if head[5]:
                nodes.append((child, head[5] - 1))
            else:
                yield child, body[at : at + key]


def records(file: File, tree: int, sizes: Mapping[int, int]) -> Iterator[bytes]:
    """Yields the records of a B-tree of version 2.

    Args:
        file: the file.
        tree: the tree's address.
        sizes: the supported kinds of trees, each with the bytes of a record.
    """
    what = "a B-tree of version 2"
    head = file.once(tree, 38, what)
    check_sum(head, tree)
    kind, size, depth = head[5], number(head[10:12]), number(head[12:14])
    root, count = number(head[16:24]), number(head[24:26])
    space = number(head[6:10])
    if head[:5] != b"BTHD\0" or sizes.get(kind) != size or not 1 << 8 <= space <= 1 << 16:
        raise damaged(tree, f"{what}; found another")
    if depth > _LEVELS:
        raise damaged(tree, f"{what}, of at most {_LEVELS + 1} levels, {OTHERWISE}")
    levels = _levels(space, size, depth)
    nodes = [(root, count, depth)] if count else []
    while nodes:
        node, count, depth = nodes.pop()
        most, width = levels[depth]
        if count > most:
            raise damaged(node, f"{what} with at most {most} records in a node; found {count}")
        end = 6 + count * size
        pointers = end + (count + 1) * width if width else end
        block = file.once(node, pointers + 4, what)
        check_sum(block, node)
        if block[:6] != (b"BTIN\0" if depth else b"BTLF\0") + bytes([kind]):
            raise damaged(node, f"{what}; found none")
        yield from (block[at : at + size] for at in range(6, end, size))
        for at in range(end, pointers, width or 1):
            child = number(block[at : at + 8]), number(block[at + 8 : at + levels[1][1]])
            nodes.append((*child, depth - 1))


def _levels(space: int, size: int, depth: int) -> list[tuple[int, int]]:
    """Returns for each level the largest number of records in a node, and the bytes of a pointer.

    The first level is for leaves, which have no pointers. A pointer has a node's address, the
    number of its records and, unless the node is a leaf, the number of records below it. A number
    takes as many bytes as its largest value needs.

    Args:
        space: bytes of a node.
        size: bytes of a record.
        depth: levels above the leaves.
    """
    most = below = (space - 10) // size
    levels, count = [(most, 0)], 8 + _bytes(most)
    for level in range(depth):
        width = count + (_bytes(below) if level else 0)
        most = (space - 10 - width) // (size + width)
        below = (most + 1) * below + most
        levels.append((most, width))
    return levels


def _bytes(number: int) -> int:
    return (number.bit_length() + 7) // 8


class Heap:
    """A fractal heap, which finds objects by their places in blocks. Later blocks are larger.

    Args:
        file: the file.
        address: the address of the heap's header.
        what: the name of the heap in errors.
    """

    def __init__(self, file: File, address: int, what: str):
        head = file.once(address, 146, what)
        check_sum(head, address)
        columns, start = number(head[110:112]), number(head[112:120])
        largest, bits = number(head[120:128]), number(head[128:130])
        root, rows = number(head[132:140]), number(head[140:142])
        # Flag 2: blocks have checksums. Heaps whose index blocks hold index blocks are refused.
        expected = b"FRHP\0" + bytes([3 + _WIDTH, 0, 0, 0, 2])
        if head[:10] != expected or bits != 8 * _WIDTH:
            raise damaged(address, f"{what} {OTHERWISE}")
        sizes = [start << max(row - 1, 0) for row in range(rows)] or [start]
        if columns > 16 or not 0 < sizes[-1] <= largest <= 1 << 16:
            raise damaged(address, f"{what} of at most 64 KiB in a block")
        blocks = [root]
        if rows:
            start = 13 + _WIDTH
            table = file.once(root, start + 8 * columns * rows + 4, what)
            check_sum(table, root)
            if not table.startswith(b"FHIB\0"):
                raise damaged(root, f"{what}; found none")
            blocks = [number(table[at : at + 8]) for at in range(start, len(table) - 4, 8)]
            sizes = [size for size in sizes for _ in range(columns)]
        self._blocks = {}
        self._address, self._what = address, what
        self._end = end = 13 + _WIDTH + 4  # bytes of a block's header; the last 4 are the checksum
        place = 0
        for block, size in zip(blocks, sizes):
            if block != NOWHERE:
                data = file.once(block, size, what)
                found = number(data[end - 4 : end])
                if checksum(data[: end - 4] + bytes(4) + data[end:]) != found:
                    raise damaged(block, f"{what} with its own checksum; found a different one")
                if data[:5] != b"FHDB\0" or number(data[13 : end - 4]) != place:
                    raise damaged(block, f"{what}; found none")
                self._blocks[place] = data
            place += size

    def read(self, place: bytes) -> bytes:
        """Returns the object at a place: a byte for the kind of object, its start and its size."""
        start, size = number(place[1 : 1 + _WIDTH]), number(place[1 + _WIDTH :])
        for at, data in self._blocks.items():
            if place[0] == 0 and at + self._end <= start and start + size <= at + len(data):
                return data[start - at : start - at + size]
        raise damaged(self._address, f"objects inside {self._what}; found one outside")
