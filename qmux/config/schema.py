"""The configuration as the program uses it: typed, complete, with units in the names.

``qmux.config.load`` makes these from TOML; the supervisor sends them to the workers as msgpack. Nothing here reads a
file. Times are seconds (``_s``), sizes bytes (``_bytes``). Defaults are those of docs/configuration.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qmux import addresses

Balance = Literal["least-connections", "round-robin", "random-two-choices", "source-hash"]
EngineName = Literal["auto", "aioquic", "native"]
Purpose = Literal["quic", "traffic"]
Protocol = Literal["udp", "tcp"]


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
    lanes: int | None = None  # None: auto, the worker count, at most 16
    idle_timeout_s: float = 30.0
    keep_alive_s: float = 10.0
    heartbeat_s: float = 4.0
    handshake_timeout_s: float = 5.0
    max_streams: int = 4096
    stream_window_bytes: int = 1 << 20
    retry_threshold: int = 100


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[services.NAME]`` on a server, with ``[defaults]`` already applied."""

    name: str
    bind: tuple[ListenAddress, ...] = ()
    quic_bind: tuple[ListenAddress, ...] = ()
    protocol: Literal["tcp"] = "tcp"
    balance: Balance = "least-connections"
    early_data: bool = False
    queue_timeout_s: float = 3.0
    setup_timeout_s: float = 10.0
    retries: int = 2
    idle_timeout_s: float | None = None  # None: off
    half_closed_timeout_s: float = 300.0
    maxconn: int | None = None
    allow: tuple[str, ...] = ()  # CIDRs; empty: everybody
    deny: tuple[str, ...] = ()

    def traffic_binds(self) -> tuple[Bind, ...]:
        """Where its users come to."""
        return tuple(Bind("traffic", self.protocol, address) for address in self.bind)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[log]``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["human", "json"] = "human"
    file: str = ""  # absolute path; "": stderr


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What ``[server]`` and ``[client]`` share: how the daemon runs."""

    tls: TlsFiles
    workers: int | None = None  # None: auto
    engine: EngineName = "auto"
    user: str = ""
    group: str = ""
    runtime_dir: str = ""  # "": derived from the source, qmux.config.directories
    state_dir: str = ""
    stop_after_s: float = 25.0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole server configuration. ``source``: absolute path of the file or directory."""

    source: str
    process: ProcessConfig
    quic: QuicConfig
    services: dict[str, ServiceConfig]
    max_clients: int = 4096
    drain_delay_s: float = 0.0
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

    name: str
    target: Target
    connect_timeout_s: float = 5.0
    weight: int = 1
    backup: bool = False


class ServerAddress(msgspec.Struct, frozen=True, order=True):
    """One entry of ``servers``: a host name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return addresses.join(self.host, self.port)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole client configuration. ``source``: absolute path, or a one-liner's arguments."""

    source: str
    process: ProcessConfig
    servers: tuple[ServerAddress, ...]
    services: dict[str, ClientServiceConfig]
    server_name: str = ""  # "": the host of the server address
    instance: str = ""
    resolve_interval_s: float = 30.0
    connect_timeout_s: float = 3.0
    reconnect_max_s: float = 15.0
    once: bool = False
    log: LogConfig = LogConfig()


Config = ServerConfig | ClientConfig
