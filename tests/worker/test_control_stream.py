"""The writer of a control stream, to a peer that reads, reads late, or does not read at all."""

from __future__ import annotations

import asyncio

import pytest

from qmux.protocol.frames import AppCode
from qmux.tasks import TaskSet, only_logged
from qmux.worker.control_stream import MAX_UNSENT, ControlWriter
from tests.aio import until
from tests.relay import fakes
from tests.worker.fakes import FakeConnection, FakeStream


def opened() -> tuple[FakeConnection, FakeStream, TaskSet, ControlWriter]:
    connection, tasks = FakeConnection(), TaskSet(only_logged)
    stream = connection.open_stream()
    return connection, stream, tasks, ControlWriter(stream, tasks, "192.0.2.1:4711")


async def test_frames_go_out_in_the_order_of_the_calls() -> None:
    _, stream, tasks, writer = opened()
    for number in range(10):
        writer.send(b"%d" % number)
    await until(lambda: not len(tasks))
    assert stream.sent == b"0123456789"


async def test_a_peer_that_does_not_read() -> None:
    connection, stream, tasks, writer = opened()
    stream.write_room.clear()
    for _ in range(MAX_UNSENT):
        writer.send(b".")
    assert connection.closed_with is None
    writer.send(b"!")
    assert connection.closed_with == (AppCode.PROTOCOL_ERROR, "the control stream is not read")
    await tasks.close()
    assert stream.sent == b""


async def test_a_peer_that_reads_late_has_room_again() -> None:
    connection, stream, tasks, writer = opened()
    for _ in range(3):
        stream.write_room.clear()
        for _ in range(MAX_UNSENT):
            writer.send(b".")
        stream.write_room.set()
        await until(lambda: not len(tasks))
    assert connection.closed_with is None
    assert len(stream.sent) == 3 * MAX_UNSENT


async def test_other_tasks_of_the_owner_take_no_room() -> None:
    connection, stream, tasks, writer = opened()
    for _ in range(MAX_UNSENT + 1):
        tasks.start(asyncio.Event().wait(), "another")  # type: ignore[arg-type]
    writer.send(b"heard")
    await until(lambda: stream.sent == b"heard")
    assert connection.closed_with is None
    await tasks.close()


@pytest.mark.parametrize("why", [fakes.reset(), fakes.lost()])
async def test_a_stream_that_ended_is_no_failure_of_the_writer(
    why: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Its handler hears of the end; a task that fails would be logged as a defect (TaskSet)."""
    connection, stream, tasks, writer = opened()
    stream.peer_ends(why)
    writer.send(b".")
    await until(lambda: not len(tasks))
    assert caplog.records == []
    assert connection.closed_with is None
