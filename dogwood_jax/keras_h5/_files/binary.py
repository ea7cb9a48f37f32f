"""The bytes of an HDF5 file by its own addresses, and the errors about them."""

from typing import IO

from dogwood_jax.keras_h5._files.checksum import checksum
from dogwood_jax.keras_h5._files.errors import KerasFileError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
NOWHERE = (1 << 64) - 1

OTHERWISE = "as Keras writes it; load the file in Keras, and save it again"
REPACKED = "as Keras writes it; h5repack -l CONTI old.h5 new.h5 writes the file so"


class File:
    """The bytes of a file by HDF5's own addresses, which begin at its superblock."""

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
        """Raises if something is not in the file whole."""
        if address + size > self._end:
            raise damaged(address, f"{what} within the file; found one of {size:,} bytes")

    def check_end(self, end: int) -> None:
        """Raises if the file is shorter than it says."""
        if end > self.base + self._end:
            found = self.base + self._end
            raise KerasFileError(
                f"at /: expected an HDF5 file of {end:,} bytes, as it says; found {found:,}: "
                "it has been cut off, or not been copied whole"
            )

    def read(self, address: int, size: int, what: str) -> bytes:
        """Returns bytes of a structure; all together may be a few times those of the file."""
        self.within(address, size, what)
        self._left -= size
        if self._left < 0:
            raise damaged(address, f"{what} by itself; found one that overlaps with many")
        return self._at(self.base + address, size)

    def once(self, address: int, size: int, what: str) -> bytes:
        """Returns the first bytes of a structure that nothing else leads to."""
        if address in self._seen:
            raise damaged(address, f"{what} that one other leads to; found more, or itself")
        self._seen.add(address)
        return self.read(address, size, what)


def check_sum(block: bytes, address: int) -> None:
    """Raises unless a structure ends with the checksum of its bytes."""
    if checksum(block[:-4]) != number(block[-4:]):
        raise damaged(address, "a structure with its checksum; found another")


def number(data: bytes) -> int:
    """Returns the number that bytes of HDF5 are, the last ones first."""
    return int.from_bytes(data, "little")


def text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def damaged(address: int, expected: str) -> KerasFileError:
    return KerasFileError(f"at address {address:,}: expected {expected}")


def refused(name: str, expected: str) -> KerasFileError:
    return KerasFileError(f"at {name}: expected {expected}")
