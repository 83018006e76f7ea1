"""What a client may resume: the tickets that servers gave it, the newest for each lane of a server.

A server keeps its sessions in the worker that began them, so a ticket is worth something at that worker's lane only;
anywhere else it costs nothing but the full handshake that would be made without it. A ticket is used once, by the
client that got it: with another certificate, key or CA it is none.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from qmux.pki.material import Material

MAX_TICKETS = 256
"""16 lanes at 16 servers; beyond it the oldest goes."""


class Ticket(msgspec.Struct, frozen=True):
    """``session``: what the engine needs, with its keys. ``expires_at``: wall clock, in seconds: the end of the
    server's certificate, which is not looked at again when a session is resumed.
    """

    session: object
    material: Material
    expires_at: float

    def __repr__(self) -> str:
        return "Ticket(MASKED)"


class Server(NamedTuple):
    """Who is resumed: the server that is called ``name`` and dialled at ``address``."""

    address: tuple[str, int]
    name: str


class Tickets:
    """A bounded store, for all connections of a client. Kept in memory only: a ticket is as good as a key."""

    def __init__(self) -> None:
        self._tickets: dict[tuple[Server, int], Ticket] = {}  # the newest last

    def __len__(self) -> int:
        return len(self._tickets)

    def put(self, server: Server, lane: int, ticket: Ticket) -> None:
        """Keep what the worker of ``lane`` issued, in place of an older one."""
        self._tickets.pop((server, lane), None)
        self._tickets[server, lane] = ticket
        while len(self._tickets) > MAX_TICKETS:
            del self._tickets[next(iter(self._tickets))]

    def take(self, server: Server, lane: int | None, material: Material) -> tuple[int | None, Ticket | None]:
        """The lane to dial, and the ticket for it if there is one for ``material`` that has not expired: it is gone
        from here in any case. ``lane`` None: that of the newest ticket.
        """
        if lane is None:
            lane = next((lane for known, lane in reversed(self._tickets) if known == server), None)
        ticket = None if lane is None else self._tickets.pop((server, lane), None)
        if ticket is not None and (ticket.material != material or ticket.expires_at <= time.time()):
            ticket = None
        return lane, ticket
