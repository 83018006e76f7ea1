"""Which link serves a server that is reached through several addresses: the first that registered there."""

from __future__ import annotations

from typing import Generic, TypeVar

from qmux.worker.signal import ChangeSignal

LinkT = TypeVar("LinkT")


class Holders(Generic[LinkT]):
    """Server ID → its link; each link holds one server at most. ``signal`` fires when one is given up."""

    def __init__(self, signal: ChangeSignal) -> None:
        self._signal = signal
        self._links: dict[bytes, LinkT] = {}

    def holder(self, server_id: bytes) -> LinkT | None:
        """The link that serves this server now."""
        return self._links.get(server_id)

    def claim(self, server_id: bytes, link: LinkT) -> LinkT:
        """``link`` reached this server. Returns the link that serves it from now on: ``link``, or the one before it."""
        self._forget(link)
        return self._links.setdefault(server_id, link)

    def release(self, link: LinkT) -> None:
        """``link`` has no connection any more."""
        self._forget(link)
        self._signal.fire()

    async def until_released(self, timeout_s: float) -> None:
        """Wait until some link gave its server up, or for ``timeout_s``."""
        held = set(self._links)
        await self._signal.wait_until(lambda: not held <= set(self._links), timeout_s)

    def _forget(self, link: LinkT) -> None:
        for server_id in [server_id for server_id, holder in self._links.items() if holder is link]:
            del self._links[server_id]
