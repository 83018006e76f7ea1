"""The traffic binds of one worker, by key."""

from __future__ import annotations

import socket
from collections.abc import Callable

from qmux.quic.accepting import Accepting, Bind
from qmux.relay.listener import Listener

OnAccepted = Callable[[str, socket.socket, object, object], None]
"""Gets the service, the user's socket, its address, and the bind's address."""


class Listeners:
    """Owns the binds of a worker."""

    def __init__(self, on_accepted: OnAccepted, may_accept: Callable[[], bool], accepting: Accepting) -> None:
        """``accepting``: where the engine accepts, it gets the binds, and hands back what it does not serve itself."""
        self._on_accepted = on_accepted
        self._may_accept = may_accept
        self._accepting = accepting
        self._by_key: dict[str, Bind] = {}

    def add(self, key: str, service: str, sock: socket.socket) -> None:
        """One more bind of ``service``; nothing is accepted before ``start``."""
        self.remove(key, shutdown=False)
        self._by_key[key] = self._bind(service, sock)

    def _bind(self, service: str, sock: socket.socket) -> Bind:
        if self._accepting.accepts:
            return self._accepting.add_bind(service, sock)

        def on_accept(user: socket.socket, address: object) -> None:
            self._on_accepted(service, user, address, listener.address)

        listener = Listener(sock, service, on_accept, self._may_accept)
        return listener

    def start(self) -> None:
        """Accept on every bind."""
        for listener in self._by_key.values():
            listener.start()

    def remove(self, key: str, shutdown: bool) -> None:
        """Close the bind ``key``; with ``shutdown`` for everybody, else only this worker's copy."""
        if (listener := self._by_key.pop(key, None)) is not None:
            listener.close(shutdown)

    def close(self, shutdown: bool) -> None:
        """Close every bind."""
        for key in list(self._by_key):
            self.remove(key, shutdown)
