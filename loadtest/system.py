"""What a system under test is: something that stands between the load generator and the backends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from loadtest.paths import NetworkPath

BackendKind = Literal["iperf3", "http"]
KINDS: tuple[BackendKind, ...] = ("iperf3", "http")


class Address(NamedTuple):
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Addresses = Mapping[BackendKind, Address]


class Setup(NamedTuple):
    """What a system is told about the run."""

    path: NetworkPath
    workers: int
    client_workers: int
    directory: Path
    """A folder of this system's own, empty at the start and deleted after the run."""


class StartFailed(Exception):
    """Something did not start, or is gone; the message says why."""


class System(Protocol):
    """One way for a byte to reach the backends: all of them through the same processes."""

    name: ClassVar[str]
    """What ``--systems`` calls it."""

    has_workers: ClassVar[bool]
    """Whether ``--workers`` makes a difference to it; it has a column for each count then."""

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run here, or ""."""
        ...

    def start(self, backends: Addresses) -> Addresses:
        """Start every process and return where the load for each backend goes. It need not be ready.

        Raises StartFailed.
        """
        ...

    def is_complete(self) -> bool:
        """Whether every process serves, not only the one that answered first: from here on it is idle."""
        ...

    def stop(self) -> None:
        """End every process that ``start`` began. Also after a failed ``start``."""
        ...

    def ended(self) -> str:
        """Those of its processes that have ended though they were not stopped, or ""."""
        ...

    def pids(self) -> list[int]:
        """The processes that ``start`` began; their children are found in /proc."""
        ...

    def worker_pids(self) -> list[int]:
        """Those, or their descendants, that move the users' bytes."""
        ...

    def datagram_bytes(self) -> int:
        """The UDP payload that it fills at most, as it says itself; 0 where there is none."""
        ...

    def about(self) -> str:
        """One line for below the table: version, engine, and what makes it comparable or not."""
        ...
