"""One address of a configured server: what a link leads to."""

from __future__ import annotations

from dataclasses import dataclass

from qmux import addresses
from qmux.config.schema import ServerAddress


@dataclass(frozen=True)
class Remote:
    """``address`` is numeric, found behind the host name of ``server`` or equal to it. As text: for logs."""

    server: ServerAddress
    address: tuple[str, int]

    def __str__(self) -> str:
        return self.text if self.address[0] == self.server.host else f"{self.server} ({self.text})"

    @property
    def text(self) -> str:
        """The numeric address."""
        return addresses.join(*self.address)
