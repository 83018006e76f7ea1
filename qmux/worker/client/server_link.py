"""A client's link to one address of a server: the first contact, again and again, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Never, Protocol

from qmux.heard import heard
from qmux.log import Reason
from qmux.messages import Timings
from qmux.pool.rows import ServerRow
from qmux.protocol import reasons
from qmux.protocol.frames import AppCode, RejectCode
from qmux.quic.engine import handshake_of
from qmux.tasks import TaskSet, only_logged
from qmux.worker.client.connector import Connector
from qmux.worker.client.failures import Failure, internal
from qmux.worker.client.holders import Holders
from qmux.worker.client.lane import LaneConnection
from qmux.worker.client.lane_keeper import LaneKeeper
from qmux.worker.client.reconnect import ReconnectPause
from qmux.worker.client.remote import Remote
from qmux.worker.signal import ChangeSignal

log = logging.getLogger(__name__)


class LinkOwner(Protocol):
    """Hears how the links of a client fare."""

    @property
    def tries_again(self) -> bool:
        """Whether a failure is not the end (it is with ``--once``)."""
        ...

    def reached(self) -> None:
        """A server registered us."""
        ...

    def failed(self, link: ServerLink, failure: Failure) -> None:
        """A first contact failed."""
        ...

    def lost(self, link: ServerLink) -> None:
        """Every connection to this server is gone."""
        ...


@dataclass(frozen=True)
class LinkContext:
    """What all links of a client share. ``signal`` fires when user connections or lanes come or go."""

    owner: LinkOwner
    connector: Connector
    holders: Holders[ServerLink]
    timings: Timings
    signal: ChangeSignal


class ServerLink:
    """Keeps one server connected, independent of all others."""

    def __init__(self, remote: Remote, context: LinkContext) -> None:
        self.remote = remote
        self._owner = context.owner
        self._holders = context.holders
        self._timings = context.timings
        self._lanes = LaneKeeper(remote, context.connector, context.timings, context.signal)
        self._tasks = TaskSet(only_logged)  # it has one task, which is kept
        self._try_now = asyncio.Event()
        self._why = ""
        self._state = "connecting"
        self._since_ms = _wall_ms()
        self._task = self._tasks.keep(self._run, f"link to {remote}", self._run_failed)

    def __str__(self) -> str:
        return str(self.remote)

    # --- what the client process tells ---

    def connections(self) -> list[LaneConnection]:
        """Every connection that may carry user connections."""
        return self._lanes.connections()

    @property
    def is_registered(self) -> bool:
        """Whether at least one connection is registered."""
        return bool(self._lanes.usable())

    def replace_all(self) -> None:
        """What we offer changed: register again on new connections, then give the old ones up."""
        self._lanes.replace_all()

    def try_now(self) -> None:
        """Do not wait any longer before the next attempt."""
        self._try_now.set()

    def took_place_of(self, number: int) -> None:
        """Another link registered our session at that lane's worker: the server opens nothing on our lane any more."""
        self._lanes.replace(number, "registered through another address too")

    def row(self) -> ServerRow:
        """For status."""
        usable = self._lanes.usable()
        rtts_ms = [lane.connection.stats().rtt_s * 1000 for lane in usable]
        rtt_ms = round(min(rtts_ms), 2) if rtts_ms else 0.0
        remote = self.remote
        return ServerRow(str(remote.server), remote.text, self._state, len(usable), rtt_ms, self._since_ms, self._why)

    async def retire(self) -> None:
        """Connect no more and take no more user connections; return when the last one is gone. ``close`` follows."""
        self._task.cancel()
        self._enter("giving up")
        await self._lanes.retire()

    async def close(self, code: AppCode, reason: str) -> None:
        """Close every connection and stop."""
        await self._lanes.close(code, reason)
        await self._tasks.close()

    # --- the life of a link ---

    async def _run(self) -> Never:
        pause = self._lanes.pause()
        while True:
            first = await self._first_contact(pause)
            since = time.monotonic()
            self._report_registered(first)
            self._lanes.start(first)
            await self._lanes.until_lost()
            pause.worked(time.monotonic() - since)
            self._holders.release(self)
            self._enter("connecting")
            self._owner.lost(self)

    async def _first_contact(self, pause: ReconnectPause) -> LaneConnection:
        # A registration of our session takes the place of the one that another link has at that worker, so once this
        # address was found to be a second way to a server, a probe asks whether it still is.
        is_probe = False
        while True:
            await self._rest(pause.next_s())
            lane, outcome = await self._lanes.connect(None, is_probe=is_probe)
            if isinstance(outcome, Failure):
                self._report_failure(outcome)
                self._owner.failed(self, outcome)
                continue
            assert lane is not None, "only a Failure comes without"
            if is_probe:
                holder = self._holders.holder(outcome.server_id)
            else:
                holder = self._holders.claim(outcome.server_id, self)
                self._owner.reached()
            if holder is None:
                lane.close(AppCode.SURPLUS, "a probe: the session follows")
                is_probe = False
                continue
            if holder is self:
                return lane
            lane.close(AppCode.SURPLUS, "this server is already connected through another address")
            if not is_probe:
                holder.took_place_of(outcome.lane)
                is_probe = True
            if self._enter(f"same server as {holder.remote.text}"):
                log.info("same server at two addresses; keeping the first", extra={"server": self, "kept": holder})
            since = time.monotonic()
            await self._holders.until_released(self._timings.duplicate_look_s)
            pause.worked(time.monotonic() - since)

    async def _rest(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._try_now.wait()
        except TimeoutError:
            pass
        self._try_now.clear()

    def _run_failed(self, name: str, error: BaseException) -> None:
        """It begins again with a first contact."""
        self._lanes.abandon("internal error; the client's log has it")
        self._holders.release(self)
        failure = internal(name, error)
        self._report_failure(failure)
        self._owner.failed(self, failure)

    def _report_registered(self, first: LaneConnection) -> None:
        assert first.ack is not None, "registered"
        self._enter("registered")
        log.info(
            "registered at server",
            extra={
                "server": self,
                "lanes": len(first.ack.lanes),
                "version": heard(first.ack.version),
                "handshake": handshake_of(first.connection),
            },
        )
        for name in first.left_out:
            reason = reasons.rejected(RejectCode.UNKNOWN_SERVICE, "")
            log.warning("service not registered", extra={"server": self, "service": name, "reason": reason})

    def _report_failure(self, failure: Failure) -> None:
        """One line for each change of state; the same failure again is not news."""
        is_news = self._enter(failure.kind)
        self._why = failure.text
        if is_news:
            text = "cannot connect to server; trying again" if self._owner.tries_again else "cannot connect to server"
            log.warning(text, extra={"server": self, "reason": Reason(failure.kind, failure.text)})

    def _enter(self, state: str) -> bool:
        """Returns whether that is another state than before."""
        if state == self._state:
            return False
        self._state, self._since_ms, self._why = state, _wall_ms(), ""
        return True


def _wall_ms() -> int:
    return round(time.time() * 1000)
