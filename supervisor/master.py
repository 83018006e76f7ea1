"""The supervisor's loop: it starts, watches, restarts and stops children, and answers signals and the admin."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Callable
from typing import Never

import msgspec

from qmux.config import limits
from qmux.config.loaded import Loaded
from qmux.config.schema import ClientConfig
from qmux.errors import QmuxError, StartError
from qmux.messages import (
    Configured,
    DaemonState,
    Done,
    Failed,
    Heartbeat,
    Ready,
    ReadyFacts,
    Relisten,
    Reply,
    Request,
    Table,
    Up,
)
from qmux.tasks import TaskSet, only_logged
from supervisor import notify
from supervisor.binds import Binds
from supervisor.daemon import Daemon
from supervisor.directory import Directory
from supervisor.fleet import Fleet
from supervisor.privileges import warn_of_root
from supervisor.process import Process, reap_strangers
from supervisor.reload import Outcome, Reloader, as_fact
from supervisor.seats import Seat
from supervisor.stop import Stopping, kill_all
from supervisor.table import daemon_facts, process_rows
from supervisor.watchdog import Watchdog

log = logging.getLogger(__name__)

BOOT_FAILURES = 5
"""A worker that ended so often before the daemon ever served is not going to come up: end, and say so."""

BOOT_EXIT_CODES = (3, 4)
"""A child that ends with one of these before the daemon ever served found something that only a user can put right."""


class Supervisor:
    """One daemon. ``serve`` is its whole life."""

    def __init__(self, load: Callable[[], Loaded], daemon: Daemon) -> None:
        self._daemon = daemon
        self._settings = daemon.settings
        self._binds = Binds(daemon.slots.count, daemon.workers)
        self._fleet = Fleet(daemon, self._binds, self._received, self._ended)
        self._reloader = Reloader(load, daemon, self._fleet, self._binds)
        self._directory = Directory(daemon)
        self._tasks = TaskSet(self._task_failed)
        self._requests = TaskSet(only_logged)
        self._stopping = Stopping(daemon, self._fleet, self._tasks)
        self._restarts: dict[str, asyncio.TimerHandle] = {}
        self._served = False
        self._exit_code = 0
        self._error: QmuxError | None = None

    # --- life ---

    async def serve(self) -> int:
        """Run until stopped. Returns the exit code; raises StartError, or what a child says is fatal."""
        try:
            self._install_signals()
            self._open_binds()
            self._directory.fill()
            warn_of_root(self._daemon.owner, self._daemon.role)
            for seat in self._fleet.seats:
                self._fill(seat)
            self._tasks.keep(Watchdog(self._fleet.processes, self._settings).run, "watchdog")
            self._tasks.keep(self._publish_table, "table")
            await self._stopping.finished
        finally:
            await self._requests.close()
            await self._tasks.close()
            kill_all(self._fleet)
            self._fleet.steering.close()
            self._binds.close()
            self._directory.close()
        if self._error is not None:
            raise self._error
        log.info("stopped")
        return self._exit_code

    def _open_binds(self) -> None:
        self._binds.commit(self._binds.prepare(self._daemon.config))
        for opened in self._binds.of("quic"):
            for group in opened.groups:
                self._fleet.steering.add(group)

    # --- signals ---

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name in ("term", "int", "hup", "usr1"):
            loop.add_signal_handler(signal.Signals[f"SIG{name.upper()}"], getattr(self, f"handle_{name}"))
        if os.getpid() == 1:
            loop.add_signal_handler(signal.SIGCHLD, self.handle_chld)

    def handle_term(self) -> None:
        """Stop: gracefully, at once the second time, by force the third."""
        self._stop_asked("SIGTERM")

    def handle_int(self) -> None:
        """Ctrl-C: as SIGTERM."""
        self._stop_asked("SIGINT")

    def handle_hup(self) -> None:
        """Reload."""
        self._requests.start(self._reload_on_signal(), "reload")

    def handle_usr1(self) -> None:
        """The log file was rotated: reopen it, here and in every child."""
        self._tasks.start(self._reopen_log(), "log file")

    async def _reopen_log(self) -> None:
        try:
            await self._daemon.log.reopen()
        except StartError as error:
            log.error(f"log file not reopened, still writing to the old one: {error}")
            return
        self._fleet.log_to(self._daemon.log.fd)
        log.info("log file reopened", extra={"file": self._daemon.log.path or "stderr"})

    def handle_chld(self) -> None:
        """As PID 1: a process that is not our child may have ended."""
        reap_strangers(process.pid for process in self._fleet.processes())

    # --- children ---

    def _fill(self, seat: Seat) -> None:
        self._restarts.pop(seat.name, None)
        if self._stopping.has_begun:
            return
        try:
            self._fleet.start(seat)
        except OSError as error:
            why = limits.of_tasks() if error.errno == errno.EAGAIN else error.strerror or str(error)
            log.error(f"{seat.name} cannot be started", extra={"reason": why})
            seat.last_end = f"cannot be started: {why}"
            self._refill(seat, lived_s=0.0)

    def _refill(self, seat: Seat, lived_s: float) -> None:
        delay_s = seat.pause.delay_s(lived_s)
        if not self._served and seat.kind == "worker" and seat.pause.failures >= BOOT_FAILURES:
            self._give_up(StartError(f"{seat.name} fails to start ({seat.last_end}); its log lines above say why"))
            return
        when = f"in {delay_s:.1f} s" if delay_s else "now"
        log.info(f"{seat.name} restarts {when}", extra={"failures": seat.pause.failures})
        self._restarts[seat.name] = asyncio.get_running_loop().call_later(delay_s, self._fill, seat)
        self._fleet.share_orphans()
        self._look_served()

    def _received(self, seat: Seat, process: Process, message: Up) -> None:
        match message:
            case Heartbeat(active=active):
                process.active = active
            case Ready(facts=facts):
                self._ready(process, facts)
            case Configured():
                if message.error:
                    log.error(f"{seat.name} refuses the configuration", extra={"reason": message.error})
                self._reloader.configured(process, message)
            case Failed():
                self._failed(process, message)
            case Done(exit_code=code):
                self._done(code)
            case Request():
                self._requests.start(self._answer(process, message), "request")

    def _ready(self, process: Process, facts: ReadyFacts) -> None:
        if process.state != "starting":
            return  # it is being stopped
        process.facts = facts
        extra = {**process.log_fields, "after_s": round(process.lived_s, 2), **msgspec.to_builtins(facts)}
        log.info(f"{process.name} ready", extra=extra)
        self._fleet.ready(process)
        self._look_served()
        self._send_table()

    def _failed(self, process: Process, message: Failed) -> None:
        process.failure = message
        process.kill_after(self._settings.stop_timeout_s)  # it says that it ends: it may not stay
        at_boot = not self._served and process.kind == "worker" and message.exit_code in BOOT_EXIT_CODES
        if not self._stopping.has_begun and (message.fatal or at_boot):
            self._give_up(_as_error(message))
        else:
            log.error(f"{process.name} failed: {message.message}", extra=process.log_fields)

    def _done(self, code: int) -> None:
        config = self._daemon.config
        if isinstance(config, ClientConfig) and config.once and not self._stopping.has_begun:
            self._exit_code = code
            self._stop(forced=True)

    def _ended(self, seat: Seat, process: Process) -> None:
        expected = self._stopping.has_begun
        log.log(
            logging.INFO if expected else logging.ERROR,
            f"{seat.name} {'ended' if expected else 'died'}",
            extra={
                "reason": process.exit_words,
                **process.log_fields,
                "lived_s": round(process.lived_s, 1),
                "connections": process.active,
            },
        )
        self._fleet.ended(seat, process)
        self._reloader.ended(process)
        self._send_table()
        if os.getpid() == 1:
            self.handle_chld()
        if not self._stopping.has_begun:
            self._refill(seat, process.lived_s)

    def _look_served(self) -> None:
        """The daemon serves once every worker does; the admin process may fail, users do not need it."""
        seats = self._fleet.seats
        if self._served or not all(
            self._fleet.is_ready(seat)
            or (seat.kind == "admin" and seat.pause.failures >= self._settings.quick_failures)
            for seat in seats
        ):
            return
        self._served = True
        log.info(
            f"{self._daemon.program} ready",
            extra={"workers": self._daemon.workers, "runtime_dir": self._daemon.runtime.path},
        )
        notify.ready("serving")

    # --- reload ---

    async def reload(self, *, dry_run: bool = False, full: bool = False) -> Outcome:
        """Apply the configuration as it is on disk now."""
        if self._stopping.has_begun:
            return Outcome(False, [f"{self._daemon.program} is stopping"], 6)
        if not self._served:
            return Outcome(False, [f"{self._daemon.program} is still starting; try again when it is ready"], 6)
        outcome = await self._reloader.reload(dry_run=dry_run, full=full)
        self._send_table()
        return outcome

    async def _reload_on_signal(self) -> None:
        outcome = await self.reload()
        if not outcome.ok and outcome is not self._reloader.last:
            log.error(f"reload: {outcome.lines[0]}")

    async def _answer(self, process: Process, request: Request) -> None:
        outcome = await self.reload(dry_run=request.dry_run, full=request.full)
        process.send(Reply(request.request_id, outcome.ok, outcome.lines, outcome.exit_code))

    # --- the process table ---

    async def _publish_table(self) -> Never:
        while True:
            self._send_table()
            self._keep_directory()
            await asyncio.sleep(self._settings.table_s)

    def _keep_directory(self) -> None:
        admin = self._fleet.admin
        has_admin = admin is not None and admin.state == "ready"
        if not self._stopping.has_begun and self._directory.keep(has_admin) and admin is not None:
            admin.send(Relisten())

    def _send_table(self) -> None:
        if admin := self._fleet.admin:
            rows = process_rows(self._fleet.seated(), self._daemon.started_at, self._stopping.has_begun)
            state: DaemonState = "stopping" if self._stopping.has_begun else "ready" if self._served else "starting"
            facts = daemon_facts(self._daemon, self._fleet, self._binds, state, as_fact(self._reloader.last))
            admin.send(Table(rows, facts))

    # --- the end ---

    def _stop_asked(self, signal_name: str) -> None:
        if not self._stopping.has_begun:
            self._stop(forced=False, why=signal_name)
        elif not self._stopping.is_forced:
            log.warning(f"{signal_name} again: stopping now")
            self._stop(forced=True)
        else:
            kill_all(self._fleet)

    def _give_up(self, error: QmuxError) -> None:
        if self._error is None:
            self._error = error
            if self._daemon.log.path:  # the command line shows it on the terminal; whoever reads the file needs it too
                log.error(str(error))
            self._stop(forced=True)

    def _stop(self, forced: bool, why: str = "") -> None:
        for timer in self._restarts.values():
            timer.cancel()
        self._restarts.clear()
        self._stopping.begin(forced=forced, why=why)
        self._send_table()

    def _task_failed(self, name: str, error: BaseException) -> None:
        """The stop came to a halt: end by force, as ``serve`` does last."""
        self._error = self._error or QmuxError(f"task {name} failed: {error!r}; this is a defect, the log has more")
        self._stopping.give_up()


def _as_error(message: Failed) -> QmuxError:
    error = QmuxError(message.message)
    error.exit_code = message.exit_code
    return error
