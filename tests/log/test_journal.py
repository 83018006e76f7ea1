"""Lines for systemd's journal: a priority, and no time of their own."""

from __future__ import annotations

import json
import logging
import os
import re

import pytest

from qmux import log as qmux_log
from tests.log.made import Written

log = logging.getLogger("qmux.test")


def into_journal(monkeypatch: pytest.MonkeyPatch, style: str = "human", stream: str = "") -> Written:
    written = Written()
    found = os.fstat(written.fd)
    monkeypatch.setenv("JOURNAL_STREAM", stream or f"{found.st_dev}:{found.st_ino}")
    qmux_log.configure("debug", style, "worker-0", written.fd)
    return written


def test_each_level_has_its_priority_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    written = into_journal(monkeypatch)
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("x", extra={"service": "web"})
    assert written.lines == [
        "<7>debug   worker-0    x  service=web",
        "<6>info    worker-0    x  service=web",
        "<4>warning worker-0    x  service=web",
        "<3>error   worker-0    x  service=web",
        "<2>critical worker-0    x  service=web",
    ]


def test_every_line_of_a_traceback_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = into_journal(monkeypatch)
    try:
        raise RuntimeError("a\nb")
    except RuntimeError:
        log.exception("task failed")
    assert len(written.lines) > 3
    assert all(line.startswith("<3>") for line in written.lines)


def test_an_object_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    written = into_journal(monkeypatch, "json")
    log.warning("x")
    (line,) = written.lines
    assert line.startswith("<4>{")
    assert json.loads(line[3:]) == {"level": "warning", "process": "worker-0", "pid": os.getpid(), "event": "x"}


@pytest.mark.parametrize("stream", ["1:2", "", "nonsense"])
def test_elsewhere_a_line_has_its_time(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    written = into_journal(monkeypatch, stream=stream or " ")
    log.warning("x")
    assert re.match(r"\d{4}-\d\d-\d\dT", written.text)


def test_a_log_that_moves_away_from_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """``[log] file`` of a service of systemd, and SIGUSR1."""
    written = into_journal(monkeypatch)
    log.warning("there")
    assert written.text.startswith("<4>")
    other = Written()
    os.dup2(other.fd, written.fd)
    qmux_log.moved()
    log.warning("here")
    assert re.match(r"\d{4}-\d\d-\d\dT", other.text)


def test_last_words_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    written = into_journal(monkeypatch)
    qmux_log.say("server.toml:1: no\n1 error in server.toml", fd=written.fd)
    assert written.text == "<3>server.toml:1: no\n<3>1 error in server.toml\n"
