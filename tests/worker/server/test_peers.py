"""The other workers, over real socket pairs: who takes user connections, and what is handed over."""

from __future__ import annotations

import socket
import time

from msgspec.structs import replace

from qmux.pool.pool import LATE_S, Pool
from qmux.pool.publication import END_OF_KEYS
from qmux.pool.rows import Pass
from qmux.relay.handoff import Handoff, HandoffLink
from qmux.worker.server.peers import PeerLinks
from tests.aio import until

ABOUT = Handoff("web", "192.0.2.1:4000", "192.0.2.2:80", 7, "pod-1", bytes(16), 1, 0)


class Workers:
    """This worker's links, and what arrived at the other ends, by slot."""

    def __init__(self) -> None:
        self.pool = Pool(0, 1)
        self.links = PeerLinks(self.pool)
        self.taken: list[tuple[int, Handoff]] = []
        self.received: list[Handoff] = []
        self.others: dict[int, HandoffLink] = {}
        self._sockets: list[socket.socket] = []

    def join(self, slot: int) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.links.set(slot, HandoffLink(near, lambda user, about: self._keep(user, self.received.append, about)))
        self.others[slot] = HandoffLink(
            far, lambda user, about: self._keep(user, lambda about: self.taken.append((slot, about)), about)
        )

    def user(self) -> socket.socket:
        """An accepted user connection."""
        pair = socket.socketpair()
        self._sockets += pair
        return pair[0]

    def says(self, slot: int, ago_s: float = 0.0) -> None:
        """The worker published all its rows then."""
        self.pool.receive(Pass(slot, 1, 0, END_OF_KEYS, (), {}), time.monotonic() - ago_s)

    def close(self) -> None:
        self.links.close()
        for other in self.others.values():
            other.close()
        for sock in self._sockets:
            sock.close()

    def _keep(self, user: socket.socket, note: object, about: Handoff) -> None:
        self._sockets.append(user)
        note(about)  # type: ignore[operator]


async def test_a_user_connection_goes_to_the_worker_of_that_slot() -> None:
    workers = Workers()
    workers.join(1)
    workers.join(2)
    assert workers.links.workers == 3
    user = workers.user()
    assert workers.links.hand_over(2, user, ABOUT)
    assert user.fileno() == -1
    await until(lambda: workers.taken)
    assert workers.taken == [(2, ABOUT)]
    workers.close()


async def test_a_worker_that_is_not_known_takes_nothing() -> None:
    workers = Workers()
    user = workers.user()
    assert not workers.links.hand_over(1, user, ABOUT)
    assert user.fileno() >= 0
    assert not workers.links.takes_users(1)
    workers.close()


async def test_only_a_worker_that_publishes_is_handed_user_connections() -> None:
    workers = Workers()
    workers.join(1)
    workers.says(1)
    assert workers.links.takes_users(1)
    workers.says(1, ago_s=LATE_S + 0.1)
    assert not workers.links.takes_users(1), "it may be stopped"
    workers.says(1)
    assert workers.links.takes_users(1)
    workers.close()


async def test_workers_that_have_ended_get_nothing() -> None:
    workers = Workers()
    for slot in (1, 2):
        workers.join(slot)
        workers.says(slot)
    workers.links.keep({2})
    assert (workers.links.takes_users(1), workers.links.takes_users(2)) == (False, True)
    assert not workers.links.hand_over(1, workers.user(), ABOUT)
    assert workers.links.workers == 2
    workers.close()


async def test_the_successor_of_a_worker_has_its_slot() -> None:
    workers = Workers()
    workers.join(1)
    dead = workers.others[1]
    workers.join(1)
    assert workers.links.workers == 2
    user = workers.user()
    assert not dead.send(user, ABOUT), "the older link has ended"
    assert workers.links.hand_over(1, user, ABOUT)
    await until(lambda: workers.taken)
    dead.close()
    workers.close()


async def test_the_last_look_takes_what_was_handed_over_and_no_more() -> None:
    workers = Workers()
    for slot in (1, 2):
        workers.join(slot)
        assert workers.others[slot].send(workers.user(), replace(ABOUT, conn_id=slot))
    workers.links.finish()
    assert sorted(about.conn_id for about in workers.received) == [1, 2]
    late = workers.user()
    assert not workers.others[1].send(late, ABOUT)
    assert late.fileno() >= 0
    workers.close()


async def test_after_closing_there_is_none() -> None:
    workers = Workers()
    workers.join(1)
    workers.says(1)
    workers.links.close()
    assert not workers.links.takes_users(1)
    assert workers.links.workers == 1
    workers.close()
