"""The checksum of HDF5's structures: Bob Jenkins's lookup3, with 0 for its start."""

_MASK = 0xFFFFFFFF


def _turned(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK


def checksum(data: bytes) -> int:
    """Returns the checksum of bytes.

    Example:
        >>> hex(checksum(b"Four score and seven years ago"))
        '0x17770551'
    """
    a = b = c = 0xDEADBEEF + len(data) & _MASK
    last = max(len(data) - 1, 0) // 12 * 12  # the last part, of 1 to 12 bytes, is mixed otherwise
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
