"""One connection of a client, against a server that does what the test says."""

from __future__ import annotations

import asyncio

from qmux.protocol.codec import encode
from qmux.protocol.frames import AppCode, Lanes
from qmux.worker.client.failures import Failure
from tests.aio import until
from tests.worker.fakes import ACK, FakeConnection, FakeLink, lane_on, unconnected_lane


async def test_lanes_that_follow_the_ack_at_once_are_not_lost() -> None:
    """Both in one packet: whoever waits for the registration has not even been told of it."""

    connection = FakeConnection()
    link = FakeLink()
    lane = lane_on(connection, link=link)
    await until(lambda: connection.streams and connection.streams[0].sent)
    connection.streams[0].peer_sends(encode(ACK) + encode(Lanes(0, (0, 2))))
    assert await lane.registered == ACK
    await until(lambda: lane.ack is not None and lane.ack.lanes == (0, 2))
    assert link.told == [Lanes(0, (0, 2))]
    connection.close(0, "done")
    await lane.close_tasks()


async def test_a_server_that_does_not_answer_the_registration() -> None:
    connection = FakeConnection()
    lane = lane_on(connection, timeout_s=0.1)
    failure = await lane.registered
    assert isinstance(failure, Failure)
    assert "did not answer our registration" in failure.text
    assert connection.closed_with is not None
    assert connection.closed_with[0] == AppCode.NOT_REGISTERED
    assert lane.ended.done()
    await lane.close_tasks()


async def test_a_server_that_never_reads() -> None:
    connection = FakeConnection()
    lane = lane_on(connection)
    await until(lambda: connection.streams and connection.streams[0].sent)
    connection.streams[0].peer_sends(ACK)
    await lane.registered
    connection.streams[0].write_room.clear()
    for _ in range(200):
        lane.drain(1.0)
    assert connection.closed_with == (AppCode.PROTOCOL_ERROR, "the control stream is not read")
    await lane.close_tasks()


async def test_a_registration_goes_out_early_and_once() -> None:
    """Where a session is resumed; the answer counts from the confirmed handshake on."""

    connection = FakeConnection()
    connection.may_write_early = True
    lane = unconnected_lane(connection)
    await until(lambda: connection.streams and connection.streams[0].sent)
    connection.may_write_early = False
    lane.connected()
    connection.streams[0].peer_sends(ACK)
    assert await lane.registered == ACK
    assert len(connection.streams) == 1
    connection.close(0, "done")
    await lane.close_tasks()


async def test_a_registration_waits_for_a_full_handshake() -> None:
    connection = FakeConnection()
    lane = unconnected_lane(connection)
    await asyncio.sleep(0)
    assert not connection.streams
    lane.connected()
    await until(lambda: connection.streams and connection.streams[0].sent)
    connection.close(0, "done")
    await lane.close_tasks()


async def test_a_control_stream_that_fails_takes_the_connection_with_it() -> None:
    """By a defect of ours, too: without heartbeats it would look alive for ever."""
    connection = FakeConnection()
    lane = lane_on(connection)
    await until(lambda: connection.streams and connection.streams[0].sent)
    connection.streams[0].peer_ends(RuntimeError("a defect"))
    await until(lambda: lane.ended.done())
    assert connection.closed_with == (AppCode.GOING_AWAY, "internal error; the client's log has it")
    await lane.close_tasks()
