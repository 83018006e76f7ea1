"""The supervisor's own times and the commands that start its children; tests shorten or replace them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from qmux.errors import StartError
from qmux.messages import TIMINGS_VARIABLE, Timings

Kind = Literal["worker", "admin"]

_MODULES: dict[Kind, str] = {"worker": "qmux.worker", "admin": "qmux.admin"}


def child_command(kind: Kind, control_fd: int, name: str) -> list[str]:
    """What to execute for a child. ``-P``: modules come from the environment, never from the current directory."""
    return [sys.executable, "-P", "-m", _MODULES[kind], str(control_fd), name]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Times in seconds, each with its reason; tests shorten them."""

    command: Callable[[Kind, int, str], list[str]] = child_command

    lock_wait_s: float = 3.0
    """Orphans of a killed supervisor take up to 2 s to end; the lock is theirs until then."""

    start_timeout_s: float = 30.0
    """From fork to Ready. Imports on a cold disk take seconds; a minute would be a hang."""

    watchdog_s: float = 10.0
    """A child sends a heartbeat each second. Ten missed ones are no load peak."""

    abort_s: float = 1.0
    """From SIGABRT, which makes faulthandler write the stacks, to SIGKILL."""

    stop_timeout_s: float = 2.0
    """From Stop to SIGKILL."""

    silent_exit_s: float = 2.0
    """A child that closed its channel, or broke it, has this long to end by itself."""

    configure_timeout_s: float = 5.0
    """In which every child answers a new configuration; else the old one is restored."""

    crash_grace_s: float = 1.0
    """A crashed worker's slot stays active for this long: its successor reads the queue."""

    table_s: float = 1.0
    """How often the admin process gets the process table."""

    quick_failures: int = 3
    """After so many failures in a row a sibling gets the worker's traffic sockets, until it is back."""

    timings: Timings = field(default_factory=Timings)
    """Those of the workers; see ``from_environment``."""


def from_environment() -> Settings:
    """The defaults, with the timings of workers that a test set. Raises StartError where they cannot be read."""
    text = os.environ.get(TIMINGS_VARIABLE)
    if text is None:
        return Settings()
    try:
        timings = msgspec.json.decode(text, type=Timings)
    except msgspec.DecodeError as error:
        raise StartError(f"{TIMINGS_VARIABLE}: {error}") from None
    return Settings(timings=timings)
