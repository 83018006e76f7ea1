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
