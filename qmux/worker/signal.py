"""A change that several tasks wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

COALESCE_S = 0.005
"""Changes come in bursts (a bus message, a wave of connections): those who wait look once for each burst."""


class ChangeSignal:
    """Wakes everybody who waits, shortly after ``fire``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[None] = self._loop.create_future()
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def fire(self) -> None:
        """Something changed."""
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(COALESCE_S, self._wake)

    async def wait(self, timeout_s: float) -> None:
        """Until the next change, or for ``timeout_s``."""
        self._waiting += 1
        try:
            await asyncio.wait([self._next], timeout=max(0.0, timeout_s))
        finally:
            self._waiting -= 1

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
        self._timer = None
        woken, self._next = self._next, self._loop.create_future()
        woken.set_result(None)
