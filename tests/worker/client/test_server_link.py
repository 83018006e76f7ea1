"""A link against servers that are not as they should be: what it costs the client stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from msgspec.structs import replace

from qmux.config.schema import ServerAddress
from qmux.protocol.frames import AppCode, Lanes
from qmux.quic.engine import CloseKind, CloseReason
from qmux.worker.client.failures import Failure
from qmux.worker.client.lane import LaneConnection
from qmux.worker.client.server_link import ServerLink
from qmux.worker.signal import ChangeSignal
from tests.aio import run, until
from tests.worker.fakes import ACK, FakeConnection, FakeUsers, lane_on


class FakeDialer:
    """Implements ``qmux.worker.client.connector.Connector``; every connection is registered when ``answer`` says so."""

    def __init__(self) -> None:
        self.reconnect_max_s = 15.0
        self.once = False
        self.signal = ChangeSignal()
        self.users = FakeUsers()
        self.lanes: list[tuple[int, LaneConnection, FakeConnection]] = []
        self.on_registered: Callable[[LaneConnection, FakeConnection], None] = lambda lane, connection: None
        self.answers = True
        self._answering: set[asyncio.Task[None]] = set()

    def connect(self, link: ServerLink, lane: int | None, *, is_probe: bool = False) -> LaneConnection | Failure:
        connection = FakeConnection()
        made = lane_on(connection, users=self.users)
        number = 0 if lane is None else lane
        self.lanes.append((number, made, connection))
        if self.answers:
            task = asyncio.ensure_future(self.answer(number, made, connection))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        return made

    async def answer(self, number: int, lane: LaneConnection, connection: FakeConnection) -> None:
        await until(lambda: connection.closed_with or (connection.streams and connection.streams[0].sent))
        if connection.closed_with is None:
            connection.streams[0].peer_sends(replace(ACK, lane=number))
            await lane.registered
            self.on_registered(lane, connection)

    def holder(self, server_id: bytes) -> ServerLink | None:
        return None

    def claim(self, server_id: bytes, link: ServerLink) -> ServerLink:
        return link

    def release(self, link: ServerLink) -> None:
        pass

    async def released(self, timeout_s: float) -> None:
        raise NotImplementedError

    def failed(self, link: ServerLink, failure: Failure) -> None:
        pass

    def lost(self, link: ServerLink) -> None:
        pass


@contextlib.asynccontextmanager
async def linked(connector: FakeDialer) -> AsyncIterator[ServerLink]:
    link = ServerLink(ServerAddress("192.0.2.1", 8443), ("192.0.2.1", 8443), connector)
    yield link
    await link.close(AppCode.GOING_AWAY, "the test is over")
    for _, lane, connection in connector.lanes:
        connection.close(0, "the test is over")
        await lane.close_tasks()


def test_every_lane_is_connected() -> None:
    async def main() -> None:
        connector = FakeDialer()
        async with linked(connector) as link:
            await until(lambda: link.row().connections == 2)
            assert sorted(number for number, _, _ in connector.lanes) == [0, 1]

    run(main())


def test_a_server_that_registers_and_drops_at_once_is_not_stormed() -> None:
    async def main() -> None:
        connector = FakeDialer()

        def drop(lane: LaneConnection, _: FakeConnection) -> None:
            lane.closed(CloseReason(CloseKind.APPLICATION, 4, "gone"))

        connector.on_registered = drop
        async with linked(connector):
            await asyncio.sleep(2.0)
            assert 2 <= len(connector.lanes) < 40  # two lanes, and without a pause it would be hundreds

    run(main())


def test_lanes_that_change_all_the_time_are_not_followed_at_any_price() -> None:
    async def main() -> None:
        connector = FakeDialer()
        async with linked(connector) as link:
            await until(lambda: link.row().connections == 2)
            first = connector.lanes[0][1]
            for turn in range(300):
                lanes = (0, *range(1 + turn % 2, 64, 2))
                first.on_lanes(Lanes(0, lanes))
                await asyncio.sleep(0.002)
            assert len(connector.lanes) < 300  # 32 new ones in each of 300 turns

    run(main())


def test_offers_that_change_while_a_connection_registers() -> None:
    """It registers what was offered before: it is replaced as soon as it stands."""

    async def main() -> None:
        connector = FakeDialer()
        connector.answers = False
        async with linked(connector) as link:
            await until(lambda: len(connector.lanes) == 1)
            link.replace_all()
            connector.answers = True
            await connector.answer(*connector.lanes[0])
            await until(lambda: len([number for number, _, _ in connector.lanes if number == 0]) == 2)
            await until(lambda: link.row().connections == 2)

    run(main())


def test_surplus_connection_is_drained_before_it_is_closed() -> None:
    async def main() -> None:
        connector = FakeDialer()
        async with linked(connector) as link:
            await until(lambda: link.row().connections == 2)
            number, lane, connection = connector.lanes[0]
            connector.users.on[lane] += 1
            sent = len(connection.streams[0].sent)
            connector.lanes[1][1].on_lanes(Lanes(1, (1,)))
            await until(lambda: len(connection.streams[0].sent) > sent, what="Drain")
            await asyncio.sleep(lane.settling_s + 0.1)
            assert connection.closed_with is None
            connector.users.on[lane] -= 1
            connector.signal.fire()
            await until(lambda: connection.closed_with is not None)
            assert number == 0
            assert link.row().connections == 1

    run(main())
