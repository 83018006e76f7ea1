"""A client's users on the native core: their targets there, their numbers from there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from typing_extensions import override

from qmux.quic.dialling import Address, Dialling, OnChange, OnEnd
from qmux.quic.engine import Connection, RelayLimits
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.tallies import Tallies
from qmux.quic.offload import OffloadCounts


class NativeDialling(Dialling):
    """Dials in the core."""

    def __init__(self, driver: Driver, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> None:
        self._driver = driver
        self._core = driver.core
        self._on_change = on_change
        self._dialer = self._core.add_dialer(head_timeout_s)
        self._tallies = Tallies(driver, on_end)
        driver.on_users_changed.append(on_change)

    @override
    def set_target(self, service: str, address: Address, timeout_s: float, valid_s: float | None = None) -> None:
        where = os.fsencode(address) if isinstance(address, str) else address
        self._core.set_target(self._dialer, service, self._tallies.of(service), where, timeout_s, valid_s)

    @override
    def clear_targets(self) -> None:
        self._core.clear_targets(self._dialer)

    @override
    def serve(self, connection: Connection, limits: Mapping[str, RelayLimits]) -> None:
        assert isinstance(connection, NativeConnection), "of the engine that made this"
        connection.serve_users(
            self._dialer,
            [(service, each.idle_timeout_s, each.half_closed_timeout_s) for service, each in limits.items()],
        )

    @override
    def users_on(self, connection: Connection) -> int:
        assert isinstance(connection, NativeConnection), "of the engine that made this"
        return connection.users

    @property
    @override
    def users(self) -> int:
        return self._core.users_of(self._dialer)

    @override
    def counts(self) -> dict[str, OffloadCounts]:
        return self._tallies.counts()

    @override
    def expect_change(self) -> None:
        self._core.expect_users_changed()

    @override
    def tell_usual_ends(self, tell: bool) -> None:
        self._tallies.tell_usual_ends(tell)

    @override
    def close(self) -> None:
        self._core.remove_dialer(self._dialer)
        self._driver.on_users_changed.remove(self._on_change)
        self._tallies.close()
