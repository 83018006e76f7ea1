"""The connections of a client to one server: one for each lane that the server names, replaced when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Never

from typing_extensions import override

from qmux.messages import Timings
from qmux.protocol.frames import AppCode, Lanes, RegisterAck
from qmux.quic.engine import CloseKind, CloseReason, handshake_of
from qmux.tasks import TaskSet
from qmux.worker.client.connector import Connector
from qmux.worker.client.failures import Failure
from qmux.worker.client.lane import LaneConnection, Link
from qmux.worker.client.reconnect import ReconnectPause
from qmux.worker.client.remote import Remote
from qmux.worker.signal import ChangeSignal

log = logging.getLogger(__name__)

OFFERS_CHANGED = "the services changed"

SURPLUS_LIFE_S = 3600.0
"""User connections may stay for this long on a connection to the server that is not wanted any more."""

MAX_PAUSES = 256
"""Lanes that are remembered: a server names 64 at most at a time."""


class LaneKeeper(Link):
    """Keeps the lanes of one server connected, from the first connection (``start``) until all of them are lost."""

    def __init__(self, remote: Remote, connector: Connector, timings: Timings, signal: ChangeSignal) -> None:
        self._remote = remote
        self._connector = connector
        self._timings = timings
        self._signal = signal
        self._lanes: dict[int, LaneConnection] = {}
        self._retired: set[LaneConnection] = set()
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._pauses: dict[int, ReconnectPause] = {}  # outlive the keepers: lanes that come and go are no storm
        self._offer_changes = 0
        self._is_stopped = False
        self._all_lost = asyncio.Event()
        self._tasks = TaskSet(self._task_failed)

    def connections(self) -> list[LaneConnection]:
        """Every connection that may carry user connections."""
        return [*self._lanes.values(), *self._retired]

    def usable(self) -> list[LaneConnection]:
        """The registered connection of each lane."""
        return [lane for lane in self._lanes.values() if lane.is_usable]

    async def connect(
        self, number: int | None, *, is_probe: bool = False
    ) -> tuple[LaneConnection | None, RegisterAck | Failure]:
        """One connection to a lane (None: to any), registered. It is not kept before ``start`` or a keeper says so."""
        offer_changes = self._offer_changes
        lane = self._connector.connect(self, self._remote, number, is_probe=is_probe)
        if isinstance(lane, Failure):
            return None, lane
        try:
            outcome = await lane.registered
        except BaseException:
            lane.close(AppCode.GOING_AWAY, "no longer wanted")
            raise
        if offer_changes != self._offer_changes:  # what it registered is not what we offer now
            lane.ask_replacement(OFFERS_CHANGED)
        return lane, lane.ack or outcome

    def pause(self) -> ReconnectPause:
        """For a connection that is to be kept."""
        return ReconnectPause(self._connector.reconnect_max_s, self._timings.stable_s)

    def start(self, first: LaneConnection) -> None:
        """``first`` is registered: keep it, and a connection to every other lane that it names."""
        assert first.ack is not None, "registered"
        self._all_lost.clear()
        self._hold(first.ack.lane, first)
        self._want(first.ack.lanes)

    async def until_lost(self) -> None:
        """Until no connection is left: the server is gone, or was restarted."""
        await self._all_lost.wait()

    def replace_all(self) -> None:
        """What we offer changed: register again on new connections, then give the old ones up."""
        self._offer_changes += 1
        for lane in self._lanes.values():
            lane.ask_replacement(OFFERS_CHANGED)

    def replace(self, number: int, why: str) -> None:
        """Another connection shall take the place of this lane's, where it has one."""
        if (lane := self._lanes.get(number)) is not None and lane.is_usable:
            lane.ask_replacement(why)

    async def retire(self) -> None:
        """Connect no more and take no more user connections; return when the last one is gone."""
        self._is_stopped = True
        for task in self._keepers.values():
            task.cancel()
        lanes = [lane for lane in self.connections() if lane.is_usable]
        for lane in lanes:
            lane.drain(SURPLUS_LIFE_S)
        if lanes:
            log.info(
                "dropping server; open connections may finish",
                extra={"server": self._remote, "connections": self.active},
            )
        await asyncio.sleep(max((lane.settling_s for lane in lanes), default=0.0))
        await self._signal.wait_until(lambda: self.active == 0, SURPLUS_LIFE_S)

    def abandon(self, reason: str) -> None:
        """Close every connection, as if the server were lost."""
        for lane in self.connections():
            lane.close(AppCode.GOING_AWAY, reason)
        self._lanes.clear()
        self._retired.clear()
        self._lost()

    async def close(self, code: AppCode, reason: str) -> None:
        """Close every connection and stop."""
        for lane in self.connections():
            lane.close(code, reason)
        await self._tasks.close()

    # --- what lanes tell and ask ---

    @property
    @override
    def text(self) -> str:
        return self._remote.text

    @property
    @override
    def active(self) -> int:
        return sum(lane.active for lane in self.connections())

    @override
    def lanes_told(self, lane: LaneConnection, lanes: Lanes) -> None:
        if lane not in self.connections():
            return  # not kept, or not yet: then its ack is looked at, which names these lanes too
        for number in lanes.suspect:
            if (suspect := self._lanes.get(number)) is not None and suspect is not lane:
                suspect.ping()
        self._want(lanes.lanes)

    # --- keeping them ---

    def _want(self, lanes: tuple[int, ...]) -> None:
        if len(self._pauses) > MAX_PAUSES:
            self._pauses = {number: self._pauses[number] for number in lanes if number in self._pauses}
        for number in () if self._is_stopped else lanes:
            if number not in self._keepers:
                self._keepers[number] = self._keep_lane(number)
        for number in [number for number in self._keepers if number not in lanes]:
            self._keepers.pop(number).cancel()
        for number, lane in list(self._lanes.items()):
            if number not in lanes:
                self._retire(number, lane)
                self._tasks.start(self._give_up(lane), f"end of lane {number} of {self._remote}")

    def _keep_lane(self, number: int) -> asyncio.Task[None]:
        return self._tasks.keep(lambda: self._keep(number), f"lane {number} of {self._remote}")

    async def _give_up(self, lane: LaneConnection) -> None:
        """A connection on none of the lanes: drained once one of those stands, closed when its last user is gone."""
        until = self._signal.wait_until
        await until(lambda: lane.ended.done() or bool(self.usable()), SURPLUS_LIFE_S)
        lane.drain(SURPLUS_LIFE_S)
        await asyncio.sleep(lane.settling_s)
        await until(lambda: lane.ended.done() or lane.active == 0, SURPLUS_LIFE_S)
        lane.close(AppCode.SURPLUS, "not one of the lanes")

    async def _keep(self, number: int) -> Never:
        """Keep lane ``number`` connected for as long as it is wanted and the server is there at all."""
        pause = self._pauses.setdefault(number, self.pause())
        while True:
            held = self._lanes.get(number)
            if held is None or not held.is_usable:
                held = await self._reach(number, pause)
                if held is None:
                    continue
            since = time.monotonic()
            await held.until_ended_or_replaced()
            if not held.ended.done():
                log.info(
                    "replacing connection",
                    extra={"server": self._remote, "lane": number, "reason": held.wants_replacement.result()},
                )
                self._retire(number, held)
            pause.worked(time.monotonic() - since)

    async def _reach(self, number: int, pause: ReconnectPause) -> LaneConnection | None:
        await asyncio.sleep(pause.next_s())
        lane, outcome = await self.connect(number)
        if isinstance(outcome, Failure):
            log.debug("lane not connected", extra={"server": self._remote, "lane": number, "reason": outcome.text})
            return None
        assert lane is not None, "only a Failure comes without"
        if not self._is_same_server(outcome.server_id):
            lane.close(AppCode.SURPLUS, "another server answers at this address")
            return None
        existing = self._lanes.get(outcome.lane)
        if existing is not None and existing.is_usable and outcome.lane != number:
            lane.close(AppCode.SURPLUS, "another worker answered for this lane")
            return None
        fields = {"server": self._remote, "lane": outcome.lane, "handshake": handshake_of(lane.connection)}
        log.debug("lane connected", extra=fields)
        self._hold(outcome.lane, lane)
        self._want(outcome.lanes)
        return lane if outcome.lane == number else None

    def _is_same_server(self, server_id: bytes) -> bool:
        """Whether a further connection reached the server of the others. One that was restarted has another ID: its
        old connections are asked whether they still live, and are soon gone if not.
        """
        others = [lane for lane in self.connections() if lane.ack is not None and lane.ack.server_id != server_id]
        for lane in others:
            if lane.is_usable:
                lane.ping()
        return not any(lane.is_usable for lane in others)

    def _hold(self, number: int, lane: LaneConnection) -> None:
        if (previous := self._lanes.get(number)) is not None:
            self._retired.add(previous)
        self._lanes[number] = lane
        self._signal.fire()
        self._tasks.start(self._until_ended(number, lane), f"lane {number} of {self._remote}")

    def _retire(self, number: int, lane: LaneConnection) -> None:
        if self._lanes.get(number) is lane:
            del self._lanes[number]
        self._retired.add(lane)

    async def _until_ended(self, number: int, lane: LaneConnection) -> None:
        reason = await lane.ended
        self._retired.discard(lane)
        if self._lanes.get(number) is lane:
            del self._lanes[number]
        self._signal.fire()
        await lane.close_tasks()
        self._log_end(number, reason)
        if not self.usable() and not self._retired:
            self._lost()

    def _lost(self) -> None:
        for keeper in self._keepers.values():
            keeper.cancel()
        self._keepers.clear()
        self._all_lost.set()

    def _task_failed(self, name: str, error: BaseException) -> None:
        """What the lanes are is not known any more: their link begins anew."""
        self.abandon("internal error; the client's log has it")

    def _log_end(self, number: int, reason: CloseReason) -> None:
        expected = reason.kind is CloseKind.LOCAL or (
            reason.kind is CloseKind.APPLICATION and reason.code in (AppCode.REPLACED, AppCode.SURPLUS)
        )
        level = logging.DEBUG if expected else logging.WARNING
        log.log(level, "connection to server ended", extra={"server": self._remote, "lane": number, "reason": reason})
