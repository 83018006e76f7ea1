"""What a client does beside an engine that serves users alone; users whom Python serves are in tests/integration."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from qmux.config.schema import ClientServiceConfig, Target
from qmux.log.repeats import REPEAT_BURST, RepeatFilter
from qmux.pool.rows import ServiceCounters
from qmux.protocol.codec import encode, encode_stream_type
from qmux.protocol.frames import NewConn, RefuseCode, ServiceSettings, StreamType
from qmux.quic.dialling import NoDialling, OffloadCounts, OffloadEnd, OnChange, OnEnd
from qmux.quic.engine import Connection, RelayEnd, RelayLimits, StreamError
from qmux.resolver import Resolver
from qmux.worker.client.lane import LaneConnection
from qmux.worker.client.user_streams import HEAD_S, UserStreams
from tests.aio import until
from tests.worker.fakes import ACK, FakeConnection, FakeStream, lane_on

SERVICES = {"web": ClientServiceConfig(name="web", target=Target("127.0.0.1", 80))}


class FakeEngine(NoDialling):
    """Implements ``DiallingEngine`` and what it gives; a test says which users there are."""

    name = "fake"

    def __init__(self) -> None:
        self.on: dict[Connection, int] = {}
        self.served: dict[Connection, dict[str, RelayLimits]] = {}
        self.targets: dict[str, object] = {}
        self.asked = 0
        self.tells_usual_ends = False

    def dialling(self, head_timeout_s: float, on_change: OnChange, on_end: OnEnd) -> FakeEngine:
        assert head_timeout_s == HEAD_S
        self.change, self.end = on_change, on_end
        return self

    @property
    def users(self) -> int:  # type: ignore[override]
        return sum(self.on.values())

    def users_on(self, connection: Connection) -> int:
        return self.on.get(connection, 0)

    def serve(self, connection: Connection, limits: dict[str, RelayLimits]) -> None:  # type: ignore[override]
        self.served[connection] = limits

    def set_target(self, service: str, address: object, timeout_s: float, valid_s: float | None = None) -> None:
        self.targets[service] = address

    def clear_targets(self) -> None:
        self.targets.clear()

    def counts(self) -> dict[str, OffloadCounts]:
        return {"web": OffloadCounts(self.users, 9, 20, 10)}

    def expect_change(self) -> None:
        self.asked += 1

    def tell_usual_ends(self, tell: bool) -> None:
        self.tells_usual_ends = tell


def streams_on(
    engine: FakeEngine, on_change: Callable[[], None] = lambda: None, target: Target | None = None
) -> UserStreams:
    services = {"web": replace(SERVICES["web"], target=target)} if target is not None else SERVICES
    return UserStreams(services, 1 << 20, engine, Resolver(), on_change)  # type: ignore[arg-type]


def registered_lane(streams: UserStreams) -> tuple[LaneConnection, FakeConnection]:
    connection = FakeConnection()
    lane = lane_on(connection)
    lane.ack = replace(ACK, services=(ServiceSettings("web", 60_000, 2000), ServiceSettings("ssh")))
    streams.registered(lane)
    return lane, connection


async def test_both_kinds_of_users_are_counted_together() -> None:
    engine = FakeEngine()
    streams = streams_on(engine)
    lane, connection = registered_lane(streams)
    other, _ = registered_lane(streams)
    assert engine.served[connection] == {"web": RelayLimits(60.0, 2.0), "ssh": RelayLimits(None, 300.0)}
    engine.on[connection] = 2
    streams.serve(lane, FakeStream(connection))
    assert (streams.active, streams.active_on(lane), streams.active_on(other)) == (3, 3, 0)
    assert streams.counted() == {"web": ServiceCounters(active=2, total=9, bytes_in=10, bytes_out=20)}
    await streams.close()
    assert (streams.active, streams.active_on(lane)) == (2, 2)
    for each in (lane, other):
        await each.close_tasks()


async def test_changes_are_passed_on_together() -> None:
    engine = FakeEngine()
    seen: list[int] = []
    streams = streams_on(engine, lambda: seen.append(engine.asked))
    engine.change()
    engine.change()
    await until(lambda: seen)
    engine.change()
    await until(lambda: len(seen) == 2)
    assert seen == [1, 2], "the next change is asked for before the numbers are read"
    await streams.close()


async def test_ends_are_logged_as_those_of_python_are(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    streams = streams_on(engine)
    with caplog.at_level(logging.DEBUG, "qmux.worker.client.user_streams"):
        streams.counted()
        assert engine.tells_usual_ends
        engine.end(OffloadEnd("web", 255, "192.0.2.1:5", RelayEnd.FINISHED))
        engine.end(OffloadEnd("web", 255, "192.0.2.1:5", RelayEnd.IDLE_TIMEOUT))
    with caplog.at_level(logging.INFO, "qmux.worker.client.user_streams"):
        streams.counted()
        assert not engine.tells_usual_ends
    await streams.close()
    lines = [(record.levelname, record.message, record.__dict__["reason"]) for record in caplog.records]
    assert lines == [
        ("DEBUG", "user connection ended", "finished"),
        ("DEBUG", "user connection ended", "idle_timeout"),
        ("INFO", "user connection timed out", "idle_timeout"),
    ]
    assert {record.__dict__["conn"] for record in caplog.records} == {"ff"}


async def test_nothing_is_kept_of_a_service_that_a_server_invents(caplog: pytest.LogCaptureFixture) -> None:
    streams = streams_on(FakeEngine())
    lane, connection = registered_lane(streams)
    for number in range(3):
        stream = FakeStream(connection)
        streams.serve(lane, stream)
        request = NewConn(1, f"no-{number}", "192.0.2.1:5", "192.0.2.2:80")
        stream.peer_sends(encode_stream_type(StreamType.TCP) + encode(request))
        await until(lambda stream=stream: stream.sent)
        assert RefuseCode.UNKNOWN_SERVICE.encode() in stream.sent
        stream.peer_ends()
    await until(lambda: not streams.active)
    assert set(streams.counted()) == {"web"}
    await streams.close()
    await lane.close_tasks()
    limit = RepeatFilter()
    assert len({record.message for record in caplog.records}) == 1
    assert [limit.filter(record) for record in caplog.records * 2] == [True] * REPEAT_BURST + [False]


async def test_no_service_is_dialled_for_an_attempt_that_was_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.setblocking(False)
        streams = streams_on(FakeEngine(), target=Target(*service.getsockname()))
        lane, connection = registered_lane(streams)
        stream = FakeStream(connection)
        streams.serve(lane, stream)
        stream.peer_sends(encode_stream_type(StreamType.TCP) + encode(NewConn(1, "web", "192.0.2.1:5", "192.0.2.2:80")))
        stream.peer_ends(StreamError(0x10))  # in the same turn of the loop
        await until(lambda: not streams.active)
        with pytest.raises(BlockingIOError):
            service.accept()
        await streams.close()
        await lane.close_tasks()


async def test_a_service_that_is_dialled_again_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        streams = streams_on(FakeEngine(), target=Target(*service.getsockname()))
        lane, connection = registered_lane(streams)
        stream = FakeStream(connection)
        stream.dialled_s = 0.5
        streams.serve(lane, stream)
        stream.peer_sends(encode_stream_type(StreamType.TCP) + encode(NewConn(1, "web", "192.0.2.1:5", "192.0.2.2:80")))
        await until(lambda: stream.sent)
        assert streams.counted()["web"].retried == 1
        await streams.close()
        await lane.close_tasks()


async def test_draining_refuses_whom_the_engine_leaves() -> None:
    engine = FakeEngine()
    streams = streams_on(engine)
    lane, connection = registered_lane(streams)
    assert engine.targets == {"web": ("127.0.0.1", 80)}
    streams.drain()
    assert engine.targets == {}
    stream = FakeStream(connection)
    streams.serve(lane, stream)
    stream.peer_sends(encode_stream_type(StreamType.TCP) + encode(NewConn(1, "web", "192.0.2.1:5", "192.0.2.2:80")))
    await until(lambda: stream.sent)
    assert RefuseCode.DRAINING.encode() in stream.sent
    stream.peer_ends()
    await until(lambda: not streams.active)
    assert streams.counted()["web"].refused == {"draining": 1}
    await streams.close()
    await lane.close_tasks()
