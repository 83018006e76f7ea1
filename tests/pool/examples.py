"""Rows for tests, and what a view of rows must look like, computed from scratch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import msgspec

from qmux.pool.candidates import Candidate
from qmux.pool.pool import Pool
from qmux.pool.rows import Offer, Row

SERVICE = "web"

BLANK = Row(
    key=1,
    tenant="",
    principal="pod-1",
    session=bytes(16),
    instance="host-1",
    offers=(Offer(SERVICE),),
    state="ready",
    active=0,
    active_here=0,
    active_total=0,
    active_at_ms=0,
    address="192.0.2.1:4711",
    rtt_ms=1.0,
    connected_at_ms=0,
    not_after=0,
)


def row(key: int = 1, name: str = "pod-1", **changes: object) -> Row:
    """A row of the session called ``name``."""
    session = name.encode().ljust(16, b".")[:16]
    return msgspec.structs.replace(BLANK, key=key, principal=name, session=session, **changes)


def candidate(name: str, *places: tuple[int, Row]) -> Candidate:
    """A session with these rows, each (slot, row)."""
    made = Candidate((name, name.encode().ljust(16, b".")[:16]))
    for slot, each in places:
        made.store(slot, each)
    return made


def session(name: str, slots: Sequence[int] = (0,), load: int = 0, weight: int = 1, **changes: object) -> Candidate:
    """A session connected to ``slots``, with ``load`` users."""
    offers = (Offer(SERVICE, weight, bool(changes.pop("backup", False))),)
    made = row(name=name, offers=offers, active_total=load, active_at_ms=1, **changes)
    return candidate(name, *((slot, made) for slot in slots))


def hold(chosen: Candidate, slot: int) -> None:
    """One more user at its connection to ``slot``."""
    key = chosen.at(slot)
    assert key is not None
    held = chosen.connections[slot, key]
    chosen.store(slot, msgspec.structs.replace(held, active=held.active + 1))


def session_view(rows: Iterable[tuple[int, Row]]) -> dict[str, object]:
    """What a session of these rows is, by the rules of docs/architecture.md and with no memory of how it came to be."""
    places = list(rows)
    elsewhere = max((each.active_at_ms, each.active_total - each.active_here) for _, each in places)[1]
    taking = [(slot, each) for slot, each in places if each.state != "draining"]
    ranks = {"ready": 0, "suspect": 1}
    best: dict[int, tuple[int, int]] = {}
    for slot in {slot for slot, _ in taking}:
        _, negative, rank = min((ranks[each.state], -each.key, ranks[each.state]) for at, each in taking if at == slot)
        best[slot] = (rank, -negative)
    offers: dict[str, Offer] = {}
    for _, each in sorted(taking or places, key=lambda place: (place[1].connected_at_ms, place[0], place[1].key)):
        offers.update({offer.service: offer for offer in each.offers})
    return {
        "load": max(0, elsewhere) + sum(each.active for _, each in places),
        "best": best,
        "rank": min((rank for rank, _ in best.values()), default=2),
        "offers": offers,
    }


def view_of_candidate(held: Candidate) -> dict[str, object]:
    """The same figures, as the candidate has them."""
    assert held.slots == frozenset(held.best)
    return {"load": held.load, "best": held.best, "rank": held.rank, "offers": held.offers}


def expected_view(rows: Iterable[tuple[int, Row]]) -> dict[str, dict[object, object]]:
    """Service → session → figures, from scratch."""
    sessions: dict[object, list[tuple[int, Row]]] = {}
    for slot, each in rows:
        sessions.setdefault((each.principal, each.session), []).append((slot, each))
    services: dict[str, dict[object, object]] = {}
    for key, places in sessions.items():
        figures = session_view(places)
        for service in figures["offers"]:  # type: ignore[attr-defined]
            services.setdefault(service, {})[key] = figures
    return services


def view_of_pool(pool: Pool, services: Iterable[str]) -> dict[str, dict[object, object]]:
    """The same, as the pool has it."""
    seen = {name: {held.key: view_of_candidate(held) for held in pool.sessions(name)} for name in services}
    return {name: sessions for name, sessions in seen.items() if sessions}


def seeded(seed: int = 1) -> random.Random:
    return random.Random(seed)
