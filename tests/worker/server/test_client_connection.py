"""A client's connection at a server: its registration, its control stream, and what is said of its end."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from qmux.config.schema import QuicConfig
from qmux.heard import SAID_BYTES
from qmux.log.repeats import REPEAT_BURST, RepeatFilter
from qmux.protocol.codec import encode, encode_stream_type
from qmux.protocol.frames import (
    AppCode,
    Drain,
    Frame,
    Heartbeat,
    HeartbeatAck,
    Offered,
    Register,
    RegisterAck,
    RegisterReject,
    RejectCode,
    StreamType,
)
from qmux.quic.engine import CloseKind, CloseReason
from qmux.worker.control_stream import MAX_UNSENT
from qmux.worker.server.client_connection import FRAME_BURST_S, FRAME_S
from tests.aio import until
from tests.relay import fakes
from tests.worker.server.fakes import SLOT, FakeConnection, Worker, config_of, frames, worker_of

CONTROL = encode_stream_type(StreamType.CONTROL)
REGISTER = Register(bytes(16), "host-1", (Offered("web"),), "1.0")


def register_within(worker: Worker, timeout_s: float) -> None:
    worker.roster.reconfigure(replace(config_of(web={}), quic=QuicConfig(handshake_timeout_s=timeout_s)))


# --- registration ---


async def test_a_client_registers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        ack, *rest = frames(await worker.registers(connection))
        assert isinstance(ack, RegisterAck)
        assert (ack.lane, ack.lanes, rest) == (SLOT, (SLOT,), [])
        assert worker.pool.own(worker.row(connection).key) is not None
    (record,) = (record for record in caplog.records if record.name.startswith("qmux"))
    said = {name: record.__dict__[name] for name in ("client", "address", "services", "instance", "version")}
    assert record.message == "client registered"
    assert said == {
        "client": "pod-1",
        "address": "192.0.2.1:4711",
        "services": "web",
        "instance": "host-1",
        "version": "1.0",
    }


async def test_a_client_that_does_not_register_in_time() -> None:
    async with worker_of() as worker:
        register_within(worker, 0.05)
        connection = worker.accept("pod-1")
        await until(lambda: connection.closed_with)
        assert connection.closed_with == (AppCode.NOT_REGISTERED, "no registration within handshake_timeout")


async def test_the_time_to_register_ends_with_the_registration() -> None:
    async with worker_of() as worker:
        register_within(worker, 1.0)
        connection, late = worker.accept("pod-1"), worker.accept("pod-2")
        await worker.registers(connection)
        await until(lambda: late.closed_with)  # its time began later
        assert connection.closed_with is None


async def test_a_rejected_client_reads_why_before_the_connection_ends() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        (reject,) = frames(await worker.registers(connection, ["smtp"]))
        assert reject == RegisterReject(RejectCode.UNKNOWN_SERVICE, 'service "smtp"')
        assert connection.closed_with is None
        assert worker.roster.rejected == 1
        assert worker.roster.by_connection(connection) is None
        await until(lambda: connection.closed_with)
        assert connection.closed_with == (AppCode.REJECTED, 'unknown_service: service "smtp"')


async def test_a_client_that_is_gone_before_its_answer_is_not_in_the_pool() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        stream = await worker.registers(connection, answered=False)
        stream.write_room.clear()
        await until(lambda: not stream.left)
        connection.close(AppCode.NONE, "done")
        stream.write_room.set()
        await until(lambda: not len(worker.tasks))
        assert list(worker.pool.rows()) == []


# --- the control stream ---


async def test_a_stream_of_an_unknown_type_is_stopped_and_no_more() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        stream = worker.opens(connection, b"\x3f")
        await until(lambda: stream.aborted)
        assert stream.aborted == AppCode.UNKNOWN_STREAM_TYPE
        await worker.registers(connection)
        assert connection.closed_with is None


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ([Heartbeat(0, 0)], "Heartbeat"),
        ([Drain(0, False)], "Drain"),
        ([REGISTER, REGISTER], "Register"),
        ([HeartbeatAck()], "HeartbeatAck"),
    ],
)
async def test_a_frame_at_the_wrong_time_ends_the_connection(
    sent: list[Frame], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        worker.opens(connection, CONTROL + b"".join(map(encode, sent)))
        await until(lambda: connection.closed_with)
        assert connection.closed_with is not None
        assert connection.closed_with[0] == AppCode.PROTOCOL_ERROR
        assert reason in connection.closed_with[1]
        assert worker.roster.protocol_errors == 1
    assert "client broke the protocol" in caplog.text


async def test_a_second_control_stream_ends_the_connection() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        await worker.registers(connection)
        worker.opens(connection, CONTROL)
        await until(lambda: connection.closed_with)
        assert connection.closed_with == (AppCode.PROTOCOL_ERROR, "a second control stream")


@pytest.mark.parametrize(
    ("how", "reason", "errors"),
    [(True, "the control stream ended", 1), (fakes.reset(0x12), "the control stream ended: stream ended by peer", 0)],
)
async def test_a_control_stream_that_ends_takes_the_connection_with_it(
    how: Exception | bool, reason: str, errors: int
) -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        (await worker.registers(connection)).peer_ends(how)
        await until(lambda: connection.closed_with)
        assert connection.closed_with is not None
        assert connection.closed_with[0] == AppCode.PROTOCOL_ERROR
        assert connection.closed_with[1].startswith(reason)
        assert worker.roster.protocol_errors == errors


async def test_a_control_stream_that_fails_takes_the_connection_with_it() -> None:
    """By a defect of ours, too."""
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        (await worker.registers(connection)).peer_ends(RuntimeError("a defect"))
        await until(lambda: connection.closed_with)
        assert connection.closed_with == (AppCode.GOING_AWAY, "internal error; the server's log has it")


async def test_heartbeats_are_answered_and_kept() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        stream = await worker.registers(connection)
        stream.peer_sends(Heartbeat(7, 3))
        await until(lambda: len(frames(stream)) == 2)
        assert frames(stream)[1] == HeartbeatAck()
        own = worker.pool.own(worker.row(connection).key)
        assert own is not None
        assert (own.active_total, own.active_here) == (7, 3)


async def test_more_frames_than_a_client_sends_are_read_at_its_pace() -> None:
    burst = round(FRAME_BURST_S / FRAME_S)
    async with worker_of() as worker:
        stream = await worker.registers(worker.accept("pod-1"))
        began = time.monotonic()
        for _ in range(burst + 10):
            stream.peer_sends(Heartbeat(0, 0))
        await until(lambda: frames(stream)[1:].count(HeartbeatAck()) == burst + 10)
        assert time.monotonic() - began >= 8 * FRAME_S


async def test_a_client_that_stops_gets_no_new_work() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        (await worker.registers(connection)).peer_sends(Drain(0, False))
        candidate = worker.pool.session(worker.row(connection).session_key)
        assert candidate is not None
        await until(lambda: candidate.at(SLOT) is None)
        assert connection.closed_with is None


async def test_a_client_that_does_not_read() -> None:
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        stream = await worker.registers(connection)
        stream.write_room.clear()
        for _ in range(MAX_UNSENT + 1):
            worker.roster.drain(1.0, replace=True)
        assert connection.closed_with == (AppCode.PROTOCOL_ERROR, "the control stream is not read")


# --- its end ---


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (CloseKind.LOCAL, None),
        (CloseKind.APPLICATION, None),
        (CloseKind.TIMEOUT, None),
        (CloseKind.IDLE, "INFO"),
        (CloseKind.TLS, "WARNING"),
        (CloseKind.CERTIFICATE, "WARNING"),
    ],
)
@pytest.mark.parametrize("is_registered", [False, True])
async def test_what_is_logged_of_its_end(
    kind: CloseKind, level: str | None, is_registered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker_of() as worker:
        connection: FakeConnection = worker.client("pod-1") if is_registered else worker.accept("pod-1")
        caplog.set_level("INFO")
        assert connection.handler is not None
        connection.handler.closed(CloseReason(kind))
    said = [(record.levelname, record.message) for record in caplog.records]
    if is_registered:
        assert said == [("INFO", "client disconnected")]
    else:
        assert said == ([] if level is None else [(level, "client could not connect")])


LOUD = "\x9b2J\n" + "x" * 65_000


@pytest.mark.parametrize("is_registered", [False, True])
async def test_the_words_of_a_stranger_neither_fill_the_log_nor_steer_a_terminal(
    is_registered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with worker_of() as worker:
        for number in range(2 * REPEAT_BURST):
            connection: FakeConnection = worker.client("pod-1") if is_registered else worker.accept("pod-1")
            assert connection.handler is not None
            connection.handler.closed(CloseReason(CloseKind.TRANSPORT, number, f"{number} {LOUD}"))
    limit = RepeatFilter()
    records = [record for record in caplog.records if "disconnected" in record.message or "not" in record.message]
    assert sum(limit.filter(record) for record in records) == REPEAT_BURST
    for record in records:
        reason = str(record.__dict__["reason"])
        assert reason.isprintable()
        assert len(reason.encode()) < SAID_BYTES + 50


async def test_what_a_client_calls_itself_is_shown_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with worker_of() as worker:
        connection = worker.accept("pod-1")
        register = Register(bytes(16), "ä" * 128, (Offered("web"),), "ö" * 128)
        worker.opens(connection, CONTROL + encode(register))
        await until(lambda: worker.roster.by_connection(connection))
        assert len(worker.row(connection).first.instance.encode()) <= SAID_BYTES
    (record,) = (record for record in caplog.records if record.message == "client registered")
    assert all(len(record.__dict__[name].encode()) <= SAID_BYTES for name in ("instance", "version"))


async def test_what_a_client_asks_for_in_vain_is_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    async with worker_of() as worker:
        for number in range(2 * REPEAT_BURST):
            await worker.registers(worker.accept("pod-1"), [f"{number}-{each}-" + "x" * 100 for each in range(8)])
    limit = RepeatFilter()
    records = [record for record in caplog.records if record.message == "client rejected"]
    assert sum(limit.filter(record) for record in records) == REPEAT_BURST
    assert all(len(str(record.__dict__["reason"]).encode()) <= SAID_BYTES for record in records)
