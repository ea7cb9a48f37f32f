"""Reads the bytes of an HDF5 file by its own addresses, and makes errors about them."""

from typing import IO

from dogwood_jax.keras_h5._files.errors import KerasFileError

_MASK = 0xFFFFFFFF


def _turned(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK


def checksum(data: bytes) -> int:
    """Returns HDF5's checksum of bytes.

    Example:
        >>> hex(checksum(b"Four score and seven years ago"))
        '0x17770551'
    """
    a = b = c = 0xDEADBEEF + len(data) & _MASK
    last = max(len(data) - 1, 0) // 12 * 12  # the last 1 to 12 bytes are mixed differently
    for at in range(0, last, 12):
        a = a + int.from_bytes(data[at : at + 4], "little") & _MASK
        b = b + int.from_bytes(data[at + 4 : at + 8], "little") & _MASK
        c = c + int.from_bytes(data[at + 8 : at + 12], "little") & _MASK
        for bits in (4, 6, 8, 16, 19, 4):
            a = (a - c & _MASK) ^ _turned(c, bits)
            c = c + b & _MASK
            a, b, c = b, c, a
    if not data:
        return c
    a = a + int.from_bytes(data[last : last + 4], "little") & _MASK
    b = b + int.from_bytes(data[last + 4 : last + 8], "little") & _MASK
    c = c + int.from_bytes(data[last + 8 :], "little") & _MASK
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _turned(b, bits) & _MASK
        a, b, c = b, c, a
    return b


_SIGNATURE = b"\x89HDF\r\n\x1a\n"
NOWHERE = (1 << 64) - 1

OTHERWISE = "as Keras writes it; load the file in Keras, and save it again"
REPACKED = "as Keras writes it; h5repack -l CONTI old.h5 new.h5 writes the file so"


class File:
    """The bytes of a file by HDF5's own addresses, which count from its superblock."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        end = stream.seek(0, 2)
        self.base = 0
        while self._at(self.base, 8) != _SIGNATURE:
            self.base = max(2 * self.base, 512)
            if self.base >= end:
                raise KerasFileError(
                    "at byte 0: expected an HDF5 file or a .keras archive; found neither"
                )
        self._end = end - self.base
        self._seen: set[int] = set()
        self._left = 4 * end + (1 << 20)

    def _at(self, place: int, size: int) -> bytes:
        self._stream.seek(place)
        return self._stream.read(size)

    def within(self, address: int, size: int, what: str) -> None:
        """Raises unless these bytes lie completely in the file."""
        if address + size > self._end:
            raise damaged(address, f"{what} within the file; found one of {size:,} bytes")

    def check_end(self, end: int) -> None:
        """Raises if the file ends before the end that its superblock declares."""
        if end > self.base + self._end:
            found = self.base + self._end
            raise KerasFileError(
                f"at /: expected an HDF5 file of {end:,} bytes, as its superblock declares; found "
                f"{found:,}: the file is truncated, or was not copied completely"
            )

    def read(self, address: int, size: int, what: str) -> bytes:
        """Returns bytes of a structure; all reads together may be about 4 times the file."""
        self.within(address, size, what)
        self._left -= size
        if self._left < 0:
            raise damaged(address, f"{what} in bytes of its own; found many that overlap")
        return self._at(self.base + address, size)

    def once(self, address: int, size: int, what: str) -> bytes:
        """Returns the first bytes of a structure; raises if it has been read before."""
        if address in self._seen:
            raise damaged(address, f"{what} with one reference to it; found more, or a cycle")
        self._seen.add(address)
        return self.read(address, size, what)


def check_sum(block: bytes, address: int) -> None:
    """Raises unless a structure ends with the checksum of its bytes."""
    if checksum(block[:-4]) != number(block[-4:]):
        raise damaged(address, "a structure with its own checksum; found a different one")


def number(data: bytes) -> int:
    """Returns the integer in bytes of HDF5, which are little-endian."""
    return int.from_bytes(data, "little")


def text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def damaged(address: int, expected: str) -> KerasFileError:
    return KerasFileError(f"at address {address:,}: expected {expected}")


def refused(name: str, expected: str) -> KerasFileError:
    return KerasFileError(f"at {name}: expected {expected}")
