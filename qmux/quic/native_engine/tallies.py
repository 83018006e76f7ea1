"""User connections that the core serves alone, counted there by service."""

from __future__ import annotations

from collections.abc import Callable

from qmux.quic.engine import RelayEnd
from qmux.quic.native_engine.driver import Driver
from qmux.quic.offload import OffloadCounts, OffloadEnd


class Tallies:
    """The tallies of one ``Dialling`` or ``Accepting``. ``on_end``: hears of relays."""

    def __init__(self, driver: Driver, on_end: Callable[[OffloadEnd], None]) -> None:
        self._driver = driver
        self._on_end = on_end
        self._by_service: dict[str, int] = {}
        self._services: dict[int, str] = {}
        self._tells_usual_ends = False

    def of(self, service: str) -> int:
        """Its tally, made when it is first asked for."""
        tally = self._by_service.get(service)
        if tally is None:
            tally = self._by_service[service] = self._driver.core.add_tally()
            self._services[tally] = service
            self._driver.core.tell_usual_ends(tally, self._tells_usual_ends)
            self._driver.on_user_ended[tally] = lambda conn_id, source, end: self._on_end(
                OffloadEnd(service, conn_id, source, RelayEnd(end))
            )
        return tally

    def service(self, tally: int) -> str:
        """The service of a tally."""
        return self._services[tally]

    def counts(self) -> dict[str, OffloadCounts]:
        """By service, since the start."""
        found = self._driver.core.tallies()
        return {service: OffloadCounts(*found[tally]) for service, tally in self._by_service.items()}

    def tell_usual_ends(self, tell: bool) -> None:
        """Whether ``on_end`` hears of every end."""
        if tell != self._tells_usual_ends:
            self._tells_usual_ends = tell
            for tally in self._services:
                self._driver.core.tell_usual_ends(tally, tell)

    def close(self) -> None:
        """Tell of no more ends."""
        for tally in self._services:
            self._driver.on_user_ended.pop(tally, None)
