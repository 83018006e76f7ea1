"""Users whom the native engine accepts and serves alone, and those who are left to the layer above.

Here the test is that layer, and it is the client: it hears of the streams and answers them. The engine waits for its
answers as long as a test may take, however slow the machine is, but for the tests of attempts that take long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from qmux.protocol.codec import FrameDecoder, encode
from qmux.protocol.frames import AppCode, ConnReady, ConnRefused, Frame, NewConn, StreamType
from qmux.quic.accepting import SLOW_S, Accepted, Accepting, AcceptingEngine, Bind, EngineAttempt, UserHandler
from qmux.quic.engine import Connection, RelayEnd, RelayLimits, Stream, StreamError
from qmux.quic.offload import OffloadCounts, OffloadEnd
from qmux.relay.attempt import Outcome, go_on
from qmux.relay.frames import read_frame, read_stream_type
from tests.aio import stays, until
from tests.quic.harness import MAX_STREAMS, Pair, World, is_reset, ping, receive_all, reset

FIRST = 3 << 40
PATIENT_S = 120.0
"""More than a test may take."""


class Handler(UserHandler):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.came: list[tuple[Accepted, socket.socket]] = []
        self.asked: list[tuple[Accepted, socket.socket, EngineAttempt]] = []
        self.gone: list[tuple[str, int, str]] = []
        self.ended: list[OffloadEnd] = []
        self.changed = 0
        self.low: list[str] = []
        self.paused: list[tuple[str, str]] = []

    def unplanned(self, user: Accepted, sock: socket.socket) -> None:
        self.came.append((user, sock))

    def handed_back(self, user: Accepted, sock: socket.socket, asked: EngineAttempt) -> None:
        self.asked.append((user, sock, asked))

    def user_reset(self, service: str, conn_id: int, source: str) -> None:
        self.gone.append((service, conn_id, source))

    def relay_ended(self, user: OffloadEnd) -> None:
        self.ended.append(user)

    def counts_changed(self) -> None:
        self.changed += 1

    def plan_low(self, service: str) -> None:
        self.low.append(service)

    def accept_paused(self, service: str, reason: str) -> None:
        self.paused.append((service, reason))


class Refusing(Handler):
    """Turns away whoever is left to it."""

    def unplanned(self, user: Accepted, sock: socket.socket) -> None:
        sock.close()

    def handed_back(self, user: Accepted, sock: socket.socket, asked: EngineAttempt) -> None:
        sock.close()
        if asked.stream is not None:
            asked.stream.abort(0)


@dataclass
class Front:
    """A server's engine with one bind of one service, and its users."""

    accepting: Accepting
    handler: Handler
    bind: Bind
    address: tuple[str, int]
    pair: Pair
    users: list[socket.socket] = field(default_factory=list)

    @property
    def connection(self) -> Connection:
        return self.pair.server.connection

    def plan(self, *counts: int) -> None:
        self.accepting.plan("web", [(self.connection, count) for count in counts])

    async def user(self) -> socket.socket:
        user = socket.socket()
        user.setblocking(False)
        self.users.append(user)
        await asyncio.get_running_loop().sock_connect(user, self.address)
        return user

    async def request(self, pair: Pair | None = None) -> tuple[NewConn, Stream]:
        """What a client is asked next."""
        stream = await asyncio.wait_for((pair or self.pair).client.heard.streams.get(), 15)
        assert await read_stream_type(stream) == StreamType.TCP
        request = await read_frame(stream, FrameDecoder({NewConn}))
        assert isinstance(request, NewConn)
        return request, stream

    async def given_up(self) -> tuple[Accepted, socket.socket, EngineAttempt]:
        await until(lambda: self.handler.asked, what="the attempt is left to the layer above")
        return self.handler.asked[0]

    async def is_empty(self) -> None:
        await until(lambda: self.accepting.users == 0, what="no user")
        assert self.accepting.users_on(self.connection) == 0
        assert [count for _, count in self.accepting.changes().services] in ([], [0])
        assert all(users.active == 0 for users in self.accepting.counts().values())


@contextlib.asynccontextmanager
async def front_of(
    world: World,
    limit: int = 1000,
    listening: socket.socket | None = None,
    slow_s: float = PATIENT_S,
    handler: Handler | None = None,
) -> AsyncIterator[Front]:
    assert isinstance(world.engine, AcceptingEngine)
    pair = await world.pair()
    handler = handler or Handler()
    accepting = world.engine.accepting(FIRST, limit, slow_s)
    accepting.begin(handler)
    listening = listening or socket.create_server(("127.0.0.1", 0), backlog=1024)
    address = listening.getsockname()
    accepting.set_limits("web", RelayLimits())
    bind = accepting.add_bind("web", listening)
    bind.start()
    front = Front(accepting, handler, bind, address, pair)
    try:
        yield front
    finally:
        accepting.close()
        given = [sock for _, sock in handler.came] + [sock for _, sock, _ in handler.asked]
        for sock in [*front.users, *given]:
            sock.close()


async def answer(stream: Stream, frame: Frame) -> None:
    await stream.write(encode(frame))


def text(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def options(sock: socket.socket) -> list[int]:
    tcp = [socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    values = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp]
    return [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *values]


# --- the usual ---


async def test_a_planned_user_is_served(world: World) -> None:
    loop = asyncio.get_running_loop()
    async with front_of(world) as front:
        front.plan(8)
        user = await front.user()
        await loop.sock_sendall(user, b"question")
        request, stream = await front.request()
        assert request == NewConn(FIRST, "web", text(user), f"127.0.0.1:{front.address[1]}")
        assert front.accepting.users == front.accepting.users_on(front.connection) == 1
        assert front.accepting.counts() == {"web": OffloadCounts()}  # nobody is relayed yet
        with pytest.raises(TimeoutError):  # and nothing of the user is sent
            await asyncio.wait_for(stream.read(1), 0.03)
        await answer(stream, ConnReady())
        assert await stream.read(100) == b"question"
        await stream.write(b"answer")
        assert await loop.sock_recv(user, 100) == b"answer"
        assert front.accepting.counts() == {"web": OffloadCounts(1, 1, 6, 8)}
        user.shutdown(socket.SHUT_WR)
        assert await stream.read(1) == b""
        stream.finish()
        assert await loop.sock_recv(user, 1) == b""
        await front.is_empty()
        assert front.accepting.counts() == {"web": OffloadCounts(0, 1, 6, 8)}
        assert front.accepting.unused("web") == 7
        told = front.handler
        assert (told.came, told.asked, told.gone, told.ended, told.paused) == ([], [], [], [], [])


async def test_the_address_that_was_asked_and_ipv6(world: World) -> None:
    listening = socket.create_server(("::", 0), family=socket.AF_INET6)
    async with front_of(world, listening=listening) as front:
        front.plan(1)
        user = socket.socket(socket.AF_INET6)
        front.users.append(user)
        user.connect(("::1", front.address[1]))
        request, _ = await front.request()
        assert request.source == f"[::1]:{user.getsockname()[1]}"
        assert request.dest == f"[::1]:{front.address[1]}"


async def test_a_fin_before_the_answer_is_a_half_close(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        user = await front.user()
        await asyncio.get_running_loop().sock_sendall(user, b"all of it")
        user.shutdown(socket.SHUT_WR)
        _, stream = await front.request()
        await answer(stream, ConnReady())
        assert await stream.read(100) == b"all of it"
        assert await stream.read(1) == b""
        await stream.write(b"and the answer")
        stream.finish()
        assert await receive_all(user) == b"and the answer"
        await front.is_empty()


async def test_an_answer_in_pieces_with_the_first_bytes_behind_it(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        user = await front.user()
        _, stream = await front.request()
        for piece in (encode(ConnReady())[:1], encode(ConnReady())[1:] + b"hello"):
            await stream.write(piece)
            await ping(front.pair.client.connection)  # this one is there, and the next one another packet
        assert await asyncio.get_running_loop().sock_recv(user, 100) == b"hello"
        assert front.handler.asked == []


async def test_the_end_of_a_relay_is_told_where_it_is_unusual_or_wanted(world: World) -> None:
    async with front_of(world) as front:
        front.accepting.set_limits("web", RelayLimits(idle_timeout_s=0.2))
        front.plan(2)
        user = await front.user()
        _, stream = await front.request()
        await answer(stream, ConnReady())
        assert await is_reset(user)
        assert front.handler.ended == [OffloadEnd("web", FIRST, text(user), RelayEnd.IDLE_TIMEOUT)]
        front.accepting.tell_usual_ends(True)
        front.accepting.set_limits("web", RelayLimits())
        user = await front.user()
        _, stream = await front.request()
        await answer(stream, ConnReady())
        await until(lambda: front.accepting.counts()["web"].total == 2, what="the second relay")
        reset(user)
        await until(lambda: len(front.handler.ended) == 2)
        assert front.handler.ended[1].end is RelayEnd.SOCKET_RESET


# --- plans ---


async def test_grants_are_used_in_their_order(world: World) -> None:
    async with front_of(world) as front:
        other = await world.pair()
        front.accepting.plan("web", [(front.connection, 2), (other.server.connection, 1), (front.connection, 1)])
        assert front.accepting.unused("web") == 4
        for pair in (front.pair, front.pair, other, front.pair):
            user = await front.user()
            request, _ = await front.request(pair)
            assert request.source == text(user)
        assert front.accepting.unused("web") == 0
        assert [user.conn_id for user, _ in front.handler.came] == []


async def test_a_plan_that_is_low_is_told_once(world: World) -> None:
    async with front_of(world) as front:
        front.plan(8)
        for count in range(1, 9):
            await front.user()
            await front.request()
            assert front.handler.low == (["web"] if count >= 6 else [])
        front.plan(1)
        await front.user()
        await front.request()
        assert front.handler.low == ["web", "web"]


async def test_a_new_plan_replaces_the_old_one(world: World) -> None:
    async with front_of(world) as front:
        other = await world.pair()
        front.plan(8)
        front.accepting.plan("web", [(other.server.connection, 1)])
        await front.user()
        await front.request(other)
        front.plan()
        await front.user()
        await until(lambda: front.handler.came)
        assert front.accepting.unused("web") == 0


async def test_who_has_no_grant_is_left_to_the_layer_above(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        await front.user()
        await front.request()
        user = await front.user()
        await until(lambda: front.handler.came)
        about, sock = front.handler.came[0]
        assert about == Accepted("web", FIRST + 1, text(user), f"127.0.0.1:{front.address[1]}")
        assert not os.get_blocking(sock.fileno())
        assert options(sock) == [1, 1, 60, 15, 4]
        assert front.accepting.users == 1


async def test_a_connection_takes_no_more_than_it_may_though_more_is_planned(world: World) -> None:
    """Users whom the layer above gives to a connection come off what was planned for it before."""
    async with front_of(world) as front:
        front.plan(20)
        front.accepting.limit_users(front.connection, 2, 4)
        for _ in range(2):
            await front.user()
            await front.request()
        await front.user()
        await until(lambda: len(front.handler.came) == 1)
        assert front.accepting.unused("web") == 18
        front.accepting.limit_users(front.connection, 1, 4)
        await front.user()
        await front.request()
        assert len(front.handler.came) == 1


async def test_whoever_was_queued_before_the_bind_was_added_has_the_options_too(world: World) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listening.getsockname()):
        async with front_of(world, listening=listening) as front:
            await front.user()
            await until(lambda: len(front.handler.came) == 2)
            assert [options(sock) for _, sock in front.handler.came] == [[1, 1, 60, 15, 4]] * 2


async def test_a_connection_that_is_gone_is_passed_over(world: World) -> None:
    async with front_of(world) as front:
        other = await world.pair()
        front.accepting.plan("web", [(other.server.connection, 5), (front.connection, 4)])
        other.server.connection.close(0, "")
        user = await front.user()
        request, _ = await front.request()
        assert request.source == text(user)
        assert front.accepting.unused("web") == 3


async def test_without_a_stream_the_layer_above_decides(world: World) -> None:
    async with front_of(world) as front:
        front.plan(2 * MAX_STREAMS)
        held = [front.connection.open_stream() for _ in range(MAX_STREAMS)]
        await front.user()
        await until(lambda: front.handler.came)
        assert front.accepting.unused("web") == 2 * MAX_STREAMS
        for stream in held:
            stream.abort(0)


# --- what is not answered at once and with "ready" ---


async def test_a_refusal(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        user = await front.user()
        _, stream = await front.request()
        await answer(stream, ConnRefused("refused", "nobody listens"))
        about, sock, asked = await front.given_up()
        assert (about.conn_id, about.source) == (FIRST, text(user))
        assert sock.getpeername() == user.getsockname()
        assert asked.connection is front.connection
        assert asked.refused == ConnRefused("refused", "nobody listens")
        assert asked.stream is None
        assert time.monotonic() - 5 < asked.began_at <= time.monotonic()
        with pytest.raises(StreamError) as error:
            await stream.read(1)
        assert error.value.code == AppCode.NONE
        await front.is_empty()


async def test_a_stream_that_the_client_resets(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        await front.user()
        _, stream = await front.request()
        stream.abort(AppCode.UNKNOWN_STREAM_TYPE)
        _, _, asked = await front.given_up()
        assert (asked.stream, asked.refused) == (None, None)
        assert asked.reason == str(StreamError(AppCode.UNKNOWN_STREAM_TYPE))
        await front.is_empty()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_lost_connection(world: World, who: str) -> None:
    async with front_of(world) as front:
        front.plan(3)
        for _ in range(3):
            await front.user()
            await front.request()
        getattr(front.pair, who).connection.close(1, "gone")
        await until(lambda: len(front.handler.asked) == 3)
        for _, _, asked in front.handler.asked:
            assert asked.connection is (front.connection if who == "client" else None)
            assert (asked.stream, asked.refused, asked.reason) == (None, None, "the connection was lost")
        assert front.accepting.users == 0


async def test_an_attempt_that_takes_long_goes_on_above(world: World) -> None:
    async with front_of(world, slow_s=SLOW_S) as front:
        front.plan(1)
        started = time.monotonic()
        user = await front.user()
        await asyncio.get_running_loop().sock_sendall(user, b"question")
        _, stream = await front.request()
        await stream.write(encode(ConnReady())[:2])
        _, sock, asked = await front.given_up()
        assert time.monotonic() - started >= SLOW_S
        assert started - 0.01 <= asked.began_at <= time.monotonic()
        assert asked.stream is not None
        await front.is_empty()
        await stream.write(encode(ConnReady())[2:] + b"answer")
        result = await go_on(asked.stream, asked.began_at, time.monotonic() + 5)
        assert result.outcome is Outcome.READY
        assert await asked.stream.read(100) == b"answer"
        relay = asked.stream.relay(sock, RelayLimits())
        assert await stream.read(100) == b"question"
        relay.abort()


async def test_how_long_an_attempt_may_take_is_said(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        user = await front.user()
        _, stream = await front.request()
        assert await stays(lambda: front.handler.asked == [], 3 * SLOW_S)
        await answer(stream, ConnReady())
        await stream.write(b"hello")
        assert await asyncio.get_running_loop().sock_recv(user, 100) == b"hello"


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"\x40\x77\x03abc" + encode(ConnReady()), Outcome.READY),  # a frame of a later release first
        (b"\x12\x01\xc1", Outcome.LOST),
        (b"\x11", Outcome.LOST),  # and FIN
        (b"", Outcome.LOST),
    ],
)
async def test_an_answer_that_is_unusual_is_read_above(world: World, data: bytes, outcome: Outcome) -> None:
    async with front_of(world) as front:
        front.plan(1)
        await front.user()
        _, stream = await front.request()
        await stream.write(data)
        if outcome is Outcome.LOST:
            stream.finish()
        _, _, asked = await front.given_up()
        assert asked.stream is not None
        result = await go_on(asked.stream, asked.began_at, time.monotonic() + 5)
        assert result.outcome is outcome
        asked.stream.abort(0)


async def test_who_resets_while_a_client_is_asked(world: World) -> None:
    async with front_of(world) as front:
        front.plan(1)
        user = await front.user()
        source = text(user)
        _, stream = await front.request()
        reset(user)
        await until(lambda: front.handler.gone)
        assert front.handler.gone == [("web", FIRST, source)]
        with pytest.raises(StreamError) as error:
            await stream.read(1)
        assert error.value.code == AppCode.CANCELLED
        assert front.handler.asked == []
        await front.is_empty()


# --- limits and ends ---


async def test_nobody_is_accepted_before_start(world: World) -> None:
    async with front_of(world) as front:
        listening = socket.create_server(("127.0.0.1", 0))
        front.address = listening.getsockname()
        bind = front.accepting.add_bind("web", listening)
        await front.user()
        assert await stays(lambda: front.handler.came == [], 0.05)
        bind.start()
        bind.start()
        await until(lambda: front.handler.came)
        assert front.handler.came[0][0].dest == f"127.0.0.1:{front.address[1]}"


async def test_users_above_the_limit_wait_in_the_kernel(world: World) -> None:
    async with front_of(world, limit=3) as front:
        front.accepting.set_other_users(1)
        front.plan(100)
        for _ in range(5):
            await front.user()
        for _ in range(2):
            await answer((await front.request())[1], ConnReady())
        await until(lambda: len(front.handler.paused) >= 2)
        assert front.handler.paused[0] == ("web", "as many users as this worker may have")
        assert front.accepting.users == 2
        front.accepting.set_other_users(0)
        await answer((await front.request())[1], ConnReady())
        reset(front.users[0])
        await answer((await front.request())[1], ConnReady())
        assert front.handler.came == front.handler.asked == []


async def test_users_who_are_left_above_count_until_their_number_is_told(world: World) -> None:
    async with front_of(world, limit=2) as front:
        for _ in range(4):
            await front.user()
        await until(lambda: front.handler.paused)
        assert len(front.handler.came) == 2
        front.accepting.set_other_users(1)
        await until(lambda: len(front.handler.came) == 3)


async def test_without_descriptors_users_wait(world: World) -> None:
    async with front_of(world) as front:
        users = [socket.socket() for _ in range(3)]
        front.users += users
        with _descriptors_used_up():
            for user in users:
                user.setblocking(False)
                await asyncio.get_running_loop().sock_connect(user, front.address)
            await until(lambda: front.handler.paused)
        assert front.handler.paused[0] == ("web", "Too many open files (os error 24)")
        await until(lambda: len(front.handler.came) == 3)


@contextlib.contextmanager
def _descriptors_used_up() -> Any:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_close_with_shutdown_takes_who_is_queued_and_ends_the_bind_for_all(world: World) -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    with listening.dup() as duplicate:
        async with front_of(world, listening=listening) as front:
            front.plan(20)
            for _ in range(50):
                front.users.append(socket.create_connection(front.address, timeout=15))
            front.bind.close(shutdown=True)
            front.bind.close(shutdown=True)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(front.address, timeout=15)
            with pytest.raises(OSError, match="Invalid argument"):
                duplicate.accept()
            await until(lambda: len(front.handler.came) == 30)
            assert front.accepting.users == 20


async def test_close_without_shutdown_leaves_the_queue_to_others(world: World) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening.dup() as duplicate:
        async with front_of(world, listening=listening) as front:
            front.users.append(socket.create_connection(front.address, timeout=15))
            front.bind.close(shutdown=False)
            front.users += [duplicate.accept()[0]]
            assert front.handler.came == []


async def test_a_bind_that_was_removed_is_accepted_on_again(world: World) -> None:
    """Its duplicate keeps it in the poller, and the new descriptor may have the number of the old one."""
    listening = socket.create_server(("127.0.0.1", 0))
    with listening.dup() as duplicate:
        async with front_of(world, listening=listening) as front:
            number = duplicate.fileno()
            for _ in range(3):
                front.bind.close(shutdown=False)
                front.bind = front.accepting.add_bind("web", duplicate.dup())
                front.bind.start()
                await front.user()
            await until(lambda: len(front.handler.came) == 3)
            assert duplicate.fileno() == number


async def test_a_bind_that_another_process_shut_down_ends_here_too(world: World) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening.dup() as duplicate:
        async with front_of(world, listening=listening) as front:
            duplicate.shutdown(socket.SHUT_RDWR)
            duplicate.close()
            await until(lambda: not _is_open(front.address))


def _is_open(address: tuple[str, int]) -> bool:
    """Whether a socket has this port still: a port that is bound cannot be bound again."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return True
    return False


async def test_close_ends_everybody(world: World) -> None:
    async with front_of(world) as front:
        front.plan(2)
        relayed, waiting = await front.user(), await front.user()
        for at in range(2):
            _, stream = await front.request()
            if not at:
                await answer(stream, ConnReady())
        await until(lambda: front.accepting.counts()["web"].active == 1)
        left = await front.user()
        await until(lambda: front.handler.came)
        late = socket.create_connection(front.address)
        front.users.append(late)
        late.setblocking(False)
        front.accepting.close()
        for user in (relayed, waiting, late):
            assert await is_reset(user)
        assert left.fileno() >= 0
        assert front.accepting.users == 0


async def test_500_users_that_come_and_go_leave_nothing(world: World) -> None:
    async with front_of(world, slow_s=SLOW_S, handler=Refusing()) as front:
        rng, loop = random.Random(1), asyncio.get_running_loop()
        core = world.engine._driver.core  # type: ignore[attr-defined]
        before = core.counts()

        async def serve() -> None:
            while True:
                _, stream = await front.request()
                kind = rng.randrange(5)
                with contextlib.suppress(StreamError):
                    if kind == 0:
                        await answer(stream, ConnRefused("refused"))
                    elif kind == 1:
                        stream.abort(0x10)
                    else:
                        await answer(stream, ConnReady())
                        await stream.write(b"hello")
                        stream.finish()

        async def come_and_go(number: int) -> None:
            user = socket.socket()
            user.setblocking(False)
            try:
                try:
                    await loop.sock_connect(user, front.address)
                    if number % 3 == 0:
                        reset(user)
                        return
                    await loop.sock_sendall(user, b"x" * rng.randrange(3000))
                    user.shutdown(socket.SHUT_WR)
                except OSError:
                    return  # turned away already
                with contextlib.suppress(ConnectionResetError):
                    await asyncio.wait_for(loop.sock_recv(user, 10), 15)
            finally:
                user.close()

        serving = asyncio.ensure_future(serve())
        for wave in range(20):
            front.plan(20)
            await asyncio.gather(*(come_and_go(25 * wave + at) for at in range(25)))
        await front.is_empty()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await front.is_empty()
        await until(lambda: core.counts() == before, what="nothing is left in the core")
        await until(lambda: core.streams(front.connection.handle) == 0)  # type: ignore[attr-defined]
