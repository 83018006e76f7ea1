"""What workers tell each other about their connections, and the admin process about themselves.

Every message on the bus is one msgpack ``Delta``, ``Pass`` or ``WorkerReport``. A row belongs to the worker (slot,
epoch) that owns the connection; no other changes it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

RowState = Literal["ready", "suspect", "draining"]


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """A service that a session serves."""

    service: str
    weight: int = 1
    backup: bool = False


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One registered connection at one worker.

    ``key`` is unique in its worker and grows. ``session`` and ``principal`` together name the client process.
    ``active``: user connections on it now, as its worker counts them; ``active_total`` and ``active_here`` are the
    client's newest Heartbeat (``active_at_ms``: when it came, wall clock, so that the newest
    of a session's connections is known). ``connected_at_ms``: wall clock.
    """

    key: int
    tenant: str
    principal: str
    session: bytes
    instance: str
    offers: tuple[Offer, ...]
    state: RowState
    active: int
    active_total: int
    active_here: int
    active_at_ms: int
    address: str
    rtt_ms: float
    connected_at_ms: int
    not_after: int  # of the certificate, seconds since the epoch
    mtu_bytes: int = 0  # the largest datagram in use


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="delta"):
    """Rows that changed and keys that are gone; ``active``: user connections per service at this worker."""

    slot: int
    epoch: int
    rows: tuple[Row, ...]
    gone: tuple[int, ...]
    active: dict[str, int]


class Pass(msgspec.Struct, frozen=True, array_like=True, tag="pass"):
    """All rows of a worker with first ≤ key < last: what a receiver holds there and this does not name is gone."""

    slot: int
    epoch: int
    first: int
    last: int
    rows: tuple[Row, ...]
    active: dict[str, int]


class ServiceCounters(msgspec.Struct, array_like=True):
    """One service at one worker, since the worker's start. ``refused``: reason → count."""

    active: int = 0
    total: int = 0
    bytes_in: int = 0  # from users
    bytes_out: int = 0  # to users
    retried: int = 0
    handed_off: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    resolve_failed: int = 0  # at a client: lookups of the target's name that failed or were not answered


class ServerRow(msgspec.Struct, frozen=True, array_like=True):
    """On a client: one server as this worker sees it. ``state``: "registered", "connecting", or a short name for why
    not; ``reason`` says it in words.
    """

    server: str
    address: str
    state: str
    connections: int
    rtt_ms: float
    since_ms: int
    reason: str = ""


class EndpointStats(msgspec.Struct):
    """Counters of one server endpoint, since its start."""

    datagrams_received: int = 0
    datagrams_sent: int = 0
    datagrams_invalid: int = 0
    foreign_packets: int = 0  # carried an ID issued by another live slot: a misroute
    unknown_connection: int = 0
    stateless_resets_sent: int = 0
    retries_sent: int = 0
    initials_refused: int = 0
    send_blocked: int = 0
    handshakes_completed: int = 0
    handshakes_resumed: int = 0  # of those completed
    tickets_refused: int = 0  # unknown, used before, or of a client that is not accepted any more
    handshakes_failed: int = 0
    connections: int = 0
    half_open: int = 0


class EndpointReport(EndpointStats):
    """The endpoint of a server's worker, and what the layers above it count beside it."""

    bus_dropped: int = 0  # messages that the bus did not take
    bus_invalid: int = 0  # messages of other workers that did not decode
    rejected: int = 0  # registrations
    protocol_errors: int = 0  # connections that broke the protocol


class FailedBind(msgspec.Struct, frozen=True, array_like=True):
    """A bind that a worker does not read, and why. ``service``: "" for a bind of QUIC."""

    service: str
    address: str
    reason: str


class WorkerReport(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """A worker's counters for ``qmux status`` and metrics, once a second."""

    slot: int
    epoch: int
    pid: int
    engine: str
    services: dict[str, ServiceCounters]
    endpoint: EndpointReport | None  # None: a client's worker
    links: tuple[ServerRow, ...] = ()
    failed_binds: tuple[FailedBind, ...] = ()


BusMessage = Delta | Pass | WorkerReport
