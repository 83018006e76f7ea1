"""A user connection from its admission to its end: which client is tried, when another one is, and why it is reset."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from msgspec.structs import replace

from qmux import sockets
from qmux.protocol.frames import AppCode, ConnReady, ConnRefused
from qmux.quic.engine import RelayEnd
from qmux.relay.attempt import AttemptResult, Outcome
from qmux.relay.handoff import MAX_HOPS
from qmux.relay.surroundings import StartedAttempt
from tests.aio import until
from tests.pool.examples import row
from tests.relay import fakes
from tests.relay.fakes import FakeConnection, FakeStream
from tests.relay.surroundings import ABOUT, FakeCarrier, FakeSurroundings, surroundings

LONG = 60.0
"""A timeout that no test waits for."""

REFUSED = ConnRefused("refused", "nothing listens")


async def serves(connection: FakeConnection, number: int = 0) -> FakeStream:
    """The client is asked, and connects the user to its service."""
    stream = await connection.asked(number)
    stream.peer_sends(ConnReady())
    await until(lambda: stream.relayed)
    return stream


async def refuses(connection: FakeConnection, why: ConnRefused = REFUSED) -> None:
    (await connection.asked()).peer_sends(why)


def is_reset(user: socket.socket) -> bool:
    with pytest.raises(ConnectionResetError):
        user.recv(1)
    return True


def refused(around: FakeSurroundings) -> dict[str, int]:
    return around.counters["web"].refused


# --- attempts ---


async def test_a_user_connection_is_served_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with surroundings() as around:
        client, carrier = around.client("pod-1")
        around.user()
        stream = await serves(client)
        assert stream.request()[1].conn_id == ABOUT.conn_id
        assert (around.admitted, around.released, carrier.users) == (1, 0, 1)
        stream.end(RelayEnd.IDLE_TIMEOUT)
        await around.served()
        assert (around.admitted, around.released, carrier.users) == (1, 1, 0)
        counters = around.counters["web"]
        assert (counters.total, counters.retried, counters.refused) == (1, 0, {})
    assert [record.__dict__["reason"] for record in caplog.records] == ["idle_timeout"]


async def test_after_a_refusal_the_next_client_is_asked() -> None:
    async with surroundings() as around:
        first, carrier = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        around.user()
        await refuses(first)
        await serves(second)
        assert carrier.suspected == 0
        assert (around.counters["web"].retried, refused(around)) == (1, {})


async def test_a_client_that_is_silent_is_suspected_and_another_one_asked() -> None:
    async with surroundings() as around:
        first, carrier = around.client("pod-1")
        first.answers_pings = False
        second, other = around.client("pod-2", load=10)
        around.user()
        await serves(second)
        assert (carrier.suspected, other.suspected) == (1, 0)
        assert first.streams[0].aborted == AppCode.CANCELLED
        assert around.counters["web"].retried == 1


@pytest.mark.parametrize("why", [fakes.lost(), fakes.reset(), True])
async def test_after_a_loss_another_client_is_asked(why: Exception | bool) -> None:
    async with surroundings() as around:
        first, carrier = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        around.user()
        (await first.asked()).peer_ends(why)
        await serves(second)
        assert carrier.suspected == 0
        assert around.counters["web"].retried == 1


async def test_a_connection_that_is_gone_is_no_attempt() -> None:
    async with surroundings(retries=0) as around:
        around.client("pod-1")
        around.carriers.clear()  # its row is about to go
        second, _ = around.client("pod-2", load=10)
        around.user()
        await serves(second)
        assert around.counters["web"].retried == 0


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (REFUSED, "service_refused"),
        (ConnRefused("timeout"), "service_timeout"),
        (ConnRefused("overloaded", "out of descriptors"), "service_overloaded"),
        (ConnRefused("of a newer release"), "service_other"),
        (ConnRefused("x:" * 64, "\x9b" * 300), "service_other"),
        (fakes.lost(), "client_lost"),
    ],
)
async def test_as_many_retries_as_are_allowed(answer: ConnRefused | Exception, code: str) -> None:
    async with surroundings(retries=1, queue_timeout_s=LONG) as around:
        clients = [around.client(f"pod-{number}", load=10 * number)[0] for number in range(3)]
        user = around.user()
        for client in clients[:2]:
            stream = await client.asked()
            stream.peer_sends(answer) if isinstance(answer, ConnRefused) else stream.peer_ends(answer)
        await around.served()
        assert is_reset(user)
        assert clients[2].streams == []
        assert refused(around) == {code: 1}
        assert around.counters["web"].retried == 1


async def test_when_every_client_has_refused_nothing_is_waited_for() -> None:
    async with surroundings(retries=5, queue_timeout_s=LONG) as around:
        client, _ = around.client("pod-1")
        user = around.user()
        await refuses(client)
        await around.served()
        assert is_reset(user)
        assert refused(around) == {"service_refused": 1}


@pytest.mark.parametrize("code", ["draining", "overloaded"])
async def test_a_client_whose_refusal_may_pass_is_asked_again(code: str) -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        client, _ = around.client("pod-1")
        around.user()
        await refuses(client, ConnRefused(code))
        await until(lambda: around.waiting)
        around.signal.fire()
        await serves(client, 1)


async def test_setup_timeout_is_the_end() -> None:
    async with surroundings(setup_timeout_s=0.1, queue_timeout_s=LONG) as around:
        first, _ = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        user = around.user()
        await around.served()
        assert is_reset(user)
        assert first.streams[0].aborted == AppCode.CANCELLED
        assert second.streams == []
        assert refused(around) == {"setup_timeout": 1}


async def test_setup_timeout_is_for_all_attempts_together() -> None:
    async with surroundings(setup_timeout_s=1.5, queue_timeout_s=LONG) as around:
        first, _ = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        began = time.monotonic()
        around.user()
        await first.asked()
        await until(lambda: time.monotonic() - began > 1.3, what="most of the time has passed")
        await refuses(first)
        await second.asked()
        await around.served()
        assert time.monotonic() - began < 2.7
        assert refused(around) == {"setup_timeout": 1}


# --- early data ---


async def test_early_data_goes_with_every_attempt_after_a_refusal() -> None:
    async with surroundings(early_data=True) as around:
        first, _ = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        around.user(early=b"GET /")
        await refuses(first)
        stream = await serves(second)
        assert first.streams[0].request()[2] == stream.request()[2] == b"GET /"
        assert around.counters["web"].bytes_in == 5
        assert stream.relayed is not None
        with pytest.raises(BlockingIOError):
            stream.relayed.socket.recv(1)  # what was delivered is not sent again


@pytest.mark.parametrize(("early", "is_retried"), [(b"GET /", False), (b"", True)])
@pytest.mark.parametrize(("why", "code"), [(fakes.lost(), "client_lost"), (fakes.reset(0x12), "service_reset")])
async def test_only_a_refusal_proves_that_early_data_was_not_delivered(
    early: bytes, is_retried: bool, why: Exception, code: str
) -> None:
    async with surroundings(early_data=True, queue_timeout_s=LONG) as around:
        first, _ = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        user = around.user(early=early)
        (await first.asked()).peer_ends(why)
        if is_retried:
            await serves(second)
            return
        await around.served()
        assert is_reset(user)
        assert second.streams == []
        assert refused(around) == {code: 1}


async def test_without_early_data_the_first_bytes_wait_for_the_answer() -> None:
    async with surroundings() as around:
        client, _ = around.client("pod-1")
        around.user(early=b"GET /")
        stream = await serves(client)
        assert stream.request()[2] == b""
        assert stream.relayed is not None
        assert stream.relayed.socket.recv(10) == b"GET /"


# --- waiting ---


def full_by_max_streams(client: FakeConnection, carrier: FakeCarrier, is_full: bool) -> None:
    carrier.room = not is_full


def full_by_the_clients_limit(client: FakeConnection, carrier: FakeCarrier, is_full: bool) -> None:
    client.refuses = fakes.full() if is_full else None


FULL = pytest.mark.parametrize("set_full", [full_by_max_streams, full_by_the_clients_limit])


@FULL
async def test_room_is_waited_for_and_costs_no_attempt(set_full: object) -> None:
    """Room comes without a sign: it is looked for again and again."""
    async with surroundings(retries=0, queue_timeout_s=LONG) as around:
        client, carrier = around.client("pod-1")
        set_full(client, carrier, True)  # type: ignore[operator]
        around.user()
        await until(lambda: around.waiting)
        set_full(client, carrier, False)  # type: ignore[operator]
        await serves(client)
        assert (around.counters["web"].retried, refused(around)) == (0, {})


@FULL
async def test_room_that_does_not_come(set_full: object) -> None:
    async with surroundings(queue_timeout_s=0.2) as around:
        client, carrier = around.client("pod-1")
        set_full(client, carrier, True)  # type: ignore[operator]
        user = around.user()
        await around.served()
        assert is_reset(user)
        assert refused(around) == {"client_full": 1}


async def test_another_client_is_asked_where_one_is_full() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        _, carrier = around.client("pod-1")
        carrier.room = False
        second, _ = around.client("pod-2", load=10)
        around.user()
        await serves(second)


async def test_a_client_is_waited_for() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        around.user()
        await until(lambda: around.waiting)
        client, _ = around.client("pod-1")
        await serves(client)


async def test_no_client_within_queue_timeout() -> None:
    async with surroundings(queue_timeout_s=0.1) as around:
        user = around.user()
        await around.served()
        assert is_reset(user)
        assert refused(around) == {"queue_timeout": 1}
        assert (around.admitted, around.released) == (1, 1)


async def test_what_was_waited_at_another_worker_counts() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        around.user(replace(ABOUT, waited_ms=round(LONG * 1000)))
        await around.served()
        assert refused(around) == {"queue_timeout": 1}


async def test_a_user_that_gives_up_while_it_waits() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        user = around.user()
        await until(lambda: around.waiting)
        sockets.reset(user)
        around.signal.fire()
        await around.served()
        assert refused(around) == {"user_reset": 1}


async def test_a_user_that_has_said_all_still_waits() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        user = around.user()
        await until(lambda: around.waiting)
        user.shutdown(socket.SHUT_WR)
        client, _ = around.client("pod-1")
        await serves(client)


async def test_a_service_that_is_removed_while_a_user_waits() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        user = around.user()
        await until(lambda: around.waiting)
        around.runtime = None
        around.signal.fire()
        await around.served()
        assert is_reset(user)
        assert refused(around) == {"unknown_service": 1}


async def test_maxconn_is_waited_for() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        client, _ = around.client("pod-1")
        around.places = 1
        around.user()
        first = await serves(client)
        around.user()
        await until(lambda: around.waiting)
        assert len(client.streams) == 1
        first.end()
        await until(lambda: around.released == 1)
        around.signal.fire()
        await serves(client, 1)


async def test_no_place_within_queue_timeout() -> None:
    async with surroundings(queue_timeout_s=0.1) as around:
        client, _ = around.client("pod-1")
        around.places = 0
        user = around.user()
        await around.served()
        assert is_reset(user)
        assert client.streams == []
        assert refused(around) == {"maxconn": 1}
        assert (around.admitted, around.released) == (0, 0)


# --- other workers ---


async def test_a_user_connection_goes_to_the_worker_of_its_client() -> None:
    async with surroundings() as around:
        around.client_at(3, "pod-1")
        around.takers = {3}
        user = around.user()
        await around.served()
        ((slot, about),) = around.handed
        chosen = row(name="pod-1")
        assert slot == 3
        assert (about.principal, about.session, about.hops) == (chosen.principal, chosen.session, 1)
        assert (about.service, about.source, about.conn_id) == (ABOUT.service, ABOUT.source, ABOUT.conn_id)
        assert around.counters["web"].handed_off == 1
        user.setblocking(False)
        with pytest.raises(BlockingIOError):
            user.recv(1)  # not reset: the other worker has it


async def test_the_other_worker_is_told_who_was_tried() -> None:
    async with surroundings() as around:
        first, _ = around.client("pod-1")
        around.client_at(3, "pod-2", load=10)
        around.takers = {3}
        around.user(replace(ABOUT, tried=(("pod-0", bytes(16)),)))
        await refuses(first)
        await around.served()
        ((_, about),) = around.handed
        assert set(about.tried) == {("pod-0", bytes(16)), ("pod-1", row(name="pod-1").session)}


async def test_attempts_at_another_worker_count() -> None:
    async with surroundings(retries=1) as around:
        first, _ = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        around.user(replace(ABOUT, tried=(("pod-0", bytes(16)),)))
        await refuses(first)
        await around.served()
        assert second.streams == []
        assert refused(around) == {"service_refused": 1}


async def test_the_session_that_another_worker_chose_is_asked_first() -> None:
    async with surroundings() as around:
        first, _ = around.client("pod-1")
        second, _ = around.client("pod-2", load=1000)
        chosen = row(name="pod-2")
        around.user(replace(ABOUT, hops=1, principal=chosen.principal, session=chosen.session))
        await serves(second)
        assert first.streams == []


async def test_a_worker_that_does_not_take_it() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        around.client_at(3, "pod-1")
        second, _ = around.client("pod-2", load=1000)
        around.user()
        await serves(second)
        assert around.counters["web"].handed_off == 0


async def test_after_enough_hops_it_stays() -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        around.client_at(3, "pod-1")
        around.takers = {3}
        second, _ = around.client("pod-2", load=1000)
        around.user(replace(ABOUT, hops=MAX_HOPS - 1))
        await around.served()
        assert [about.hops for _, about in around.handed] == [MAX_HOPS]
        around.user(replace(ABOUT, hops=MAX_HOPS))
        await serves(second)
        assert len(around.handed) == 1


# --- attempts that the engine began ---


def started(around: FakeSurroundings, carrier: FakeCarrier, failure: AttemptResult | None = None) -> StartedAttempt:
    """An attempt with the client ``pod-1``: under way, or ended by ``failure``."""
    session = row(name="pod-1").principal, row(name="pod-1").session
    carrier.user_added()
    if failure is not None:
        return StartedAttempt(session, carrier, time.monotonic(), failure)
    under_way = AttemptResult(Outcome.LOST, "not answered yet")
    return StartedAttempt(session, carrier, time.monotonic(), under_way, carrier.connection.open_stream())


async def test_an_attempt_that_the_engine_began_goes_on() -> None:
    async with surroundings() as around:
        around.places = 0  # the engine has a place for it
        client, carrier = around.client("pod-1")
        around.user(started=started(around, carrier))
        client.streams[0].peer_sends(ConnReady())
        await until(lambda: client.streams[0].relayed)
        assert client.streams[0].sent == b""
        assert carrier.users == 1
        client.streams[0].end()
        await around.served()
        assert (carrier.users, around.released) == (0, 1)


@pytest.mark.parametrize("retries", [0, 1])
async def test_an_attempt_that_the_engine_began_counts(retries: int) -> None:
    async with surroundings(retries=retries) as around:
        first, carrier = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        around.user(started=started(around, carrier))
        first.streams[0].peer_sends(REFUSED)
        if retries:
            await serves(second)
            return
        await around.served()
        assert second.streams == []
        assert refused(around) == {"service_refused": 1}


@pytest.mark.parametrize("retries", [0, 1])
async def test_an_attempt_that_ended_in_the_engine_counts(retries: int) -> None:
    async with surroundings(retries=retries) as around:
        first, carrier = around.client("pod-1")
        second, _ = around.client("pod-2", load=10)
        around.user(started=started(around, carrier, AttemptResult(Outcome.LOST, "the connection was lost")))
        if retries:
            await serves(second)
        else:
            await around.served()
            assert refused(around) == {"client_lost": 1}
        assert first.streams == []


async def test_an_attempt_for_a_service_that_is_gone() -> None:
    async with surroundings() as around:
        client, carrier = around.client("pod-1")
        around.runtime = None
        user = around.user(started=started(around, carrier))
        await around.served()
        assert is_reset(user)
        assert client.streams[0].aborted == AppCode.CANCELLED
        assert refused(around) == {"unknown_service": 1}


# --- the worker stops ---


@pytest.mark.parametrize("stage", ["place", "client", "answer", "relay"])
async def test_when_the_worker_stops_the_user_connection_is_reset_and_its_place_free(stage: str) -> None:
    async with surroundings(queue_timeout_s=LONG) as around:
        around.places = stage != "place"
        client = around.client("pod-1")[0] if stage in ("answer", "relay") else None
        user = around.user()
        if client is None:
            await until(lambda: around.waiting)
        else:
            stream = await client.asked()
            if stage == "relay":
                await serves(client)
        around.tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await around.served()
        assert around.released == around.admitted == (stage != "place")
        if client is None or stream.relayed is None:
            assert is_reset(user)
        else:
            assert stream.relayed.ended is RelayEnd.ABORTED
