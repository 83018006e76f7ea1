"""When to try again: at once the first time, then with full jitter (random within a growing interval)."""

from __future__ import annotations

import random

FIRST_INTERVAL_S = 0.5
"""Upper end of the first random wait: clients of a restarted server spread over it."""


class ReconnectPause:
    """Waits of one connection that is to be kept: ``max_s`` at most. One that lived for ``stable_s`` was a success."""

    def __init__(self, max_s: float, stable_s: float, rng: random.Random | None = None) -> None:
        self._max_s = max_s
        self._stable_s = stable_s
        self._rng = rng or random.Random()
        self._failures = 0

    def next_s(self) -> float:
        """How long to wait before the next try."""
        failures, self._failures = self._failures, self._failures + 1
        if failures == 0:
            return 0.0
        ceiling_s = min(self._max_s, FIRST_INTERVAL_S * 2 ** min(failures - 1, 16))
        return self._rng.uniform(0.0, ceiling_s)

    def worked(self, lived_s: float) -> None:
        """It worked, for ``lived_s``. A connection that ends at once is a failure too, or a server that registers us
        and drops us again would be asked without a pause.
        """
        if lived_s >= self._stable_s:
            self._failures = 0
