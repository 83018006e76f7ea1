"""Telling systemd about the daemon's state: sd_notify(3), without libsystemd. Nothing happens without systemd."""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger(__name__)


def ready(status: str) -> None:
    """The daemon serves (again, after ``reloading``)."""
    _send(f"READY=1\nSTATUS={status}")


def reloading() -> None:
    """A reload has begun; ``ready`` ends it. The time is what Type=notify-reload asks for."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(status: str) -> None:
    """The daemon ends."""
    _send(f"STOPPING=1\nSTATUS={status}")


def alive() -> None:
    """The daemon is well: what ``WatchdogSec`` waits for."""
    _send("WATCHDOG=1")


def watchdog_s() -> float | None:
    """Within how many seconds systemd wants to hear ``alive`` again (sd_watchdog_enabled(3)); None: never."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not is_ours or not microseconds.isascii() or not microseconds.isdecimal() or not int(microseconds):
        return None
    return int(microseconds) / 1e6


def _send(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.setblocking(False)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(text.encode())
        except OSError as error:
            log.warning("cannot notify systemd", extra={"reason": error.strerror})
