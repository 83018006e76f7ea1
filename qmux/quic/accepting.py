"""What an engine may do beyond the seam: accept the users of a server and ask clients for them, alone.

An engine that can is an ``AcceptingEngine``. It follows plans: which connections get the next users of a service, as
the layer above decided before they came. Who comes when nothing is planned, and every attempt that is not answered at
once and with "ready", is given to the layer above, which has the rules. Of the others it tells no more than numbers.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec
from typing_extensions import override

from qmux.protocol.frames import ConnRefused
from qmux.quic.engine import Connection, Engine, RelayLimits, Stream
from qmux.quic.offload import OffloadCounts, OffloadEnd

SLOW_S = 0.1
"""An attempt that is not answered by then goes on in the layer above, with its clock."""


class Accepted(msgspec.Struct, frozen=True):
    """Who was accepted: ``source`` and ``dest`` as "host:port"."""

    service: str
    conn_id: int
    source: str
    dest: str


class EngineAttempt(msgspec.Struct, frozen=True):
    """An attempt that the engine made. ``connection``: who was asked, None where it is gone; ``began_at``: by
    ``time.monotonic()``. With ``stream`` the attempt goes on there, unanswered; else it has failed: ``refused`` is the
    client's answer, and without one ``reason`` says what became of the stream.
    """

    connection: Connection | None
    began_at: float
    stream: Stream | None = None
    refused: ConnRefused | None = None
    reason: str = ""


class UserHandler(Protocol):
    """What ``Accepting`` tells the layer above. No method may block or raise. Sockets are the handler's."""

    def unplanned(self, accepted: Accepted, sock: socket.socket) -> None:
        """Nothing is planned for this user."""
        ...

    def handed_back(self, accepted: Accepted, sock: socket.socket, attempt: EngineAttempt) -> None:
        """A client was asked for this user, who is not served yet."""
        ...

    def user_reset(self, service: str, conn_id: int, source: str) -> None:
        """The user reset the connection while a client was asked."""
        ...

    def relay_ended(self, ended: OffloadEnd) -> None:
        """A relay was cut off; with ``tell_usual_ends`` every end."""
        ...

    def counts_changed(self) -> None:
        """Users came or went. Once, until ``changes`` is called."""
        ...

    def plan_low(self, service: str) -> None:
        """Most of the plan is used."""
        ...

    def accept_paused(self, service: str, reason: str) -> None:
        """Accepting on a bind pauses for a moment."""
        ...


class Bind(Protocol):
    """A listening socket. Nothing is accepted before ``start``."""

    def start(self) -> None:
        """Accept from now on. Raises OSError where the socket cannot be watched; it may be tried again."""
        ...

    def close(self, shutdown: bool) -> None:
        """Accept no more; with ``shutdown`` no process does, and what is queued is taken first."""
        ...


class Changes(msgspec.Struct, frozen=True):
    """How many users there are on the connections, and of the services, where some came or went."""

    connections: Sequence[tuple[Connection, int]]
    services: Sequence[tuple[str, int]]


class Accepting(Protocol):
    """Accepts the users of one server worker. ``accepts``: False where the engine leaves all of it to its caller."""

    accepts: bool

    def begin(self, handler: UserHandler) -> None:
        """Tell ``handler`` from now on; once, and before the first bind."""
        ...

    def add_bind(self, service: str, sock: socket.socket) -> Bind:
        """One more socket of ``service``, which is the engine's from now on."""
        ...

    def set_limits(self, service: str, limits: RelayLimits) -> None:
        """For relays that begin from now on."""
        ...

    def plan(self, service: str, grants: Sequence[tuple[Connection, int]]) -> None:
        """Who gets the next users, and how many, in this order; what was planned before is void. Connections of another
        engine get none.
        """
        ...

    def unused(self, service: str) -> int:
        """How many planned users have not come."""
        ...

    def set_other_users(self, count: int) -> None:
        """How many users the layer above has: they count towards the limit."""
        ...

    def limit_users(self, connection: Connection, others: int, most: int) -> None:
        """How many users the layer above has on this connection, and how many there may be, whatever is planned.
        Nothing where the connection is another engine's.
        """
        ...

    @property
    def users(self) -> int:
        """User connections that the engine serves."""
        ...

    def users_on(self, connection: Connection) -> int:
        """Those of one connection."""
        ...

    def changes(self) -> Changes:
        """Since the last call; ``counts_changed`` comes again with the next change."""
        ...

    def counts(self) -> dict[str, OffloadCounts]:
        """By service, since the start."""
        ...

    def tell_usual_ends(self, tell: bool) -> None:
        """Whether ``relay_ended`` hears also of relays that ended as somebody wanted it."""
        ...

    def close(self) -> None:
        """Close every bind and end every user."""
        ...


@runtime_checkable
class AcceptingEngine(Protocol):
    """An engine that accepts users alone."""

    def accepting(self, first_conn_id: int, limit: int, slow_s: float = SLOW_S) -> Accepting:
        """For one worker. Users are numbered from ``first_conn_id``; ``limit``: how many there may be at a time, those
        of the layer above included. An attempt that takes longer than ``slow_s`` and the connection's probe timeout is
        handed back.
        """
        ...


class NoAccepting(Accepting):
    """For an engine that accepts no users."""

    accepts = False
    users = 0

    @override
    def begin(self, handler: UserHandler) -> None:
        pass

    @override
    def add_bind(self, service: str, sock: socket.socket) -> Bind:
        raise NotImplementedError("``accepts`` is False")

    @override
    def set_limits(self, service: str, limits: RelayLimits) -> None:
        pass

    @override
    def plan(self, service: str, grants: Sequence[tuple[Connection, int]]) -> None:
        pass

    @override
    def unused(self, service: str) -> int:
        return 0

    @override
    def set_other_users(self, count: int) -> None:
        pass

    @override
    def limit_users(self, connection: Connection, others: int, most: int) -> None:
        pass

    @override
    def users_on(self, connection: Connection) -> int:
        return 0

    @override
    def changes(self) -> Changes:
        return Changes((), ())

    @override
    def counts(self) -> dict[str, OffloadCounts]:
        return {}

    @override
    def tell_usual_ends(self, tell: bool) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def accepting_of(engine: Engine, first_conn_id: int, limit: int) -> Accepting:
    """What ``engine`` offers, or one that does nothing."""
    return engine.accepting(first_conn_id, limit) if isinstance(engine, AcceptingEngine) else NoAccepting()
