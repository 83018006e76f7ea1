"""The other workers of this server, as far as user connections are handed over to them."""

from __future__ import annotations

import socket
import time
from collections.abc import Container

from qmux.pool.pool import Pool
from qmux.relay.handoff import Handoff, HandoffLink


class PeerLinks:
    """Owns this worker's end of the socket pair with each of them, by slot."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._links: dict[int, HandoffLink] = {}

    @property
    def workers(self) -> int:
        """How many workers take user connections, this one included."""
        return len(self._links) + 1

    def set(self, slot: int, link: HandoffLink) -> None:
        """The worker of ``slot`` is at the other end of ``link``; an older link to that slot ends."""
        self._end(slot)
        self._links[slot] = link

    def keep(self, live: Container[int]) -> None:
        """Workers that do not live any more get nothing."""
        for slot in [slot for slot in self._links if slot not in live]:
            self._end(slot)

    def takes_users(self, slot: int) -> bool:
        """Whether that worker may be handed user connections."""
        return slot in self._links and not self._pool.is_late(slot, time.monotonic())

    def hand_over(self, slot: int, user: socket.socket, about: Handoff) -> bool:
        """Give a user connection to another worker; False where it does not take it."""
        link = self._links.get(slot)
        return link is not None and link.send(user, about)

    def finish(self) -> None:
        """Take what others have handed over, and no more."""
        for link in list(self._links.values()):
            link.finish()

    def close(self) -> None:
        """End every link."""
        for slot in list(self._links):
            self._end(slot)

    def _end(self, slot: int) -> None:
        if (link := self._links.pop(slot, None)) is not None:
            link.close()
