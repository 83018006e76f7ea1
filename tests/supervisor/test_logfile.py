from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmux.config.schema import LogConfig
from qmux.errors import StartError
from supervisor.logfile import STDERR, LogFile


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """The root logger as it was: each LogFile takes it over."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_without_a_file_it_is_stderr() -> None:
    log = LogFile(LogConfig())
    assert (log.fd, log.path) == (STDERR, "")
    log.close()
    os.fstat(STDERR)  # it is not ours to close


def test_a_rotated_file_is_left_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(LogConfig(file=str(path)))
    logging.getLogger("test").warning("before")
    path.rename(tmp_path / "log.1")
    logging.getLogger("test").warning("between")
    log.reopen()
    logging.getLogger("test").warning("after")
    assert [line.split()[-1] for line in (tmp_path / "log.1").read_text().splitlines()] == ["before", "between"]
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["after"]
    assert not os.get_inheritable(log.fd)
    log.close()


def test_what_cannot_be_opened_leaves_the_log_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="create its directory"):
        LogFile(LogConfig(file=str(tmp_path / "nowhere" / "log")))
    log = LogFile(LogConfig(file=str(tmp_path / "log")))
    before = log.fd
    with pytest.raises(StartError, match="create its directory"):
        log.follow(LogConfig(file=str(tmp_path / "nowhere" / "log")))
    assert (log.fd, log.path) == (before, str(tmp_path / "log"))
    log.close()


def test_following_says_whether_the_descriptor_is_another(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    log = LogFile(LogConfig(file=first))
    assert not log.follow(LogConfig(file=first, level="debug"))
    logging.getLogger("test").debug("shown")
    assert "shown" in Path(first).read_text()
    assert log.follow(LogConfig(file=second))
    logging.getLogger("test").warning("moved")
    assert "moved" in Path(second).read_text()
    log.close()
