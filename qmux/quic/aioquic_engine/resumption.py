"""Sessions that clients may resume at this worker, each once, and who the client is when one does.

aioquic hands a ticket out and asks for it again; what it does not do is remember whose it is, count, or look whether
that client would still be accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from aioquic.tls import SessionTicket

from qmux.pki.identity import Identity
from qmux.pki.verify import CertificateRejected

MAX_BYTES = 8 << 20
"""What the sessions of a worker may take: those of some 5,000 clients. Beyond it the oldest goes."""

LIFETIME_S = 86_400.0
"""What aioquic promises in a ticket."""

SESSION_BYTES = 1024
"""What a session costs besides its chain."""

Check = Callable[[Sequence[bytes]], Identity]
"""Who the client with this chain (DER, leaf first) is. Raises CertificateRejected."""


class _Session(msgspec.Struct, frozen=True):
    ticket: SessionTicket
    chain: tuple[bytes, ...]
    issued_at: float

    @property
    def size_bytes(self) -> int:
        return SESSION_BYTES + sum(map(len, self.chain))


class Sessions:
    """The sessions that one endpoint gave tickets for; they outlive its certificate material."""

    def __init__(self) -> None:
        self.refused = 0
        self._by_ticket: dict[bytes, _Session] = {}  # the newest last
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_ticket)

    def put(self, ticket: SessionTicket, chain: tuple[bytes, ...]) -> None:
        """Keep the session of a client with this chain."""
        session = self._by_ticket[ticket.ticket] = _Session(ticket, chain, time.monotonic())
        self._size_bytes += session.size_bytes
        while self._size_bytes > MAX_BYTES:
            self._take(next(iter(self._by_ticket)))

    def take(self, ticket: bytes) -> _Session | None:
        """The session, once."""
        session = self._take(ticket)
        return session if session is not None and time.monotonic() - session.issued_at < LIFETIME_S else None

    def _take(self, ticket: bytes) -> _Session | None:
        session = self._by_ticket.pop(ticket, None)
        if session is not None:
            self._size_bytes -= session.size_bytes
        return session


class Client:
    """Who is at the other end of one handshake: from its certificate, or from the session that it resumes."""

    def __init__(self, check: Check, sessions: Sessions) -> None:
        self.identity: Identity | None = None
        self._check = check
        self._sessions = sessions
        self._chain: tuple[bytes, ...] = ()

    def verify(self, chain: Sequence[bytes]) -> None:
        """A full handshake: see ``verification.PeerVerifier``."""
        self.identity, self._chain = self._check(chain), tuple(chain)

    def fetch(self, ticket: bytes) -> SessionTicket | None:
        """The session of this ticket, if its client would be accepted now: with an expired chain, or one of a CA that a
        reload took away, the handshake is a full one, and refused there with the reason.
        """
        session = self._sessions.take(ticket)
        if session is not None:
            try:
                self.verify(session.chain)
            except CertificateRejected:
                session = None
        if session is None:
            self._sessions.refused += 1
            return None
        return session.ticket

    def issued(self, ticket: SessionTicket) -> None:
        """Its handshake is complete, and a ticket under way to it."""
        self._sessions.put(ticket, self._chain)
