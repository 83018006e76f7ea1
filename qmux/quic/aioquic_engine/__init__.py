"""The reference engine: aioquic on the event loop. Every feature works on it; its throughput is no gate."""

from __future__ import annotations

import asyncio

from typing_extensions import override

from qmux.pki.material import Material
from qmux.quic.aioquic_engine.credentials import Credentials
from qmux.quic.aioquic_engine.endpoint import AioquicEndpoint
from qmux.quic.aioquic_engine.outgoing import connect
from qmux.quic.engine import Acceptor, ConnectConfig, Connection, ConnectionHandler, Endpoint, EndpointConfig, Engine


class AioquicEngine(Engine):
    """Without state: a connection or endpoint has what it needs."""

    name = "aioquic"

    @override
    def try_material(self, material: Material) -> None:
        Credentials(material).try_key()

    @override
    def serve(self, config: EndpointConfig, acceptor: Acceptor) -> Endpoint:
        return AioquicEndpoint(config, acceptor, asyncio.get_running_loop())

    @override
    def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
        return connect(address, config, handler, asyncio.get_running_loop())
