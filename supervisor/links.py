"""Who the live workers are, and a socket pair for each two of them: what ``Peers`` carries."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from qmux.channel import MAX_FDS
from qmux.messages import Down, Peers, PeerSlot


class Member(Protocol):
    """A worker, as far as it matters here (``supervisor.process.Process``)."""

    index: int
    slot: int
    epoch: int
    pid: int

    def send(self, message: Down, fds: Sequence[int] = ()) -> None:
        """Send a message with copies of ``fds``."""


class Links:
    """Tells every worker about every change among them."""

    def __init__(self, workers: Callable[[], Sequence[Member]], is_active: Callable[[int], bool]) -> None:
        self._workers = workers
        self._is_active = is_active

    def joined(self, newcomer: Member) -> None:
        """``newcomer`` was started: it gets a pair with each worker that lives, and each of them its end of it."""
        ours: list[socket.socket] = []
        slots: list[int] = []
        for other in self._workers():
            if other is newcomer:
                continue
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with far:
                other.send(self._peers(links=[newcomer.slot]), [far.fileno()])
            ours.append(near)
            slots.append(other.slot)
        for first in range(0, max(len(ours), 1), MAX_FDS):
            batch = slice(first, first + MAX_FDS)
            newcomer.send(self._peers(links=slots[batch]), [near.fileno() for near in ours[batch]])
        for near in ours:
            near.close()

    def changed(self, died: Iterable[int] = ()) -> None:
        """A worker became active or stopped being so, or the process of the slots ``died`` ended."""
        for worker in self._workers():
            worker.send(self._peers(died=list(died)))

    def _peers(self, links: list[int] | None = None, died: list[int] | None = None) -> Peers:
        slots = [
            PeerSlot(
                slot=worker.slot,
                index=worker.index,
                epoch=worker.epoch,
                pid=worker.pid,
                active=self._is_active(worker.slot),
            )
            for worker in self._workers()
        ]
        return Peers(slots=slots, links=links or [], died=died or [])
