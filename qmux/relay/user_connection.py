"""A user's connection at a server: admit, wait, select a client, hand over or open, retry, relay, or say why not."""

from __future__ import annotations

import logging
import socket
import time

from qmux import sockets
from qmux.heard import heard
from qmux.log import Reason
from qmux.pool.candidates import SessionKey
from qmux.pool.selection import Choice
from qmux.protocol.attempt import may_retry
from qmux.protocol.frames import AppCode, NewConn, RefuseCode
from qmux.quic.engine import Stream
from qmux.relay.attempt import AttemptResult, Outcome, attempt, go_on
from qmux.relay.handoff import MAX_HOPS, Handoff
from qmux.relay.surroundings import Carrier, ServiceRuntime, StartedAttempt, Surroundings

log = logging.getLogger(__name__)

EARLY_DATA_BYTES = 65_536
"""With ``early_data``: sent with the request at most (docs/architecture.md, "The path of a connection")."""

ROOM_LOOK_S = 0.05
"""How often a connection without a free stream is looked at again: a client tells of new ones, or of one that ended,
within a round trip, and nothing here is called for that."""

_FAULTY = (Outcome.SILENT, Outcome.LOST)


class Failed(Exception):
    """The user cannot be served; the reason goes into the log and the counter ``code``."""

    def __init__(self, code: str, reason: str = "") -> None:
        super().__init__(reason or code)
        self.code = code


class UserConnection:
    """One user, until it is relayed to its end, handed over, or reset."""

    def __init__(
        self, around: Surroundings, sock: socket.socket, about: Handoff, now: float, begun: StartedAttempt | None = None
    ) -> None:
        """``begun``: the engine has admitted the user and made an attempt."""
        self._around = around
        self._socket = sock
        self._about = about
        self._begun = begun
        self._setup_by: float | None = None
        self._started_at = now - about.waited_ms / 1000
        self._exclude: set[SessionKey] = set(about.tried)
        self._passing: set[SessionKey] = set()  # excluded for a reason that may pass while the user waits
        self._is_full = False
        self._unusable: set[int] = set()
        self._attempts = len(about.tried)
        self._last_failure: Failed | None = None

    async def serve(self) -> None:
        """Everything. The socket is closed, relayed or handed over when this returns."""
        service = self._about.service
        admitted = self._begun is not None
        try:
            if self._begun is not None and await self._go_on(self._begun):
                return
            runtime = self._runtime()
            if not admitted:
                await self._admission(runtime)
                admitted = True
            await self._serve(runtime)
        except Failed as error:
            self._failed(error)
        finally:
            if admitted:
                self._around.release(service)
            sockets.reset(self._socket)  # nothing where it was detached

    # --- waiting ---

    async def _admission(self, runtime: ServiceRuntime) -> None:
        while not self._around.admit(runtime.config.name):
            await self._wait(runtime, Failed("maxconn", f"maxconn = {runtime.config.maxconn} is reached"))
            runtime = self._runtime()

    async def _wait(self, runtime: ServiceRuntime, otherwise: Failed) -> None:
        left_s = self._started_at + runtime.config.queue_timeout_s - time.monotonic()
        if left_s <= 0:
            raise otherwise
        await self._around.changed(runtime.config.name, min(left_s, ROOM_LOOK_S) if self._is_full else left_s)
        if sockets.is_reset(self._socket):
            raise Failed("user_reset", "the user gave up while it waited")

    def _runtime(self) -> ServiceRuntime:
        runtime = self._around.service(self._about.service)
        if runtime is None:
            raise Failed("unknown_service", "the service was removed by a reload")
        return runtime

    # --- selecting ---

    async def _serve(self, runtime: ServiceRuntime) -> None:
        preferred: SessionKey | None = (self._about.principal, self._about.session) if self._about.hops else None
        while True:
            choice = self._preferred(preferred) or self._choose(runtime)
            preferred = None
            if choice is None:
                await self._no_choice(runtime)
                runtime = self._runtime()
            elif choice.slot != self._around.slot:
                if self._hand_over(choice):
                    return
            else:
                if await self._attempt(runtime, choice):
                    return

    def _preferred(self, session: SessionKey | None) -> Choice | None:
        """The session that another worker chose, where it is still connected here."""
        candidate = self._around.pool.session(session) if session is not None else None
        key = candidate.at(self._around.slot) if candidate is not None else None
        return None if candidate is None or key is None else Choice(candidate.key, self._around.slot, key)

    def _choose(self, runtime: ServiceRuntime) -> Choice | None:
        sessions = self._around.pool.sessions(runtime.config.name, time.monotonic())
        return runtime.selector.choose(sessions, self._about.source, self._exclude, self._usable)

    def _usable(self, slot: int) -> bool:
        return self._about.hops < MAX_HOPS and slot not in self._unusable and self._around.takes_users(slot)

    async def _no_choice(self, runtime: ServiceRuntime) -> None:
        if self._last_failure is not None and not self._passing:
            raise self._last_failure  # every client said no: waiting would change nothing
        await self._wait(runtime, self._last_failure or Failed("queue_timeout", "no client serves it"))
        self._exclude -= self._passing  # a client that was lost may be connected again, a full one have room
        self._unusable.clear()
        self._is_full = False

    def _hand_over(self, choice: Choice) -> bool:
        about = self._about
        principal, session = choice.session
        handed = Handoff(
            service=about.service,
            source=about.source,
            dest=about.dest,
            conn_id=about.conn_id,
            principal=principal,
            session=session,
            hops=about.hops + 1,
            waited_ms=round((time.monotonic() - self._started_at) * 1000),
            tried=tuple(self._exclude)[:16],
        )
        if self._around.hand_over(choice.slot, self._socket, handed):
            self._around.counters[about.service].handed_off += 1
            self._around.pool.expect(choice.slot, choice.key, time.monotonic())
            return True
        self._unusable.add(choice.slot)
        return False

    # --- one attempt ---

    async def _go_on(self, begun: StartedAttempt) -> bool:
        """The rest of an attempt that the engine began; see ``_attempt``."""
        result = begun.failure
        try:
            runtime = self._runtime()
            if begun.stream is not None:
                self._setup_by = begun.began_at + runtime.config.setup_timeout_s
                result = await go_on(begun.stream, begun.began_at, self._setup_by)
            if result.outcome is Outcome.READY:
                await self._relay(runtime, result, b"")
                return True
        except Failed:
            if begun.stream is not None:
                begun.stream.abort(AppCode.CANCELLED)
            raise
        finally:
            if begun.carrier is not None:
                begun.carrier.user_removed()
        self._judge(runtime, begun.session, begun.carrier, result, False)
        return False

    async def _attempt(self, runtime: ServiceRuntime, choice: Choice) -> bool:
        """True when the user was served to the end; False when another client may be tried. Raises Failed."""
        self._setup_by = self._setup_by or time.monotonic() + runtime.config.setup_timeout_s
        carrier = self._around.carrier(choice.key)
        if carrier is None:
            self._exclude.add(choice.session)
            self._passing.add(choice.session)
            return False
        early = self._early_data() if runtime.config.early_data else b""
        if not carrier.has_room():
            full = AttemptResult(Outcome.FULL, "max_streams is reached")
            self._judge(runtime, choice.session, carrier, full, False)
            return False
        carrier.user_added()
        try:
            about = self._about
            request = NewConn(about.conn_id, about.service, about.source, about.dest)
            result = await attempt(carrier.connection, request, early, self._setup_by)
            if result.outcome is Outcome.READY:
                await self._relay(runtime, result, early)
                return True
        finally:
            carrier.user_removed()
        self._judge(runtime, choice.session, carrier, result, bool(early))
        return False

    def _early_data(self) -> bytes:
        """What the user has sent so far; it stays in the socket until an attempt has delivered it."""
        try:
            return self._socket.recv(EARLY_DATA_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            raise Failed("user_reset", error.strerror or str(error)) from None

    def _judge(
        self,
        runtime: ServiceRuntime,
        session: SessionKey | None,
        carrier: Carrier | None,
        result: AttemptResult,
        early_data_sent: bool,
    ) -> None:
        who = heard(session[0]) if session is not None else "a client"
        failure = self._last_failure = Failed(_code_of(result), f"{who}: {result.reason}")
        is_full, faulty = result.outcome is Outcome.FULL, result.outcome in _FAULTY
        if session is not None:
            self._exclude.add(session)
            if is_full or faulty or result.is_passing:
                self._passing.add(session)
        if is_full:  # nothing was sent at all: no attempt
            self._is_full = True
            return
        self._attempts += 1
        if result.outcome is Outcome.LATE:
            raise failure
        if result.outcome is Outcome.SILENT and carrier is not None:
            carrier.suspect()
        if not may_retry(answered=result.outcome is Outcome.REFUSED, early_data_sent=early_data_sent):
            raise failure
        if self._attempts > runtime.config.retries:
            raise failure
        self._around.counters[runtime.config.name].retried += 1

    async def _relay(self, runtime: ServiceRuntime, result: AttemptResult, early: bytes) -> None:
        assert result.stream is not None, "READY has a stream"
        name = runtime.config.name
        counters = self._around.counters
        if early:
            self._take_delivered(early, result.stream)
        relay = result.stream.relay(self._socket, runtime.limits)
        counters[name].total += 1
        counters[name].bytes_in += len(early)
        counters.relay_started(name, relay)
        try:
            end = await relay.done
        except BaseException:
            relay.abort()  # the worker stops
            raise
        finally:
            counters.relay_ended(name, relay)
        level = logging.DEBUG if end.is_usual else logging.INFO
        log.log(level, "user connection ended", extra={**self._fields(), "reason": end})

    def _take_delivered(self, early: bytes, stream: Stream) -> None:
        try:
            self._socket.recv(len(early))
        except OSError as error:
            stream.abort(AppCode.SOCKET_RESET)
            raise Failed("user_reset", error.strerror or str(error)) from None

    def _failed(self, error: Failed) -> None:
        self._around.counters.refused(self._about.service, error.code)
        reason = Reason(error.code, f"{error.code}: {error}")
        log.warning("user connection refused", extra={**self._fields(), "reason": reason})

    def _fields(self) -> dict[str, object]:
        return {"service": self._about.service, "source": self._about.source, "conn": f"{self._about.conn_id:x}"}


def _code_of(result: AttemptResult) -> str:
    if result.outcome is Outcome.LATE:
        return "setup_timeout"
    if result.outcome is Outcome.REFUSED:
        return "service_" + _known(result.reason.partition(":")[0])
    if result.outcome is Outcome.RESET:
        return f"service_{RefuseCode.RESET}"
    return f"client_{result.outcome.value}"


def _known(code: str) -> str:
    """A client may send any word; only those of ours are counted and shown as a reason."""
    try:
        return RefuseCode(code).value
    except ValueError:
        return "other"
