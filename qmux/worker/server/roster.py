"""Every client connection of one server worker: registered ones by row key and by session, and their clock."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator

from qmux.config.schema import MAX_LANES, ServerConfig
from qmux.pool.candidates import SessionKey
from qmux.pool.pool import Pool
from qmux.protocol.frames import AppCode
from qmux.quic.engine import Connection
from qmux.tasks import TaskSet
from qmux.worker.server.client_connection import ClientConnection
from qmux.worker.server.client_row import ClientRow
from qmux.worker.server.lane_choice import lanes_for
from qmux.worker.server.ledger import Ledger
from qmux.worker.server.registration import Admission, settings_of

SWEEP_S = 0.25
"""How often connections are looked at: what a suspicion may be late by."""

REPLACEMENTS_PER_S = 200
"""Clients asked to register again are asked at this pace: a handshake costs a worker some milliseconds."""

CONNECTIONS_PER_SESSION = 4
"""At one worker: the newest serves, older ones finish. A client that registers again and again loses its oldest."""


class Roster:
    """Owns the ClientConnections."""

    def __init__(
        self,
        config: ServerConfig,
        pool: Pool,
        ledger: Ledger,
        slot: int,
        server_id: bytes,
        tasks: TaskSet,
    ) -> None:
        self.config = config
        self.pool = pool
        self.ledger = ledger
        self.slot = slot
        self.server_id = server_id
        self.stopping = False
        self.rejected = 0
        self.protocol_errors = 0
        self._tasks = tasks
        self._active_slots: tuple[int, ...] = (slot,)
        self._all: dict[Connection, ClientConnection] = {}
        self._by_key: dict[int, ClientRow] = {}
        self._by_session: defaultdict[SessionKey, list[ClientConnection]] = defaultdict(list)
        self._keys = itertools.count(1)
        self._sweeps = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle = self._loop.call_later(SWEEP_S, self._sweep)

    def accept(self, connection: Connection) -> ClientConnection:
        """The acceptor of the endpoint."""
        client = ClientConnection(connection, self)
        self._all[connection] = client
        return client

    def by_key(self, key: int) -> ClientRow | None:
        """The registered connection of one of our rows."""
        return self._by_key.get(key)

    def by_connection(self, connection: Connection | None) -> ClientRow | None:
        """The registered one behind a connection of the engine."""
        client = None if connection is None else self._all.get(connection)
        return None if client is None else client.row

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(list(self._all.values()))

    # --- what a connection asks and tells ---

    def admission(self, session: SessionKey) -> Admission:
        """What is known when a Register of ``session`` comes."""
        return Admission(self.stopping, self.pool.session(session) is None, self.pool.session_count())

    def lanes_for(self, session: bytes) -> tuple[int, ...]:
        """The workers that ``session`` shall be connected to."""
        return lanes_for(session, self._active_slots, self.config.quic.lanes or MAX_LANES)

    def next_key(self) -> int:
        """A key for a new row."""
        return next(self._keys)

    def registered(self, client: ClientConnection, row: ClientRow) -> None:
        """``client`` serves from now on; an older connection of its session here only finishes."""
        older = self._by_session[row.session_key]
        for other in older:
            other.replace_by_newer()
        for surplus in older[: max(0, len(older) + 1 - CONNECTIONS_PER_SESSION)]:
            surplus.connection.close(AppCode.REPLACED, "too many connections of one session")
        self._by_session[row.session_key].append(client)
        self._by_key[row.key] = row
        row.limit_users()
        self.pool.add(row.first)

    def gone(self, client: ClientConnection) -> None:
        """The connection of ``client`` ended."""
        self._all.pop(client.connection, None)
        self._tasks.start(client.close_tasks(), "end of a client connection")
        if (row := client.row) is None:
            return
        self._by_key.pop(row.key, None)
        self.pool.remove(row.key)
        if client in (held := self._by_session.get(row.session_key, [])):
            held.remove(client)
            if not held:
                del self._by_session[row.session_key]

    # --- what the worker tells ---

    def set_active_slots(self, slots: tuple[int, ...], died: tuple[int, ...]) -> None:
        """The workers that take new connections now, and those that have just died."""
        if self.stopping:
            return  # clients keep what they have, for users who still wait
        self._active_slots = slots or (self.slot,)
        for client in self:
            client.tell_lanes(died)

    def reconfigure(self, config: ServerConfig) -> None:
        """Another configuration is in force."""
        previous, self.config = self.config, config
        for client in self:
            if client.row is not None:
                client.row.offers_changed()
                client.row.limit_users()
            client.tell_lanes(())
        if _needs_registration(previous, config):
            for number, client in enumerate(self):
                self._loop.call_later(number / REPLACEMENTS_PER_S, client.drain, config.process.stop_after_s, True)

    def drain(self, deadline_s: float, replace: bool) -> None:
        """Tell every client that no new work comes on its connection."""
        self.stopping = self.stopping or not replace
        for client in self:
            client.drain(deadline_s, replace)

    def close(self) -> None:
        """Stop the clock; the endpoint closes the connections."""
        self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        self._sweeps += 1
        now = time.monotonic()
        for row in list(self._by_key.values()):
            row.sweep(now)
            if self._sweeps % 4 == 0:
                row.measure()


def _needs_registration(old: ServerConfig, new: ServerConfig) -> bool:
    """Whether clients must register again to hear what changed (RegisterAck carries it)."""
    common = old.services.keys() & new.services.keys()

    def told(config: ServerConfig) -> object:
        quic = config.quic
        settings = {name: settings_of(config.services[name]) for name in common}
        return settings, quic.heartbeat_s, quic.keep_alive_s, quic.max_streams, quic.idle_timeout_s

    return told(old) != told(new)
