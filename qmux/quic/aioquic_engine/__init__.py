"""The reference engine: aioquic on the event loop. Every feature works on it; its throughput is no gate."""

from __future__ import annotations

import asyncio

from qmux.quic.aioquic_engine.endpoint import AioquicEndpoint
from qmux.quic.aioquic_engine.outgoing import connect
from qmux.quic.engine import Acceptor, ConnectConfig, Connection, ConnectionHandler, Endpoint, EndpointConfig


class AioquicEngine:
    """Implements ``qmux.quic.engine.Engine``."""

    name = "aioquic"

    def serve(self, config: EndpointConfig, acceptor: Acceptor) -> Endpoint:
        """See ``qmux.quic.engine.Engine.serve``."""
        return AioquicEndpoint(config, acceptor, asyncio.get_running_loop())

    def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
        """See ``qmux.quic.engine.Engine.connect``."""
        return connect(address, config, handler, asyncio.get_running_loop())
