"""What a peer says is short and cannot steer a terminal."""

from __future__ import annotations

import pytest

from qmux.heard import SAID_BYTES, clipped, heard


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no such service", "no such service"),
        ("", ""),
        (ValueError("a\nb"), r"a\nb"),
        ("a\x9b\x00", r"a\x9b\x00"),
        ("ä" * 100, "ä" * 100),
        ("ä" * 101, "ä" * 98 + "…"),
        ("\x1b" * 60, r"\x1b" * 49 + "\\…"),
    ],
)
def test_what_a_peer_says_is_short_and_printable(said: object, shown: str) -> None:
    assert heard(said) == shown
    assert len(shown.encode()) <= SAID_BYTES
    assert heard(heard(said)) == shown


def test_clipping_counts_bytes() -> None:
    assert clipped("aä" * 3, 9) == "aä" * 3
    assert clipped("aä" * 3, 8) == "aäa…"
