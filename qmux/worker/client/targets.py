"""Which targets the engine may dial alone: addresses as they are configured, those of names for a moment."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from qmux.config.schema import ClientServiceConfig
from qmux.paths import path_of
from qmux.quic.dialling import Address, Dialling
from qmux.relay.dial import literal_address
from qmux.resolver import FRESH_S

NAME_VALID_S = FRESH_S
"""As long as what was looked up is fresh."""


class Targets:
    """The targets of ``dialling``, kept as the configuration has them. None while ``draining``."""

    def __init__(self, dialling: Dialling, services: Mapping[str, ClientServiceConfig]) -> None:
        self._dialling = dialling
        self._services = services
        self._draining = False
        self.follow(services)

    def follow(self, services: Mapping[str, ClientServiceConfig]) -> None:
        """These are the services now; user connections under way stay with their target."""
        self._services = services
        self._dialling.clear_targets()
        for service in () if self._draining else services.values():
            if (address := _fixed_address(service)) is not None:
                self._dialling.set_target(service.name, address, service.connect_timeout_s)

    def drain(self) -> None:
        """No user connection is served any more."""
        self._draining = True
        self._dialling.clear_targets()

    def reached(self, service: ClientServiceConfig, sock: socket.socket) -> None:
        """``sock`` was connected to the target of ``service``: the next user connections may go the same way."""
        is_name = _fixed_address(service) is None
        if not is_name or self._draining or self._services.get(service.name) != service:
            return
        if (address := _plain_address(sock)) is not None:
            self._dialling.set_target(service.name, address, service.connect_timeout_s, NAME_VALID_S)


def _fixed_address(service: ClientServiceConfig) -> Address | None:
    target = service.target
    if target.path:
        path = path_of(target.path)
        return path if path.isprintable() else None  # the engine knows only text
    return (target.host, target.port) if literal_address(target.host, target.port) else None


def _plain_address(sock: socket.socket) -> Address | None:
    """Where it is connected to; None where an interface belongs to the address, or the other end has just left."""
    try:
        address = sock.getpeername()
    except OSError:
        return None
    has_scope = len(address) > 2 and address[3] != 0
    return None if has_scope else (address[0], address[1])
