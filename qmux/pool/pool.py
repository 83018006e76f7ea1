"""One worker's view of every registered connection of the daemon.

Each worker owns the rows of its connections and publishes what changed (``take_delta``) and, once a second, everything
in chunks (``passes``). Others only copy. A lost message, a gap or a newcomer heals with the next pass, without request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from qmux.pool.candidates import Candidate, ConnectionKey, SessionKey
from qmux.pool.publication import Publication
from qmux.pool.rows import Delta, Pass, Row

LATE_S = 1.5
"""A worker whose pass is older than this gets no users handed over: it may be stopped."""

EXPECTED_S = 0.25
"""How long a user that was handed over is counted here until its new owner's row says so: publication takes 10 ms, a
worker that is busy some more."""


class Pool:
    """Rows by owner (slot), and the sessions that they make up by service.

    Subscribers are called after each change of the view: rows of ours or of others, and counts of user connections.
    ``take_touched`` says which services it was about.
    """

    def __init__(self, slot: int, epoch: int) -> None:
        self.slot = slot
        self._subscribers: list[Callable[[], None]] = []
        self._publication = Publication(slot, epoch)
        self._epochs: dict[int, int] = {slot: epoch}
        self._dead: dict[int, int] = {}
        self._live: Mapping[int, int] | None = None
        self._rows: dict[int, dict[int, Row]] = {slot: {}}
        self._active: dict[int, dict[str, int]] = {slot: {}}
        self._heard_at: dict[int, float] = {}
        self._sessions: dict[SessionKey, Candidate] = {}
        self._by_service: dict[str, dict[SessionKey, Candidate]] = {}
        self._expected: deque[tuple[float, Candidate, ConnectionKey]] = deque()
        self._touched: set[str] = set()
        self.is_urgent = False

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` after each change, in the order of subscription."""
        self._subscribers.append(on_change)

    def _tell(self) -> None:
        for on_change in self._subscribers:
            on_change()

    # --- our own rows ---

    def add(self, row: Row) -> None:
        """A connection of ours registered."""
        if self._store(self.slot, row):
            self._publication.changed(row.key)
            self._tell()

    def update(self, key: int, **changes: object) -> None:
        """Fields of one of our rows changed; nothing where it is gone."""
        row = self._rows[self.slot].get(key)
        if row is not None:
            self.add(replace(row, **changes))

    def remove(self, key: int) -> None:
        """A connection of ours ended."""
        if self._drop(self.slot, key):
            self._publication.removed(key)
            self._tell()

    def own(self, key: int) -> Row | None:
        """One of our rows."""
        return self._rows[self.slot].get(key)

    def set_active(self, service: str, count: int) -> None:
        """How many users of ``service`` this worker holds."""
        if self._active[self.slot].get(service) != count:
            self._active[self.slot][service] = count
            self._publication.active_changed()
            self._touched.add(service)
            self._tell()

    # --- publication ---

    def take_delta(self) -> Delta | None:
        """What changed, as one message; with more than fits, again until None."""
        return self._publication.take_delta(self._rows[self.slot], self._active[self.slot])

    def passes(self) -> list[Pass]:
        """This second's share of all rows, as chunks of key ranges without a gap between them; to be sent at once."""
        return self._publication.next_passes(self._rows[self.slot], self._active[self.slot])

    # --- what others say ---

    def receive(self, message: Delta | Pass, now: float) -> None:
        """Copy another worker's rows. Messages of an older process in its slot, or of a dead one, change nothing."""
        slot, epoch = message.slot, message.epoch
        if not self._hears(slot, epoch):
            return
        changed = False
        if epoch != self._epochs.get(slot):
            changed = self._clear(slot)
            self._epochs[slot] = epoch
        rows = self._rows.setdefault(slot, {})
        for key in message.gone if isinstance(message, Delta) else _unnamed(rows, message):
            changed |= self._drop(slot, key)
        for row in message.rows:
            changed |= self._store(slot, row)
        if self._active.get(slot) != message.active:
            self._active[slot] = message.active
            self._touched.update(message.active)
            changed = True
        if isinstance(message, Pass):
            self._heard_at[slot] = now
        self._expire(now)
        if changed:
            self._tell()

    def forget(self, slot: int, epoch: int) -> None:
        """The supervisor says that this process is dead: its rows vanish, and what it still says is not heard."""
        if slot == self.slot:
            return
        self._dead[slot] = max(epoch, self._dead.get(slot, -1))
        if self._epochs.get(slot, -1) <= epoch and self._clear(slot):
            self._tell()

    def set_live(self, epochs: Mapping[int, int]) -> None:
        """The live workers, slot → epoch, as the supervisor knows them: the rows of all others vanish, and what is
        still under way from them is not heard. A newcomer is heard from when it is named here. Until the first call
        everybody is heard.
        """
        self._live = dict(epochs)
        for slot, epoch in list(self._epochs.items()):
            if slot != self.slot and epoch < epochs.get(slot, math.inf) and self._clear(slot):
                self._tell()

    def _hears(self, slot: int, epoch: int) -> bool:
        if slot == self.slot or epoch <= self._dead.get(slot, -1) or epoch < self._epochs.get(slot, -1):
            return False
        return self._live is None or epoch >= self._live.get(slot, math.inf)

    def expect(self, slot: int, key: int, now: float) -> None:
        """A user was handed over to this connection of another worker: count it there until that worker's row changes,
        so that a burst of choices within one publication does not herd onto one session.
        """
        self._expire(now)
        row = self._rows.get(slot, {}).get(key)
        if row is None or slot == self.slot:
            return
        session = self._sessions[row.principal, row.session]
        session.expect((slot, key), now + EXPECTED_S)
        self._touched.update(session.offers)
        self._expected.append((now + EXPECTED_S, session, (slot, key)))

    # --- the view ---

    def take_touched(self) -> set[str]:
        """Services whose sessions or counts changed since the last call. ``is_urgent``: a connection of one of them
        is worse than it was, or gone.
        """
        touched, self._touched, self.is_urgent = self._touched, set(), False
        return touched

    def sessions(self, service: str, now: float | None = None) -> Sequence[Candidate]:
        """Every session that offers ``service``, with its load and its connections. ``now``: expectations end by it."""
        if now is not None:
            self._expire(now)
        return list(self._by_service.get(service, {}).values())

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
        return slot != self.slot and now - self._heard_at.get(slot, -math.inf) > LATE_S

    def rows(self) -> Iterator[tuple[int, Row]]:
        """All rows with the slot that owns each."""
        for slot, rows in self._rows.items():
            for row in rows.values():
                yield slot, row

    # --- keeping the indexes ---

    def _store(self, slot: int, row: Row) -> bool:
        """Whether that changed anything."""
        previous = self._rows[slot].get(row.key)
        if previous == row:
            return False
        key = (row.principal, row.session)
        if previous is not None and (previous.principal, previous.session) != key:
            self._drop(slot, row.key)
        self._rows[slot][row.key] = row
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Candidate(key)
        offered = session.offers
        session.store(slot, row)
        self._touched.update(session.offers)
        self._touched.update(offered)
        if previous is not None and previous.state != row.state:
            self.is_urgent = True
        self._index(session, offered)
        return True

    def _drop(self, slot: int, row_key: int) -> bool:
        """Whether there was such a row."""
        row = self._rows.get(slot, {}).pop(row_key, None)
        if row is None:
            return False
        session = self._sessions[row.principal, row.session]
        offered = session.offers
        session.drop(slot, row_key)
        self._touched.update(offered)
        self._touched.update(session.offers)
        self.is_urgent = True
        if not session.connections:
            del self._sessions[session.key]
        self._index(session, offered)
        return True

    def _index(self, session: Candidate, offered: Iterable[str]) -> None:
        """The services of ``session`` were ``offered`` and may have changed."""
        if session.offers is offered:
            return
        for service in set(offered) - session.offers.keys():
            sessions = self._by_service[service]
            del sessions[session.key]
            if not sessions:
                del self._by_service[service]
        for service in session.offers:
            self._by_service.setdefault(service, {})[session.key] = session

    def _clear(self, slot: int) -> bool:
        """Whether anything was known of this slot."""
        rows = list(self._rows.get(slot, {}))
        for key in rows:
            self._drop(slot, key)
        self._heard_at.pop(slot, None)
        return self._active.pop(slot, None) is not None or bool(rows)

    def _expire(self, now: float) -> None:
        while self._expected and self._expected[0][0] <= now:
            _, session, place = self._expected.popleft()
            session.expire(place, now)


def _unnamed(held: dict[int, Row], message: Pass) -> list[int]:
    named = {row.key for row in message.rows}
    return [key for key in held if message.first <= key < message.last and key not in named]
