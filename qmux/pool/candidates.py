"""A session as a selection sees it: its load at this server, what it offers, and where it is connected."""

from __future__ import annotations

from qmux.pool.rows import Offer, Row

SessionKey = tuple[str, bytes]
"""(principal, session): one client process."""

_STATE_RANK = {"ready": 0, "suspect": 1, "draining": 2}


class Candidate:
    """The connections of one session, all workers together, and its load, kept up to date row by row."""

    __slots__ = ("_active_at_ms", "_active_total", "_in_flight", "connections", "key", "offers")

    def __init__(self, key: SessionKey) -> None:
        self.key = key
        self.connections: dict[tuple[int, int], Row] = {}
        self.offers: dict[str, Offer] = {}
        self._in_flight = 0
        self._active_total = 0
        self._active_at_ms = 0

    @property
    def load(self) -> int:
        """The newest count that the client told, and what this server opened and the client had not counted yet."""
        return max(0, self._active_total + self._in_flight)

    def store(self, slot: int, row: Row) -> None:
        """A row of this session is new or changed."""
        previous = self.connections.get((slot, row.key))
        self.connections[slot, row.key] = row
        if previous is not None:
            self._in_flight -= previous.opened - previous.opened_by_you
        self._in_flight += row.opened - row.opened_by_you
        if row.active_at_ms >= self._active_at_ms:
            self._active_at_ms, self._active_total = row.active_at_ms, row.active_total
        if previous is None or previous.offers != row.offers:
            self._collect_offers()

    def drop(self, slot: int, row_key: int) -> None:
        """A row of this session is gone."""
        row = self.connections.pop((slot, row_key))
        self._in_flight -= row.opened - row.opened_by_you
        if self.connections:
            newest = max(self.connections.values(), key=lambda other: other.active_at_ms)
            self._active_at_ms, self._active_total = newest.active_at_ms, newest.active_total
            self._collect_offers()

    def rank(self) -> int:
        """0: has a ready connection; 1: only suspect ones; 2: only draining ones."""
        return min(_STATE_RANK[row.state] for row in self.connections.values())

    def at(self, slot: int) -> int | None:
        """The key of its best connection at this worker that takes new users, if any."""
        best: Row | None = None
        for (owner, _), row in self.connections.items():
            if owner == slot and row.state != "draining" and (best is None or _prefers(row, best)):
                best = row
        return best.key if best is not None else None

    def slots(self) -> set[int]:
        """The workers where it has a connection that takes new users."""
        return {slot for (slot, _), row in self.connections.items() if row.state != "draining"}

    def _collect_offers(self) -> None:
        self.offers = {offer.service: offer for row in self.connections.values() for offer in row.offers}


def _prefers(row: Row, other: Row) -> bool:
    return (_STATE_RANK[row.state], -row.key) < (_STATE_RANK[other.state], -other.key)
