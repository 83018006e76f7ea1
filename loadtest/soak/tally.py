"""What became of the traffic: counted by several threads, told at the end."""

from __future__ import annotations

import threading

MAX_PROBLEMS = 5
"""Kept of one kind of traffic; the rest are only counted."""


class Tally:
    """Of one kind of traffic."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.failed = 0
        self.bytes = 0
        self.problems: list[str] = []
        self._lock = threading.Lock()

    def add(self, done: int, failed: int = 0, transferred_bytes: int = 0) -> None:
        """More of it is over."""
        with self._lock:
            self.done += done
            self.failed += failed
            self.bytes += transferred_bytes

    def fail(self, problem: str) -> None:
        """One failed, and how."""
        self.add(0, failed=1)
        with self._lock:
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(problem)

    def __str__(self) -> str:
        return f"{self.name}: {self.done:,} done, {self.failed:,} failed, {self.bytes / (1 << 30):.2f} GiB"
