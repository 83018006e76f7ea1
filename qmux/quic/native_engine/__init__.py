"""The native engine: quinn-proto and rustls in Rust (``native/``), where users' bytes stay, driven by the loop."""

from __future__ import annotations

import asyncio

from typing_extensions import override

from qmux.pki.material import Material
from qmux.quic.accepting import SLOW_S, Accepting, AcceptingEngine
from qmux.quic.dialling import Dialling, DiallingEngine, OnChange, OnEnd
from qmux.quic.engine import Acceptor, ConnectConfig, Connection, ConnectionHandler, Endpoint, EndpointConfig, Engine
from qmux.quic.native_engine.accepting import NativeAccepting
from qmux.quic.native_engine.credentials import ClientContext, Credentials
from qmux.quic.native_engine.dialling import NativeDialling
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.endpoint import NativeEndpoint
from qmux.quic.native_engine.outgoing import connect


class NativeEngine(Engine, DiallingEngine, AcceptingEngine):
    """One core for each event loop. It also serves user connections alone, at both ends."""

    name = "native"

    def __init__(self) -> None:
        self._driver: Driver | None = None

    @override
    def try_material(self, material: Material) -> None:
        ClientContext(Credentials(material), "")  # rustls loads and compares a server's key in the same way

    @override
    def serve(self, config: EndpointConfig, acceptor: Acceptor) -> Endpoint:
        return NativeEndpoint(config, acceptor, self._running_driver())

    @override
    def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
        return connect(address, config, handler, self._running_driver())

    @override
    def dialling(self, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> Dialling:
        return NativeDialling(self._running_driver(), head_timeout_s, on_change, on_end)

    @override
    def accepting(self, first_conn_id: int, limit: int, slow_s: float = SLOW_S) -> Accepting:
        return NativeAccepting(self._running_driver(), first_conn_id, limit, slow_s)

    def _running_driver(self) -> Driver:
        loop = asyncio.get_running_loop()
        if self._driver is None or self._driver.loop is not loop:
            self._driver = Driver(loop)
        return self._driver
