"""A client's connections: a UDP socket for each, so that the kernel can merge and tell apart what comes back."""

from __future__ import annotations

import socket
from typing import NamedTuple

import qmux_native

from qmux import addresses
from qmux.quic.engine import ConnectConfig, ConnectionHandler
from qmux.quic.native_engine import limits
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.credentials import ClientContext, Credentials
from qmux.quic.native_engine.driver import Driver
from qmux.quic.tickets import Server, Ticket

SOCKET_BUFFER_BYTES = 4 << 20
"""Requested; the kernel gives what ``rmem_max`` and ``wmem_max`` allow."""


def connect(
    address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler, driver: Driver
) -> NativeConnection:
    """Start one outgoing connection. Raises CertificateError, OSError."""
    resuming = _Resuming(address, config)
    sock = _open_socket(address)
    peer = sock.getpeername()
    handle = driver.core.connect(
        fd=sock.detach(),
        host=peer[0].partition("%")[0],
        port=peer[1],
        scope_id=peer[3] if len(peer) > 2 else 0,
        client=resuming.context.core,
        ticket=resuming.ticket,
        server_name=config.server_name,
        lane=resuming.lane,
        limits=limits.of_client(config),
    )
    connection = NativeConnection(driver, handle, peer[:2])
    connection.set_handler(handler)
    connection.on_ticket = resuming.keep
    driver.wake()
    return connection


class _Resuming:
    """The lane that a connection asks for, with which credentials and ticket; and where the tickets go that it gets."""

    def __init__(self, address: tuple[str, int], config: ConnectConfig) -> None:
        self._server = Server(address, config.server_name)
        self._config = config
        self.lane = config.lane
        self.ticket: qmux_native.Ticket | None = None
        found = None
        if config.tickets is not None:
            self.lane, found = config.tickets.take(self._server, config.lane, config.material)
        if found is None:
            self.context = ClientContext(Credentials(config.material), config.server_name)
        else:
            assert isinstance(found.session, _Session), "a store belongs to one engine"
            self.context, self.ticket = found.session

    def keep(self, ticket: qmux_native.Ticket, lane: int) -> None:
        """The worker of ``lane`` issued ``ticket``."""
        if self._config.tickets is not None:
            session = _Session(self.context, ticket)
            kept = Ticket(session, self._config.material, self.context.expires_at)
            self._config.tickets.put(self._server, lane, kept)


class _Session(NamedTuple):
    """A session to resume, for the store."""

    context: ClientContext
    ticket: qmux_native.Ticket


def _open_socket(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.connect(addresses.socket_address(*address))
    except OSError:
        sock.close()
        raise
    return sock
