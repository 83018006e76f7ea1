"""What workers tell each other about their connections, and the admin process about themselves.

Every message on the bus is one msgpack ``Delta``, ``Pass`` or ``WorkerReport``. A row belongs to the worker (slot,
epoch) that owns the connection; nobody else changes it.
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


class ServerRow(msgspec.Struct, frozen=True, array_like=True):
    """On a client: one server as this worker sees it. ``state``: "registered", "connecting", or why not."""

    server: str
    address: str
    state: str
    connections: int
    rtt_ms: float
    since_ms: int


class WorkerReport(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """A worker's counters for ``qmux status`` and metrics, once a second."""

    slot: int
    epoch: int
    pid: int
    engine: str
    services: dict[str, ServiceCounters]
    endpoint: dict[str, int]
    links: tuple[ServerRow, ...] = ()


BusMessage = Delta | Pass | WorkerReport
