"""A server's side of one slot on the native core."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.quic.engine import Acceptor, EndpointConfig, EndpointStats
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.credentials import Credentials
from qmux.quic.native_engine.driver import Driver


class NativeEndpoint:
    """Implements ``qmux.quic.engine.Endpoint``."""

    def __init__(self, config: EndpointConfig, acceptor: Acceptor, driver: Driver) -> None:
        self._slot = config.slot
        self._acceptor = acceptor
        self._driver = driver
        self._core = driver.core
        self._connections: set[NativeConnection] = set()
        self._last_stats = EndpointStats()
        self._is_closed = False
        credentials = Credentials(config.material)
        try:
            self._handle = self._core.serve(
                slot=config.slot,
                chain=credentials.chain,
                key=credentials.key,
                alpn=credentials.alpn,
                verify=credentials.client_verifier(),
                reset_key=config.keys.stateless_reset,
                retry_key=config.keys.retry,
                idle_timeout_s=config.idle_timeout_s,
                keep_alive_s=config.keep_alive_s,
                handshake_timeout_s=config.handshake_timeout_s,
                retry_threshold=config.retry_threshold,
                max_connections=config.max_connections,
                connection_window_bytes=config.unregistered_window_bytes,
                stream_window_bytes=config.stream_window_bytes,
            )
        except ValueError as error:  # a key that rustls does not take
            raise CertificateError(str(error)) from None
        driver.add_endpoint(self._handle, self._accepted)

    def add_socket(self, sock: socket.socket) -> None:
        """See ``qmux.quic.engine.Endpoint.add_socket``."""
        self._core.add_socket(self._handle, sock.detach())
        self._driver.wake()

    def set_material(self, material: Material) -> None:
        """See ``qmux.quic.engine.Endpoint.set_material``."""
        credentials = Credentials(material)
        try:
            self._core.set_material(
                self._handle, credentials.chain, credentials.key, credentials.alpn, credentials.client_verifier()
            )
        except ValueError as error:
            raise CertificateError(str(error)) from None

    def set_live_slots(self, slots: Sequence[int]) -> None:
        """See ``qmux.quic.engine.Endpoint.set_live_slots``."""
        self._core.set_live_slots(self._handle, [*slots, self._slot])

    def refuse_new(self, refuse: bool) -> None:
        """See ``qmux.quic.engine.Endpoint.refuse_new``."""
        self._core.refuse_new(self._handle, refuse)

    def stats(self) -> EndpointStats:
        """See ``qmux.quic.engine.Endpoint.stats``."""
        if not self._is_closed:
            self._last_stats = EndpointStats(**self._core.endpoint_stats(self._handle))
        return self._last_stats

    def close(self, code: int, reason: str) -> None:
        """See ``qmux.quic.engine.Endpoint.close``."""
        if self._is_closed:
            return
        for connection in list(self._connections):
            connection.close(code, reason)
        self.stats()
        self._is_closed = True
        self._core.close_endpoint(self._handle, code, reason.encode())
        self._driver.remove_endpoint(self._handle)

    def _accepted(self, handle: int, address: tuple[str, int]) -> None:
        connection = NativeConnection(self._driver, handle, address)
        self._connections.add(connection)
        connection.on_closed = self._connections.discard
        connection.set_handler(self._acceptor(connection))
