"""All client connections of one worker: older ones of a session, what they are told, and which register again."""

from __future__ import annotations

from msgspec.structs import replace

from qmux.config.schema import QuicConfig, ServerConfig
from qmux.protocol.frames import AppCode, Drain, Lanes, RegisterAck, RegisterReject, RejectCode
from qmux.worker.server.roster import CONNECTIONS_PER_SESSION, _needs_registration
from tests.aio import until
from tests.worker.server.fakes import SLOT, config_of, frames, worker_of


async def test_a_connection_that_never_registered_ends() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        assert worker.roster.by_connection(connection) is None, "not registered yet"
        connection.close(AppCode.NONE, "done")
        assert list(worker.roster) == []


async def test_a_client_is_found_by_its_row_until_its_end() -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        assert worker.roster.by_key(row.key) is row
        assert worker.pool.session(row.session_key) is not None
        assert worker.accepting.room[connection] == (0, 4096)
        connection.close(AppCode.NONE, "done")
        assert worker.roster.by_key(row.key) is None
        assert worker.roster.by_connection(connection) is None
        assert worker.pool.session(row.session_key) is None
        assert worker.roster.by_connection(None) is None


async def test_an_older_connection_of_a_session_ends_with_its_last_user_connection() -> None:
    async with worker_of() as worker:
        older = worker.client("pod-1")
        row = worker.row(older)
        row.user_added()
        newer = worker.client("pod-1")
        candidate = worker.pool.session(row.session_key)
        assert candidate is not None
        assert candidate.at(SLOT) == worker.row(newer).key
        row.sweep(0.0)
        assert older.closed_with is None
        row.user_removed()
        await until(lambda: older.closed_with, what="the roster looks again")
        assert older.closed_with == (AppCode.REPLACED, "a newer connection of this session is registered")
        assert newer.closed_with is None


async def test_a_client_that_registers_again_and_again_loses_its_oldest() -> None:
    async with worker_of() as worker:
        connections = []
        for _ in range(CONNECTIONS_PER_SESSION + 2):
            connections.append(connection := worker.client("pod-1"))
            worker.row(connection).user_added()  # so that none ends by itself
        closed = [connection.closed_with for connection in connections]
        assert closed[:2] == [(AppCode.REPLACED, "too many connections of one session")] * 2
        assert closed[2:] == [None] * CONNECTIONS_PER_SESSION


async def test_sessions_of_one_client_are_apart() -> None:
    async with worker_of() as worker:
        first, second = worker.client("pod-1", "a"), worker.client("pod-1", "b")
        assert worker.pool.own(worker.row(first).key).state == "ready"  # type: ignore[union-attr]
        second.close(AppCode.NONE, "done")
        assert worker.pool.session(worker.row(first).session_key) is not None


# --- what the worker tells ---


async def test_clients_hear_of_other_lanes_and_of_those_that_died() -> None:
    async with worker_of() as worker:
        stream = await worker.registers(worker.accept("pod-1"))
        silent = worker.accept("pod-2")
        worker.roster.set_active_slots((SLOT,), ())  # as it was: nothing is told
        worker.roster.set_active_slots((SLOT, 3), ())
        worker.roster.set_active_slots((SLOT, 3), (4,))
        worker.roster.set_active_slots((), ())
        await until(lambda: len(frames(stream)) == 4)
        ack, *told = frames(stream)
        assert isinstance(ack, RegisterAck)
        assert ack.lanes == (SLOT,)
        assert told == [Lanes(SLOT, (SLOT, 3)), Lanes(SLOT, (SLOT, 3), (4,)), Lanes(SLOT, (SLOT,))]
        assert silent.closed_with is None


async def test_a_client_holds_as_many_lanes_as_the_configuration_says() -> None:
    config = config_of(web={})
    async with worker_of() as worker:
        worker.roster.reconfigure(replace(config, quic=QuicConfig(lanes=2)))
        worker.roster.set_active_slots(tuple(range(8)), ())
        lanes = worker.roster.lanes_for(bytes(16))
        assert len(lanes) == 2
        stream = await worker.registers(worker.accept("pod-1", "\0" * 16))
        ack = frames(stream)[0]
        assert isinstance(ack, RegisterAck)
        assert ack.lanes == lanes


async def test_draining_tells_every_client_and_accepts_none() -> None:
    async with worker_of() as worker:
        stream = await worker.registers(worker.accept("pod-1"))
        worker.roster.drain(2.5, replace=False)
        await until(lambda: len(frames(stream)) == 2)
        assert frames(stream)[1] == Drain(2500, False)
        worker.roster.set_active_slots((SLOT, 3), ())  # clients keep what they have
        late = await worker.registers(worker.accept("pod-2"))
        (rejected,) = frames(late)
        assert isinstance(rejected, RegisterReject)
        assert rejected.code == RejectCode.SHUTTING_DOWN
        assert worker.roster.rejected == 1
        assert len(frames(stream)) == 2


async def test_a_worker_that_is_replaced_still_accepts_registrations() -> None:
    async with worker_of() as worker:
        stream = await worker.registers(worker.accept("pod-1"))
        worker.roster.drain(2.5, replace=True)
        await until(lambda: len(frames(stream)) == 2)
        assert frames(stream)[1] == Drain(2500, True)
        assert isinstance(frames(await worker.registers(worker.accept("pod-2")))[0], RegisterAck)


# --- a reload ---


async def test_clients_register_again_for_what_the_acknowledgement_carries() -> None:
    async with worker_of() as worker:
        first = await worker.registers(worker.accept("pod-1"))
        second = await worker.registers(worker.accept("pod-2"))
        worker.roster.reconfigure(config_of(web={"idle_timeout_s": 9.0}))
        for stream in (first, second):
            await until(lambda stream=stream: len(frames(stream)) == 2)  # type: ignore[misc]
            assert frames(stream)[1] == Drain(25_000, True)


def test_which_changes_need_a_registration() -> None:
    old = config_of(web={}, ssh={})

    def needs(new: ServerConfig) -> bool:
        return _needs_registration(old, new)

    assert not needs(old)
    assert not needs(config_of(web={"maxconn": 5, "retries": 1}, ssh={"deny": ("10.0.0.0/8",)}))
    assert not needs(config_of(web={})), "the client hears of it when it is asked"
    assert not needs(config_of(web={}, ssh={}, smtp={"idle_timeout_s": 1.0}))
    assert not needs(replace(old, quic=QuicConfig(lanes=2, handshake_timeout_s=1.0)))
    assert needs(config_of(web={"half_closed_timeout_s": 1.0}, ssh={}))
    for quic in ({"heartbeat_s": 1.0}, {"keep_alive_s": 1.0}, {"max_streams": 7}, {"idle_timeout_s": 9.0}):
        assert needs(replace(old, quic=QuicConfig(**quic))), quic


async def test_offers_and_limits_follow_a_reload() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        await worker.registers(connection, ("web", "ssh"))
        row = worker.row(connection)

        def offers() -> list[str]:
            own = worker.pool.own(row.key)
            assert own is not None
            return [offer.service for offer in own.offers]

        assert offers() == ["web"]
        worker.roster.reconfigure(config_of(max_streams=5, web={}, ssh={}))
        assert offers() == ["web", "ssh"]
        assert worker.accepting.room[connection] == (0, 5)
        worker.roster.reconfigure(config_of(ssh={}))
        assert offers() == ["ssh"]
