"""What an engine tells of the user connections that it serves alone."""

from __future__ import annotations

import msgspec

from qmux.quic.engine import RelayEnd


class OffloadCounts(msgspec.Struct, frozen=True):
    """The user connections of one service that the engine relays alone: now, so far, and their bytes."""

    active: int = 0
    total: int = 0
    bytes_to_socket: int = 0
    bytes_to_stream: int = 0


class OffloadEnd(msgspec.Struct, frozen=True):
    """A user's relay has ended."""

    service: str
    conn_id: int
    source: str
    end: RelayEnd
