"""A client's link to one server address: a first contact, then one connection for each lane that the server names."""

from __future__ import annotations

import asyncio
import logging
import time

from qmux.config.schema import ServerAddress
from qmux.pool.rows import ServerRow
from qmux.protocol import reasons
from qmux.protocol.frames import AppCode, Lanes, RegisterAck, RejectCode
from qmux.quic.engine import CloseKind, CloseReason, handshake_of
from qmux.tasks import TaskSet
from qmux.worker.client.connector import Connector
from qmux.worker.client.failures import Failure
from qmux.worker.client.lane import LaneConnection
from qmux.worker.client.reconnect import ReconnectPause

log = logging.getLogger(__name__)


OFFERS_CHANGED = "the services changed"

SURPLUS_LIFE_S = 3600.0
"""Users on a connection that is not wanted any more may stay on it for this long."""

MAX_BACKOFFS = 256
"""Lanes that are remembered: a server names 64 at most at a time."""

DUPLICATE_LOOK_S = 30.0
"""A second way to the same server is probed this often: it may have become another server's."""


class ServerLink:
    """Keeps one server connected, independent of all others."""

    def __init__(self, server: ServerAddress, address: tuple[str, int], connector: Connector) -> None:
        self.server = server
        self.address = address
        self._connector = connector
        self._lanes: dict[int, LaneConnection] = {}
        self._wanted: tuple[int, ...] = ()
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._backoffs: dict[int, ReconnectPause] = {}  # outlive the keepers: lanes that come and go are no storm
        self._offers = 0  # counts the changes of what we offer
        self._retired: set[LaneConnection] = set()
        self._tasks = TaskSet()
        self._state = "connecting"
        self._since_ms = _wall_ms()
        self._is_retired = False
        self._all_lost = asyncio.Event()
        self._task = self._tasks.start(self._run(), f"link to {self}")

    def __str__(self) -> str:
        host, port = self.address
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return text if host == self.server.host else f"{self.server} ({text})"

    @property
    def text(self) -> str:
        """The numeric address."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    # --- what the client process tells ---

    def connections(self) -> list[LaneConnection]:
        """Every connection that may carry users."""
        return [*self._lanes.values(), *self._retired]

    @property
    def is_registered(self) -> bool:
        """Whether at least one connection is registered."""
        return any(lane.is_usable for lane in self._lanes.values())

    def replace_all(self) -> None:
        """What we offer changed: register again on new connections, then give the old ones up."""
        self._offers += 1
        for lane in self._lanes.values():
            lane.ask_replacement(OFFERS_CHANGED)

    def row(self) -> ServerRow:
        """For status."""
        usable = [lane for lane in self._lanes.values() if lane.is_usable]
        rtts_ms = [lane.connection.stats().rtt_s * 1000 for lane in usable]
        rtt_ms = round(min(rtts_ms), 2) if rtts_ms else 0.0
        return ServerRow(str(self.server), self.text, self._state, len(usable), rtt_ms, self._since_ms)

    async def retire(self) -> None:
        """Connect no more and take no more users; return when the last one is gone. ``close`` follows."""
        for task in (self._task, *self._keepers.values()):
            task.cancel()
        self._is_retired = True
        self._now("giving up")
        lanes = [lane for lane in self.connections() if lane.is_usable]
        for lane in lanes:
            lane.drain(SURPLUS_LIFE_S)
        if lanes:
            log.info("giving a server up: its users may finish", extra={"server": self, "connections": self._active()})
        await asyncio.sleep(max((lane.settling_s for lane in lanes), default=0.0))
        await self._connector.signal.wait_until(lambda: self._active() == 0, SURPLUS_LIFE_S)

    async def close(self, code: AppCode, reason: str) -> None:
        """Close every connection and stop."""
        for lane in self.connections():
            lane.close(code, reason)
        await self._tasks.close()

    # --- the life of a link ---

    async def _run(self) -> None:
        backoff = ReconnectPause(self._connector.reconnect_max_s)
        while True:
            first = await self._first_contact(backoff)
            assert first.ack is not None, "registered"
            since = time.monotonic()
            self._now("registered")
            log.info(
                "registered at server",
                extra={
                    "server": self,
                    "lanes": len(first.ack.lanes),
                    "version": first.ack.version,
                    "handshake": handshake_of(first.connection),
                },
            )
            for name in first.left_out:
                reason = reasons.rejected(RejectCode.UNKNOWN_SERVICE, "")
                log.warning("service not registered", extra={"server": self, "service": name, "reason": reason})
            self._all_lost.clear()
            self._hold(first.ack.lane, first)
            self._want(first.ack.lanes)
            await self._all_lost.wait()
            backoff.worked(time.monotonic() - since)
            self._connector.release(self)
            self._now("connecting")
            self._connector.lost(self)

    async def _first_contact(self, backoff: ReconnectPause) -> LaneConnection:
        # A registration of our session takes the place of the one that another link has at that worker, so once this
        # address was found to be a second way to a server, a probe asks whether it still is.
        is_probe = False
        while True:
            await asyncio.sleep(backoff.next_s())
            lane, outcome = await self._connect(None, is_probe=is_probe)
            if isinstance(outcome, Failure):
                self._report(outcome)
                self._connector.failed(self, outcome)
                continue
            assert lane is not None, "only a Failure comes without"
            if is_probe and self._connector.holder(outcome.server_id) is None:
                lane.close(AppCode.SURPLUS, "a probe: the session follows")
                is_probe = False
                continue
            holder = self._connector.holder(outcome.server_id) if is_probe else None
            holder = holder or self._connector.claim(outcome.server_id, self)
            if holder is self:
                return lane
            lane.close(AppCode.SURPLUS, "this server is reached through another address already")
            if not is_probe:
                holder.took_place_of(outcome.lane)
                is_probe = True
            if self._now(f"same server as {holder.text}"):
                log.info("one server through two addresses: the first is kept", extra={"server": self, "kept": holder})
            since = time.monotonic()
            await self._connector.released(DUPLICATE_LOOK_S)
            backoff.worked(time.monotonic() - since)

    def took_place_of(self, number: int) -> None:
        """Another link registered our session at that lane's worker: the server gives our lane there no more users."""
        if (lane := self._lanes.get(number)) is not None and lane.is_usable:
            lane.ask_replacement("registered through another address too")

    def _active(self) -> int:
        return sum(lane.active for lane in self.connections())

    async def _connect(
        self, lane_number: int | None, *, is_probe: bool = False
    ) -> tuple[LaneConnection | None, RegisterAck | Failure]:
        offers = self._offers
        lane = self._connector.connect(self, lane_number, is_probe=is_probe)
        if isinstance(lane, Failure):
            return None, lane
        try:
            outcome = await lane.registered
        except BaseException:
            lane.close(AppCode.GOING_AWAY, "no longer wanted")
            raise
        lane.active_here = self._active
        lane.on_lanes = lambda lanes: self._lanes_told(lane, lanes)
        if offers != self._offers:  # what it registered is not what we offer now
            lane.ask_replacement(OFFERS_CHANGED)
        return lane, lane.ack or outcome

    def _report(self, failure: Failure) -> None:
        """One line for each change of state; the same failure again is not news."""
        if self._now(failure.kind):
            text = "cannot connect to server" if self._connector.once else "cannot connect to server; trying again"
            log.warning(text, extra={"server": self, "reason": failure.text})

    def _now(self, state: str) -> bool:
        if state == self._state:
            return False
        self._state, self._since_ms = state, _wall_ms()
        return True

    # --- lanes ---

    def _lanes_told(self, lane: LaneConnection, lanes: Lanes) -> None:
        for number in lanes.suspect:
            if (suspect := self._lanes.get(number)) is not None and suspect is not lane:
                suspect.ping()
        self._want(lanes.lanes)

    def _want(self, lanes: tuple[int, ...]) -> None:
        self._wanted = lanes
        if len(self._backoffs) > MAX_BACKOFFS:
            self._backoffs = {number: self._backoffs[number] for number in lanes if number in self._backoffs}
        for number in () if self._is_retired else lanes:
            if number not in self._keepers:
                self._keepers[number] = self._tasks.start(self._keep(number), f"lane {number} of {self}")
        for number in [number for number in self._keepers if number not in lanes]:
            self._keepers.pop(number).cancel()
        for number, lane in list(self._lanes.items()):
            if number not in lanes:
                self._retire(number, lane)
                self._tasks.start(self._give_up(lane), f"end of lane {number} of {self}")

    async def _give_up(self, lane: LaneConnection) -> None:
        """A connection on none of the lanes: drained once one of those stands, closed when its last user is gone."""
        until = self._connector.signal.wait_until
        await until(lambda: lane.ended.done() or self.is_registered, SURPLUS_LIFE_S)
        lane.drain(SURPLUS_LIFE_S)
        await asyncio.sleep(lane.settling_s)
        await until(lambda: lane.ended.done() or lane.active == 0, SURPLUS_LIFE_S)
        lane.close(AppCode.SURPLUS, "not one of the lanes")

    async def _keep(self, number: int) -> None:
        """Keep lane ``number`` connected for as long as it is wanted and the server is there at all."""
        backoff = self._backoffs.setdefault(number, ReconnectPause(self._connector.reconnect_max_s))
        while True:
            held = self._lanes.get(number)
            if held is None or not held.is_usable:
                held = await self._reach(number, backoff)
                if held is None:
                    continue
            since = time.monotonic()
            await held.until_ended_or_replaced()
            if not held.ended.done():
                log.info(
                    "replacing a connection",
                    extra={"server": self, "lane": number, "reason": held.wants_replacement.result()},
                )
                self._retire(number, held)
            backoff.worked(time.monotonic() - since)

    async def _reach(self, number: int, backoff: ReconnectPause) -> LaneConnection | None:
        await asyncio.sleep(backoff.next_s())
        lane, outcome = await self._connect(number)
        if isinstance(outcome, Failure):
            log.debug("lane not connected", extra={"server": self, "lane": number, "reason": outcome.text})
            return None
        assert lane is not None, "only a Failure comes without"
        if not self._is_same_server(outcome.server_id):
            lane.close(AppCode.SURPLUS, "another server answers at this address")
            return None
        existing = self._lanes.get(outcome.lane)
        if existing is not None and existing.is_usable and outcome.lane != number:
            lane.close(AppCode.SURPLUS, "another worker answered for this lane")
            return None
        fields = {"server": self, "lane": outcome.lane, "handshake": handshake_of(lane.connection)}
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
        self._connector.signal.fire()
        self._tasks.start(self._until_ended(number, lane), f"lane {number} of {self}")

    def _retire(self, number: int, lane: LaneConnection) -> None:
        if self._lanes.get(number) is lane:
            del self._lanes[number]
        self._retired.add(lane)

    async def _until_ended(self, number: int, lane: LaneConnection) -> None:
        reason = await lane.ended
        self._retired.discard(lane)
        if self._lanes.get(number) is lane:
            del self._lanes[number]
        self._connector.signal.fire()
        await lane.close_tasks()
        self._log_end(number, reason)
        if not self.is_registered and not self._retired:
            for keeper in self._keepers.values():
                keeper.cancel()
            self._keepers.clear()
            self._all_lost.set()

    def _log_end(self, number: int, reason: CloseReason) -> None:
        expected = reason.kind is CloseKind.LOCAL or (
            reason.kind is CloseKind.APPLICATION and reason.code in (AppCode.REPLACED, AppCode.SURPLUS)
        )
        level = logging.DEBUG if expected else logging.WARNING
        log.log(level, "connection to server ended", extra={"server": self, "lane": number, "reason": reason})


def _wall_ms() -> int:
    return round(time.time() * 1000)
