"""The user connections of a worker's tasks: how they begin, how they are numbered, and what is counted."""

from __future__ import annotations

import socket

from qmux import addresses, sockets
from qmux.protocol.frames import ConnReady
from qmux.relay.handoff import Handoff
from qmux.worker.server.user_connections import first_conn_id
from tests.aio import until
from tests.worker.server.fakes import ABOUT, SLOT, config_of, worker_of


def connected() -> tuple[socket.socket, socket.socket]:
    """The user's end of a TCP connection, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        user = socket.create_connection(listener.getsockname(), timeout=15)
        return user, listener.accept()[0]


def test_no_two_workers_use_a_number() -> None:
    assert first_conn_id(0) == 0
    assert first_conn_id(1) - first_conn_id(0) == 1 << 40
    assert first_conn_id((1 << 15) - 1) < 1 << 62, "a number is a varint (RFC 9000 §16)"


async def test_an_accepted_connection_is_numbered_and_names_both_ends() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        for number in range(2):
            user, accepted = connected()
            with user:
                worker.users.accept("web", accepted, user.getsockname(), ("0.0.0.0", 80))
                stream = await client.asked(number)
                request = stream.request()[1]
                assert request.conn_id == first_conn_id(SLOT) + number
                assert request.source == addresses.text_of(user.getsockname())
                assert request.dest == addresses.text_of(user.getpeername()), "not the bind of every address"
                stream.peer_sends(ConnReady())
                await until(lambda stream=stream: stream.relayed)  # type: ignore[misc]
                stream.end()
        await until(lambda: not worker.ledger.total)
        assert worker.users.counters["web"].total == 2


async def test_a_user_that_may_not_connect_is_reset() -> None:
    async with worker_of(web={"deny": ("127.0.0.0/8",)}) as worker:
        client = worker.client("pod-1")
        user, accepted = connected()
        with user:
            worker.users.accept("web", accepted, user.getsockname(), user.getpeername())
            await until(lambda: sockets.is_reset(user))
        assert worker.users.counters["web"].refused == {"denied": 1}
        assert worker.ledger.total == 0
        assert client.streams == []


async def test_access_follows_a_reload() -> None:
    async with worker_of(web={"deny": ("127.0.0.0/8",)}) as worker:
        client = worker.client("pod-1")
        worker.users.reconfigure(config_of(web={}))
        user, accepted = connected()
        with user:
            worker.users.accept("web", accepted, user.getsockname(), user.getpeername())
            await client.asked()


async def test_what_another_worker_hands_over_is_served_under_its_number() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        ours, _ = worker.user()
        row = worker.row(client)
        principal, session = row.session_key
        handed = Handoff("web", ABOUT.source, ABOUT.dest, first_conn_id(9) + 1, principal, session, 1, 0)
        worker.users.take_over(ours, handed)
        assert worker.ledger.total == 1
        stream = await client.asked()
        assert stream.request()[1].conn_id == handed.conn_id
        assert row.active == worker.pool.active("web") == worker.users.counters["web"].active == 1
        stream.peer_sends(ConnReady())
        await until(lambda: stream.relayed)
        stream.end()
        await until(lambda: not worker.ledger.total)
        assert row.active == worker.pool.active("web") == worker.users.counters["web"].active == 0


async def test_a_place_is_free_for_a_user_connection_that_waits() -> None:
    async with worker_of(web={"maxconn": 1, "queue_timeout_s": 30.0}) as worker:
        client = worker.client("pod-1")
        worker.comes()
        first = await client.asked()
        worker.comes()
        await until(lambda: worker.ledger.waiting("web") == 1)
        first.peer_sends(ConnReady())
        await until(lambda: first.relayed)
        assert len(client.streams) == 1
        first.end()
        await client.asked(1)
        assert worker.ledger.waiting("web") == 0


async def test_what_round_robin_remembers_stays_where_the_policy_does() -> None:
    async with worker_of(web={"balance": "round-robin"}) as worker:
        before = worker.users.service("web")
        worker.users.reconfigure(config_of(web={"balance": "round-robin", "retries": 0}))
        same = worker.users.service("web")
        worker.users.reconfigure(config_of(web={"balance": "least-connections"}))
        other = worker.users.service("web")
        assert before is not None
        assert same is not None
        assert other is not None
        assert same.selector is before.selector
        assert same.config.retries == 0
        assert other.selector is not before.selector
        worker.users.reconfigure(config_of(ssh={}))
        assert worker.users.service("web") is None


async def test_a_client_whose_connection_is_closed_carries_nothing() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        key = worker.row(client).key
        assert worker.users.carrier(key) is worker.row(client)
        client.close(0, "done")
        assert worker.users.carrier(key) is None
