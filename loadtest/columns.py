"""The columns of the table: each system, and where its worker count matters each count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loadtest.systems import SYSTEMS


class Column(NamedTuple):
    """A system with a number of workers; 0 where it has no such setting."""

    system: str
    workers: int = 0

    @property
    def label(self) -> str:
        """Its heading."""
        return f"{self.system}/{self.workers}" if self.workers else self.system


def columns(systems: Sequence[str], workers: Sequence[int]) -> list[Column]:
    """In the order of ``systems``."""
    return [
        Column(name, count)
        for name in systems
        for count in (dict.fromkeys(workers) if SYSTEMS[name].has_workers else (0,))
    ]
