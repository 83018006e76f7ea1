"""When a connection has its next turn on the event loop: at once where something is to be sent, else by timer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from qmux.quic.aioquic_engine.mtu import SearchingConnection

PACING_TURN_S = 0.0002
"""A pause of the pacer that is shorter ends in the loop's next turn: the loop's timers are a millisecond coarse, and 16
packets (the pacer's burst) a millisecond would be the most. Above 50 Mbit/s pauses are this short."""


class Turns:
    """Calls ``on_woken`` after ``wake``, and ``on_timer`` when the time is there that ``arm`` read from aioquic."""

    def __init__(
        self,
        quic: SearchingConnection,
        loop: asyncio.AbstractEventLoop,
        on_woken: Callable[[], None],
        on_timer: Callable[[], None],
    ) -> None:
        self._quic = quic
        self._loop = loop
        self._on_woken = on_woken
        self._on_timer = on_timer
        self._wake_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_closed = False

    def wake(self) -> None:
        """Something is to be sent: one call in the next turn of the loop, however often this is said before it."""
        if self._wake_handle is None and not self._is_closed:
            self._wake_handle = self._loop.call_soon(self._woken)

    def begin(self) -> None:
        """A turn begins now: what it was woken for is done in it."""
        if self._wake_handle is not None:
            self._wake_handle.cancel()
            self._wake_handle = None

    def arm(self) -> None:
        """The turn is over: set the timer to what aioquic waits for."""
        now = time.monotonic()
        paced_until = self._quic.paced_until
        if paced_until is not None and paced_until - now < PACING_TURN_S:
            self.wake()  # arms again when that is through
            return
        at = self._quic.get_timer()
        if at is None or (self._timer is not None and at >= self._timer_at):
            return  # an earlier timer fires first and looks again
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        # At least 1 ms: the loss timer spins where the clock did not move.
        self._timer = self._loop.call_later(max(0.001, at - now), self._timed_out)

    def close(self) -> None:
        """No more turns."""
        self._is_closed = True
        for handle in (self._timer, self._wake_handle):
            if handle is not None:
                handle.cancel()

    def _woken(self) -> None:
        self._wake_handle = None
        self._on_woken()

    def _timed_out(self) -> None:
        self._timer = None
        self._on_timer()
