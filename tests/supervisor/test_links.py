from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from qmux import channel
from qmux.messages import Down, Peers
from supervisor.links import Links
from tests.aio import until

pytestmark = pytest.mark.asyncio_loop

MANY = 300
"""More than one message can carry descriptors for (``channel.MAX_FDS``)."""


@dataclass
class Worker:
    """A worker without a process: its control channel is a real one, both ends of it in this loop."""

    index: int
    slot: int
    epoch: int = 1
    pid: int = 4711
    heard: list[Peers] = field(default_factory=list)
    links: dict[int, socket.socket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ours, theirs = channel.pair()
        self._supervisor = channel.supervisor_end(ours, lambda *_: None, lambda: None)
        self._child = channel.child_end(theirs, self._received, lambda: None)

    def send(self, message: Down, fds: Sequence[int] = ()) -> None:
        self._supervisor.send(message, fds)

    def _received(self, message: Down, fds: list[int]) -> None:
        assert isinstance(message, Peers)
        self.heard.append(message)
        for slot, fd in zip(message.links, fds, strict=True):
            assert slot not in self.links
            self.links[slot] = socket.socket(fileno=fd)

    def close(self) -> None:
        self._supervisor.close()
        self._child.close()
        for link in self.links.values():
            link.close()


@pytest.fixture
def _enough_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 8 * MANY:
        pytest.skip("this user may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 8 * MANY), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_enough_files")
@pytest.mark.parametrize("others", [0, 1, channel.MAX_FDS, channel.MAX_FDS + 1, MANY])
async def test_a_newcomer_is_linked_with_every_worker(others: int) -> None:
    before = len(os.listdir("/proc/self/fd"))

    workers = [Worker(number, number) for number in range(others)]
    newcomer = Worker(others, others)
    links = Links(lambda: [*workers, newcomer], lambda slot: slot != others)
    try:
        links.joined(newcomer)
        await until(lambda: bool(newcomer.heard) and len(newcomer.links) == others)
        await until(lambda: all(worker.links for worker in workers))
        assert all(len(message.links) <= channel.MAX_FDS for message in newcomer.heard)
        for message in newcomer.heard:  # each one alone says everything but the links
            assert [peer.slot for peer in message.slots] == list(range(others + 1))
            assert [peer.slot for peer in message.slots if not peer.active] == [others]
        for worker in workers:  # each pair joins those two that it is said to join
            worker.links[others].send(worker.slot.to_bytes(2, "big"))
            assert newcomer.links[worker.slot].recv(10) == worker.slot.to_bytes(2, "big")
    finally:
        for worker in (*workers, newcomer):
            worker.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_change_names_who_died_and_carries_no_link() -> None:
    workers = [Worker(0, 0), Worker(1, 5)]
    links = Links(lambda: workers, lambda slot: slot == 5)
    try:
        links.changed(died=[3])
        await until(lambda: all(worker.heard for worker in workers))
        for worker in workers:
            (message,) = worker.heard
            assert (message.died, message.links) == ([3], [])
            assert [(peer.index, peer.slot, peer.active) for peer in message.slots] == [(0, 0, False), (1, 5, True)]
    finally:
        for worker in workers:
            worker.close()
