from __future__ import annotations

import enum

import pytest

from qmux.protocol import reasons
from qmux.protocol.frames import AppCode, RefuseCode, RejectCode


def is_plain(text: str, code: enum.Enum) -> bool:
    """Words with a meaning of their own, not the code said again."""
    return len(text.split()) >= 4 and ("_" not in code.value or code.value not in text) and text.isprintable()


@pytest.mark.parametrize("code", RejectCode)
def test_every_reject_code_has_plain_words(code: RejectCode) -> None:
    assert is_plain(reasons.rejected(code, ""), code)


@pytest.mark.parametrize("code", [code for code in RefuseCode if code is not RefuseCode.REFUSED])
def test_every_refuse_code_has_plain_words(code: RefuseCode) -> None:
    assert is_plain(reasons.refused(code, ""), code)


def test_refused() -> None:
    assert reasons.refused("refused", "") == "the service refused the connection: is it running?"


@pytest.mark.parametrize("code", AppCode)
def test_every_close_code_has_words(code: AppCode) -> None:
    assert not reasons.closed(code).startswith("code ")


def test_words_say_different_things() -> None:
    assert len({reasons.rejected(code, "") for code in RejectCode}) == len(RejectCode)
    assert len({reasons.refused(code, "") for code in RefuseCode}) == len(RefuseCode)
    assert len({reasons.closed(code) for code in AppCode}) == len(AppCode)


def test_the_detail_comes_first() -> None:
    text = reasons.rejected("unknown_service", "web")
    assert text.startswith("web: the server has no such service")


def test_codes_of_a_later_release() -> None:
    assert reasons.rejected("quota", "") == "quota (a reason unknown to this release)"
    assert reasons.refused("quota", "x") == "x: quota (a reason unknown to this release)"
    assert reasons.closed(0x99) == "code 0x99"


def test_a_peers_words_do_not_steer_the_terminal() -> None:
    assert reasons.rejected("invalid", "\x1b[2Jhello\r\n").startswith(r"\x1b[2Jhello\r\n: ")
    assert reasons.rejected("invalid", "x" * 1000).startswith("x" * 197 + "…: ")
    assert reasons.rejected("\x9b" * 128, "").isprintable()
