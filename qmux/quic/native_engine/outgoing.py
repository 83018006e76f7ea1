"""A client's connections: a UDP socket for each, so that the kernel can merge and tell apart what comes back."""

from __future__ import annotations

import socket

from qmux.errors import CertificateError
from qmux.quic.engine import ConnectConfig, ConnectionHandler
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.credentials import Credentials
from qmux.quic.native_engine.driver import Driver

SOCKET_BUFFER_BYTES = 4 << 20
"""Asked for; the kernel gives what ``rmem_max`` and ``wmem_max`` allow."""


def connect(
    address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler, driver: Driver
) -> NativeConnection:
    """See ``qmux.quic.engine.Engine.connect``."""
    credentials = Credentials(config.material)
    sock = _open_socket(address)
    peer = sock.getpeername()
    try:
        handle = driver.core.connect(
            fd=sock.detach(),
            host=peer[0].partition("%")[0],
            port=peer[1],
            scope_id=peer[3] if len(peer) > 2 else 0,
            chain=credentials.chain,
            key=credentials.key,
            alpn=credentials.alpn,
            verify=credentials.server_verifier(config.server_name),
            server_name=config.server_name,
            lane=config.lane,
            idle_timeout_s=config.idle_timeout_s,
            keep_alive_s=config.keep_alive_s,
            handshake_timeout_s=config.handshake_timeout_s,
            max_streams=config.max_streams,
            stream_window_bytes=config.stream_window_bytes,
        )
    except ValueError as error:  # a key that rustls does not take
        raise CertificateError(str(error)) from None
    connection = NativeConnection(driver, handle, peer[:2])
    connection.set_handler(handler)
    driver.wake()
    return connection


def _open_socket(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock
