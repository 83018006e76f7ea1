"""What a worker tells on the bus: changes of its rows within 10 ms, all of them and its counters once a second."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from qmux.bus import Publisher, Subscriber
from qmux.pool.pool import Pool
from qmux.pool.rows import BusMessage, EndpointReport, FailedBind, ServerRow, ServiceCounters, WorkerReport

DELTA_S = 0.01
"""Changes are collected for this long: a burst of opened connections is one message."""

PASS_S = 1.0
"""How often all rows are published: within this time every view heals."""


class Publishing:
    """Owns this process's bus sockets and their clock."""

    def __init__(
        self,
        publish: str,
        subscribe: str,
        pool: Pool | None,
        report: Callable[[], WorkerReport],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._publisher = Publisher(publish)
        self._pool = pool
        self._subscriber = None if pool is None else Subscriber(subscribe, self._received)
        if pool is not None:
            pool.subscribe(self._changed)
        self._report = report
        self._delta_timer: asyncio.TimerHandle | None = None
        self._pass_timer: asyncio.TimerHandle | None = self._loop.call_later(0, self._pass)

    @property
    def dropped(self) -> int:
        """Messages that the bus did not take."""
        return self._publisher.dropped

    @property
    def invalid(self) -> int:
        """Messages that did not decode."""
        return 0 if self._subscriber is None else self._subscriber.invalid

    def _changed(self) -> None:
        if self._delta_timer is None and self._pass_timer is not None:
            self._delta_timer = self._loop.call_later(DELTA_S, self._delta)

    def close(self) -> None:
        """Say nothing more."""
        for timer in (self._delta_timer, self._pass_timer):
            if timer is not None:
                timer.cancel()
        self._pass_timer = None
        self._publisher.close()
        if self._subscriber is not None:
            self._subscriber.close()

    def _received(self, message: BusMessage) -> None:
        if self._pool is not None and not isinstance(message, WorkerReport):
            self._pool.receive(message, time.monotonic())

    def _delta(self) -> None:
        self._delta_timer = None
        while self._pool is not None and (delta := self._pool.take_delta()) is not None:
            self._publisher.send(delta)

    def _pass(self) -> None:
        self._pass_timer = self._loop.call_later(PASS_S, self._pass)
        if self._pool is not None:
            for message in self._pool.passes():
                self._publisher.send(message)
        self._publisher.send(self._report())


def worker_report(
    slot: int,
    epoch: int,
    engine: str,
    services: dict[str, ServiceCounters],
    endpoint: EndpointReport | None,
    links: tuple[ServerRow, ...] = (),
    failed_binds: tuple[FailedBind, ...] = (),
) -> WorkerReport:
    """This process's report."""
    return WorkerReport(slot, epoch, os.getpid(), engine, services, endpoint, links, failed_binds)
