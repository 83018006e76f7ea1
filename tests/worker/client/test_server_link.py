"""A link against servers that are not as they should be: what it costs the client stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from typing_extensions import override

from qmux.config.schema import ServerAddress
from qmux.errors import CertificateError
from qmux.messages import Timings
from qmux.pki.material import Material
from qmux.protocol.frames import AppCode, Lanes
from qmux.quic.engine import (
    CloseKind,
    CloseReason,
)
from qmux.worker.client.connector import Connector
from qmux.worker.client.failures import CERTIFICATE, FAILED, Failure
from qmux.worker.client.holders import Holders
from qmux.worker.client.lane import LaneConnection
from qmux.worker.client.remote import Remote
from qmux.worker.client.server_link import LinkContext, LinkOwner, ServerLink
from qmux.worker.signal import ChangeSignal
from tests.aio import until
from tests.worker.fakes import CLIENT, FakeConnection, FakeEngine, FakeStreamServer


class Owner(LinkOwner):
    """Counts what links tell."""

    tries_again = True

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.times_reached = 0

    @override
    def reached(self) -> None:
        self.times_reached += 1

    @override
    def failed(self, link: ServerLink, failure: Failure) -> None:
        self.failures.append(failure)

    @override
    def lost(self, link: ServerLink) -> None:
        pass


class World:
    """A client process whose connections ``engine`` makes. A duplicate server is looked at often."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.streams = FakeStreamServer()
        self.signal = ChangeSignal()
        self.owner = Owner()
        self.holders: Holders[ServerLink] = Holders(self.signal)
        connector = Connector(self.engine, self.streams, CLIENT, Material(b"", b"", b""))
        timings = Timings(duplicate_look_s=0.05, stable_s=0.02)
        self._context = LinkContext(self.owner, connector, self.holders, timings, self.signal)
        self._links: list[ServerLink] = []

    @property
    def lanes(self) -> list[tuple[int, LaneConnection, FakeConnection]]:
        return self.engine.lanes

    def link(self, host: str = "192.0.2.1") -> ServerLink:
        self._links.append(ServerLink(Remote(ServerAddress(host, 8443), (host, 8443)), self._context))
        return self._links[-1]

    async def close(self) -> None:
        for link in self._links:
            await link.close(AppCode.GOING_AWAY, "the test is over")
        for _, lane, connection in self.lanes:
            connection.close(0, "the test is over")
            await lane.close_tasks()


@contextlib.asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    world = World()
    try:
        yield world
    finally:
        await world.close()


async def test_every_lane_is_connected() -> None:
    async with a_world() as world:
        link = world.link()
        await until(lambda: link.row().connections == 2)
        assert sorted(number for number, _, _ in world.lanes) == [0, 1]


async def test_a_server_that_registers_and_drops_at_once_is_not_stormed() -> None:
    def drop(lane: LaneConnection, _: FakeConnection) -> None:
        lane.closed(CloseReason(CloseKind.APPLICATION, 4, "gone"))

    async with a_world() as world:
        world.engine.on_registered = drop
        world.link()
        await asyncio.sleep(0.5)  # the storm would go on for as long as one looks
        assert 2 <= len(world.lanes) < 20  # two lanes, and without a pause it would be hundreds


async def test_lanes_that_change_all_the_time_are_not_followed_at_any_price() -> None:
    async with a_world() as world:
        link = world.link()
        await until(lambda: link.row().connections == 2)
        stream = world.lanes[0][2].streams[0]
        for turn in range(300):
            lanes = (0, *range(1 + turn % 2, 64, 2))
            stream.peer_sends(Lanes(0, lanes))
            await asyncio.sleep(0.002)  # the pace: no state tells what the link does not follow
        assert len(world.lanes) < 300  # 32 new ones in each of 300 turns


async def test_offers_that_change_while_a_connection_registers() -> None:
    """It registers what was offered before: it is replaced as soon as it stands."""
    async with a_world() as world:
        world.engine.answers = False
        link = world.link()
        await until(lambda: len(world.lanes) == 1)
        link.replace_all()
        world.engine.answers = True
        await world.engine.answer(*world.lanes[0])
        await until(lambda: len([number for number, _, _ in world.lanes if number == 0]) == 2)
        await until(lambda: link.row().connections == 2)


async def test_surplus_connection_is_drained_before_it_is_closed() -> None:
    async with a_world() as world:
        link = world.link()
        await until(lambda: link.row().connections == 2)
        number, lane, connection = world.lanes[0]
        world.streams.on[lane] += 1
        sent = len(connection.streams[0].sent)
        world.lanes[1][2].streams[0].peer_sends(Lanes(1, (1,)))
        await until(lambda: len(connection.streams[0].sent) > sent, what="Drain")
        await asyncio.sleep(lane.settling_s + 0.1)  # nothing must happen
        assert connection.closed_with is None
        world.streams.on[lane] -= 1
        world.signal.fire()
        await until(lambda: connection.closed_with is not None)
        assert number == 0
        assert link.row().connections == 1


async def test_a_second_address_of_a_server_is_probed_and_takes_over() -> None:
    async with a_world() as world:
        first = world.link("192.0.2.1")
        await until(lambda: first.row().connections == 2)
        second = world.link("192.0.2.2")
        await until(lambda: second.row().state == "same server as 192.0.2.1:8443")
        probes = len(world.lanes)
        await until(lambda: len(world.lanes) >= probes + 3, what="it is looked at again and again")
        assert not second.is_registered
        await first.close(AppCode.GOING_AWAY, "its name has lost this address")
        world.holders.release(first)
        await until(lambda: second.row().connections == 2)


async def test_a_failed_first_contact_is_told_and_tried_again() -> None:
    async with a_world() as world:
        world.engine.answers = False
        link = world.link()
        await until(lambda: world.lanes)
        world.engine.answers = True
        world.lanes[0][1].closed(CloseReason(CloseKind.REFUSED, 0, "nothing listens"))
        await until(lambda: link.row().connections == 2)
        assert world.owner.times_reached == 1
        assert [failure.kind for failure in world.owner.failures] == ["refused"]


async def test_a_certificate_that_the_engine_does_not_take_is_said_and_replaced() -> None:
    """A reload brings another one: it is tried at once, however long the pause would be."""
    async with a_world() as world:
        world.engine.refuses = CertificateError("unsupported curve")
        link = world.link()
        await until(lambda: len(world.owner.failures) >= 2, what="it tries again and again")
        row = link.row()
        assert (row.state, row.connections) == ("our_certificate", 0)
        assert "our own certificate or key cannot be used: unsupported curve" in row.reason
        assert world.owner.failures[0].exit_code == CERTIFICATE
        world.engine.refuses = None
        link.try_now()
        await until(lambda: link.row().connections == 2)
        assert (link.row().state, link.row().reason) == ("registered", "")


async def test_nobody_pauses_after_a_reload() -> None:
    async with a_world() as world:
        world.engine.refuses = CertificateError("unsupported curve")
        link = world.link()
        await until(lambda: len(world.owner.failures) == 1)
        for tries in range(2, 20):  # the pauses would be up to 15 s
            link.try_now()
            await until(lambda tries=tries: len(world.owner.failures) >= tries, 2.0)


@pytest.mark.parametrize("is_registered", [False, True])
async def test_a_link_that_fails_begins_anew(is_registered: bool, caplog: pytest.LogCaptureFixture) -> None:
    """By a defect, wherever it is: it is told, its connections are closed, and others take their place."""
    async with a_world() as world:
        defect = RuntimeError("a defect")
        if is_registered:
            link = world.link()
            await until(lambda: link.row().connections == 2)
            before = list(world.lanes)
            link._lanes._task_failed("lane 0", defect)
            await until(lambda: all(connection.closed_with for _, _, connection in before))
        else:
            world.engine.refuses = defect
            link = world.link()
            await until(lambda: world.owner.failures)
            assert (link.row().state, world.owner.failures[0].exit_code) == ("internal_error", FAILED)
            assert "RuntimeError('a defect')" in link.row().reason
            world.engine.refuses = None
        await until(lambda: link.row().connections == 2, what="it is connected again")

    assert is_registered or "task link to 192.0.2.1:8443 failed" in caplog.text
