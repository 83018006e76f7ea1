"""Resumed sessions: 0-RTT, whose identity they carry, and everything that must lead to a full handshake instead."""

from __future__ import annotations

import asyncio
import datetime
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aioquic.quic.packet import QuicPacketType
from cryptography import x509

from qmux import steering
from qmux.pki.identity import Identity
from qmux.pki.material import Material
from qmux.pki.verify import identity as judge
from qmux.quic.engine import CloseKind, ConnectionLost
from qmux.quic.tickets import Server as Place
from qmux.quic.tickets import Tickets
from tests.aio import until
from tests.netsim.proxy import Conditions, Proxy
from tests.quic import packets
from tests.quic.certificates import CLIENT_AUTH, DAY, SERVER_AUTH, Pki
from tests.quic.harness import Pair, Server, Side, World, read_exactly, udp_socket

EARLY = b"register"


async def first(world: World, server: Server, tickets: Tickets, **changed: object) -> Pair:
    """A connection with a full handshake, closed again, that brought a ticket."""
    pair = await world.pair(server, tickets=tickets, **changed)
    assert (pair.client.connection.resumed, pair.server.connection.resumed) == (False, False)
    assert not pair.client.connection.early_data_accepted
    await until(lambda: len(tickets) == 1, what="a ticket")
    pair.client.connection.close(0, "")
    await pair.server.heard.is_closed()
    return pair


async def again(world: World, server: Server, tickets: Tickets, early: bytes = EARLY, **changed: object) -> Pair:
    """A connection that tries to resume, with ``early`` written before it is connected where that is possible."""
    client = world.connect(changed.pop("via", server.address), tickets=tickets, **changed)  # type: ignore[arg-type]
    return await both(server, client, early)


async def both(server: Server, client: Side, early: bytes = EARLY) -> Pair:
    """Connected, and ``early`` has arrived at the server once, after ``connected``."""
    stream = client.connection.open_stream() if client.connection.may_write_early else None
    if stream is not None:
        await stream.write(early)
    await client.heard.is_connected()
    assert not client.connection.may_write_early
    if stream is None:
        stream = client.connection.open_stream()
        await stream.write(early)
    side = server.sides[-1]
    await side.heard.is_connected()
    theirs = await asyncio.wait_for(side.heard.streams.get(), 15)
    assert await read_exactly(theirs, len(early)) == early
    await theirs.write(b"ack")
    assert await read_exactly(stream, 3) == b"ack"
    stream.finish()
    assert await theirs.read(1) == b""  # nothing came twice
    assert side.heard.told == ["connected", "stream"]
    return Pair(client, side)


def resumed(pair: Pair) -> tuple[bool, bool]:
    ours, theirs = pair.client.connection, pair.server.connection
    assert ours.resumed == theirs.resumed
    assert ours.early_data_accepted == theirs.early_data_accepted
    return ours.resumed, ours.early_data_accepted


FULL, RESUMED_EARLY = (False, False), (True, True)


# --- what is won ---


@pytest.mark.mixed
async def test_a_second_connection_resumes_and_writes_early(world: World) -> None:
    server, tickets = world.serve(slot=5), Tickets()
    before = await first(world, server, tickets)
    pair = await again(world, server, tickets)
    assert resumed(pair) == RESUMED_EARLY
    assert pair.client.connection.peer_slot == 5
    assert pair.server.connection.identity == before.server.connection.identity
    stats = server.endpoint.stats()
    assert (stats.handshakes_completed, stats.handshakes_resumed, stats.tickets_refused) == (2, 1, 0)


async def test_every_resumed_connection_brings_the_next_ticket(world: World) -> None:
    server, tickets = world.serve(), Tickets()
    identities = {(await first(world, server, tickets)).server.connection.identity}
    for _ in range(3):
        pair = await again(world, server, tickets)
        assert resumed(pair) == RESUMED_EARLY
        identities.add(pair.server.connection.identity)
        await until(lambda: len(tickets) == 1, what="another ticket")
        pair.client.connection.close(0, "")
        await pair.server.heard.is_closed()
    assert len(identities) == 1


async def test_without_tickets_nothing_is_resumed(world: World) -> None:
    server = world.serve()
    for _ in range(2):
        client = world.connect(server.address)
        assert not client.connection.may_write_early
        pair = await both(server, client)
        assert resumed(pair) == FULL
        pair.client.connection.close(0, "")
        await pair.server.heard.is_closed()


@pytest.mark.parametrize("lane", [None, 0x1234])
async def test_a_client_dials_the_lane_that_issued_its_ticket(world: World, lane: int | None) -> None:
    server, tickets = world.serve(slot=0x1234), Tickets()
    async with Proxy(server.address) as proxy:
        await first(world, server, tickets, via=proxy.address)
        flight = tapped(proxy)
        assert resumed(await again(world, server, tickets, via=proxy.address, lane=lane)) == RESUMED_EARLY
        assert destination(flight[0])[:2] == (0x8000 | 0x1234).to_bytes(2, "big")


def tapped(proxy: Proxy) -> list[bytes]:
    """The clients' datagrams, from now on."""
    flight: list[bytes] = []
    proxy.tap = lambda data, up: flight.append(data) if up else None
    return flight


def destination(datagram: bytes) -> bytes:
    """Of an Initial (RFC 9000 §17.2.2)."""
    return datagram[6 : 6 + steering.CONNECTION_ID_BYTES]


@pytest.mark.parametrize("early", [b"x", bytes(range(256)) * 32], ids=["1 byte", "8 KiB"])
async def test_what_is_written_early_survives_a_bad_network(world: World, early: bytes) -> None:
    server, tickets = world.serve(), Tickets()
    async with Proxy(server.address) as proxy:
        for seed in range(4):
            await first_or_next(world, server, tickets, proxy)
            proxy.to_server = proxy.to_client = Conditions(loss=0.1, reorder=0.2, duplicate=0.2, delay_s=0.001)
            proxy._random.seed(seed)
            pair = await again(world, server, tickets, early, via=proxy.address)
            assert pair.client.connection.resumed
            proxy.to_server = proxy.to_client = Conditions()
            pair.client.connection.close(0, "")
            await pair.server.heard.is_closed()


async def first_or_next(world: World, server: Server, tickets: Tickets, proxy: Proxy) -> None:
    if not len(tickets):
        await first(world, server, tickets, via=proxy.address)


@pytest.mark.mixed
async def test_early_data_survives_a_retry(world: World) -> None:
    server, tickets = world.serve(retry_threshold=1), Tickets()
    await first(world, server, tickets)
    async with half_open(server):
        pair = await again(world, server, tickets)
        assert server.endpoint.stats().retries_sent == 1
        assert pair.client.connection.resumed


@asynccontextmanager
async def half_open(server: Server) -> AsyncIterator[None]:
    """With one handshake that does not go on."""
    with udp_socket() as sock:
        sock.sendto(packets.initial(), server.address)
        await until(lambda: server.endpoint.stats().half_open == 1)
        yield


# --- what is refused ---


@pytest.mark.mixed
async def test_a_ticket_that_was_used_leads_to_a_full_handshake(world: World) -> None:
    server, tickets = world.serve(), Tickets()
    await first(world, server, tickets)
    place = Place(server.address, "localhost")
    lane, ticket = tickets.take(place, None, world.pki.client)
    assert lane is not None
    assert ticket is not None
    for expected in (RESUMED_EARLY, FULL):
        tickets.put(place, lane, ticket)
        pair = await again(world, server, tickets)
        assert resumed(pair) == expected
        pair.client.connection.close(0, "")
        await pair.server.heard.is_closed()


async def test_a_replayed_flight_delivers_nothing(world: World) -> None:
    """Everything that a client sent, again, after its connection is gone: to the server it is a full handshake."""
    server, tickets = world.serve(), Tickets()
    async with Proxy(server.address) as proxy:
        await first(world, server, tickets, via=proxy.address)
        flight = tapped(proxy)
        pair = await again(world, server, tickets, via=proxy.address)
        assert resumed(pair) == RESUMED_EARLY
        pair.client.connection.close(0, "")
        await pair.server.heard.is_closed()
    # A server remembers a connection for a while after its end (RFC 9000 §10.2): it knows the first ID until then.
    await until(lambda: replayed(server, flight, refused=1), what="a ticket that was used before")
    (replay,) = [side for side in server.sides if side.heard.reason is None]
    assert replay.heard.told == []
    stats = server.endpoint.stats()
    assert (stats.handshakes_completed, stats.handshakes_resumed, stats.half_open) == (2, 1, 1)


def replayed(server: Server, flight: list[bytes], refused: int) -> bool:
    with udp_socket() as sock:
        for datagram in flight:
            sock.sendto(datagram, server.address)
    return server.endpoint.stats().tickets_refused >= refused


async def test_a_stolen_flight_delivers_nothing_before_the_handshake_is_confirmed(world: World) -> None:
    """It is the first to come, so the server takes its 0-RTT; but who sent it cannot finish."""
    server, tickets = world.serve(handshake_timeout_s=3.0), Tickets()
    async with Proxy(server.address) as proxy:
        await first(world, server, tickets, via=proxy.address)
        flight = tapped(proxy)
        proxy.to_server = Conditions(loss=1.0)
        client = world.connect(proxy.address, tickets=tickets)
        stream = client.connection.open_stream()
        await stream.write(EARLY)
        await until(
            lambda: QuicPacketType.ZERO_RTT in itertools.chain(*map(packets.packet_types, flight)), what="0-RTT"
        )
        client.connection.close(0, "")
        assert not replayed(server, flight, refused=1)
        thief = await server.side(1)
        assert (await thief.heard.is_closed()).kind is CloseKind.TIMEOUT
        assert thief.heard.told == ["closed"]
        assert server.endpoint.stats().tickets_refused == 0
        # The ticket is gone; its owner just makes a full handshake.
        proxy.to_server = Conditions()
        assert resumed(await again(world, server, tickets, via=proxy.address)) == FULL


@pytest.mark.mixed
async def test_a_client_that_is_not_accepted_any_more_is_refused_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, tickets = world.serve(), Tickets()
    await first(world, server, tickets)
    after_its_end(monkeypatch)
    client = world.connect(server.address, tickets=tickets)
    reason = await client.heard.is_closed()
    assert (reason.kind, reason.code) == (CloseKind.TLS, 45)
    assert "expired" in reason.message
    assert client.heard.told == ["closed"]
    theirs = await server.side(1)
    assert (await theirs.heard.is_closed()).kind is CloseKind.CERTIFICATE
    assert theirs.heard.told == ["closed"]
    assert server.endpoint.stats().tickets_refused == 1


def after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers judge clients by the clock of later, when the certificate that ``qmux.pki`` issued has expired."""

    def later(chain: Sequence[bytes], cas: Sequence[x509.Certificate], now: datetime.datetime) -> Identity:
        return judge(chain, cas, now + 400 * DAY)

    for engine in ("aioquic", "native"):
        monkeypatch.setattr(f"qmux.quic.{engine}_engine.credentials.identity", later)


async def test_a_client_whose_ca_a_reload_took_away_is_refused(world: World) -> None:
    server, tickets = world.serve(), Tickets()
    await first(world, server, tickets)
    ours, theirs = world.pki.server, world.pki.foreign_client
    server.reconfigure(material=Material(ours.chain, ours.key, foreign_ca(world.pki)))
    reason = await world.connect(server.address, tickets=tickets).heard.is_closed()
    assert (reason.kind, reason.code) == (CloseKind.TLS, 48)
    assert (await (await server.side(1)).heard.is_closed()).kind is CloseKind.CERTIFICATE
    await world.pair(server, material=theirs)  # and who is accepted now is


def foreign_ca(pki: Pki) -> bytes:
    return (pki.foreign_directory / "ca.pem").read_bytes()


async def test_sessions_outlive_a_reload_with_the_same_ca(world: World) -> None:
    server, tickets = world.serve(), Tickets()
    await first(world, server, tickets)
    server.reconfigure(material=world.pki.made(usage=SERVER_AUTH))
    assert resumed(await again(world, server, tickets)) == RESUMED_EARLY


async def test_another_certificate_does_not_resume_the_session_of_the_first(world: World) -> None:
    server, tickets = world.serve(), Tickets()
    await first(world, server, tickets)
    beta = world.pki.made(usage=CLIENT_AUTH, names=["qmux:client:beta", "qmux:service:web"])
    pair = await again(world, server, tickets, material=beta)
    assert resumed(pair) == FULL
    identity = pair.server.connection.identity
    assert identity is not None
    assert identity.principal == "beta"


@pytest.mark.mixed
async def test_a_restarted_server_makes_a_full_handshake(world: World) -> None:
    """What was written early is written again: once, and in order."""
    sock = udp_socket()
    old, tickets = world.serve(sock=sock.dup()), Tickets()
    await first(world, old, tickets)
    old.endpoint.close(0, "")
    new = world.serve(sock=sock)
    client = world.connect(new.address, tickets=tickets)
    assert client.connection.may_write_early
    pair = await both(new, client, bytes(range(256)) * 100)
    assert resumed(pair) == FULL
    assert new.endpoint.stats().tickets_refused == 1
    await until(lambda: len(tickets) == 1, what="a ticket of the new server")
    pair.client.connection.close(0, "")
    await pair.server.heard.is_closed()
    assert resumed(await again(world, new, tickets)) == RESUMED_EARLY


async def test_a_fin_that_was_written_early_is_written_again(world: World) -> None:
    sock = udp_socket()
    old, tickets = world.serve(sock=sock.dup()), Tickets()
    await first(world, old, tickets)
    old.endpoint.close(0, "")
    new = world.serve(sock=sock)
    client = world.connect(new.address, tickets=tickets)
    stream = client.connection.open_stream()
    stream.set_priority(1)
    for part in (b"a", b"b", b"c"):
        await stream.write(part)
    stream.finish()
    theirs = await asyncio.wait_for((await new.side()).heard.streams.get(), 15)
    assert await read_exactly(theirs, 3) == b"abc"
    assert await theirs.read(1) == b""
    assert not client.connection.resumed


async def test_a_ticket_of_another_server_is_no_harm(world: World) -> None:
    """As behind a load balancer that changed its mind."""
    one, other, tickets = world.serve(slot=1), world.serve(slot=1), Tickets()
    async with Proxy(one.address) as proxy:
        await first(world, one, tickets, via=proxy.address)
        proxy.change_server(other.address)
        assert resumed(await again(world, other, tickets, via=proxy.address)) == FULL


async def test_a_close_before_the_end_of_the_handshake_ends_an_early_stream(world: World) -> None:
    server, tickets = world.serve(), Tickets()
    await first(world, server, tickets)
    client = world.connect(server.address, tickets=tickets)
    stream = client.connection.open_stream()
    await stream.write(EARLY)
    client.connection.close(0, "")
    with pytest.raises(ConnectionLost):
        await stream.read(1)
    assert client.heard.told == ["closed"]
