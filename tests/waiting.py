"""Waiting for what other processes and threads do, by looking again and again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

Seen = TypeVar("Seen")


def until(holds: Callable[[], Seen], what: str, timeout_s: float = 30.0, every_s: float = 0.02) -> Seen:
    """Poll until ``holds`` returns something true, and return it. ``tests.aio`` has the same for a coroutine."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)  # the poller
    return value


def until_line(process: subprocess.Popen[str], wanted: Callable[[str], object]) -> list[str]:
    """Read what a program prints until a line is wanted; the test's own time limit bounds the wait."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if wanted(line):
            return lines
    raise AssertionError(f"the program ended without it: {lines}")


def stays(holds: Callable[[], Any], for_s: float) -> bool:
    """Whether it holds now and for all of that time: for a state that has no other sign of being the last."""
    deadline = time.monotonic() + for_s
    while holds():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)  # the poller
    return False


def lasts(for_s: float) -> None:
    """A fault that lasts for this time, which itself is what the test needs: no state tells its end."""
    time.sleep(for_s)  # what the caller asks for
