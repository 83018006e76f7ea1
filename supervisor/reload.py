"""Applying a changed configuration to running processes: completely, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from qmux.config.changes import Change, changes, merge_in_place
from qmux.config.loaded import Loaded
from qmux.errors import ConditionError, ConfigError, QmuxError, StartError
from qmux.messages import Configured, ReloadFacts
from qmux.tasks import in_thread
from supervisor import notify
from supervisor.binds import Binds, Difference
from supervisor.daemon import Daemon
from supervisor.fleet import Fleet
from supervisor.process import Process

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 30.0
"""Reading some files takes milliseconds; who asked for the reload gets an answer within a minute (qmux.admin)."""


@dataclass(frozen=True)
class Outcome:
    """What a reload came to: lines for the user, and the exit code of ``qmux reload``."""

    ok: bool
    lines: list[str]
    exit_code: int = 0
    waiting: tuple[str, ...] = ()
    """Keys whose new values wait for a restart."""

    @classmethod
    def refused(cls, error: QmuxError) -> Outcome:
        """Nothing was changed."""
        return cls(False, str(error).splitlines(), error.exit_code)


@dataclass(frozen=True)
class Plan:
    """What a new configuration means: what can be applied (``target``), and a line for each change."""

    target: Loaded
    lines: list[str]
    anything: bool
    waiting: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """The result, once the target is in force."""
        return Outcome(True, self.lines, ConditionError.exit_code if self.waiting else 0, self.waiting)


class Answers:
    """Who has not answered a version of the configuration yet, and who refused it."""

    def __init__(self, version: int, processes: list[Process]) -> None:
        self._version = version
        self._missing = set(processes)
        self._refusals: list[str] = []
        self._complete = asyncio.Event()
        self._check()

    def configured(self, process: Process, message: Configured) -> None:
        """An answer came."""
        if message.version == self._version and process in self._missing:
            if message.error:
                self._refusals.append(f"{process.name}: {message.error}")
            self.ended(process)

    def ended(self, process: Process) -> None:
        """No answer will come: its successor is started with whatever is in force then."""
        self._missing.discard(process)
        self._check()

    async def wait(self, timeout_s: float) -> list[str]:
        """Everything that speaks against this configuration."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._complete.wait()
        except TimeoutError:
            names = ", ".join(sorted(process.name for process in self._missing))
            self._refusals.append(f"{names}: no answer within {timeout_s:g} s")
        return self._refusals

    def _check(self) -> None:
        if not self._missing:
            self._complete.set()


class Reloader:
    """One reload at a time; one more may wait, and every request that comes meanwhile gets its outcome."""

    def __init__(self, load: Callable[[], Loaded], daemon: Daemon, fleet: Fleet, binds: Binds) -> None:
        self._load = load
        self._daemon = daemon
        self._fleet = fleet
        self._binds = binds
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[Outcome] | None = None
        self._answers: Answers | None = None
        self.last: Outcome | None = None
        self._status = "serving"

    async def reload(self, *, dry_run: bool = False, full: bool = False) -> Outcome:
        """Load the configuration again and apply it; with ``dry_run`` only say what that would do."""
        if full:
            return Outcome(
                False,
                [f"--full (new processes) is not available in this version; restart {self._daemon.program} instead"],
                ConditionError.exit_code,
            )
        if dry_run:
            return await self._dry_run()
        if self._waiting is not None:
            return await asyncio.shield(self._waiting)
        return await self._in_turn()

    def configured(self, process: Process, message: Configured) -> None:
        """A child answered."""
        if self._answers is not None:
            self._answers.configured(process, message)

    def ended(self, process: Process) -> None:
        """A child is gone."""
        if self._answers is not None:
            self._answers.ended(process)

    async def _in_turn(self) -> Outcome:
        mine: asyncio.Future[Outcome] | None = None
        if self._lock.locked():
            mine = self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with self._lock:
                if mine is not None:
                    self._waiting = None
                outcome = self.last = await self._reload()
                if mine is not None:
                    mine.set_result(outcome)
                return outcome
        finally:
            if mine is not None and not mine.done():
                mine.cancel()

    async def _dry_run(self) -> Outcome:
        try:
            return (await self._plan()).outcome
        except QmuxError as error:
            return Outcome.refused(error)
        except Exception as error:
            return self._internal(error, "nothing was changed")

    async def _reload(self) -> Outcome:
        notify.reloading()
        in_force = "nothing was changed"
        try:
            plan = await self._plan()
            if plan.anything:
                in_force = f"what is in force is not certain: restart {self._daemon.program}"
                await self._apply(plan.target)
            outcome = plan.outcome
        except QmuxError as error:
            outcome = Outcome.refused(error)
        except Exception as error:  # who asked waits for an answer, systemd for READY
            notify.ready(self._status)
            return self._internal(error, in_force)
        if outcome.ok:
            waiting = f"; waits for a restart: {', '.join(outcome.waiting)}" if outcome.waiting else ""
            self._status = f"serving{waiting}"
        notify.ready(self._status)
        self._report(outcome)
        return outcome

    def _internal(self, error: Exception, in_force: str) -> Outcome:
        log.exception("reload failed", exc_info=error)
        what = f"internal error: {error!r}; this is a defect, the log has its traceback"
        return Outcome(False, [what, in_force], QmuxError.exit_code)

    async def _plan(self) -> Plan:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                new = await in_thread(self._load, "reload")
        except TimeoutError:
            raise ConfigError(
                [
                    f"{self._daemon.config.source}: not read within {LOAD_TIMEOUT_S:g} s: a disk that it or a "
                    "certificate lies on, or a name service (user, group), does not answer"
                ]
            ) from None
        except OSError as error:
            raise ConfigError([f"{error.filename or self._daemon.config.source}: {error.strerror}"]) from None
        old = self._daemon.loaded
        if type(new.config) is not type(old.config):
            raise ConfigError([f"{new.config.source}: is not a {self._daemon.role}'s configuration any more"])
        found = changes(old.config, new.config)
        lines = [_line(change) for change in found]
        if new.material != old.material:
            lines.append("certificates: other contents; in place")
        anything = bool(lines) and not (new.material == old.material and all(c.how == "restart" for c in found))
        lines += [f"warning: {warning}" for warning in new.warnings]
        target = msgspec.structs.replace(new, config=merge_in_place(old.config, new.config))
        waiting = tuple(change.key for change in found if change.how == "restart")
        return Plan(target, lines or ["nothing has changed"], anything, waiting)

    async def _apply(self, target: Loaded) -> None:
        """Both phases. Raises QmuxError where it cannot be done; then everything is as before."""
        difference = self._binds.prepare(target.config)
        before = self._daemon.loaded
        try:
            log_moved = await self._daemon.log.follow(target.config.log)
        except StartError:
            self._binds.discard(difference)
            raise
        self._daemon.loaded = target
        self._daemon.version += 1
        if refusals := await self._offer():
            await self._restore(before, difference)
            raise ConfigError([*refusals, "nothing was changed"], target.config.source)
        self._commit(difference, log_moved)
        if difference.removed or difference.passed:
            # A child reads its messages in order: when it has answered one more Configure, it has closed what was
            # removed, and what has passed to another service is that one's. Before, the next reload could not open the
            # same address again, and a user connection right after the answer might still go to the old service.
            await self._offer()

    async def _offer(self) -> list[str]:
        processes = self._fleet.processes()
        self._answers = Answers(self._daemon.version, processes)
        for process in processes:
            self._fleet.configure(process)
        try:
            return await self._answers.wait(self._daemon.settings.configure_timeout_s)
        finally:
            self._answers = None

    def _commit(self, difference: Difference, log_moved: bool) -> None:
        self._fleet.switch_binds(difference)
        if log_moved:
            self._fleet.log_to(self._daemon.log.fd)

    async def _restore(self, before: Loaded, difference: Difference) -> None:
        self._daemon.loaded = before
        self._daemon.version += 1
        self._binds.discard(difference)
        for process in self._fleet.processes():
            self._fleet.configure(process)
        await self._daemon.log.follow(before.config.log)

    def _report(self, outcome: Outcome) -> None:
        level = logging.INFO if outcome.ok else logging.ERROR
        for line in outcome.lines:
            log.log(level, f"reload: {line}")
        if outcome.ok:
            log.info("reload done", extra={"config": self._daemon.config.source, "version": self._daemon.version})
        else:
            log.error("reload refused: nothing was changed", extra={"config": self._daemon.config.source})


def _line(change: Change) -> str:
    if change.how == "restart":
        return f"{change.key}: {change.old} -> {change.new} needs a restart; still {change.old}"
    return f"{change.key}: {change.old} -> {change.new}; in place"


def as_fact(outcome: Outcome | None) -> ReloadFacts | None:
    """For the process table's facts."""
    return None if outcome is None else ReloadFacts(outcome.ok, outcome.lines, outcome.exit_code)
