"""A session as a selection sees it: its load at this server, what it offers, and where it is connected."""

from __future__ import annotations

import hashlib
from collections import deque

from qmux.pool.rows import Offer, Row

SessionKey = tuple[str, bytes]
"""(principal, session): one client process."""

READY, SUSPECT = 0, 1
"""How good a connection is for a new user; a draining one takes none."""

DRAINING = 2
"""The rank of a session without any connection that takes users."""

_RANK = {"ready": READY, "suspect": SUSPECT, "draining": DRAINING}

ConnectionKey = tuple[int, int]
"""(slot, row key)."""

HASH_PRIME = (1 << 61) - 1
"""Modulus of the source hash: the product of two evenly spread hashes, one of a user and one of a session, is spread
evenly again, and a product costs a tenth of a third hash.
"""


class Candidate:
    """The connections of one session, all workers together. The figures that a selection reads are plain attributes,
    computed when a row changes, so that a choice among hundreds of sessions is quick.

    ``load``: users that it holds at all servers. ``held``: slot → users that it has through the worker there. ``best``:
    slot → (rank, row key) of its best connection there that takes users; ``slots``: the keys of ``best``; ``rank``: the
    lowest of its ranks; ``hash``: of its key.
    """

    __slots__ = ("_expected", "best", "connections", "hash", "held", "key", "load", "offers", "rank", "slots")

    def __init__(self, key: SessionKey) -> None:
        self.key = key
        self.hash = spread_hash(key[0].encode() + b"|" + key[1])
        self.connections: dict[ConnectionKey, Row] = {}
        self.offers: dict[str, Offer] = {}
        self.best: dict[int, tuple[int, int]] = {}
        self.slots: frozenset[int] = frozenset()
        self.rank = DRAINING
        self.load = 0
        self.held: dict[int, int] = {}
        self._expected: dict[ConnectionKey, deque[float]] = {}

    def store(self, slot: int, row: Row) -> None:
        """A row of this session is new or changed."""
        place = (slot, row.key)
        previous = self.connections.get(place)
        self.connections[place] = row
        self._hold(slot, row.active - (previous.active if previous is not None else 0))
        self._expected.pop(place, None)
        self._measure()
        if previous is None or previous.state != row.state or previous.offers != row.offers:
            self._describe()

    def drop(self, slot: int, row_key: int) -> None:
        """A row of this session is gone."""
        row = self.connections.pop((slot, row_key))
        self._hold(slot, -row.active)
        self._expected.pop((slot, row_key), None)
        self._measure()
        self._describe()

    def expect(self, place: ConnectionKey, until: float) -> None:
        """One more user is on the way to this connection: counted until its row changes, at most until ``until``."""
        self._expected.setdefault(place, deque()).append(until)
        self._measure()

    def expire(self, place: ConnectionKey, now: float) -> None:
        """Stop counting the users that were expected at this connection until before ``now``."""
        waiting = self._expected.get(place)
        if waiting is None:
            return
        while waiting and waiting[0] <= now:
            waiting.popleft()
        if not waiting:
            del self._expected[place]
        self._measure()

    def at(self, slot: int) -> int | None:
        """The key of its best connection at this worker that takes new users, if any."""
        best = self.best.get(slot)
        return best[1] if best is not None else None

    def _measure(self) -> None:
        """What this server's workers hold, what the client's newest count says of other servers, what is on the way."""
        rows = self.connections.values()
        elsewhere = max(((row.active_at_ms, row.active_total - row.active_here) for row in rows), default=(0, 0))[1]
        expected = sum(map(len, self._expected.values())) if self._expected else 0
        self.load = sum(self.held.values()) + max(0, elsewhere) + expected

    def _hold(self, slot: int, change: int) -> None:
        self.held[slot] = held = self.held.get(slot, 0) + change
        if not held:
            del self.held[slot]

    def _describe(self) -> None:
        self.best = {}
        for (slot, key), row in self.connections.items():
            rank = _RANK[row.state]
            best = self.best.get(slot)
            # Of equals the newest: an older one of the same session is about to be replaced.
            if rank != DRAINING and (best is None or (rank, -key) < (best[0], -best[1])):
                self.best[slot] = (rank, key)
        self.slots = frozenset(self.best)
        self.rank = min((rank for rank, _ in self.best.values()), default=DRAINING)
        # Every worker must see the same offers: where connections differ, the newest connection is right.
        ordered = sorted(self.connections.items(), key=lambda item: (item[1].connected_at_ms, item[0]))
        taking = [row for _, row in ordered if row.state != "draining"]
        self.offers = {offer.service: offer for row in taking or [row for _, row in ordered] for offer in row.offers}


def spread_hash(data: bytes) -> int:
    """Evenly spread within 1 and the prime less 1; the same in every worker and at every server."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big") % (HASH_PRIME - 1) + 1
