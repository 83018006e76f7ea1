"""A running relay: the core moves its bytes, this knows its number."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from typing_extensions import override

from qmux.quic.engine import Relay, RelayEnd

if TYPE_CHECKING:
    from qmux.quic.native_engine.driver import Driver


class NativeRelay(Relay):
    """A relay of the core."""

    def __init__(self, driver: Driver, number: int) -> None:
        self.done: asyncio.Future[RelayEnd] = driver.loop.create_future()
        self._driver = driver
        self._number = number
        self._counted = (0, 0)
        driver.relays[number] = self

    @property
    def counted(self) -> tuple[int, int]:
        """Bytes to the socket and to the stream so far."""
        if not self.done.done():
            self._counted = self._driver.core.relay_bytes(self._number) or self._counted
        return self._counted

    @property
    @override
    def bytes_to_socket(self) -> int:
        return self.counted[0]

    @property
    @override
    def bytes_to_stream(self) -> int:
        return self.counted[1]

    @override
    def abort(self) -> None:
        if not self.done.done():
            self._driver.core.abort_relay(self._number)
            self._driver.wake()

    def ended(self, end: RelayEnd, to_socket: int, to_stream: int) -> None:
        """The core is through with it."""
        self._counted = (to_socket, to_stream)
        if not self.done.done():
            self.done.set_result(end)
