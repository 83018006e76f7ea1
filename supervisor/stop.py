"""Ending the children: gracefully, then firmly, then by force."""

from __future__ import annotations

import asyncio
import logging

from qmux.config.schema import Config, ServerConfig
from qmux.messages import Drain, Stop, StopAccepting
from qmux.tasks import TaskSet
from supervisor import notify
from supervisor.daemon import Daemon
from supervisor.fleet import Fleet
from supervisor.process import Process, all_ended
from supervisor.settings import Settings

log = logging.getLogger(__name__)

FORCED_END_S = 5.0
"""SIGKILL works at once, unless the process waits for a device: then we do not wait for it any longer."""


class Stopping:
    """The stop of a daemon: it may begin gracefully and be forced later. ``finished`` when its children have ended."""

    def __init__(self, daemon: Daemon, fleet: Fleet, tasks: TaskSet) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_forced = False
        self._daemon = daemon
        self._fleet = fleet
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the daemon stops, or has stopped."""
        return self._task is not None

    def begin(self, *, forced: bool, why: str = "") -> None:
        """Stop, in place of a stop in progress."""
        if self._task is None:
            self._announce(why)
        else:
            self._task.cancel()
        self.is_forced = forced
        self._task = self._tasks.start(self._run(forced), "stop")

    def give_up(self) -> None:
        """Do not wait for the children any longer: the stop came to a halt."""
        if not self.finished.done():
            self.finished.set_result(None)

    def _announce(self, why: str) -> None:
        config = self._daemon.config
        connections = sum(worker.active for worker in self._fleet.workers())
        log.info(
            f"{self._daemon.program} stopping",
            extra={"reason": why or "requested", "connections": connections, "at_most_s": config.process.stop_after_s},
        )
        notify.stopping(f"{connections} connections")

    async def _run(self, forced: bool) -> None:
        settings = self._daemon.settings
        if forced:
            await stop_now(self._fleet, settings)
        else:
            await stop_gracefully(self._fleet, self._daemon.config, settings)
        self.give_up()


async def stop_gracefully(fleet: Fleet, config: Config, settings: Settings) -> None:
    """Users and clients may finish, until ``stop_after``; then everything ends."""
    if isinstance(config, ServerConfig) and config.drain_delay_s:
        await asyncio.sleep(config.drain_delay_s)
    stop_after_s = config.process.stop_after_s
    workers = fleet.workers()
    for worker in workers:
        if worker.state != "ready":
            _stop(worker, settings)
            continue
        worker.send(StopAccepting())
        worker.send(Drain(deadline_s=stop_after_s))
    for worker in workers:  # who hears of it before its own Drain would move its clients to workers that stop as well
        if worker.state == "ready":
            fleet.draining(worker)
    if not await all_ended(workers, stop_after_s):
        running = [worker for worker in workers if not worker.ended.is_set()]
        log.warning(
            f"{len(running)} worker{'s' if len(running) != 1 else ''} not done after {stop_after_s:g} s: stopping them",
            extra={"connections": sum(worker.active for worker in running)},
        )
    await stop_now(fleet, settings)


async def stop_now(fleet: Fleet, settings: Settings) -> None:
    """Everything ends within ``stop_timeout_s``, or is killed."""
    processes = fleet.processes()
    for process in processes:
        _stop(process, settings)
    if not await all_ended(processes, settings.stop_timeout_s + FORCED_END_S):
        log.error("processes left running: SIGKILL did not end them", extra={"processes": processes})


def kill_all(fleet: Fleet) -> None:
    """Everything ends at once."""
    for process in fleet.processes():
        process.kill()


def _stop(process: Process, settings: Settings) -> None:
    process.state = "stopping"
    process.send(Stop())
    process.kill_after(settings.stop_timeout_s)
