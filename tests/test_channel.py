from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from qmux import channel
from qmux.messages import (
    Accept,
    Configure,
    Configured,
    DaemonFacts,
    Failed,
    Heartbeat,
    LogTo,
    Ready,
    ReadyFacts,
    Stop,
    Table,
)
from qmux.pki.material import Keys, Material
from tests.aio import until

pytestmark = pytest.mark.asyncio_loop


class Ends:
    """Both ends of a channel in one loop, and what each of them heard."""

    def __init__(self) -> None:
        ours, theirs = channel.pair()
        self.raw = theirs
        self.up: list[Any] = []
        self.down: list[Any] = []
        self.fds: list[int] = []
        self.closed: list[str] = []
        self.supervisor = channel.supervisor_end(ours, self._heard(self.up), lambda: self.closed.append("supervisor"))
        self.child: channel.Channel[Any, Any] | None = None

    def attach(self) -> channel.Channel[Any, Any]:
        self.child = channel.child_end(self.raw, self._heard(self.down), lambda: self.closed.append("child"))
        return self.child

    def _heard(self, into: list[Any]) -> Callable[[Any, list[int]], None]:
        def heard(message: Any, fds: list[int]) -> None:
            into.append(message)
            self.fds += fds

        return heard

    def close(self) -> None:
        self.supervisor.close()
        if self.child is not None:
            self.child.close()
        self.raw.close()
        for fd in self.fds:
            os.close(fd)


def table(number: int) -> Table:
    """A message of some 500 bytes that can be told from others."""
    facts = DaemonFacts(
        role="server",
        pid=1,
        source="x" * 500,
        version="1",
        started_at=1.0,
        admin_socket="",
        state="ready",
        generation=1,
        workers=1,
        config_version=number,
    )
    return Table([], facts)


@contextlib.asynccontextmanager
async def two_ends() -> AsyncIterator[Ends]:
    before = open_descriptors()
    ends = Ends()
    try:
        yield ends
    finally:
        ends.close()
    assert open_descriptors() <= before, "a descriptor was left open"


def open_descriptors() -> set[str]:
    """Sockets and memory of this process, as the kernel names them: what another test leaves to the collector may be
    closed meanwhile, so numbers would not do.
    """
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory's own descriptor is gone by now
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith(("socket:", "/memfd:"))}


def configure(size_bytes: int) -> Configure:
    return Configure(
        version=1,
        role="server",
        config=os.urandom(size_bytes),
        material=Material(b"a", b"b", b"c"),
        keys=Keys(b"d", b"e", b"f"),
        server_id=b"id",
        generation=1,
        index=0,
        slot=0,
        epoch=1,
        workers=2,
        runtime_dir="/run",
        bus_publish="p",
        bus_subscribe="s",
    )


async def test_messages_arrive_in_order_both_ways() -> None:
    async with two_ends() as ends:
        child = ends.attach()
        ends.supervisor.send(Accept())
        ends.supervisor.send(Stop())
        for message in (Ready(ReadyFacts(engine="x")), Heartbeat(3), Configured(1, "no"), Failed("why", 4, True)):
            child.send(message)
        await until(lambda: len(ends.down) == 2 and len(ends.up) == 4)
        assert ends.down == [Accept(), Stop()]
        assert ends.up == [Ready(ReadyFacts(engine="x")), Heartbeat(3), Configured(1, "no"), Failed("why", 4, True)]


async def test_descriptors_are_copies() -> None:
    async with two_ends() as ends:
        ends.attach()
        near, far = socket.socketpair()
        with near:
            ends.supervisor.send(LogTo(), [far.fileno()])
            far.close()
            await until(lambda: ends.fds)
            assert not os.get_inheritable(ends.fds[0])
            os.write(ends.fds[0], b"hello")
            assert near.recv(10) == b"hello"


async def test_as_many_descriptors_as_the_kernel_takes() -> None:
    async with two_ends() as ends:
        ends.attach()
        ends.supervisor.send(configure(channel.INLINE_BYTES), [0] * channel.MAX_FDS)
        await until(lambda: ends.down)
        assert len(ends.fds) == channel.MAX_FDS
        with pytest.raises(ValueError, match="at most 250"):
            ends.supervisor.send(LogTo(), [0] * (channel.MAX_FDS + 1))


@pytest.mark.parametrize("size_bytes", [0, 1000, channel.INLINE_BYTES - 300, channel.INLINE_BYTES, 5 << 20])
async def test_every_size_arrives_whole(size_bytes: int) -> None:
    async with two_ends() as ends:
        ends.attach()
        sent = configure(size_bytes)
        ends.supervisor.send(sent)
        ends.supervisor.send(Accept())
        await until(lambda: len(ends.down) == 2)
        assert ends.down == [sent, Accept()]
        assert ends.fds == []


async def test_too_large_is_the_senders_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_BLOB_BYTES", 100_000)

    async with two_ends() as ends:
        with pytest.raises(ValueError, match="at most 100000"):
            ends.supervisor.send(configure(100_000))


async def test_sending_never_blocks_and_nothing_is_lost() -> None:
    async with two_ends() as ends:
        for number in range(3000):
            ends.supervisor.send(table(number))
        ends.attach()
        await until(lambda: len(ends.down) == 3000)
        assert [message.facts.config_version for message in ends.down] == list(range(3000))


async def test_a_child_that_never_reads_breaks_the_channel_not_us() -> None:
    async with two_ends() as ends:
        for _ in range(channel.MAX_QUEUED * 3):
            ends.supervisor.send(table(1))
        assert ends.closed == ["supervisor"]
        assert ends.supervisor.is_closed
        ends.supervisor.send(Stop())  # of no consequence


async def test_the_other_ends_death_is_noticed_after_its_last_words() -> None:
    async with two_ends() as ends:
        child = ends.attach()
        for number in range(200):
            child.send(Heartbeat(number))
        child.close()
        await until(lambda: ends.closed)
        assert (len(ends.up), ends.closed) == (200, ["supervisor"])


@pytest.mark.parametrize(
    "junk",
    [b"\x00", b"\x00junk", b"\x07", b"\x01", b"\x00\x81\xa4type\xa4stop", b"\x00" + b"x" * (channel.INLINE_BYTES + 5)],
    ids=["empty", "no msgpack", "no kind", "no memory", "wrong direction", "too long"],
)
async def test_what_is_no_message_ends_the_channel(junk: bytes) -> None:
    async with two_ends() as ends:
        fd = os.open(os.devnull, os.O_RDONLY)
        if junk == b"\x01":
            ends.raw.send(junk)
        else:
            socket.send_fds(ends.raw, [junk], [fd])
        os.close(fd)
        await until(lambda: ends.closed)
        assert ends.up == []


async def test_a_blob_that_is_no_memory_ends_the_channel() -> None:
    async with two_ends() as ends:
        fd = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(ends.raw, [b"\x01"], [fd])
        os.close(fd)
        await until(lambda: ends.closed)


async def test_a_receiver_may_end_the_channel() -> None:
    ours, theirs = channel.pair()
    heard: list[Any] = []

    def once(message: Any, _fds: list[int]) -> None:
        heard.append(message)
        supervisor.close()

    supervisor = channel.supervisor_end(ours, once, lambda: heard.append("closed"))
    child = channel.child_end(theirs, lambda *_: None, lambda: None)
    child.send(Heartbeat(1))
    child.send(Heartbeat(2))
    await until(lambda: child.is_closed)
    assert heard == [Heartbeat(1)]


def test_secrets_are_not_shown() -> None:
    shown = repr(configure(0))
    assert "Material(MASKED)" in shown
    assert "Keys(MASKED)" in shown
