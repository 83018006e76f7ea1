"""What a server link needs of its client process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qmux.worker.client.failures import Failure
from qmux.worker.client.lane import LaneConnection
from qmux.worker.signal import ChangeSignal

if TYPE_CHECKING:
    from qmux.worker.client.server_link import ServerLink


class Connector(Protocol):
    """What a link needs of its client process."""

    reconnect_max_s: float
    once: bool
    signal: ChangeSignal

    def connect(self, link: ServerLink, lane: int | None, *, is_probe: bool = False) -> LaneConnection | Failure:
        """Start one connection. A probe only asks which server is there: it is no connection of our session."""
        ...

    def holder(self, server_id: bytes) -> ServerLink | None:
        """Who serves this server now."""
        ...

    def claim(self, server_id: bytes, link: ServerLink) -> ServerLink:
        """Who serves this server: ``link``, or another that reached it first through another address."""
        ...

    def release(self, link: ServerLink) -> None:
        """``link`` has no connection any more."""
        ...

    async def released(self, timeout_s: float) -> None:
        """Wait until some link gave its server up, or for ``timeout_s``."""
        ...

    def failed(self, link: ServerLink, failure: Failure) -> None:
        """A first contact failed (``qmuxc --once`` ends then)."""
        ...

    def lost(self, link: ServerLink) -> None:
        """Every connection to this server is gone."""
        ...
