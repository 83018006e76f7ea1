from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from qmux.relay.handoff import MAX_MESSAGE_BYTES, Handoff, HandoffLink
from tests.aio import polled, until

USER = Handoff("web", "192.0.2.1:4000", "192.0.2.2:80", 7, "pod-1", bytes(16), 1, 250, (("pod-2", bytes(16)),))


class Pair:
    """Two ends in this process, and what arrived at the second."""

    def __init__(self) -> None:
        ours, self.raw = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.taken: list[tuple[socket.socket, Handoff]] = []
        self.ours = HandoffLink(ours, lambda *_: None)
        self.theirs: HandoffLink | None = None

    def listen(self) -> None:
        self.theirs = HandoffLink(self.raw, lambda user, about: self.taken.append((user, about)))

    def close(self) -> None:
        self.ours.close()
        self.raw.close() if self.theirs is None else self.theirs.close()
        for user, _ in self.taken:
            user.close()


@contextlib.asynccontextmanager
async def two_ends() -> AsyncIterator[Pair]:
    pair = Pair()
    try:
        yield pair
    finally:
        pair.close()


def user() -> tuple[socket.socket, socket.socket]:
    """A user's end, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=15)
        return ours, listener.accept()[0]


async def test_a_user_goes_over_whole() -> None:
    async with two_ends() as pair:
        pair.listen()
        far, near = user()
        far.sendall(b"early")
        assert pair.ours.send(near, USER)
        assert near.fileno() == -1
        await until(lambda: pair.taken)
        taken, about = pair.taken[0]
        assert about == USER
        assert not os.get_inheritable(taken.fileno())
        taken.setblocking(True)
        assert taken.recv(5) == b"early"
        taken.sendall(b"late")
        assert far.recv(4) == b"late"
        far.close()


@pytest.fixture
def taker() -> Iterator[tuple[socket.socket, subprocess.Popen[str]]]:
    """A process that echoes what users send, and our end of its link."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(Path(__file__).with_name("taker.py")), str(theirs.fileno())]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True, env=here) as process:
        theirs.close()
        yield ours, process
        process.kill()


async def test_between_two_processes(taker: tuple[socket.socket, subprocess.Popen[str]]) -> None:
    ours, process = taker
    link = HandoffLink(ours, lambda *_: None)
    for number in range(20):
        far, near = user()
        far.sendall(f"hello {number}".encode())
        assert link.send(near, msgspec.structs.replace(USER, conn_id=number))
        assert far.recv(100) == f"hello {number}".encode()
        assert far.recv(1) == b""
        far.close()
    link.close()
    output, _ = process.communicate(timeout=20)
    assert output.split() == [f"web:{number}" for number in range(20)]
    assert process.returncode == 0


async def test_a_full_queue_takes_nobody_and_loses_nobody() -> None:
    async with two_ends() as pair:
        sent: list[socket.socket] = []
        while True:
            far, near = user()
            if not pair.ours.send(near, USER):
                break
            sent.append(far)
            assert len(sent) < 2000
        assert near.fileno() >= 0
        near.sendall(b"still here")
        assert far.recv(10) == b"still here"
        pair.listen()
        await until(lambda: len(pair.taken) == len(sent), 20.0)
        assert pair.ours.send(near, USER)
        await until(lambda: len(pair.taken) == len(sent) + 1)
        for number, (taken, _) in enumerate(pair.taken[:-1]):
            taken.sendall(b"%d" % number)
            assert sent[number].recv(10) == b"%d" % number
        for each in [*sent, far]:
            each.close()


async def test_a_description_that_is_too_long_is_not_sent() -> None:
    async with two_ends() as pair:
        pair.listen()
        far, near = user()
        tried = tuple((f"pod-{number:0300}", bytes(16)) for number in range(16))
        assert not pair.ours.send(near, msgspec.structs.replace(USER, tried=tried))
        assert near.fileno() >= 0
        assert pair.ours.send(near, USER)
        far.close()


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        (b"\x00", 1),
        (b"\xff" * 40, 1),
        (b"\x80", 1),
        (msgspec.msgpack.encode(USER), 0),
        (msgspec.msgpack.encode(USER), 2),
        (msgspec.msgpack.encode(USER), 20),
        (msgspec.msgpack.encode(USER) + b"x" * MAX_MESSAGE_BYTES, 1),
        (b"\x81\xa7service\xa1\xff", 1),
        (b"\x91" * 4000, 1),
    ],
)
async def test_garbage_is_dropped_with_its_descriptors(
    data: bytes, descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_ends() as pair:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = HandoffLink(theirs, lambda user, about: pair.taken.append((user, about)))
        before = len(os.listdir("/proc/self/fd"))
        far, near = user()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [near.fileno()] * descriptors))]
        ours.sendmsg([data], rights if descriptors else [])
        near.close()
        await until(lambda: "could not be received" in caplog.text)
        assert not pair.taken
        if descriptors:
            assert far.recv(1) == b""
        far.close()
        assert len(os.listdir("/proc/self/fd")) == before
        far, near = user()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [near.fileno()]))]
        ours.sendmsg([msgspec.msgpack.encode(USER)], rights)
        near.close()
        await until(lambda: pair.taken)
        for each in (far, ours):
            each.close()
        link.close()


async def test_a_descriptor_that_is_no_socket(caplog: pytest.LogCaptureFixture) -> None:
    async with two_ends() as pair:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = HandoffLink(theirs, lambda user, about: pair.taken.append((user, about)))
        reading, writing = os.pipe()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writing]))]
        ours.sendmsg([msgspec.msgpack.encode(USER)], rights)
        os.close(writing)
        await until(lambda: "could not be received" in caplog.text)
        assert os.read(reading, 1) == b""  # no copy is left
        os.close(reading)
        ours.close()
        link.close()


async def test_the_other_end_is_gone() -> None:
    async with two_ends() as pair:
        pair.raw.close()
        far, near = user()
        assert not pair.ours.send(near, USER)
        await polled()  # it may notice and close, which changes nothing here
        assert not pair.ours.send(near, USER)
        near.sendall(b"x")
        assert far.recv(1) == b"x"
        for each in (far, near):
            each.close()
        pair.ours.close()
        pair.ours.close()


async def test_users_that_were_not_read_are_closed_with_the_pair() -> None:
    async with two_ends() as pair:
        far, near = user()
        assert pair.ours.send(near, USER)
        pair.raw.close()
        pair.ours.close()
        far.settimeout(5)
        assert far.recv(1) == b""
        far.close()


async def test_closing_from_the_callback() -> None:
    async with two_ends() as pair:

        def on_handed(taken: socket.socket, about: Handoff) -> None:
            pair.taken.append((taken, about))
            link.close()

        link = HandoffLink(pair.raw, on_handed)
        pair.theirs = link
        users = [user() for _ in range(2)]
        for _, near in users:
            assert pair.ours.send(near, USER)
        await until(lambda: pair.taken)
        await polled()
        assert len(pair.taken) == 1
        for far, _ in users:
            far.close()
