"""Finding children whose event loop is stuck, and ending them with a dump of their stacks."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable
from typing import Never

from supervisor import notify
from supervisor.process import Process
from supervisor.settings import Settings

log = logging.getLogger(__name__)

MAX_TICK_S = 1.0

END_S = 5.0
"""A process that was killed is gone by then, unless it hangs in the kernel."""


class Watchdog:
    """Looks at every process about once a second."""

    def __init__(self, processes: Callable[[], Iterable[Process]], settings: Settings) -> None:
        self._processes = processes
        self._settings = settings
        self._is_watched = (wanted_s := notify.watchdog_s()) is not None
        # systemd advises to call twice as often as it waits.
        self._tick_s = min(MAX_TICK_S, settings.watchdog_s / 5, (wanted_s or 2 * MAX_TICK_S) / 2)

    async def run(self) -> Never:
        """Watch until cancelled."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._tick_s)
            now = time.monotonic()
            self.look(stalled=now - last > 2 * self._tick_s)
            if self._is_watched and self.all_is_well():
                notify.alive()
            last = now

    def look(self, stalled: bool = False) -> None:
        """Check every process. ``stalled``: we ourselves did not run for a while, so silence does not count."""
        for process in self._processes():
            if stalled:
                process.forgive_silence()
            elif reason := self._complaint(process):
                self._end(process, reason)

    def all_is_well(self) -> bool:
        """Whether no process outlives what we do about one that is stuck. Where one does, only systemd can help."""
        longest_s = self._settings.watchdog_s + self._settings.abort_s + END_S
        return not any(process.state == "stuck" and process.silent_s > longest_s for process in self._processes())

    def _complaint(self, process: Process) -> str:
        if process.state in ("stopping", "stuck"):
            return ""
        if not process.was_ready and process.lived_s > self._settings.start_timeout_s:
            return f"not ready within {self._settings.start_timeout_s:g} s"
        if process.was_heard and process.silent_s > self._settings.watchdog_s:
            return f"no heartbeat for {process.silent_s:.1f} s: its event loop is stuck"
        return ""

    def _end(self, process: Process, reason: str) -> None:
        log.error(
            f"{process.name} is stuck: its stacks follow, then it is killed",
            extra={"reason": reason, **process.log_fields},
        )
        process.state = "stuck"
        process.kill(signal.SIGABRT)  # faulthandler writes the stacks (qmux.child)
        process.kill_after(self._settings.abort_s)
