"""The seats of a daemon: each is filled by one process at a time, which is followed by another when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.process import Process
from supervisor.restart import RestartPause
from supervisor.settings import Kind


@dataclass
class Seat:
    """A worker's slot and index, or the admin's (both -1). ``epoch`` counts the processes that sat here."""

    kind: Kind
    name: str
    index: int = -1
    slot: int = -1
    epoch: int = 0
    backoff: RestartPause = field(default_factory=RestartPause)
    process: Process | None = None
    last_end: str = ""

    @property
    def restarts(self) -> int:
        """How often it was filled again."""
        return max(self.epoch - 1, 0)

    @property
    def is_ready(self) -> bool:
        """Whether its process serves."""
        return self.process is not None and self.process.state == "ready"


def seats_for(workers: int) -> list[Seat]:
    """The seats of the first generation, and the admin's. Slot and index are alike at first."""
    return [*(Seat("worker", f"worker-{number}", number, number) for number in range(workers)), Seat("admin", "admin")]
