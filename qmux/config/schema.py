"""The configuration as the program uses it: typed, complete, with units in the names.

``qmux.config.load`` makes these from TOML; the supervisor sends them to the workers as msgpack. Nothing here reads a
file. Times are seconds (``_s``), sizes bytes (``_bytes``). Defaults, limits and what a reload makes of a key stand here
and nowhere else: ``qmux.config.keys`` reads them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from qmux import addresses
from qmux.config.keys import Later, Limits, NeedsRestart, NotInFile, OrWord

Balance = Literal["least-connections", "round-robin", "random-two-choices", "source-hash"]
EngineName = Literal["auto", "aioquic", "native"]
Purpose = Literal["quic", "traffic"]
Protocol = Literal["udp", "tcp"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["human", "json"]

MAX_COUNT = 1_000_000
MAX_STREAMS = 1 << 20
"""What a client accepts in ``limits`` (``qmux.protocol.values``)."""

MAX_LANES = 16
"""Connections of one client to one server (docs/architecture.md, "Protocol"): more workers than that get their share by
hand-off."""

MAX_WORKERS = 256
"""More than the largest machines have CPUs that one port can feed; a slot has 15 bits (``qmux.steering``)."""

MAX_WEIGHT = 256
"""Of what ``Register`` carries (``qmux.protocol.values``)."""

MAX_QUIC_IDLE_S = 600.0
"""A client's own idle timeout is a constant 10 minutes, and the smaller of both rules (docs/architecture.md)."""

MIN_TIMEOUT_S = 0.1
MAX_TIMEOUT_S = 86_400.0 * 30
"""A month: what the protocol carries (``qmux.protocol.values``). Longer means "off"."""

MAX_SETUP_S = 600.0
MAX_CONNECT_S = 300.0


class ListenAddress(msgspec.Struct, frozen=True, order=True):
    """A listening address. ``host`` "" means every address, IPv4 and IPv6 (two socket groups)."""

    host: str
    port: int

    def __str__(self) -> str:
        return addresses.join(self.host, self.port)


class Bind(msgspec.Struct, frozen=True, order=True):
    """What a server listens for: clients (QUIC) or a service's traffic, over which protocol, and where."""

    purpose: Purpose
    protocol: Protocol
    address: ListenAddress

    @property
    def port(self) -> int:
        """The port of its address."""
        return self.address.port

    def __str__(self) -> str:
        return str(self.address)


class Target(msgspec.Struct, frozen=True):
    """Where a client dials: ``host`` and ``port``, or a Unix socket at ``path``."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return addresses.join(self.host, self.port)


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths of the certificate material: one bundle, or three files."""

    bundle: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""


class QuicConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[quic]``: the way in for clients."""

    bind: tuple[ListenAddress, ...] = ()
    lanes: Annotated[int | None, Limits(1, MAX_LANES), OrWord("auto")] = None  # None: the worker count, at most 16
    idle_timeout_s: Annotated[float, Limits(1.0, MAX_QUIC_IDLE_S)] = 30.0
    keep_alive_s: Annotated[float, Limits(MIN_TIMEOUT_S, MAX_QUIC_IDLE_S)] = 10.0
    heartbeat_s: Annotated[float, Limits(MIN_TIMEOUT_S, 60.0)] = 4.0
    handshake_timeout_s: Annotated[float, Limits(MIN_TIMEOUT_S, 60.0)] = 5.0
    max_streams: Annotated[int, Limits(1, MAX_STREAMS)] = 4096
    stream_window_bytes: Annotated[int, Limits(16 << 10, 256 << 20)] = 1 << 20
    retry_threshold: Annotated[int, Limits(0, MAX_COUNT)] = 100


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[services.NAME]`` on a server, with ``[defaults]`` already applied."""

    name: Annotated[str, NotInFile()]
    bind: tuple[ListenAddress, ...] = ()
    quic_bind: tuple[ListenAddress, ...] = ()
    protocol: Annotated[Literal["tcp"], Later(("udp", "both"))] = "tcp"
    balance: Balance = "least-connections"
    early_data: bool = False
    queue_timeout_s: Annotated[float, Limits(0.0, MAX_SETUP_S)] = 3.0
    setup_timeout_s: Annotated[float, Limits(MIN_TIMEOUT_S, MAX_SETUP_S)] = 10.0
    retries: Annotated[int, Limits(0, 16)] = 2
    idle_timeout_s: Annotated[float | None, Limits(MIN_TIMEOUT_S, MAX_TIMEOUT_S), OrWord("off")] = None
    half_closed_timeout_s: Annotated[float, Limits(MIN_TIMEOUT_S, MAX_TIMEOUT_S)] = 300.0
    maxconn: Annotated[int | None, Limits(1, MAX_COUNT)] = None
    allow: tuple[str, ...] = ()  # CIDRs; empty: everybody
    deny: tuple[str, ...] = ()

    def traffic_binds(self) -> tuple[Bind, ...]:
        """Where its users come to."""
        return tuple(Bind("traffic", self.protocol, address) for address in self.bind)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[log]``."""

    level: LogLevel = "info"
    format: LogFormat = "human"
    file: str = ""  # absolute path; "": stderr


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What ``[server]`` and ``[client]`` share: how the daemon runs."""

    tls: TlsFiles
    workers: Annotated[
        int | None,
        Limits(1, MAX_WORKERS),
        OrWord("auto"),
        NeedsRestart("the number of workers is fixed while they run"),
    ] = None
    engine: Annotated[EngineName, NeedsRestart("the engine is chosen when a worker starts")] = "auto"
    user: Annotated[str, NeedsRestart("a worker gets its user when it starts")] = ""
    group: Annotated[str, NeedsRestart("a worker gets its group when it starts")] = ""
    # "": derived from the source, qmux.config.directories
    runtime_dir: Annotated[str, NeedsRestart("the lock and the sockets are in the old one")] = ""
    state_dir: Annotated[str, NeedsRestart("the secret that is kept there was read at the start")] = ""
    stop_after_s: Annotated[float, Limits(0.0, 86_400.0)] = 25.0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole server configuration. ``source``: absolute path of the file or directory."""

    source: Annotated[str, NotInFile()]
    process: ProcessConfig
    quic: QuicConfig
    services: dict[str, ServiceConfig]
    max_clients: Annotated[int, Limits(1, MAX_COUNT)] = 4096
    drain_delay_s: Annotated[float, Limits(0.0, 3600.0)] = 0.0
    log: LogConfig = LogConfig()

    def quic_addresses(self) -> tuple[ListenAddress, ...]:
        """Every QUIC listening address once, in a stable order (the same address twice is one bind)."""
        named = dict.fromkeys(self.quic.bind)
        for service in self.services.values():
            named.update(dict.fromkeys(service.quic_bind))
        return tuple(named)

    def quic_binds(self) -> tuple[Bind, ...]:
        """Where clients come to."""
        return tuple(Bind("quic", "udp", address) for address in self.quic_addresses())


class ClientServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[services.NAME]`` on a client."""

    name: Annotated[str, NotInFile()]
    target: Target
    connect_timeout_s: Annotated[float, Limits(MIN_TIMEOUT_S, MAX_CONNECT_S)] = 5.0
    weight: Annotated[int, Limits(1, MAX_WEIGHT)] = 1
    backup: bool = False


class ServerAddress(msgspec.Struct, frozen=True, order=True):
    """One entry of ``servers``: a host name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return addresses.join(self.host, self.port)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole client configuration. ``source``: absolute path, or a one-liner's arguments."""

    source: Annotated[str, NotInFile()]
    process: ProcessConfig
    servers: tuple[ServerAddress, ...]
    services: dict[str, ClientServiceConfig]
    server_name: str = ""  # "": the host of the server address
    instance: str = ""
    resolve_interval_s: Annotated[float, Limits(1.0, 86_400.0)] = 30.0
    connect_timeout_s: Annotated[float, Limits(MIN_TIMEOUT_S, MAX_CONNECT_S)] = 3.0
    reconnect_max_s: Annotated[float, Limits(MIN_TIMEOUT_S, 3600.0)] = 15.0
    once: Annotated[bool, NotInFile()] = False
    log: LogConfig = LogConfig()


Config = ServerConfig | ClientConfig
