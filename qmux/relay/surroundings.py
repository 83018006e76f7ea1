"""What a user's connection needs around it: its service, the client connections here, the other workers."""

from __future__ import annotations

import socket
from typing import Protocol

import msgspec

from qmux.config.schema import ServiceConfig
from qmux.pool.candidates import SessionKey
from qmux.pool.pool import Pool
from qmux.pool.selection import Selector
from qmux.quic.engine import Connection, RelayLimits, Stream
from qmux.relay.access import AccessList
from qmux.relay.attempt import AttemptResult
from qmux.relay.counters import Counters
from qmux.relay.handoff import Handoff


class ServiceRuntime:
    """A service at this worker: its configuration and what goes with it; replaced on reload."""

    def __init__(self, config: ServiceConfig, slot: int) -> None:
        self.config = config
        self.access = AccessList(config.allow, config.deny)
        self.selector = Selector(config.name, config.balance, slot)
        self.limits = RelayLimits(config.idle_timeout_s, config.half_closed_timeout_s)


class Carrier(Protocol):
    """A client's connection of this worker, as a user's connection needs it."""

    @property
    def connection(self) -> Connection:
        """The QUIC connection."""
        ...

    def has_room(self) -> bool:
        """Whether it has fewer users than ``max_streams``."""
        ...

    def user_added(self) -> None:
        """A user connection begins on it."""
        ...

    def user_removed(self) -> None:
        """It ended."""
        ...

    def suspect(self) -> None:
        """It did not answer."""
        ...


class StartedAttempt(msgspec.Struct, frozen=True):
    """An attempt that the engine began: on which connection, and since when (``time.monotonic()``). ``session`` and
    ``carrier`` are None where the connection is gone. With ``stream`` it goes on, else ``failure`` says how it ended.
    """

    session: SessionKey | None
    carrier: Carrier | None
    began_at: float
    failure: AttemptResult
    stream: Stream | None = None


class Surroundings(Protocol):
    """What the worker offers to its users' connections."""

    slot: int
    pool: Pool
    counters: Counters

    def service(self, name: str) -> ServiceRuntime | None:
        """The service by this name, as configured now."""
        ...

    def carrier(self, key: int) -> Carrier | None:
        """The connection of one of our rows."""
        ...

    def admit(self, service: str) -> bool:
        """Count one more user of ``service``, or False where ``maxconn`` is reached."""
        ...

    def release(self, service: str) -> None:
        """An admitted user is gone."""
        ...

    def hand_over(self, slot: int, user: socket.socket, about: Handoff) -> bool:
        """Give a user to another worker; False where it does not take it."""
        ...

    def takes_users(self, slot: int) -> bool:
        """Whether that worker may be handed users."""
        ...

    async def changed(self, service: str, timeout_s: float) -> None:
        """Wait for a change of the pool; meanwhile newer users of ``service`` are not served before this one."""
        ...
