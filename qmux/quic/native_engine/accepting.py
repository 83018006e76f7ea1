"""A server's users on the native core: plans to it, users who need a look from it."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import qmux_native

from qmux.protocol.frames import ConnRefused
from qmux.quic.accepting import Changes, EngineAttempt, NewUser, UserHandler
from qmux.quic.engine import Connection, RelayLimits
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.tallies import Tallies
from qmux.quic.offload import OffloadCounts


class NativeAccepting:
    """Implements ``qmux.quic.accepting.Accepting``. The core knows a service by its tally."""

    def __init__(self, driver: Driver, handler: UserHandler, first_conn_id: int, limit: int) -> None:
        self._driver = driver
        self._core = driver.core
        self._handler = handler
        self._tallies = Tallies(driver, handler.relay_ended)
        self._known: set[str] = set()
        self._is_closed = False
        self._core.begin_accepting(first_conn_id, limit)
        driver.on_users_changed.append(handler.counts_changed)
        driver.listen(
            {
                qmux_native.USER: self._user_came,
                qmux_native.ASKED: self._asked,
                qmux_native.USER_GONE: self._user_gone,
                qmux_native.PLAN_LOW: self._plan_low,
                qmux_native.LISTENER_WAITS: self._listener_waits,
            }
        )

    def add_bind(self, service: str, sock: socket.socket) -> NativeBind:
        """See ``qmux.quic.accepting.Accepting.add_bind``."""
        tally = self._service(service)
        return NativeBind(self._driver, self._core.add_listener(tally, sock.detach()))

    def set_limits(self, service: str, limits: RelayLimits) -> None:
        """See ``qmux.quic.accepting.Accepting.set_limits``."""
        self._known.add(service)
        tally = self._tallies.of(service)
        self._core.set_service(tally, service, limits.idle_timeout_s, limits.half_closed_timeout_s)

    def plan(self, service: str, grants: Sequence[tuple[Connection, int]]) -> None:
        """See ``qmux.quic.accepting.Accepting.plan``."""
        handles = []
        for connection, count in grants:
            assert isinstance(connection, NativeConnection), "of the engine that made this"
            handles.append((connection.handle, count))
        self._core.plan(self._service(service), handles)

    def unused(self, service: str) -> int:
        """See ``qmux.quic.accepting.Accepting.unused``."""
        return self._core.unused(self._service(service))

    def set_other_users(self, count: int) -> None:
        """See ``qmux.quic.accepting.Accepting.set_other_users``."""
        self._core.set_other_users(count)

    def limit_users(self, connection: Connection, others: int, most: int) -> None:
        """See ``qmux.quic.accepting.Accepting.limit_users``."""
        assert isinstance(connection, NativeConnection), "of the engine that made this"
        self._core.limit_users(connection.handle, others, most)

    @property
    def users(self) -> int:
        """See ``qmux.quic.accepting.Accepting.users``."""
        return self._core.all_users()

    def users_on(self, connection: Connection) -> int:
        """See ``qmux.quic.accepting.Accepting.users_on``."""
        assert isinstance(connection, NativeConnection), "of the engine that made this"
        return connection.users

    def changes(self) -> Changes:
        """See ``qmux.quic.accepting.Accepting.changes``."""
        self._core.expect_users_changed()
        connections, services = self._core.user_changes()
        known = self._driver.connections
        return Changes(
            [(known[handle], users) for handle, users in connections if handle in known],
            [(self._tallies.service(tally), users) for tally, users in services],
        )

    def counts(self) -> dict[str, OffloadCounts]:
        """See ``qmux.quic.accepting.Accepting.counts``."""
        return self._tallies.counts()

    def tell_usual_ends(self, tell: bool) -> None:
        """See ``qmux.quic.accepting.Accepting.tell_usual_ends``."""
        self._tallies.tell_usual_ends(tell)

    def close(self) -> None:
        """See ``qmux.quic.accepting.Accepting.close``."""
        if not self._is_closed:
            self._is_closed = True
            self._core.end_accepting()
            self._driver.on_users_changed.remove(self._handler.counts_changed)
            self._tallies.close()
            self._driver.wake()

    def _service(self, name: str) -> int:
        if name not in self._known:
            self.set_limits(name, RelayLimits())
        return self._tallies.of(name)

    # --- what the core tells ---

    def _user_came(self, tally: int, fd: int, conn_id: int, source: str, dest: str) -> None:
        self._handler.unplanned(NewUser(self._tallies.service(tally), conn_id, source, dest), socket.socket(fileno=fd))

    def _asked(
        self,
        tally: int,
        fd: int,
        user: tuple[int, str, str],
        conn: int,
        waited_s: float,
        stream_id: int | None,
        code: str | None,
        reason: str,
    ) -> None:
        connection = self._driver.connections.get(conn)
        stream = connection.adopt_stream(stream_id) if connection is not None and stream_id is not None else None
        refused = ConnRefused(code, reason) if code is not None else None
        asked = EngineAttempt(connection, time.monotonic() - waited_s, stream, refused, reason)
        self._handler.handed_back(NewUser(self._tallies.service(tally), *user), socket.socket(fileno=fd), asked)

    def _user_gone(self, tally: int, conn_id: int, source: str) -> None:
        self._handler.user_reset(self._tallies.service(tally), conn_id, source)

    def _plan_low(self, tally: int) -> None:
        self._handler.plan_low(self._tallies.service(tally))

    def _listener_waits(self, tally: int, reason: str) -> None:
        self._handler.accept_paused(self._tallies.service(tally), reason)


class NativeBind:
    """Implements ``qmux.quic.accepting.Bind``."""

    def __init__(self, driver: Driver, number: int) -> None:
        self._driver = driver
        self._number = number

    def start(self) -> None:
        """See ``qmux.quic.accepting.Bind.start``."""
        self._driver.core.start_listener(self._number)
        self._driver.wake()

    def close(self, shutdown: bool) -> None:
        """See ``qmux.quic.accepting.Bind.close``."""
        self._driver.core.close_listener(self._number, shutdown)
        self._driver.wake()
