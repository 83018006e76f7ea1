"""The seats of a daemon: each is filled by one process at a time, which is followed by another when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.restart import RestartPause
from supervisor.settings import Kind


@dataclass(eq=False)
class Seat:
    """A worker's slot and index, or the admin's (both -1): plain data; ``supervisor.fleet`` has the process.

    ``epoch`` is that of the newest process, ``starts`` counts those that were started here; ``last_end`` says how the
    last one ended, for a log line.
    """

    kind: Kind
    name: str
    index: int = -1
    slot: int = -1
    epoch: int = 0
    starts: int = 0
    pause: RestartPause = field(default_factory=RestartPause)
    last_end: str = ""

    @property
    def restarts(self) -> int:
        """How often it was filled again."""
        return max(self.starts - 1, 0)
