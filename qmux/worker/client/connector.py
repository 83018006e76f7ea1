"""The connections to servers of one client process: all belong to one session and offer the same services."""

from __future__ import annotations

import os

import msgspec

from qmux import __version__
from qmux.addresses import certified
from qmux.config.schema import ClientConfig
from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.protocol.frames import Offered, Register
from qmux.protocol.values import MAX_NAME
from qmux.quic.engine import ConnectConfig, Engine
from qmux.quic.tickets import Tickets
from qmux.worker.client.failures import Failure, unreachable, unusable_certificate
from qmux.worker.client.lane import LaneConnection, Link, StreamServer
from qmux.worker.client.remote import Remote

IDLE_TIMEOUT_S = 600.0
"""The client's transport parameter: the smaller of both ends' rules, and the server's is the one that is configured."""

KEEP_ALIVE_S = 10.0
FIRST_MAX_STREAMS = 64
STREAM_WINDOW_BYTES = 1 << 20
"""The client's constants (docs/architecture.md, "Protocol"): transport parameters go before RegisterAck raises them."""

SESSION_BYTES = 16


class Connector:
    """Starts connections, as the configuration in force says."""

    def __init__(self, engine: Engine, streams: StreamServer, config: ClientConfig, material: Material) -> None:
        self._engine = engine
        self._streams = streams
        self._config = config
        self._material = material
        self._session = os.urandom(SESSION_BYTES)
        self._tickets = Tickets()

    def configure(self, config: ClientConfig, material: Material) -> bool:
        """New connections follow these. Returns whether they register something else than those that exist."""
        previous, self._config, self._material = self._config, config, material
        return _offered(previous) != _offered(config) or previous.instance != config.instance

    @property
    def reconnect_max_s(self) -> float:
        """The longest pause before a connection is tried again."""
        return self._config.reconnect_max_s

    def connect(
        self, link: Link, remote: Remote, lane: int | None, *, is_probe: bool = False
    ) -> LaneConnection | Failure:
        """Start one connection to ``remote``, for ``link``; ``lane`` None: to any worker. A probe only asks which
        server is there: it is no connection of our session.
        """
        timeout_s = self._config.connect_timeout_s
        config = ConnectConfig(
            material=self._material,
            server_name=self._config.server_name or certified(remote.server.host),
            lane=lane,
            idle_timeout_s=IDLE_TIMEOUT_S,
            keep_alive_s=KEEP_ALIVE_S,
            handshake_timeout_s=timeout_s,
            max_streams=FIRST_MAX_STREAMS,
            stream_window_bytes=STREAM_WINDOW_BYTES,
            tickets=None if is_probe else self._tickets,  # a probe must not use up what the session's lanes need
        )
        try:
            return LaneConnection(
                lambda handler: self._engine.connect(remote.address, config, handler),
                self._probing() if is_probe else self._register(),
                self._streams,
                link,
                timeout_s,
            )
        except CertificateError as error:  # the engine does not take it, though it is well-formed
            return unusable_certificate(str(error))
        except OSError as error:
            return unreachable(error.errno or 0, remote.text)

    def _register(self) -> Register:
        instance = self._config.instance or os.uname().nodename
        return Register(
            session=self._session,
            client_id=instance[:MAX_NAME],
            services=_offered(self._config),
            version=__version__,
        )

    def _probing(self) -> Register:
        """Another session, so that it takes no place of ours at the server, and the last to be given a user."""
        services = tuple(msgspec.structs.replace(each, backup=True) for each in _offered(self._config))
        return msgspec.structs.replace(self._register(), session=os.urandom(SESSION_BYTES), services=services)


def _offered(config: ClientConfig) -> tuple[Offered, ...]:
    return tuple(Offered(each.name, each.weight, each.backup) for each in config.services.values())
