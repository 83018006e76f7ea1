"""A server's side of one slot on the native core."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TypedDict

import qmux_native
from typing_extensions import override

from qmux.errors import CertificateError
from qmux.quic.engine import Acceptor, Endpoint, EndpointConfig, EndpointStats
from qmux.quic.native_engine import limits
from qmux.quic.native_engine.connection import NativeConnection
from qmux.quic.native_engine.credentials import Credentials
from qmux.quic.native_engine.driver import Driver


class NativeEndpoint(Endpoint):
    """The core's endpoint, and its connections by their handles."""

    def __init__(self, config: EndpointConfig, acceptor: Acceptor, driver: Driver) -> None:
        self._slot = config.slot
        self._acceptor = acceptor
        self._driver = driver
        self._core = driver.core
        self._connections: set[NativeConnection] = set()
        self._last_stats = EndpointStats()
        self._is_closed = False
        keys = config.keys
        try:
            self._handle = self._core.serve(
                slot=config.slot, reset_key=keys.stateless_reset, retry_key=keys.retry, **_settings(config)
            )
        except ValueError as error:  # a key that rustls does not take
            raise CertificateError(str(error)) from None
        driver.add_endpoint(self._handle, self._accepted)

    @override
    def add_socket(self, sock: socket.socket) -> None:
        if self._is_closed:
            sock.close()
            return
        self._core.add_socket(self._handle, sock.detach())
        self._driver.wake()

    @override
    def reconfigure(self, config: EndpointConfig) -> None:
        if self._is_closed:
            return
        try:
            self._core.reconfigure(self._handle, **_settings(config))
        except ValueError as error:
            raise CertificateError(str(error)) from None

    @override
    def set_live_slots(self, slots: Sequence[int]) -> None:
        if not self._is_closed:
            self._core.set_live_slots(self._handle, [*slots, self._slot])

    @override
    def refuse_new(self, refuse: bool) -> None:
        if not self._is_closed:
            self._core.refuse_new(self._handle, refuse)

    @override
    def stats(self) -> EndpointStats:
        if not self._is_closed:
            self._last_stats = EndpointStats(**self._core.endpoint_stats(self._handle))
        return self._last_stats

    @override
    def close(self, code: int, reason: str) -> None:
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


class _Settings(TypedDict):
    """What the core takes at the start and at every reload."""

    credentials: qmux_native.Credentials
    limits: qmux_native.Limits
    retry_threshold: int
    max_connections: int


def _settings(config: EndpointConfig) -> _Settings:
    return _Settings(
        credentials=Credentials(config.material).of_server(),
        limits=limits.of_server(config),
        retry_threshold=config.retry_threshold,
        max_connections=config.max_connections,
    )
