"""What the systems have in common: processes that are started, named and ended."""

from __future__ import annotations

from typing import ClassVar

from loadtest import processes
from loadtest.system import Setup


class Started:
    """A system of processes: a subclass starts them with ``self._group``."""

    has_workers: ClassVar[bool] = False
    programs: ClassVar[tuple[str, ...]] = ()
    """What it needs to be installed."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._group = processes.Group(setup.directory)

    @classmethod
    def missing(cls) -> str:
        return processes.missing(*cls.programs)

    def is_complete(self) -> bool:
        return True

    def stop(self) -> None:
        self._group.stop()

    def ended(self) -> str:
        return self._group.ended()

    def pids(self) -> list[int]:
        return self._group.pids()

    def worker_pids(self) -> list[int]:
        return self.pids()

    def datagram_bytes(self) -> int:
        return 0
