from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qmux.config.schema import LogConfig
from qmux.errors import StartError
from supervisor import logfile
from supervisor.logfile import STDERR, LogFile
from tests.aio import until
from tests.log.made import logging_restored


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Each LogFile takes the root logger over."""
    with logging_restored():
        yield


def written(path: Path) -> str:
    """What was logged there until now."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return path.read_text()


def test_without_a_file_it_is_stderr() -> None:
    log = LogFile(LogConfig())
    assert (log.fd, log.path) == (STDERR, "")
    log.close()
    os.fstat(STDERR)  # it is not ours to close


async def test_a_rotated_file_is_left_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(LogConfig(file=str(path)))
    logging.getLogger("test").warning("before")
    path.rename(tmp_path / "log.1")
    logging.getLogger("test").warning("between")
    await log.reopen()
    logging.getLogger("test").warning("after")
    assert [line.split()[-1] for line in written(tmp_path / "log.1").splitlines()] == ["before", "between"]
    assert [line.split()[-1] for line in written(path).splitlines()] == ["after"]
    assert not os.get_inheritable(log.fd)
    log.close()


async def test_what_cannot_be_opened_leaves_the_log_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="create its directory"):
        LogFile(LogConfig(file=str(tmp_path / "nowhere" / "log")))
    log = LogFile(LogConfig(file=str(tmp_path / "log")))
    before = log.fd
    with pytest.raises(StartError, match="create its directory"):
        await log.follow(LogConfig(file=str(tmp_path / "nowhere" / "log")))
    assert (log.fd, log.path) == (before, str(tmp_path / "log"))
    log.close()


async def test_following_says_whether_the_descriptor_is_another(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    log = LogFile(LogConfig(file=first))
    assert not await log.follow(LogConfig(file=first, level="debug"))
    logging.getLogger("test").debug("shown")
    assert "shown" in written(Path(first))
    assert await log.follow(LogConfig(file=second))
    logging.getLogger("test").warning("moved")
    assert "moved" in written(Path(second))
    log.close()


def test_a_fifo_that_nobody_reads_is_an_error_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    with pytest.raises(StartError, match="a FIFO needs its reader first"):
        LogFile(LogConfig(file=str(path)))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(LogConfig(file=str(path)))
    assert os.get_blocking(log.fd)
    log.close()
    os.close(reader)


# --- links ---


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory in which another user may write, and beside it a file that is not theirs."""
    (tmp_path / "victim").write_text("")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    return shared


def symbolic(shared: Path) -> Path:
    (shared / "log").symlink_to(shared.parent / "victim")
    return shared / "log"


def dangling(shared: Path) -> Path:
    (shared / "log").symlink_to(shared.parent / "new")
    return shared / "log"


def hard(shared: Path) -> Path:
    (shared / "log").hardlink_to(shared.parent / "victim")
    return shared / "log"


def directory(shared: Path) -> Path:
    (shared / "logs").symlink_to(shared.parent)
    return shared / "logs" / "victim"


@pytest.mark.parametrize("link", [symbolic, dangling, hard, directory])
def test_no_link_is_followed_where_another_user_may_write(shared: Path, link: Callable[[Path], Path]) -> None:
    path = link(shared)
    with pytest.raises(StartError, match="another user may write"):
        LogFile(LogConfig(file=str(path)))
    assert (shared.parent / "victim").read_text() == ""
    assert not (shared.parent / "new").exists()


@pytest.mark.parametrize("link", [symbolic, dangling, hard, directory])
def test_elsewhere_a_link_is_the_administrators(shared: Path, link: Callable[[Path], Path]) -> None:
    shared.chmod(0o755)
    LogFile(LogConfig(file=str(link(shared)))).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_directory_of_another_user_is_one_where_it_may_write(shared: Path) -> None:
    shared.chmod(0o755)
    path = symbolic(shared)
    os.chown(shared, 65534, 65534)
    with pytest.raises(StartError, match="another user may write"):
        LogFile(LogConfig(file=str(path)))
    path.unlink()
    LogFile(LogConfig(file=str(path))).close()


async def test_a_link_that_appears_before_a_reopening_leaves_the_log_where_it_is(shared: Path) -> None:
    log = LogFile(LogConfig(file=str(shared / "log")))
    (shared / "log").unlink()
    symbolic(shared)
    before = log.fd
    with pytest.raises(StartError, match="another user may write"):
        await log.reopen()
    assert log.fd == before
    log.close()


def test_a_file_where_a_directory_should_be_is_no_link(shared: Path) -> None:
    (shared / "file").write_text("")
    with pytest.raises(StartError, match="Not a directory"):
        LogFile(LogConfig(file=str(shared / "file" / "log")))


async def test_a_disk_that_hangs_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogFile(LogConfig(file=str(tmp_path / "log")))
    before, opened = log.fd, threading.Event()
    really = os.open

    def hangs(*arguments: Any, **options: Any) -> int:
        opened.wait()
        return really(*arguments, **options)

    monkeypatch.setattr(logfile, "OPEN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(os, "open", hangs)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(StartError, match=r"not opened within 0.05 s"):
        await log.reopen()
    assert log.fd == before
    opened.set()
    await until(lambda: not any(thread.name == "log-open" for thread in threading.enumerate()))
    await until(lambda: os.listdir("/proc/self/fd") == descriptors)
    log.close()
