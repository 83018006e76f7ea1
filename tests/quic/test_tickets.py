"""Tickets: used once, by who got them, at the lane that issued them; bounded stores at both ends."""

from __future__ import annotations

import datetime
import time

import pytest
from aioquic.tls import CipherSuite, SessionTicket

from qmux.pki.material import Material
from qmux.quic.aioquic_engine.resumption import LIFETIME_S, MAX_BYTES, SESSION_BYTES, Sessions
from qmux.quic.tickets import MAX_TICKETS, Server, Ticket, Tickets

DAY = datetime.timedelta(days=1)
OURS, RENEWED = Material(b"chain", b"key", b"ca"), Material(b"another chain", b"key", b"ca")
SERVER, OTHER = Server(("192.0.2.1", 8443), "qmux.example"), Server(("192.0.2.2", 8443), "qmux.example")


def ticket(session: object = None, expires_in_s: float = 1000.0) -> Ticket:
    return Ticket(session, OURS, time.time() + expires_in_s)


def test_a_ticket_is_used_once() -> None:
    tickets = Tickets()
    kept = ticket()
    tickets.put(SERVER, 3, kept)
    assert tickets.take(SERVER, 3, OURS) == (3, kept)
    assert tickets.take(SERVER, 3, OURS) == (3, None)


def test_the_first_contact_goes_where_the_newest_ticket_is_good() -> None:
    tickets = Tickets()
    for lane in (1, 2, 3, 1):
        tickets.put(SERVER, lane, ticket(lane))
    tickets.put(OTHER, 9, ticket())
    found = [tickets.take(SERVER, None, OURS) for _ in range(4)]
    assert [lane for lane, _ in found] == [1, 3, 2, None]
    assert [kept.session for _, kept in found if kept is not None] == [1, 3, 2]


def test_a_ticket_is_for_one_lane_of_one_server() -> None:
    tickets = Tickets()
    tickets.put(SERVER, 3, ticket())
    assert tickets.take(SERVER, 4, OURS) == (4, None)
    assert tickets.take(OTHER, 3, OURS) == (3, None)
    assert tickets.take(Server(SERVER.address, "other.example"), 3, OURS) == (3, None)
    assert len(tickets) == 1


@pytest.mark.parametrize(("kept", "material"), [(ticket(expires_in_s=-1), OURS), (ticket(), RENEWED)])
def test_an_expired_ticket_or_one_of_other_material_is_none(kept: Ticket, material: Material) -> None:
    tickets = Tickets()
    tickets.put(SERVER, 3, kept)
    assert tickets.take(SERVER, 3, material) == (3, None)
    assert len(tickets) == 0


def test_the_store_is_bounded() -> None:
    tickets = Tickets()
    for lane in range(3 * MAX_TICKETS):
        tickets.put(SERVER, lane, ticket())
    assert len(tickets) == MAX_TICKETS
    assert tickets.take(SERVER, 0, OURS) == (0, None)
    assert tickets.take(SERVER, 3 * MAX_TICKETS - 1, OURS)[1] is not None


def test_no_secret_is_shown() -> None:
    assert "secret" not in repr(ticket("a secret"))


# --- a server's, on aioquic (the native store has its tests in native/src/tickets.rs) ---


def session(number: int) -> SessionTicket:
    now = datetime.datetime.now(datetime.UTC)
    return SessionTicket(0, CipherSuite.AES_128_GCM_SHA256, now + DAY, now, b"key", "", number.to_bytes(8, "big"))


def test_a_server_gives_a_session_out_once() -> None:
    sessions = Sessions()
    sessions.put(session(1), (b"leaf",))
    taken = sessions.take(session(1).ticket)
    assert taken is not None
    assert taken.chain == (b"leaf",)
    assert sessions.take(session(1).ticket) is None
    assert len(sessions) == 0


def test_a_server_keeps_no_session_for_longer_than_it_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    for number in (1, 2):
        sessions.put(session(number), ())
    now = time.monotonic()
    for later_s, found in ((LIFETIME_S - 60, True), (LIFETIME_S + 60, False)):
        monkeypatch.setattr(time, "monotonic", lambda later_s=later_s: now + later_s)
        assert (sessions.take(session(1 if found else 2).ticket) is not None) is found


def test_what_a_server_keeps_is_bounded() -> None:
    sessions = Sessions()
    chain = (bytes(700), bytes(700))
    for number in range(20_000):
        sessions.put(session(number), chain)
    assert len(sessions) * (SESSION_BYTES + 1400) <= MAX_BYTES
    assert len(sessions) > 3000
    assert sessions.take(session(0).ticket) is None
    assert sessions.take(session(19_999).ticket) is not None
