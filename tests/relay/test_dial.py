from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from qmux import sockets
from qmux.config.schema import Target
from qmux.protocol.frames import RefuseCode
from qmux.relay import dial as dialling
from qmux.relay.dial import DialFailed, dial, literal_address
from qmux.resolver import Resolver
from tests.aio import polled, run, until


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


async def dialling_to(where: Target, timeout_s: float = 5.0) -> socket.socket:
    return await dial(where, Resolver(), timeout_s)


def connected(where: Target, timeout_s: float = 5.0) -> socket.socket:
    return run(dialling_to(where, timeout_s))  # type: ignore[no-any-return]


def failure(where: Target, timeout_s: float = 5.0) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        connected(where, timeout_s)
    return caught.value


def test_tcp() -> None:
    with listening() as listener, connected(target(listener)) as sock:
        accepted, _ = listener.accept()
        with accepted:
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sock.send(b"hello")
            assert accepted.recv(5) == b"hello"


def test_ipv6() -> None:
    with listening(socket.AF_INET6, ("::1", 0)) as listener, connected(target(listener, "::1")) as sock:
        assert sock.family == socket.AF_INET6


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_name_with_both_families_finds_the_one_that_listens(family: int, address: str) -> None:
    """Whatever the resolver here says of localhost: this name has both, IPv6 first."""

    def both(*_: Any, **__: Any) -> list[Any]:
        return [*literal_address("::1", 0), *literal_address("127.0.0.1", 0)]

    with (
        listening(family, (address, 0)) as listener,
        mock.patch.object(socket, "getaddrinfo", both),
        connected(target(listener, "both.example")) as sock,
    ):
        assert sock.family == family


def test_a_name_server_that_does_not_answer() -> None:
    with silent_names(), pytest.raises(DialFailed) as caught:
        connected(Target("app.example", 80), 0.2)
    assert (caught.value.code, caught.value.reason) == (
        RefuseCode.NAME,
        "app.example:80: no answer from the name server",
    )


@contextlib.contextmanager
def silent_names() -> Iterator[None]:
    """Lookups that end when this does."""
    over = threading.Event()

    def silent(host: str, *_: Any, **__: Any) -> list[Any]:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "it is over")

    with mock.patch.object(socket, "getaddrinfo", silent):
        try:
            yield
        finally:
            over.set()


def test_the_second_family_does_not_wait_for_the_timeout_of_the_first() -> None:
    def both(*_: Any, **__: Any) -> list[Any]:
        return [*literal_address("::1", 0), *literal_address("127.0.0.1", 0)]

    with (
        listening() as listener,
        full(socket.AF_INET6, ("::1", listener.getsockname()[1])),
        mock.patch.object(socket, "getaddrinfo", both),
    ):
        started = time.monotonic()
        with connected(target(listener, "both.example"), 20.0) as sock:
            assert sock.family == socket.AF_INET
        assert time.monotonic() - started < 15


def test_a_unix_socket(directory: Path) -> None:
    path = str(directory / "app.sock")
    with listening(socket.AF_UNIX, path) as listener, connected(Target(path=path)) as sock:
        accepted, _ = listener.accept()
        with accepted:
            sock.send(b"hello")
            assert accepted.recv(5) == b"hello"


def test_refused(refusing: int) -> None:
    error = failure(Target("127.0.0.1", refusing))
    assert (error.code, error.reason) == (RefuseCode.REFUSED, f"127.0.0.1:{refusing}: Connection refused")


def test_refused_by_every_address_of_a_name(refusing: int) -> None:
    error = failure(Target("localhost", refusing))
    assert (error.code, error.reason) == (RefuseCode.REFUSED, f"localhost:{refusing}: Connection refused")


def test_timeout() -> None:
    with full(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        error = failure(target(listener), 0.3)
        assert time.monotonic() - started > 0.25
    assert error.code == RefuseCode.TIMEOUT
    assert error.reason.endswith("did not answer within 0.3 s")


def test_a_full_unix_socket_is_waited_for(directory: Path) -> None:
    """connect(2) says EAGAIN at once, and the socket then looks writable: it must not be taken for connected."""
    path = str(directory / "app.sock")

    async def main(listener: socket.socket) -> bytes:
        dialled = asyncio.ensure_future(dialling_to(Target(path=path)))
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
            return data

    with full(socket.AF_UNIX, path) as listener:
        assert run(main(listener)) == b"hello"


def test_a_unix_socket_that_stays_full(directory: Path) -> None:
    path = str(directory / "app.sock")
    with full(socket.AF_UNIX, path):
        assert failure(Target(path=path), 0.2).code == RefuseCode.TIMEOUT


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, RefuseCode.UNREACHABLE, "No such file or directory"),
        (lambda path: path.touch(), RefuseCode.REFUSED, "Connection refused"),
    ],
)
def test_unix_sockets_that_are_not_there(directory: Path, make: Any, code: RefuseCode, words: str) -> None:
    path = directory / "app.sock"
    make(path)
    error = failure(Target(path=str(path)))
    assert (error.code, error.reason) == (code, f"unix:{path}: {words}")


def test_a_unix_path_that_is_too_long() -> None:
    error = failure(Target(path="/" + "x" * 2000))
    assert error.code == RefuseCode.UNREACHABLE
    assert len(error.reason) <= 512  # it has to fit into a frame


@pytest.mark.parametrize("host", ["name.invalid", "x" * 70 + ".example", "a..b"])
def test_names_that_do_not_resolve(host: str) -> None:
    error = failure(Target(host, 80), 20.0)
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
        (errno.ECONNRESET, RefuseCode.RESET),
    ],
)
def test_what_the_kernel_says(number: int, code: RefuseCode) -> None:
    with mock.patch.object(dialling, "_dial_tcp", side_effect=OSError(number, "Connect call failed")):
        error = failure(Target("192.0.2.1", 80))
    assert error.code == code
    assert number == errno.ETIMEDOUT or error.reason == f"192.0.2.1:80: {os.strerror(number)}"


def test_no_descriptor_left() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> DialFailed:
        where = target(listener)
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        filled = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    filled.append(os.dup(0))
            with pytest.raises(DialFailed) as caught:
                await dialling_to(where)
            return caught.value
        finally:
            for each in filled:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with listening() as listener:
        error = run(main())
    assert error.code == RefuseCode.OVERLOADED
    assert error.reason.endswith("Too many open files")


def test_a_socket_that_connected_to_itself_is_a_refusal(refusing: int) -> None:
    """TCP's simultaneous open: the kernel may draw the target's own port for us."""

    async def to_itself(_: object) -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        return sock

    with mock.patch.object(dialling, "_dial_tcp", to_itself):
        error = failure(Target("127.0.0.1", refusing))
    assert (error.code, error.reason) == (RefuseCode.REFUSED, f"127.0.0.1:{refusing}: Connection refused")


def test_a_service_that_resets_at_once() -> None:
    """Before anybody looked at the socket: getpeername(2) then knows no peer any more."""

    async def reset_already(_: object) -> socket.socket:
        sock = socket.create_connection(listener.getsockname())
        sockets.reset(listener.accept()[0])
        await until(lambda: sockets.is_reset(sock), what="the reset is here")
        return sock

    with listening() as listener, mock.patch.object(dialling, "_dial_tcp", reset_already):
        error = failure(target(listener))
    assert error.code == RefuseCode.RESET
    assert error.reason.endswith("Connection reset by peer")


def test_cancelling_leaves_no_socket() -> None:
    async def main(where: Target) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            dialled = asyncio.ensure_future(dialling_to(where, 30.0))
            await polled()
            dialled.cancel()
            await asyncio.gather(dialled, return_exceptions=True)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    with full(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        run(main(target(listener)))


def test_literals_need_no_resolver() -> None:
    assert literal_address("127.0.0.1", 80)[0][4] == ("127.0.0.1", 80)
    assert literal_address("::1", 80)[0][4] == ("::1", 80, 0, 0)
    assert literal_address("localhost", 80) == []
