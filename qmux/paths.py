"""Paths as text. A path of Linux is bytes, and need be no UTF-8: what is stored, sent and printed of it must be text.

``text_of`` escapes what is no printable text, so that messages are readable, and ``path_of`` brings the path back. In
between only text travels: in a Config, between processes, in JSON.
"""

from __future__ import annotations

import os
import re

_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_FIRST_BYTE = 0xDC80  # what os.fsdecode makes of a byte that is no UTF-8 (PEP 383): 0xDC00 + the byte
_LAST_BYTE = 0xDCFF


def text_of(path: str | os.PathLike[str]) -> str:
    """``path`` as text: bytes that are no UTF-8 as ``\\xff``, what cannot be printed as ``\\u000a``, ``\\`` twice."""
    return "".join(map(_escaped, os.fspath(path)))


def path_of(text: str) -> str:
    """The path that ``text_of`` made ``text`` of, for the system's calls."""
    return _ESCAPED.sub(_restored, text)


def escaped(text: str) -> str:
    """``text`` for a message, on as many lines as it has: what cannot be printed is escaped, all else as it is."""
    return "".join(sign if sign in "\n\\" else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    if sign == "\\":
        return "\\\\"
    if sign.isprintable():
        return sign
    number = ord(sign)
    if _FIRST_BYTE <= number <= _LAST_BYTE:
        return f"\\x{number - 0xDC00:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _restored(found: re.Match[str]) -> str:
    byte, short, long = found.groups()
    if byte:
        return chr(0xDC00 + int(byte, 16))
    return chr(int(short or long, 16)) if short or long else "\\"
