"""What a system under test is: something that stands between the load generator and a backend."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

BackendKind = Literal["iperf3", "http"]


class Address(NamedTuple):
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Options(NamedTuple):
    """What a system may need to know about the run."""

    workers: int
    directory: Path
    """A folder of this system's own, empty at the start and deleted after the run."""


class StartFailed(Exception):
    """The system did not start, or is gone; the message says why."""


class System(Protocol):
    """One way for a byte to reach the backend. A new instance is made for each backend."""

    name: str
    """Its column in the table, and what ``--systems`` calls it."""

    def start(self, backend: Address) -> Address:
        """Start every process and return where the load goes. It need not be ready. Raises StartFailed."""
        ...

    def stop(self) -> None:
        """End every process that ``start`` began. Also after a failed ``start``."""
        ...

    def pids(self) -> list[int]:
        """The processes that ``start`` began; their children are found in /proc."""
        ...

    def about(self) -> str:
        """One line for below the table: version, engine, and what makes it comparable or not."""
        ...
