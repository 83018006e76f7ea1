"""What ``qmux status`` shows: the object of ``GET /v1/status`` and of ``qmux status --json``.

Times of day are in seconds since the epoch, rates in bits per second.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qmux.messages import DaemonSummary, ProcessRow
from qmux.pool.rows import EndpointReport


class Process(ProcessRow, kw_only=True):
    """A process; ``endpoint``: what a server's worker counts, once it has reported."""

    endpoint: EndpointReport | msgspec.UnsetType = msgspec.UNSET


class Traffic(msgspec.Struct, kw_only=True):
    """The user connections of a service, at all workers together; ``connections`` are those now. ``retried``: attempts
    with another client, at a client those with its service.
    """

    name: str
    connections: int
    total: int
    bytes_in: int
    bytes_out: int
    rate_in_bit_s: int
    rate_out_bit_s: int
    retried: int
    handed_off: int
    refused: dict[str, int]


class ServerService(Traffic, kw_only=True):
    """A service at a server; ``clients``: the sessions that offer it."""

    binds: list[str]
    protocol: str
    clients_ready: int
    clients: int


class ClientService(Traffic, kw_only=True):
    """A service at a client. ``resolve_failed``: lookups of the target's name that failed or were not answered."""

    target: str
    resolve_failed: int = 0


class ClientSession(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """A session of a client at a server. ``connections`` are its QUIC connections, ``active`` its user connections;
    ``not_after``: when its certificate expires.
    """

    client: str
    instance: str
    session: str
    services: list[str]
    from_: str
    state: str
    connections: int
    active: int
    rtt_ms: float | None
    mtu_bytes: int
    since: float
    not_after: int


class ServerLink(msgspec.Struct, kw_only=True):
    """A server as a client's worker sees it. ``reason``: why it is not connected, in words."""

    server: str
    address: str
    state: str
    connections: int
    rtt_ms: float
    since: float
    reason: str = ""


class Generation(msgspec.Struct, kw_only=True):
    """Workers that were started together. Only the newest has counts."""

    number: int
    since: float
    workers: int | msgspec.UnsetType = msgspec.UNSET
    connections: int | msgspec.UnsetType = msgspec.UNSET


class ClientDaemon(DaemonSummary, frozen=True, kw_only=True):
    """The daemon of a client."""

    instance: str


class FailedBind(msgspec.Struct, kw_only=True):
    """A bind that a worker does not read, and why. ``service`` is "" for a bind of QUIC."""

    service: str
    address: str
    reason: str


class ServerStatus(msgspec.Struct, kw_only=True):
    """A server."""

    server: DaemonSummary
    workers: list[Process]
    services: list[ServerService]
    failed_binds: list[FailedBind]
    clients: list[ClientSession]
    generations: list[Generation]


class ClientStatus(msgspec.Struct, kw_only=True):
    """A client."""

    client: ClientDaemon
    workers: list[Process]
    servers: list[ServerLink]
    services: list[ClientService]


Status = ServerStatus | ClientStatus


def as_json(status: Status | None) -> dict[str, Any]:
    """The object; empty while nothing is known."""
    return {} if status is None else dict(msgspec.to_builtins(status))


def from_json(value: dict[str, Any]) -> Status:
    """The status in the answer of a daemon. Raises msgspec.ValidationError where it is none, or an empty one."""
    return msgspec.convert(value, ServerStatus) if "server" in value else msgspec.convert(value, ClientStatus)
