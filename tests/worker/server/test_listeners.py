"""The traffic binds of one worker: real listeners where Python accepts, the engine's where that does."""

from __future__ import annotations

import errno
import socket

import pytest

from qmux.addresses import text_of
from qmux.pool.rows import FailedBind
from qmux.quic.accepting import NoAccepting
from qmux.worker.server.listeners import Listeners
from tests.aio import until
from tests.worker.server.fakes import FakeAccepting


class Binds:
    """Listeners of one worker, and what they accepted: service and the address that was connected to."""

    def __init__(self) -> None:
        self.accepted: list[tuple[str, object]] = []
        self.listeners = Listeners(self._accept, lambda: True, NoAccepting())
        self.addresses: dict[str, tuple[str, int]] = {}
        self._sockets: list[socket.socket] = []

    def add(self, key: str, service: str) -> socket.socket:
        """A new bind; returns a copy of its socket, as another worker has one."""
        sock = socket.create_server(("127.0.0.1", 0))
        self.addresses[key] = sock.getsockname()
        self._sockets.append(copy := sock.dup())
        self.listeners.add(key, service, sock)
        return copy

    def connect(self, key: str) -> socket.socket:
        self._sockets.append(made := socket.create_connection(self.addresses[key], timeout=15))
        return made

    def close(self) -> None:
        self.listeners.close(shutdown=True)
        for sock in self._sockets:
            sock.close()

    def _accept(self, service: str, user: socket.socket, address: object, bind_address: object) -> None:
        self._sockets.append(user)
        self.accepted.append((service, bind_address))


async def test_each_bind_accepts_for_its_service_from_the_start_on() -> None:
    binds = Binds()
    binds.add("a", "web")
    binds.add("b", "ssh")
    binds.connect("a")
    binds.connect("b")
    assert binds.accepted == []
    binds.listeners.start()
    await until(lambda: len(binds.accepted) == 2)
    assert set(binds.accepted) == {("web", binds.addresses["a"]), ("ssh", binds.addresses["b"])}
    binds.close()


async def test_a_bind_that_comes_later_is_started_with_the_others() -> None:
    binds = Binds()
    binds.add("a", "web")
    binds.listeners.start()
    binds.add("b", "ssh")
    binds.listeners.start()
    binds.connect("b")
    await until(lambda: binds.accepted)
    assert binds.accepted == [("ssh", binds.addresses["b"])]
    binds.close()


async def test_removing_without_shutdown_leaves_the_bind_to_other_workers() -> None:
    binds = Binds()
    copy = binds.add("a", "web")
    binds.listeners.start()
    binds.listeners.remove("a", shutdown=False)
    binds.connect("a")
    copy.accept()[0].close()
    assert binds.accepted == []
    binds.close()


async def test_removing_with_shutdown_ends_the_bind_for_all() -> None:
    binds = Binds()
    binds.add("a", "web")
    binds.listeners.start()
    binds.listeners.remove("a", shutdown=True)
    with pytest.raises(ConnectionRefusedError):
        binds.connect("a")
    binds.listeners.remove("a", shutdown=True)  # nothing
    binds.close()


async def test_a_bind_of_the_same_key_takes_the_place_of_the_older() -> None:
    binds = Binds()
    older = binds.add("a", "web")
    address = binds.addresses["a"]
    binds.add("a", "web")
    binds.listeners.start()
    binds.connect("a")
    await until(lambda: binds.accepted)
    assert binds.accepted == [("web", binds.addresses["a"])]
    with socket.create_connection(address, timeout=15):  # which the older one's copy still takes
        older.accept()[0].close()
    assert len(binds.accepted) == 1
    binds.close()


async def test_a_bind_that_fails_is_told_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    accepting = FakeAccepting(0, 100)
    listeners = Listeners(lambda *_: None, lambda: True, accepting)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        listeners.add("a", "web", first)
        listeners.add("b", "ssh", second)
        accepting.binds[0].error = OSError(errno.ENOSPC, "No space left on device")  # epoll_ctl(2): max_user_watches
        listeners.start()
        assert accepting.binds[1].is_started
        assert listeners.failed() == (FailedBind("web", text_of(first.getsockname()), "No space left on device"),)
        assert "does not accept" in caplog.text
        accepting.binds[0].error = None
        listeners.start()
        assert accepting.binds[0].is_started
        assert listeners.failed() == ()
        listeners.close(shutdown=False)


async def test_closing_ends_all() -> None:
    binds = Binds()
    for key in ("a", "b"):
        binds.add(key, "web")
    binds.listeners.start()
    binds.listeners.close(shutdown=True)
    for key in ("a", "b"):
        with pytest.raises(ConnectionRefusedError):
            binds.connect(key)
    binds.close()


async def test_an_engine_that_accepts_gets_the_binds() -> None:
    accepting = FakeAccepting(0, 100)
    accepted: list[object] = []
    listeners = Listeners(lambda *about: accepted.append(about), lambda: True, accepting)
    sock = socket.create_server(("127.0.0.1", 0))
    listeners.add("a", "web", sock)
    (bind,) = accepting.binds
    assert (bind.service, bind.socket, bind.is_started) == ("web", sock, False)
    listeners.start()
    assert bind.is_started
    listeners.close(shutdown=True)
    assert bind.closed_with_shutdown is True
    assert accepted == []
    sock.close()
