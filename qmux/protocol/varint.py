"""Variable-length integers (RFC 9000 §16)."""

from __future__ import annotations

MAX = (1 << 62) - 1
_PREFIX = {1: 0x00, 2: 0x40, 4: 0x80, 8: 0xC0}


def encode(value: int) -> bytes:
    """The shortest encoding of ``value``. Raises ValueError above 2^62 - 1."""
    for size, bits in ((1, 6), (2, 14), (4, 30), (8, 62)):
        if 0 <= value < 1 << bits:
            encoded = bytearray(value.to_bytes(size, "big"))
            encoded[0] |= _PREFIX[size]
            return bytes(encoded)
    raise ValueError(f"{value} does not fit in a variable-length integer")


def length(first: int) -> int:
    """How many bytes the integer has whose first byte is ``first``."""
    return 1 << (first >> 6)


def decode(data: bytes) -> int:
    """The value of a complete encoding. Longer than necessary is allowed (RFC 9000 §16)."""
    return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 2)) - 1)
