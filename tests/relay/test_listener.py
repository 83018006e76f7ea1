from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from unittest import mock

import pytest

from qmux.relay.listener import BATCH, Listener
from tests.aio import polled, until


class Bind:
    """A Listener on loopback, who came, and users that connect to it."""

    def __init__(self, may_accept: Callable[[], bool] = lambda: True) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self.socket.getsockname()
        self.accepted: list[socket.socket] = []
        self.users: list[socket.socket] = []
        self.listener = Listener(self.socket, "web", lambda user, _: self.accepted.append(user), may_accept)

    def connect(self, count: int = 1) -> None:
        for _ in range(count):
            self.users.append(socket.create_connection(self.address, timeout=15))

    def __enter__(self) -> Bind:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close(shutdown=False)
        for each in self.accepted + self.users:
            each.close()


def is_alive(user: socket.socket) -> bool:
    """Whether the connection was neither reset nor closed."""
    user.setblocking(False)
    try:
        return user.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


async def test_nothing_before_start() -> None:
    with Bind() as bind:
        bind.connect(3)
        await polled()
        assert not bind.accepted
        bind.listener.start()
        bind.listener.start()
        await until(lambda: len(bind.accepted) == 3)
        assert bind.listener.address == bind.address


async def test_a_burst_leaves_the_loop_its_turns() -> None:
    with Bind() as bind:
        bind.connect(3 * BATCH)
        bind.listener.start()
        most, seen = 0, 0
        while len(bind.accepted) < 3 * BATCH:
            await asyncio.sleep(0)
            most, seen = max(most, len(bind.accepted) - seen), len(bind.accepted)
        assert 0 < most <= BATCH


async def test_users_above_the_limit_wait_in_the_kernel() -> None:
    allowed, asked = 2, 0

    def may_accept() -> bool:
        nonlocal asked
        asked += 1
        return len(bind.accepted) < allowed

    with Bind(may_accept) as bind:
        bind.listener.start()
        bind.connect(5)
        await until(lambda: len(bind.accepted) == 2)
        asked = 0
        await until(lambda: asked == 2, what="it looks again")
        assert len(bind.accepted) == 2
        assert all(is_alive(user) for user in bind.users)
        allowed = 4
        await until(lambda: len(bind.accepted) == 4)


async def test_a_user_that_gave_up_while_queued() -> None:
    with Bind() as bind:
        bind.connect(2)
        gone = bind.users.pop(0)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        gone.close()
        bind.listener.start()
        await until(lambda: any(is_alive(user) for user in bind.accepted))
        bind.connect()
        await until(lambda: sum(is_alive(user) for user in bind.accepted) == 2)


async def test_close_with_shutdown_takes_who_is_queued_and_ends_the_bind_for_all() -> None:
    with Bind() as bind:
        duplicate = bind.socket.dup()
        bind.listener.start()
        bind.connect(50)
        bind.listener.close(shutdown=True)
        assert len(bind.accepted) == 50
        assert all(is_alive(user) for user in bind.users)
        with pytest.raises(ConnectionRefusedError):
            bind.connect()
        with duplicate, pytest.raises(OSError, match="Invalid argument"):
            duplicate.accept()
        bind.listener.close(shutdown=True)


async def test_close_with_shutdown_keeps_to_the_limit() -> None:
    with Bind(lambda: len(bind.accepted) < 3) as bind:
        bind.connect(5)
        bind.listener.close(shutdown=True)
        assert len(bind.accepted) == 3


async def test_close_without_shutdown_leaves_the_queue_to_others() -> None:
    with Bind() as bind:
        duplicate = bind.socket.dup()
        bind.connect(3)
        bind.listener.close(shutdown=False)
        assert not bind.accepted
        bind.connect()
        with duplicate:
            for _ in range(4):
                bind.accepted.append(duplicate.accept()[0])
        assert all(is_alive(user) for user in bind.users)


async def test_a_bind_that_another_process_shut_down_ends_here_too() -> None:
    with Bind() as bind:
        duplicate = bind.socket.dup()
        bind.listener.start()
        with duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
        await until(lambda: bind.socket.fileno() < 0)
        bind.listener.start()
        bind.listener.close(shutdown=True)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO, errno.EPERM])
async def test_what_accept_may_say_only_pauses(number: int, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(number, os.strerror(number))
            return super().accept()

    with Bind() as bind:
        failing = Failing(fileno=bind.socket.detach())
        bind.listener = Listener(failing, "web", lambda user, _: bind.accepted.append(user), lambda: True)
        bind.listener.start()
        bind.connect()
        await until(lambda: bind.accepted)
    assert [record.__dict__["reason"] for record in caplog.records] == [os.strerror(number)] * 2


async def test_closing_while_paused() -> None:
    asked = Counter[str]()

    def asks(name: str) -> Callable[[], bool]:
        return lambda: asked.update([name]) is not None  # counts, and says no

    with Bind(asks("other")) as other, Bind() as bind:
        bind.listener = Listener(bind.socket, "web", lambda *_: None, asks("closing"))
        bind.listener.start()
        bind.connect()
        await until(lambda: asked["closing"])
        with mock.patch.object(bind.listener, "start") as start:
            bind.listener.close(shutdown=False)
            other.listener.start()
            other.connect()
            await until(lambda: asked["other"] == 2, what="a pause that began later is over")
        start.assert_not_called()
        assert asked["closing"] == 1


async def test_closing_from_the_callback() -> None:
    accepted: list[socket.socket] = []

    def on_accept(user: socket.socket, _: object) -> None:
        accepted.append(user)
        listener.close(shutdown=False)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listener = Listener(listening, "web", on_accept, lambda: True)
        users = [socket.create_connection(listener.address) for _ in range(2)]
        listener.start()
        await until(lambda: accepted)
        await polled()
        assert len(accepted) == 1
    for each in users + accepted:
        each.close()


# --- out of descriptors, in a process of its own ---


@contextlib.contextmanager
def limited(descriptors: int) -> Iterator[tuple[IO[str], queue.Queue[str]]]:
    """``tests/relay/exhausted.py`` with this many descriptors to spare: its input and its lines."""
    command = [sys.executable, str(Path(__file__).with_name("exhausted.py")), str(descriptors)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        output = process.stdout
        reader = threading.Thread(target=lambda: [lines.put(line.strip()) for line in output])
        reader.start()
        try:
            yield process.stdin, lines
        finally:
            process.kill()
            reader.join()


def wait_for(lines: queue.Queue[str], text: str) -> list[str]:
    """Lines up to one that begins with ``text``."""
    seen = [lines.get(timeout=20)]
    while not seen[-1].startswith(text):
        seen.append(lines.get(timeout=20))
    return seen


def test_out_of_descriptors_users_wait_and_are_served_later() -> None:
    with limited(descriptors=4) as (stdin, lines):
        port = int(wait_for(lines, "port ")[-1].removeprefix("port "))
        users = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(8)]
        seen = wait_for(lines, "log ")
        assert seen == [
            *(f"accepted {number}" for number in range(1, 5)),
            "log accept paused: Too many open files",
        ]
        stdin.write("free\n")
        stdin.flush()
        seen = wait_for(lines, "accepted 4")
        assert [line for line in seen if line.startswith("acc")] == [f"accepted {number}" for number in range(1, 5)]
        for user in users[:4]:
            assert user.recv(1) == b""
        assert all(is_alive(user) for user in users[4:])
        for user in users:
            user.close()
