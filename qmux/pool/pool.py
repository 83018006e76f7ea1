"""One worker's view of every registered connection of the daemon.

Each worker owns the rows of its connections and publishes what changed (``take_delta``) and, once a second, everything
in chunks (``passes``). Others only copy. A lost message, a gap or a newcomer heals with the next pass, without request.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from qmux.pool.candidates import Candidate, SessionKey
from qmux.pool.rows import Delta, Pass, Row

log = logging.getLogger(__name__)

ROWS_PER_CHUNK = 256
"""A chunk of rows is some 40 KiB: far below the bus's message limit, and short to encode."""

ROWS_PER_PASS = 4096
"""Rows published in one second at most; with more, a pass takes longer."""

LATE_S = 1.5
"""A worker whose pass is older than this gets no users handed over: it may be stopped."""

END_OF_KEYS = 1 << 62


class Pool:
    """Rows by owner (slot), and the sessions that they make up by service."""

    def __init__(self, slot: int, epoch: int) -> None:
        self.slot = slot
        self._epoch = epoch
        self._epochs: dict[int, int] = {slot: epoch}
        self._dead: dict[int, int] = {}
        self._rows: dict[int, dict[int, Row]] = {slot: {}}
        self._active: dict[int, dict[str, int]] = {slot: {}}
        self._heard_at: dict[int, float] = {}
        self._sessions: dict[SessionKey, Candidate] = {}
        self._by_service: defaultdict[str, dict[SessionKey, Candidate]] = defaultdict(dict)
        self._changed: set[int] = set()
        self._gone: set[int] = set()
        self._active_changed = False
        self._pass_from = 0

    # --- our own rows ---

    def add(self, row: Row) -> None:
        """A connection of ours registered."""
        self._store(self.slot, row)
        self._changed.add(row.key)

    def update(self, key: int, **changes: object) -> None:
        """Fields of one of our rows changed; nothing where it is gone."""
        row = self._rows[self.slot].get(key)
        if row is not None:
            self._store(self.slot, replace(row, **changes))
            self._changed.add(key)

    def remove(self, key: int) -> None:
        """A connection of ours ended."""
        if self._drop(self.slot, key):
            self._changed.discard(key)
            self._gone.add(key)

    def own(self, key: int) -> Row | None:
        """One of our rows."""
        return self._rows[self.slot].get(key)

    def set_active(self, service: str, count: int) -> None:
        """How many users of ``service`` this worker holds."""
        self._active[self.slot][service] = count
        self._active_changed = True

    # --- publication ---

    def take_delta(self) -> Delta | None:
        """What changed since the last call, or None."""
        if not (self._changed or self._gone or self._active_changed):
            return None
        own = self._rows[self.slot]
        rows = tuple(own[key] for key in self._changed if key in own)
        delta = Delta(self.slot, self._epoch, rows, tuple(self._gone), dict(self._active[self.slot]))
        self._changed.clear()
        self._gone.clear()
        self._active_changed = False
        return delta

    def passes(self) -> Iterator[Pass]:
        """This second's share of all rows, as chunks of key ranges without a gap between them."""
        keys = sorted(key for key in self._rows[self.slot] if key >= self._pass_from)
        share, rest = keys[:ROWS_PER_PASS], keys[ROWS_PER_PASS:]
        chunks = [share[at : at + ROWS_PER_CHUNK] for at in range(0, len(share), ROWS_PER_CHUNK)] or [[]]
        for number, chunk in enumerate(chunks):
            is_last = number == len(chunks) - 1
            until = (rest[0] if rest else END_OF_KEYS) if is_last else chunks[number + 1][0]
            rows = tuple(self._rows[self.slot][key] for key in chunk)
            yield Pass(self.slot, self._epoch, self._pass_from, until, rows, dict(self._active[self.slot]))
            self._pass_from = until
        if self._pass_from == END_OF_KEYS:
            self._pass_from = 0

    # --- what others say ---

    def receive(self, message: Delta | Pass, now: float) -> None:
        """Copy another worker's rows. Messages of an older process in its slot, or of a dead one, change nothing."""
        slot, epoch = message.slot, message.epoch
        if slot == self.slot or epoch <= self._dead.get(slot, -1) or epoch < self._epochs.get(slot, -1):
            return
        if epoch != self._epochs.get(slot):
            self._clear(slot)
            self._epochs[slot] = epoch
        rows = self._rows.setdefault(slot, {})
        gone = message.gone if isinstance(message, Delta) else _unnamed(rows, message)
        for key in gone:
            self._drop(slot, key)
        for row in message.rows:
            self._store(slot, row)
        self._active[slot] = message.active
        if isinstance(message, Pass):
            self._heard_at[slot] = now

    def forget(self, slot: int, epoch: int) -> None:
        """The supervisor says that this process is dead: its rows vanish, and what it still says is not heard."""
        self._dead[slot] = max(epoch, self._dead.get(slot, -1))
        if self._epochs.get(slot, -1) <= epoch and slot != self.slot:
            self._clear(slot)

    # --- the view ---

    def sessions(self, service: str) -> Sequence[Candidate]:
        """Every session that offers ``service``, with its load and its connections."""
        return list(self._by_service[service].values())

    def active(self, service: str) -> int:
        """Users of ``service`` at all workers, as far as known."""
        return sum(counts.get(service, 0) for counts in self._active.values())

    def session_count(self) -> int:
        """How many sessions are registered at the server."""
        return len(self._sessions)

    def session(self, key: SessionKey) -> Candidate | None:
        """One session."""
        return self._sessions.get(key)

    def is_late(self, slot: int, now: float) -> bool:
        """Whether this worker has not published a pass for too long to hand users to it."""
        return slot != self.slot and now - self._heard_at.get(slot, -END_OF_KEYS) > LATE_S

    def rows(self) -> Iterator[tuple[int, Row]]:
        """All rows with the slot that owns each."""
        for slot, rows in self._rows.items():
            for row in rows.values():
                yield slot, row

    # --- keeping the indexes ---

    def _store(self, slot: int, row: Row) -> None:
        previous = self._rows[slot].get(row.key)
        self._rows[slot][row.key] = row
        key = (row.principal, row.session)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Candidate(key)
        session.store(slot, row)
        if previous is None or previous.offers != row.offers or len(session.connections) == 1:
            for service in session.offers:
                self._by_service[service][key] = session

    def _drop(self, slot: int, row_key: int) -> bool:
        row = self._rows.get(slot, {}).pop(row_key, None)
        if row is None:
            return False
        key = (row.principal, row.session)
        session = self._sessions[key]
        offered = set(session.offers)
        session.drop(slot, row_key)
        if not session.connections:
            del self._sessions[key]
        for service in offered - set(session.offers if session.connections else ()):
            self._by_service[service].pop(key, None)
        return True

    def _clear(self, slot: int) -> None:
        for key in list(self._rows.get(slot, {})):
            self._drop(slot, key)
        self._active.pop(slot, None)
        self._heard_at.pop(slot, None)


def _unnamed(held: dict[int, Row], message: Pass) -> list[int]:
    named = {row.key for row in message.rows}
    return [key for key in held if message.first <= key < message.last and key not in named]
