"""A change that several tasks wait for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

COALESCE_S = 0.005
"""Changes come in bursts (a bus message, a wave of connections): those who wait look once for each burst."""

BATCH = 64
"""Woken at a time, who waits longest first: thousands who look at once would hold up everybody else."""


class ChangeSignal:
    """Wakes everybody who waits, shortly after ``fire``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._left = 0  # of those who wait, how many are still to be woken
        self._timer: asyncio.TimerHandle | None = None

    def fire(self) -> None:
        """Something changed."""
        self._left = len(self._waiting)
        if self._left and self._timer is None:
            self._timer = self._loop.call_later(COALESCE_S, self._wake)

    async def wait(self, timeout_s: float) -> None:
        """Until the next change, or for ``timeout_s``."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting[waiter] = None
        timer = self._loop.call_later(max(0.0, timeout_s), _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiting.pop(waiter, None)

    async def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Until ``holds``, looked at after each change; False where ``timeout_s`` passed first."""
        until = time.monotonic() + timeout_s
        while not holds():
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            await self.wait(left_s)
        return True

    def _wake(self) -> None:
        count = min(BATCH, self._left, len(self._waiting))
        for _ in range(count):
            _resolve(self._waiting.popitem(last=False)[0])
        self._left = min(self._left - count, len(self._waiting))
        self._timer = self._loop.call_later(COALESCE_S, self._wake) if self._left else None


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
