"""The users whom an engine accepts alone: what is planned for them, how they are counted, and who is left over.

The engine here is a fake that follows nothing: a test says who came, and what it did with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from qmux.config.schema import ProcessConfig, QuicConfig, ServerConfig, ServiceConfig, TlsFiles
from qmux.pool.planning import PLANNED_USERS
from qmux.pool.pool import Pool
from qmux.pool.rows import Row
from qmux.protocol.frames import ConnReady, ConnRefused
from qmux.quic.accepting import Accepted, Accepting, Bind, Changes, EngineAttempt, UserHandler
from qmux.quic.engine import Connection, Relay, RelayEnd, RelayLimits
from qmux.quic.offload import OffloadCounts, OffloadEnd
from qmux.relay.handoff import HandoffLink
from qmux.tasks import TaskSet
from qmux.worker.server import plans
from qmux.worker.server.client_connection import ClientConnection
from qmux.worker.server.ledger import Ledger
from qmux.worker.server.offload import Offload
from qmux.worker.server.peers import PeerLinks
from qmux.worker.server.plans import Plans
from qmux.worker.server.roster import Roster
from qmux.worker.server.user_connections import UserConnections, first_conn_id
from qmux.worker.signal import ChangeSignal
from tests.aio import run, until
from tests.pool.examples import row
from tests.relay import fakes

SLOT = 2
LIMIT = 500
ABOUT = Accepted("web", (SLOT << 40) | 7, "192.0.2.1:5", "192.0.2.2:80")


class FakeRelay(Relay):
    """A relay that a test ends."""

    bytes_to_socket = bytes_to_stream = 0

    def __init__(self, sock: socket.socket) -> None:
        self.done: asyncio.Future[RelayEnd] = asyncio.get_running_loop().create_future()
        self._socket = socket.socket(fileno=sock.detach())
        self.abort = self.end

    def end(self) -> None:
        self._socket.close()
        if not self.done.done():
            self.done.set_result(RelayEnd.FINISHED)


class FakeStream(fakes.FakeStream):
    relays: list[FakeRelay]

    def relay(self, sock: socket.socket, limits: RelayLimits) -> FakeRelay:  # type: ignore[override]
        self.relayed = FakeRelay(sock)
        return self.relayed


class FakeConnection(fakes.FakeConnection):
    def open_stream(self) -> FakeStream:
        self.streams.append(stream := FakeStream(self))
        return stream

    async def asked(self, number: int = 0) -> FakeStream:
        await until(lambda: len(self.streams) > number and self.streams[number].sent, what="the client is asked")
        stream = self.streams[number]
        assert isinstance(stream, FakeStream)
        return stream


class FakeAccepting(Accepting):
    """``plans``: the one in force of each service; ``on`` and ``of``: what the engine says of its users."""

    accepts = True
    handler: UserHandler

    def __init__(self, first_conn_id: int, limit: int) -> None:
        self.first = (first_conn_id, limit)
        self.plans: dict[str, list[tuple[Connection, int]]] = {}
        self.made = 0
        self.limits: dict[str, RelayLimits] = {}
        self.others = 0
        self.room: dict[Connection, tuple[int, int]] = {}
        self.on: dict[Connection, int] = {}
        self.by_service: dict[str, int] = {}
        self.is_closed = False

    def begin(self, handler: UserHandler) -> None:
        self.handler = handler

    def add_bind(self, service: str, sock: socket.socket) -> Bind:
        raise NotImplementedError

    def set_limits(self, service: str, limits: RelayLimits) -> None:
        self.limits[service] = limits

    def plan(self, service: str, grants: Sequence[tuple[Connection, int]]) -> None:
        self.plans[service] = list(grants)
        self.made += 1

    def unused(self, service: str) -> int:
        return sum(count for _, count in self.plans.get(service, []))

    def limit_users(self, connection: Connection, others: int, most: int) -> None:
        self.room[connection] = (others, most)

    def set_other_users(self, count: int) -> None:
        self.others = count

    @property
    def users(self) -> int:
        return sum(self.on.values())

    def users_on(self, connection: Connection) -> int:
        return self.on.get(connection, 0)

    def changes(self) -> Changes:
        return Changes(list(self.on.items()), list(self.by_service.items()))

    def counts(self) -> dict[str, OffloadCounts]:
        return {name: OffloadCounts(count, 100, 5, 6) for name, count in self.by_service.items()}

    def tell_usual_ends(self, tell: bool) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    # --- what a test does ---

    def serves(self, connection: Connection, count: int, service: str = "web") -> None:
        """The engine has so many users on ``connection``."""
        self.on[connection] = count
        self.by_service[service] = self.users
        self.handler.counts_changed()


def config_of(*, max_streams: int = 4096, **services: dict[str, Any]) -> ServerConfig:
    return ServerConfig(
        source="/etc/qmux/server.toml",
        process=ProcessConfig(tls=TlsFiles(bundle="/etc/qmux/server.pem")),
        quic=QuicConfig(max_streams=max_streams),
        services={name: ServiceConfig(name=name, **options) for name, options in services.items()},
    )


class Worker:
    """The users of one worker, its pool and its clients."""

    def __init__(self, config: ServerConfig) -> None:
        self.tasks = TaskSet()
        self.signal = ChangeSignal()
        self.pool = Pool(SLOT, 1)
        self.pool.subscribe(self.signal.fire)
        self.accepting = FakeAccepting(first_conn_id(SLOT), LIMIT)
        self.ledger = Ledger(self.pool, self.accepting, LIMIT)
        self.peers = PeerLinks(self.pool)
        self.roster = Roster(config, self.pool, self.ledger, SLOT, b"s" * 16, self.tasks)
        self.plans = Plans(self.accepting, self.pool, self.roster, self.ledger, self.peers)
        self.users = UserConnections(
            config,
            self.pool,
            self.roster,
            self.ledger,
            self.plans,
            self.peers,
            self.signal,
            self.tasks,
            self.accepting,
        )
        self.accepting.begin(Offload(self.users, self.plans, self.roster))
        self._sockets: list[socket.socket] = []

    def client(self, name: str, key: int, **changes: Any) -> FakeConnection:
        """A registered client."""
        connection = FakeConnection()
        client = ClientConnection(connection, self.roster)
        self.roster._all[connection] = client
        about: Row = row(key, name, **changes)
        client.key, client.session_key = key, (about.principal, about.session)
        self.roster.registered(client, about)
        return connection

    def joins(self, slot: int) -> None:
        """One more worker."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets.append(far)
        self.peers.set(slot, HandoffLink(near, self.users.take_over))

    def user(self) -> tuple[socket.socket, socket.socket]:
        """(the engine's end, the user's end)."""
        pair = socket.socketpair()
        pair[0].setblocking(False)
        pair[1].settimeout(5)
        self._sockets += pair
        return pair

    def comes(self, service: str = "web") -> None:
        """A user whom the engine leaves to us."""
        about = Accepted(service, ABOUT.conn_id, ABOUT.source, ABOUT.dest)
        self.accepting.handler.unplanned(about, self.user()[0])

    def planned(self, service: str = "web") -> list[tuple[Connection, int]]:
        return self.accepting.plans.get(service, [])

    async def until_planned(self, service: str = "web") -> list[tuple[Connection, int]]:
        await until(lambda: self.planned(service), what=f"a plan for {service}")
        return self.planned(service)

    async def until_void(self, service: str = "web") -> None:
        await until(lambda: not self.planned(service), what=f"no plan for {service}")

    async def close(self) -> None:
        self.plans.close()
        self.accepting.close()
        self.peers.close()
        self.roster.close()
        await self.tasks.close()
        for sock in self._sockets:
            sock.close()


@contextlib.asynccontextmanager
async def worker_of(*, max_streams: int = 4096, **services: dict[str, Any]) -> AsyncIterator[Worker]:
    worker = Worker(config_of(max_streams=max_streams, **(services or {"web": {}})))
    try:
        yield worker
    finally:
        await worker.close()


@pytest.fixture(autouse=True)
def hot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service falls idle because the machine stood still for a second."""
    monkeypatch.setattr(plans, "HOT_S", 60.0)


# --- plans ---


def test_who_comes_first_is_served_here_and_the_next_are_planned() -> None:
    async def main() -> None:
        async with worker_of(web={"idle_timeout_s": 9.0}) as worker:
            assert worker.accepting.first == (SLOT << 40, LIMIT)
            assert worker.accepting.limits == {"web": RelayLimits(9.0, 300.0)}
            client = worker.client("pod-1", 1)
            await asyncio.sleep(0.03)
            assert worker.planned() == []  # nobody came yet
            worker.comes()
            stream = await client.asked()
            assert stream.request()[1].conn_id == ABOUT.conn_id
            assert worker.accepting.others == worker.ledger.total == 1
            await until(lambda: worker.planned() == [(client, 4095)], what="one place is taken")

    run(main())


def test_plans_follow_the_pool() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            first = worker.client("pod-1", 1)
            worker.comes()
            assert await worker.until_planned() == [(first, 4095)]
            second = worker.client("pod-2", 2)
            await until(lambda: worker.accepting.unused("web") == PLANNED_USERS, what="two sessions take turns")
            assert {connection for connection, _ in worker.planned()} == {first, second}
            worker.pool.update(1, state="suspect")
            await until(lambda: worker.planned() == [(second, 4096)], what="nobody is planned for a suspect")
            worker.roster._by_key[2].replace_by_newer()
            await worker.until_void()

    run(main())


def test_a_plan_that_is_low_is_made_anew() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            client = worker.client("pod-1", 1)
            worker.comes()
            await worker.until_planned()
            worker.accepting.plans["web"] = [(client, 3)]
            worker.accepting.handler.plan_low("web")
            await until(lambda: worker.planned() == [(client, 4095)])

    run(main())


def test_a_service_that_nobody_uses_has_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with worker_of() as worker:
            client = worker.client("pod-1", 1)
            worker.comes()
            await worker.until_planned()
            with monkeypatch.context() as later:
                later.setattr(plans, "HOT_S", -1.0)  # however short the time since then was, it is too long now
                worker.pool.update(1, active_total=5, active_at_ms=1)
                await worker.until_void()
            worker.accepting.serves(client, 3)  # its users come and go
            await until(lambda: worker.planned() == [(client, 4092)])

    run(main())


@pytest.mark.parametrize("options", [{"deny": ("10.0.0.0/8",)}, {"balance": "source-hash"}, {"early_data": True}])
def test_a_service_whose_users_are_looked_at_has_no_plan(options: dict[str, Any]) -> None:
    async def main() -> None:
        async with worker_of(web=options, ssh={}) as worker:
            worker.client("pod-1", 1, offers=row(1).offers + row(1, offers=()).offers)
            worker.comes()
            await asyncio.sleep(0.05)
            assert worker.accepting.made == 0

    run(main())


def test_a_plan_keeps_to_the_share_of_maxconn() -> None:
    async def main() -> None:
        async with worker_of(web={"maxconn": 10}) as worker:
            client = worker.client("pod-1", 1)
            worker.comes()
            assert await worker.until_planned() == [(client, 9)]
            for slot in (3, 4):  # two workers more
                worker.joins(slot)
            worker.accepting.serves(client, 2)
            await until(lambda: worker.planned() == [(client, 2)], what="a third of 10 - 1 - 2")
            worker.accepting.serves(client, 9)
            await worker.until_void()

    run(main())


def test_who_gets_a_place_here_is_planned_for_nobody_else() -> None:
    """At once: until the next look somebody else might take the place, too."""

    async def main() -> None:
        async with worker_of(web={"maxconn": 2}) as worker:
            client = worker.client("pod-1", 1)
            worker.comes()
            assert await worker.until_planned() == [(client, 1)]
            worker.accepting.on[client] = worker.accepting.by_service["web"] = 1  # which nobody has told us
            assert not worker.users.admit("web")
            worker.accepting.on[client] = worker.accepting.by_service["web"] = 0
            assert worker.users.admit("web")
            assert worker.planned() == []
            worker.users.release("web")

    run(main())


def test_nobody_is_planned_while_others_wait() -> None:
    async def main() -> None:
        async with worker_of(web={"maxconn": 1}) as worker:
            client = worker.client("pod-1", 1)
            worker.accepting.on[client] = worker.accepting.by_service["web"] = 1
            worker.comes()
            await until(lambda: worker.ledger.waiting("web") == 1)
            worker.accepting.serves(client, 0)
            stream = await client.asked()  # who waits is the next
            assert worker.ledger.waiting("web") == 0
            assert worker.planned() == []
            stream.peer_sends(ConnReady())
            await until(lambda: hasattr(stream, "relayed"))
            stream.relayed.end()
            await until(lambda: worker.planned() == [(client, 1)])

    run(main())


def test_a_plan_keeps_to_max_streams() -> None:
    async def main() -> None:
        async with worker_of(max_streams=5) as worker:
            client = worker.client("pod-1", 1)
            worker.comes()
            await until(lambda: worker.planned() == [(client, 4)])
            worker.accepting.serves(client, 3)
            await until(lambda: worker.planned() == [(client, 1)])

    run(main())


def test_a_reload_voids_every_plan() -> None:
    async def main() -> None:
        async with worker_of(web={}, ssh={}) as worker:
            worker.client("pod-1", 1)
            worker.comes()
            await worker.until_planned()
            worker.users.reconfigure(config_of(ssh={"half_closed_timeout_s": 1.0}))
            assert worker.planned() == []
            assert worker.accepting.limits["ssh"] == RelayLimits(None, 1.0)

    run(main())


def test_however_long_planning_takes_the_loop_has_most_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with worker_of() as worker:
            worker.client("pod-1", 1)
            looks: list[float] = []
            loop = asyncio.get_running_loop()

            def slow(*_: object) -> None:
                looks.append(loop.time())
                until_s = loop.time() + 0.02
                while loop.time() < until_s:
                    pass

            monkeypatch.setattr(worker.plans, "renew", slow)
            for _ in range(100):
                worker.accepting.handler.plan_low("web")
                await asyncio.sleep(0.005)
            pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
            assert len(looks) >= 2
            assert min(pauses) >= 0.02 * plans.REST

    run(main())


# --- numbers ---


def test_the_engines_users_count_in_the_pool() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            client = worker.client("pod-1", 1)
            worker.accepting.serves(client, 7)
            await until(lambda: worker.pool.active("web") == 7)
            own = worker.pool.own(1)
            assert own is not None
            assert own.active == 7
            assert worker.ledger.total == 7
            worker.comes()
            await client.asked()
            assert worker.pool.active("web") == 8
            assert worker.ledger.total == 8
            counters = worker.users.counters.snapshot()["web"]
            assert (counters.active, counters.total, counters.bytes_in, counters.bytes_out) == (8, 100, 6, 5)
            worker.accepting.serves(client, 0)
            await until(lambda: worker.pool.active("web") == 1)

    run(main())


def test_the_limit_counts_both() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            client = worker.client("pod-1", 1)
            worker.accepting.on[client] = LIMIT - 1
            assert worker.ledger.may_accept()
            worker.comes()
            assert not worker.ledger.may_accept()

    run(main())


def test_closing_closes_the_engines_side() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            worker.comes()
        assert worker.accepting.is_closed
        assert worker.ledger.total == 0

    run(main())


# --- who is left over ---


def test_a_refused_user_goes_on_with_another_client() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            first, second = worker.client("pod-1", 1), worker.client("pod-2", 2)
            ours, _ = worker.user()
            asked = EngineAttempt(first, 0.0, refused=ConnRefused("refused", "nobody listens"))
            worker.accepting.handler.handed_back(ABOUT, ours, asked)
            assert worker.pool.active("web") == 1
            stream = await second.asked()
            assert first.streams == []
            assert stream.request()[1].source == ABOUT.source
            counters = worker.users.counters["web"]
            assert (counters.retried, counters.active, counters.refused) == (1, 1, {})
            stream.peer_sends(ConnReady())
            await until(lambda: counters.total == 1)
            stream.relayed.end()
            await until(lambda: worker.ledger.total == 0)
            assert worker.pool.active("web") == 0

    run(main())


def test_the_engines_attempt_is_one_of_those_that_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with worker_of(web={"retries": 0}) as worker:
            first, second = worker.client("pod-1", 1), worker.client("pod-2", 2)
            ours, theirs = worker.user()
            asked = EngineAttempt(first, 0.0, refused=ConnRefused("refused", "nobody listens"))
            worker.accepting.handler.handed_back(ABOUT, ours, asked)
            await until(lambda: worker.ledger.total == 0)
            assert second.streams == []
            assert worker.users.counters["web"].refused == {"service_refused": 1}
            assert theirs.recv(1) == b""

    run(main())
    assert [record.__dict__["reason"] for record in caplog.records if "refused" in record.message] == [
        "service_refused: pod-1: refused: nobody listens"
    ]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_user_of_a_lost_connection_goes_on(is_known: bool) -> None:
    async def main() -> None:
        async with worker_of() as worker:
            first, second = worker.client("pod-1", 1), worker.client("pod-2", 2)
            if not is_known:
                worker.roster.gone(worker.roster._by_key[1])
            asked = EngineAttempt(first if is_known else None, 0.0, reason="the connection was lost")
            worker.accepting.handler.handed_back(ABOUT, worker.user()[0], asked)
            await second.asked()
            assert worker.users.counters["web"].retried == 1

    run(main())


def test_an_open_attempt_goes_on() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            client = worker.client("pod-1", 1)
            stream = client.open_stream()
            now = asyncio.get_running_loop().time()
            worker.accepting.handler.handed_back(ABOUT, worker.user()[0], EngineAttempt(client, now, stream))
            own = worker.pool.own(1)
            assert own is not None
            assert own.active == 1
            stream.peer_sends(ConnReady())
            await until(lambda: hasattr(stream, "relayed"))
            assert stream.sent == b""
            stream.relayed.end()
            await until(lambda: worker.ledger.total == 0)
            own = worker.pool.own(1)
            assert own is not None
            assert own.active == 0

    run(main())


def test_an_open_attempt_of_a_service_that_was_removed_meanwhile() -> None:
    async def main() -> None:
        async with worker_of() as worker:
            client = worker.client("pod-1", 1)
            stream = client.open_stream()
            worker.users.reconfigure(config_of(ssh={}))
            worker.accepting.handler.handed_back(ABOUT, worker.user()[0], EngineAttempt(client, 0.0, stream))
            await until(lambda: worker.ledger.total == 0)
            assert stream.aborted is not None
            assert worker.users.counters["web"].refused == {"unknown_service": 1}
            assert worker.pool.active("web") == 0

    run(main())


def test_who_gave_up_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with worker_of() as worker:
            worker.accepting.handler.user_reset("web", ABOUT.conn_id, ABOUT.source)
            assert worker.users.counters["web"].refused == {"user_reset": 1}

    run(main())
    assert caplog.records[0].__dict__["source"] == ABOUT.source


def test_who_may_not_connect_is_reset() -> None:
    async def main() -> None:
        async with worker_of(web={"deny": ("192.0.2.0/24",)}) as worker:
            ours, theirs = worker.user()
            worker.accepting.handler.unplanned(ABOUT, ours)
            assert theirs.recv(1) == b""
            assert worker.users.counters["web"].refused == {"denied": 1}
            assert worker.ledger.total == 0

    run(main())


@pytest.mark.parametrize(
    ("end", "level"), [(RelayEnd.FINISHED, "DEBUG"), (RelayEnd.SOCKET_RESET, "DEBUG"), (RelayEnd.IDLE_TIMEOUT, "INFO")]
)
def test_ends_are_logged_as_those_of_our_own_users(end: RelayEnd, level: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    async def main() -> None:
        async with worker_of() as worker:
            worker.accepting.handler.relay_ended(OffloadEnd("web", 0xABC, "192.0.2.1:5", end))
            worker.accepting.handler.accept_paused("web", "Too many open files")

    run(main())
    ended, paused = (record for record in caplog.records if record.name.startswith("qmux"))
    assert (ended.levelname, ended.__dict__["conn"], ended.__dict__["reason"]) == (level, "abc", end.value)
    assert paused.message == "accept paused"
