"""The traffic binds of one worker, by key."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import msgspec

from qmux.addresses import text_of
from qmux.pool.rows import FailedBind
from qmux.quic.accepting import Accepting, Bind
from qmux.relay.listener import Listener

log = logging.getLogger(__name__)

OnAccepted = Callable[[str, socket.socket, object, object], None]
"""Gets the service, the user's socket, its address, and the bind's address."""


class _Entry(msgspec.Struct):
    """A bind of ``service``. ``error``: why it does not accept, "" where it does or was not started."""

    service: str
    address: str
    bind: Bind
    error: str = ""


class Listeners:
    """Owns the binds of a worker."""

    def __init__(self, on_accepted: OnAccepted, may_accept: Callable[[], bool], accepting: Accepting) -> None:
        """``accepting``: where the engine accepts, it gets the binds, and hands back what it does not serve itself."""
        self._on_accepted = on_accepted
        self._may_accept = may_accept
        self._accepting = accepting
        self._by_key: dict[str, _Entry] = {}

    def add(self, key: str, service: str, sock: socket.socket) -> None:
        """One more bind of ``service``; nothing is accepted before ``start``."""
        self.remove(key, shutdown=False)
        address = text_of(sock.getsockname())
        self._by_key[key] = _Entry(service, address, self._bind(service, sock))

    def _bind(self, service: str, sock: socket.socket) -> Bind:
        if self._accepting.accepts:
            return self._accepting.add_bind(service, sock)

        def on_accept(user: socket.socket, address: object) -> None:
            self._on_accepted(service, user, address, listener.address)

        listener = Listener(sock, service, on_accept, self._may_accept)
        return listener

    def start(self) -> None:
        """Accept on every bind. One that cannot is logged and told by ``failed``, and does not stop the others."""
        for entry in self._by_key.values():
            try:
                entry.bind.start()
                entry.error = ""
            except OSError as error:
                entry.error = error.strerror or str(error)
                fields = {"service": entry.service, "bind": entry.address, "reason": entry.error}
                log.error("bind does not accept: its users wait; reload to try again", extra=fields)

    def failed(self) -> tuple[FailedBind, ...]:
        """The binds that do not accept."""
        entries = self._by_key.values()
        return tuple(FailedBind(entry.service, entry.address, entry.error) for entry in entries if entry.error)

    def remove(self, key: str, shutdown: bool) -> None:
        """Close the bind ``key``; with ``shutdown`` for everybody, else only this worker's copy."""
        if (entry := self._by_key.pop(key, None)) is not None:
            entry.bind.close(shutdown)

    def close(self, shutdown: bool) -> None:
        """Close every bind."""
        for key in list(self._by_key):
            self.remove(key, shutdown)
