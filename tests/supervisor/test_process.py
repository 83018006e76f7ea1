from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmux.messages import Stop, Up
from supervisor.privileges import Owner
from supervisor.process import Launch, Process, all_ended, exit_words

pytestmark = pytest.mark.asyncio_loop

ME = Owner(os.geteuid(), os.getegid(), drops=False)


@pytest.fixture
def lock_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def launched(lock_fd: int, code: str, on_message: Callable[[Process, Up], None] = lambda *_: None) -> Process:
    def command(_kind: str, fd: int, name: str) -> list[str]:
        return [sys.executable, "-P", "-c", code, str(fd), name]

    return started(Launch(command, ME, lock_fd, lambda: 2, silent_exit_s=0.2), on_message)


def started(launch: Launch, on_message: Callable[[Process, Up], None] = lambda *_: None) -> Process:
    return Process(
        kind="worker",
        name="worker-0",
        index=0,
        slot=0,
        epoch=1,
        launch=launch,
        on_message=on_message,
        on_ended=lambda _: None,
    )


def test_exit_words() -> None:
    assert exit_words(3) == "exited with status 3"
    assert exit_words(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert "out of memory?" in exit_words(-signal.SIGKILL)
    assert exit_words(-50) == "killed by signal 50"


async def test_the_last_words_of_a_child_are_heard(lock_fd: int) -> None:
    """A child that speaks and ends at once: its messages come before its end."""
    code = (
        "import msgspec, os, socket, sys; from qmux.messages import Failed, Heartbeat;"
        "sock = socket.socket(fileno=int(sys.argv[1])); pack = msgspec.msgpack.encode;"
        "[sock.send(b'\\0' + pack(Heartbeat(n))) for n in range(100)];"
        "sock.send(b'\\0' + pack(Failed('no engine', 4))); os._exit(4)"
    )
    heard: list[Up] = []

    process = launched(lock_fd, code, lambda _, message: heard.append(message))
    assert await all_ended([process], 30)
    assert process.exit_words == "exited with status 4"
    assert len(heard) == 101


async def test_a_child_that_closes_its_channel_is_ended(lock_fd: int) -> None:
    process = launched(lock_fd, "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(60)")
    process.send(Stop())
    assert await all_ended([process], 30)
    assert process.exit_words == "killed by the supervisor"


async def test_a_child_that_breaks_the_format_is_ended(lock_fd: int) -> None:
    code = "import socket, sys, time; socket.socket(fileno=int(sys.argv[1])).send(b'junk'); time.sleep(60)"
    process = launched(lock_fd, code)
    assert await all_ended([process], 30)


async def test_the_lock_is_inherited_and_nothing_else(lock_fd: int) -> None:
    code = (
        "import os, sys; fds = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd') if int(fd) > 2];"
        "links = [os.readlink(fd) for fd in fds if os.path.lexists(fd)];"
        "sys.exit(sum(link.endswith('/lock') for link in links) * 10 + len(links))"
    )

    process = launched(lock_fd, code)
    assert await all_ended([process], 30)
    assert process.exit_words == "exited with status 12"  # the lock and the control channel


async def test_waiting_has_an_end(lock_fd: int) -> None:
    process = launched(lock_fd, "import time; time.sleep(60)")
    assert not await all_ended([process], 0.1)
    process.kill()
    assert await all_ended([process], 30)
    process.kill()  # of no consequence
    assert process.silent_s >= 0


async def test_what_cannot_be_executed_is_an_os_error(lock_fd: int) -> None:
    launch = Launch(lambda *_: ["/no/such/program"], ME, lock_fd, lambda: 2)
    with pytest.raises(FileNotFoundError):
        started(launch)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_privileges_are_dropped(lock_fd: int) -> None:
    check = 'test "$(id -u):$(id -g):$(id -G)" = 65534:65534:65534'

    owner = Owner(65534, 65534, drops=True)
    launch = Launch(lambda *_: ["/bin/sh", "-c", check], owner, lock_fd, lambda: 2)
    process = started(launch)
    assert await all_ended([process], 30)
    assert process.exit_words == "exited with status 0"
