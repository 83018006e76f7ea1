"""A server's users on the native core: plans to it, users who need a look from it."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import qmux_native
from typing_extensions import override

from qmux.protocol.frames import ConnRefused
from qmux.quic.accepting import Accepted, Accepting, Bind, Changes, EngineAttempt, UserHandler
from qmux.quic.engine import Connection, RelayLimits
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.tallies import Tallies
from qmux.quic.offload import OffloadCounts


class NativeAccepting(Accepting):
    """The core knows a service by its tally."""

    accepts = True
    _handler: UserHandler

    def __init__(self, driver: Driver, first_conn_id: int, limit: int, slow_s: float) -> None:
        self._driver = driver
        self._core = driver.core
        self._tallies = Tallies(driver, lambda ended: self._handler.relay_ended(ended))
        self._known: set[str] = set()
        self._is_closed = False
        self._core.start_accepting(first_conn_id, limit, slow_s)

    @override
    def begin(self, handler: UserHandler) -> None:
        self._handler = handler
        self._driver.on_users_changed.append(self._counts_changed)
        self._driver.listen(
            {
                qmux_native.UNPLANNED: self._unplanned,
                qmux_native.HANDED_OFF: self._handed_back,
                qmux_native.USER_RESET: self._user_reset,
                qmux_native.PLAN_LOW: self._plan_low,
                qmux_native.LISTENER_PAUSED: self._listener_waits,
            }
        )

    @override
    def add_bind(self, service: str, sock: socket.socket) -> NativeBind:
        tally = self._service(service)
        return NativeBind(self._driver, self._core.add_listener(tally, sock.detach()))

    @override
    def set_limits(self, service: str, limits: RelayLimits) -> None:
        self._known.add(service)
        tally = self._tallies.of(service)
        self._core.set_service(tally, service, limits.idle_timeout_s, limits.half_closed_timeout_s)

    @override
    def plan(self, service: str, grants: Sequence[tuple[Connection, int]]) -> None:
        ours = [(each.handle, count) for each, count in grants if isinstance(each, NativeConnection)]
        self._core.plan(self._service(service), ours)

    @override
    def unused(self, service: str) -> int:
        return self._core.unused(self._service(service))

    @override
    def set_other_users(self, count: int) -> None:
        self._core.set_other_users(count)

    @override
    def limit_users(self, connection: Connection, others: int, most: int) -> None:
        if isinstance(connection, NativeConnection):
            self._core.limit_users(connection.handle, others, most)

    @property
    @override
    def users(self) -> int:
        return self._core.all_users()

    @override
    def users_on(self, connection: Connection) -> int:
        return connection.users if isinstance(connection, NativeConnection) else 0

    @override
    def changes(self) -> Changes:
        self._core.expect_users_changed()
        connections, services = self._core.user_changes()
        known = self._driver.connections
        return Changes(
            [(known[handle], users) for handle, users in connections if handle in known],
            [(self._tallies.service(tally), users) for tally, users in services],
        )

    @override
    def counts(self) -> dict[str, OffloadCounts]:
        return self._tallies.counts()

    @override
    def tell_usual_ends(self, tell: bool) -> None:
        self._tallies.tell_usual_ends(tell)

    @override
    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._core.stop_accepting()
            if self._counts_changed in self._driver.on_users_changed:
                self._driver.on_users_changed.remove(self._counts_changed)
            self._tallies.close()
            self._driver.wake()

    def _service(self, name: str) -> int:
        if name not in self._known:
            self.set_limits(name, RelayLimits())
        return self._tallies.of(name)

    # --- what the core tells ---

    def _counts_changed(self) -> None:
        self._handler.counts_changed()

    def _unplanned(self, tally: int, fd: int, conn_id: int, source: str, dest: str) -> None:
        self._handler.unplanned(Accepted(self._tallies.service(tally), conn_id, source, dest), socket.socket(fileno=fd))

    def _handed_back(
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
        attempt = EngineAttempt(connection, time.monotonic() - waited_s, stream, refused, reason)
        self._handler.handed_back(Accepted(self._tallies.service(tally), *user), socket.socket(fileno=fd), attempt)

    def _user_reset(self, tally: int, conn_id: int, source: str) -> None:
        self._handler.user_reset(self._tallies.service(tally), conn_id, source)

    def _plan_low(self, tally: int) -> None:
        self._handler.plan_low(self._tallies.service(tally))

    def _listener_waits(self, tally: int, reason: str) -> None:
        self._handler.accept_paused(self._tallies.service(tally), reason)


class NativeBind(Bind):
    """A listener of the core."""

    def __init__(self, driver: Driver, number: int) -> None:
        self._driver = driver
        self._number = number

    @override
    def start(self) -> None:
        self._driver.core.start_listener(self._number)
        self._driver.wake()

    @override
    def close(self, shutdown: bool) -> None:
        self._driver.core.close_listener(self._number, shutdown)
        self._driver.wake()
