"""A client's users on the native core: their targets there, their numbers from there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from qmux.quic.dialling import Address, OnChange, OnEnd
from qmux.quic.engine import Connection, RelayLimits
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.tallies import Tallies
from qmux.quic.offload import ServiceUsers


class NativeDialling:
    """Implements ``qmux.quic.dialling.Dialling``."""

    def __init__(self, driver: Driver, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> None:
        self._driver = driver
        self._core = driver.core
        self._on_change = on_change
        self._dialer = self._core.add_dialer(head_timeout_s)
        self._tallies = Tallies(driver, on_end)
        driver.on_users_changed.append(on_change)

    def set_target(self, service: str, address: Address, timeout_s: float, valid_s: float | None = None) -> None:
        """See ``Dialling.set_target``."""
        where = os.fsencode(address) if isinstance(address, str) else address
        self._core.set_target(self._dialer, service, self._tallies.of(service), where, timeout_s, valid_s)

    def clear_targets(self) -> None:
        """See ``Dialling.clear_targets``."""
        self._core.clear_targets(self._dialer)

    def serve(self, connection: Connection, limits: Mapping[str, RelayLimits]) -> None:
        """See ``Dialling.serve``."""
        assert isinstance(connection, NativeConnection), "of the engine that made this"
        connection.serve_users(
            self._dialer,
            [(service, each.idle_timeout_s, each.half_closed_timeout_s) for service, each in limits.items()],
        )

    def users_on(self, connection: Connection) -> int:
        """See ``Dialling.users_on``."""
        assert isinstance(connection, NativeConnection), "of the engine that made this"
        return connection.users

    @property
    def users(self) -> int:
        """See ``Dialling.users``."""
        return self._core.users_of(self._dialer)

    def counts(self) -> dict[str, ServiceUsers]:
        """See ``Dialling.counts``."""
        return self._tallies.counts()

    def expect_change(self) -> None:
        """See ``Dialling.expect_change``."""
        self._core.expect_users_changed()

    def tell_usual_ends(self, tell: bool) -> None:
        """See ``Dialling.tell_usual_ends``."""
        self._tallies.tell_usual_ends(tell)

    def close(self) -> None:
        """See ``Dialling.close``."""
        self._core.remove_dialer(self._dialer)
        self._driver.on_users_changed.remove(self._on_change)
        self._tallies.close()
