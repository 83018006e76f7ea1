"""Paths as text: readable, and the same path again."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.errors import ConfigError, UsageError
from qmux.paths import escaped, path_of, text_of


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"/etc/qmux/server.toml", "/etc/qmux/server.toml"),
        ("/b\u00fccher und mehr".encode(), "/b\u00fccher und mehr"),
        (b"/caf\xe9", r"/caf\xe9"),
        (rb"/a\xe9", r"/a\\xe9"),
        (b"/a\nb\x1b[2J", r"/a\u000ab\u001b[2J"),
    ],
)
def test_a_path_as_text(path: bytes, text: str) -> None:
    assert text_of(os.fsdecode(path)) == text
    assert os.fsencode(path_of(text)) == path


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass")))
def test_every_path_comes_back(path: bytes) -> None:
    text = text_of(os.fsdecode(path))
    assert text.isprintable() or not text
    assert text.encode().decode() == text
    assert os.fsencode(path_of(text)) == path


def test_an_error_s_text_can_be_shown_and_sent() -> None:
    assert str(UsageError("a\udcff\x1b[2J\nb\\c")) == "a\\xff\\u001b[2J\nb\\c"
    assert ConfigError(["x\udcff: bad"], "x").problems == ("x\\xff: bad",)
    assert escaped("\U000e0001") == "\\U000e0001"
