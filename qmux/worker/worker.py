"""What the server's and the client's worker have in common, as the role knows them."""

from __future__ import annotations

from typing import Protocol

from qmux.messages import Configure, Down


class Worker(Protocol):
    """The server's or the client's side."""

    def configure(self, message: Configure) -> None:
        """Apply another configuration whole, or raise QmuxError and change nothing."""
        ...

    def received(self, message: Down, fds: list[int]) -> None:
        """Any other message."""
        ...

    def active(self) -> int:
        """User connections under way."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...
