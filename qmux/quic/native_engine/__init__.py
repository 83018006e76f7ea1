"""The native engine: quinn-proto and rustls in Rust (``native/``), where users' bytes stay, driven by the loop."""

from __future__ import annotations

import asyncio

from qmux.quic.accepting import Accepting, UserHandler
from qmux.quic.dialling import Dialling, OnChange, OnEnd
from qmux.quic.engine import Acceptor, ConnectConfig, Connection, ConnectionHandler, Endpoint, EndpointConfig
from qmux.quic.native_engine.accepting import NativeAccepting
from qmux.quic.native_engine.dialling import NativeDialling
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.endpoint import NativeEndpoint
from qmux.quic.native_engine.outgoing import connect


class NativeEngine:
    """Implements ``qmux.quic.engine.Engine``, and what an engine may do beyond it: ``DiallingEngine`` of
    ``qmux.quic.dialling`` and ``AcceptingEngine`` of ``qmux.quic.accepting``.
    """

    name = "native"

    def __init__(self) -> None:
        self._driver: Driver | None = None

    def serve(self, config: EndpointConfig, acceptor: Acceptor) -> Endpoint:
        """See ``qmux.quic.engine.Engine.serve``."""
        return NativeEndpoint(config, acceptor, self._running_driver())

    def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
        """See ``qmux.quic.engine.Engine.connect``."""
        return connect(address, config, handler, self._running_driver())

    def dialling(self, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> Dialling:
        """See ``qmux.quic.dialling.DiallingEngine.dialling``."""
        return NativeDialling(self._running_driver(), head_timeout_s, on_change, on_end)

    def accepting(self, handler: UserHandler, first_conn_id: int, limit: int) -> Accepting:
        """See ``qmux.quic.accepting.AcceptingEngine.accepting``."""
        return NativeAccepting(self._running_driver(), handler, first_conn_id, limit)

    def _running_driver(self) -> Driver:
        loop = asyncio.get_running_loop()
        if self._driver is None or self._driver.loop is not loop:
            self._driver = Driver(loop)
        return self._driver
