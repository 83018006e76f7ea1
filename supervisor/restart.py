"""When a process that ended is started again: at once, then later and later, with jitter. Pure: no clock, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0
GROWTH = 2.0
JITTER = 0.2
"""Workers that die of one cause must not all come back in the same instant."""

GOOD_LIFE_S = 30.0
"""A process that lived for this long did not fail at its start: the count begins again at one."""

_rng = random.Random()


@dataclass
class RestartPause:
    """The failures in a row of one seat. ``failures`` counts them."""

    failures: int = 0

    def delay_s(self, lived_s: float, rng: random.Random = _rng) -> float:
        """A process ended after ``lived_s``: how long to wait before the next one."""
        self.failures = 1 if lived_s >= GOOD_LIFE_S else self.failures + 1
        if self.failures == 1:
            return 0.0
        delay_s = min(FIRST_DELAY_S * GROWTH ** min(self.failures - 2, 16), MAX_DELAY_S)
        return delay_s * rng.uniform(1 - JITTER, 1 + JITTER)
