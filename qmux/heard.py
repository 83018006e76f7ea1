"""What others say, made fit to be shown: a close reason, a name in a certificate, whatever a peer chose to send."""

from __future__ import annotations

SAID_BYTES = 200
"""What is shown of a text that a peer chose: enough for a sentence, too little to fill a log."""


def heard(text: object, limit_bytes: int = SAID_BYTES) -> str:
    """``text`` on one line, printable, and at most ``limit_bytes`` bytes of UTF-8 long."""
    # Cut before escaping, too: a reason of 64 KiB is not worth the time.
    return clipped(escaped(str(text)[: limit_bytes + 1]), limit_bytes)


def escaped(text: str) -> str:
    """``text`` with what cannot be printed escaped, C1 control characters and lone surrogates included: a peer's words
    may neither begin a line of their own nor steer a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clipped(text: str, limit_bytes: int) -> str:
    """``text`` where it has at most ``limit_bytes`` bytes, else its beginning and an ellipsis."""
    if len(text) * 4 <= limit_bytes:  # no character has more than four bytes
        return text
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return text
    return data[: limit_bytes - len("…".encode())].decode("utf-8", "ignore") + "…"
