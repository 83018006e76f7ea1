"""The connection-ID layout: which worker a QUIC packet belongs to.

Every connection ID that QMux makes is 12 bytes; the first two, big-endian, steer (docs/architecture.md, "One port, N
workers"). High bit 0: *issued* by the worker in the 15-bit slot. High bit 1: *Initial form*, chosen by a client as its
first destination ID: a lane, that is the slot it asks for. ``choose`` is the model of the kernel program that
``supervisor.programs`` builds: a test holds the two against each other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

CONNECTION_ID_BYTES = 12
"""Length of every ID we issue: 2 bytes steer, 10 are unpredictable (RFC 9000 §7.2 asks for at least 8)."""

MAX_SLOT = 0x7FFF
INITIAL_FORM = 0x8000

MIN_STEERED_BYTES = 8
"""Shortest datagram whose steering bytes are all there: a long header has them at offsets 6 and 7 (RFC 8999 §5.1)."""


def issued_id(slot: int) -> bytes:
    """A new connection ID that steers to ``slot``."""
    return _with_prefix(_checked(slot))


def initial_id(lane: int | None = None) -> bytes:
    """A client's first destination ID: for ``lane``, or, on first contact, for a lane drawn at random."""
    lane = int.from_bytes(os.urandom(2), "big") & MAX_SLOT if lane is None else _checked(lane)
    return _with_prefix(INITIAL_FORM | lane)


def issued_slot(connection_id: bytes) -> int | None:
    """The slot that issued this ID, or None where the ID has Initial form or is too short to be ours."""
    if len(connection_id) < 2 or connection_id[0] & 0x80:
        return None
    return int.from_bytes(connection_id[:2], "big")


def has_initial_form(connection_id: bytes) -> bool:
    """Whether a client chose this ID (or a Retry asked it to): only such an ID may open a connection."""
    return len(connection_id) >= 2 and bool(connection_id[0] & 0x80)


def packet_id_prefix(datagram: bytes) -> int | None:
    """The 16 steering bits of a datagram (RFC 8999 §5: long header offset 6, short header offset 1)."""
    if len(datagram) < MIN_STEERED_BYTES:
        return None
    at = 6 if datagram[0] & 0x80 else 1
    return int.from_bytes(datagram[at : at + 2], "big")


def choose(datagram: bytes, live: Collection[int], active: Sequence[int]) -> int:
    """The slot that gets this datagram.

    ``live``: slots with a process behind them, active or draining. ``active``: slots that take new connections, in the
    program's order; must not be empty.
    """
    prefix = packet_id_prefix(datagram)
    if prefix is None:
        return active[0]
    value = prefix & MAX_SLOT
    reachable = active if prefix & INITIAL_FORM else live
    return value if value in reachable else active[value % len(active)]


def _checked(slot: int) -> int:
    if not 0 <= slot <= MAX_SLOT:
        raise ValueError(f"slot {slot} does not fit in 15 bits")
    return slot


def _with_prefix(prefix: int) -> bytes:
    return prefix.to_bytes(2, "big") + os.urandom(CONNECTION_ID_BYTES - 2)
