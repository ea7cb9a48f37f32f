"""B-trees of both versions and fractal heaps in HDF5 files: what they hold, once it is in order."""

from collections.abc import Iterator

from dogwood_jax.keras_h5._files.binary import (
    NOWHERE,
    OTHERWISE,
    File,
    check_sum,
    damaged,
    number,
)
from dogwood_jax.keras_h5._files.checksum import checksum


def leaves(file: File, root: int, kind: int, key: int) -> Iterator[tuple[int, bytes]]:
    """Yields what the leaves of a B-tree lead to, and their keys of so many bytes."""
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


def records(file: File, tree: int) -> Iterator[bytes]:
    """Yields the records of a B-tree of version 2."""
    what = "a B-tree of version 2"
    head = file.once(tree, 38, what)
    check_sum(head, tree)
    kind, size, depth = head[5], number(head[10:12]), number(head[12:14])
    root, count = number(head[16:24]), number(head[24:26])
    if head[:5] != b"BTHD\0" or (kind, size) not in ((5, 11), (6, 15)) or depth > 1:
        raise damaged(tree, f"{what} with links, of two levels at most; found another")
    most = (number(head[6:10]) - 10) // size  # records of a node
    width = 8 + (1 if most < 256 else 2)
    nodes = [(root, count, depth)] if count else []
    while nodes:
        node, count, depth = nodes.pop()
        end = 6 + count * size
        block = file.once(node, end + (count + 1) * width * depth + 4, what)
        check_sum(block, node)
        if block[:6] != (b"BTIN\0" if depth else b"BTLF\0") + bytes([kind]):
            raise damaged(node, f"{what}; found none")
        yield from (block[at : at + size] for at in range(6, end, size))
        for at in range(end, end + (count + 1) * width * depth, width):
            child = block[at : at + width]
            nodes.append((number(child[:8]), number(child[8:]), 0))


class Heap:
    """A fractal heap: objects by their places in blocks. Later blocks are larger."""

    def __init__(self, file: File, address: int):
        what = "a heap of links"
        head = file.once(address, 146, what)
        check_sum(head, address)
        width, start = number(head[110:112]), number(head[112:120])
        largest, bits = number(head[120:128]), number(head[128:130])
        root, rows = number(head[132:140]), number(head[140:142])
        # The flag 2: blocks have checksums. Not larger than Keras's: blocks in blocks are refused.
        if head[:5] != b"FRHP\0" or head[5:10] != b"\7\0\0\0\2" or bits != 32:
            raise damaged(address, f"{what} {OTHERWISE}")
        sizes = [start << max(row - 1, 0) for row in range(rows)] or [start]
        if width > 16 or not 0 < sizes[-1] <= largest <= 1 << 16:
            raise damaged(address, f"{what} of at most 64 KiB in a block")
        blocks = [root]
        if rows:
            table = file.once(root, 17 + 8 * width * rows + 4, what)
            check_sum(table, root)
            if not table.startswith(b"FHIB\0"):
                raise damaged(root, f"{what}; found none")
            blocks = [number(table[at : at + 8]) for at in range(17, len(table) - 4, 8)]
            sizes = [size for size in sizes for _ in range(width)]
        self._blocks = {}
        place = 0
        for block, size in zip(blocks, sizes):
            if block != NOWHERE:
                data = file.once(block, size, what)
                if checksum(data[:17] + bytes(4) + data[21:]) != number(data[17:21]):
                    raise damaged(block, f"{what} with its checksum; found another")
                if data[:5] != b"FHDB\0" or number(data[13:17]) != place:
                    raise damaged(block, f"{what}; found none")
                self._blocks[place] = data
            place += size
        self._address = address

    def read(self, place: bytes) -> bytes:
        """Returns an object by its place: a byte for its sort, its start and its size."""
        start, size = number(place[1:5]), number(place[5:])
        for at, data in self._blocks.items():
            if place[0] == 0 and at + 21 <= start and start + size <= at + len(data):
                return data[start - at : start - at + size]
        raise damaged(self._address, "a heap of links; found one that is not in it")
