from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from qmux.config.schema import Target
from qmux.protocol.frames import RefuseCode
from qmux.relay import dial as dialling
from qmux.relay.dial import DialFailed, dial, literal_address
from tests.aio import polled, until


@contextlib.contextmanager
def listening(
    family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0), backlog: int = 8
) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def full(family: int, address: Any) -> Iterator[socket.socket]:
    """A listener whose queue takes nobody any more: an attempt to connect is not answered."""
    with listening(family, address, backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener


def target(listener: socket.socket, host: str = "127.0.0.1") -> Target:
    return Target(host, listener.getsockname()[1])


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qmux-dial-") as made:
        yield Path(made)


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that is bound and not listened on: nobody else can take it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def connected(where: Target, timeout_s: float = 5.0) -> socket.socket:
    return await dial(where, timeout_s)


async def failure(where: Target, timeout_s: float = 5.0) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await connected(where, timeout_s)
    return caught.value


async def test_tcp() -> None:
    with listening() as listener, await connected(target(listener)) as sock:
        accepted, _ = listener.accept()
        with accepted:
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sock.send(b"hello")
            assert accepted.recv(5) == b"hello"


async def test_ipv6() -> None:
    with listening(socket.AF_INET6, ("::1", 0)) as listener, await connected(target(listener, "::1")) as sock:
        assert sock.family == socket.AF_INET6


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_a_name_with_both_families_finds_the_one_that_listens(family: int, address: str) -> None:
    """Whatever the resolver here says of localhost: this name has both, IPv6 first."""

    async def both(_: str, port: int) -> list[Any]:
        return [*literal_address("::1", port), *literal_address("127.0.0.1", port)]

    with (
        listening(family, (address, 0)) as listener,
        mock.patch.object(dialling, "_resolve", both),
        await connected(target(listener, "both.example")) as sock,
    ):
        assert sock.family == family


async def test_the_second_family_does_not_wait_for_the_timeout_of_the_first() -> None:
    async def both(_: str, port: int) -> list[Any]:
        return [*literal_address("::1", deaf.getsockname()[1]), *literal_address("127.0.0.1", port)]

    with (
        full(socket.AF_INET6, ("::1", 0)) as deaf,
        listening() as listener,
        mock.patch.object(dialling, "_resolve", both),
    ):
        started = time.monotonic()
        with await connected(target(listener, "both.example"), 20.0) as sock:
            assert sock.family == socket.AF_INET
        assert time.monotonic() - started < 15


async def test_a_unix_socket(directory: Path) -> None:
    path = str(directory / "app.sock")
    with listening(socket.AF_UNIX, path) as listener, await connected(Target(path=path)) as sock:
        accepted, _ = listener.accept()
        with accepted:
            sock.send(b"hello")
            assert accepted.recv(5) == b"hello"


async def test_refused(refusing: int) -> None:
    error = await failure(Target("127.0.0.1", refusing))
    assert (error.code, error.reason) == (RefuseCode.REFUSED, f"127.0.0.1:{refusing}: Connection refused")


async def test_refused_by_every_address_of_a_name(refusing: int) -> None:
    error = await failure(Target("localhost", refusing))
    assert (error.code, error.reason) == (RefuseCode.REFUSED, f"localhost:{refusing}: Connection refused")


async def test_timeout() -> None:
    with full(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        error = await failure(target(listener), 0.3)
        assert time.monotonic() - started > 0.25
    assert error.code == RefuseCode.TIMEOUT
    assert error.reason.endswith("did not answer within 0.3 s")


async def test_a_full_unix_socket_is_waited_for(directory: Path) -> None:
    """connect(2) says EAGAIN at once, and the socket then looks writable: it must not be taken for connected."""
    path = str(directory / "app.sock")

    with full(socket.AF_UNIX, path) as listener:
        dialled = asyncio.ensure_future(dial(Target(path=path), 5.0))
        await polled()
        assert not dialled.done()
        accepted = []
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        accepted.append((await loop.sock_accept(listener))[0])
        await until(dialled.done, what="it tries again")
        with await dialled as sock:
            await loop.sock_sendall(sock, b"hello")
            sock.shutdown(socket.SHUT_WR)
            accepted.append((await loop.sock_accept(listener))[0])
            data = b""
            for each in accepted:
                with each:
                    each.setblocking(True)
                    each.settimeout(0.2)
                    with contextlib.suppress(TimeoutError):
                        data += each.recv(5)
            assert data == b"hello"


async def test_a_unix_socket_that_stays_full(directory: Path) -> None:
    path = str(directory / "app.sock")
    with full(socket.AF_UNIX, path):
        assert (await failure(Target(path=path), 0.2)).code == RefuseCode.TIMEOUT


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, RefuseCode.UNREACHABLE, "No such file or directory"),
        (lambda path: path.touch(), RefuseCode.REFUSED, "Connection refused"),
    ],
)
async def test_unix_sockets_that_are_not_there(directory: Path, make: Any, code: RefuseCode, words: str) -> None:
    path = directory / "app.sock"
    make(path)
    error = await failure(Target(path=str(path)))
    assert (error.code, error.reason) == (code, f"unix:{path}: {words}")


async def test_a_unix_path_that_is_too_long() -> None:
    error = await failure(Target(path="/" + "x" * 2000))
    assert error.code == RefuseCode.UNREACHABLE
    assert len(error.reason) <= 512  # it has to fit into a frame


@pytest.mark.parametrize("host", ["name.invalid", "x" * 70 + ".example", "a..b"])
async def test_names_that_do_not_resolve(host: str) -> None:
    error = await failure(Target(host, 80), 20.0)
    assert error.code == RefuseCode.NAME
    assert error.reason.startswith(f"{host}:80: ")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENETUNREACH, RefuseCode.UNREACHABLE),
        (errno.EHOSTUNREACH, RefuseCode.UNREACHABLE),
        (errno.EACCES, RefuseCode.UNREACHABLE),
        (errno.EADDRNOTAVAIL, RefuseCode.OVERLOADED),
        (errno.ENFILE, RefuseCode.OVERLOADED),
        (errno.ETIMEDOUT, RefuseCode.TIMEOUT),
    ],
)
async def test_what_the_kernel_says(number: int, code: RefuseCode) -> None:
    with mock.patch.object(dialling, "_dial_tcp", side_effect=OSError(number, "Connect call failed")):
        error = await failure(Target("192.0.2.1", 80))
    assert error.code == code
    assert number == errno.ETIMEDOUT or error.reason == f"192.0.2.1:80: {os.strerror(number)}"


async def test_no_descriptor_left() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening() as listener:
        where = target(listener)
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        filled = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    filled.append(os.dup(0))
            error = await failure(where)
        finally:
            for each in filled:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.code == RefuseCode.OVERLOADED
    assert error.reason.endswith("Too many open files")


async def test_a_socket_that_connected_to_itself_is_a_refusal(refusing: int) -> None:
    """TCP's simultaneous open: the kernel may draw the target's own port for us."""

    async def to_itself(host: str, port: int) -> socket.socket:
        sock = socket.socket()
        sock.bind((host, 0))
        sock.connect(sock.getsockname())
        return sock

    with mock.patch.object(dialling, "_dial_tcp", to_itself):
        error = await failure(Target("127.0.0.1", refusing))
    assert (error.code, error.reason) == (RefuseCode.REFUSED, f"127.0.0.1:{refusing}: Connection refused")


async def test_cancelling_leaves_no_socket() -> None:
    with full(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        where = target(listener)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            dialled = asyncio.ensure_future(dial(where, 30.0))
            await polled()
            dialled.cancel()
            await asyncio.gather(dialled, return_exceptions=True)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before


def test_literals_need_no_resolver() -> None:
    assert literal_address("127.0.0.1", 80)[0][4] == ("127.0.0.1", 80)
    assert literal_address("::1", 80)[0][4] == ("::1", 80, 0, 0)
    assert literal_address("localhost", 80) == []
