"""Addresses for what a test starts, and one where nobody answers."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

FIRST_PORT = 10_000
PROCESSES = 10
"""Test processes side by side (pytest-xdist) draw from ranges of their own: a port is free until its program has bound
it, and meanwhile another process would find it free, too."""

_given: collections.deque[int] = collections.deque(maxlen=500)
"""The last ones: a test may bind its own later, and until then each looks free here, too."""


def free_port(*kinds: socket.SocketKind, host: str = "127.0.0.1") -> int:
    """A port that nothing uses for TCP (or for ``kinds``), and that the kernel gives to nobody who connects before a
    program has bound it.
    """
    first_local = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    each = (first_local - FIRST_PORT) // PROCESSES
    first = FIRST_PORT + each * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % PROCESSES)
    for _ in range(1000):
        port = random.randrange(first, first + each) if each >= 1000 else 0
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for kind in kinds or (socket.SOCK_STREAM,):
                sock = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind))
                sock.bind((host, port))
                port = sock.getsockname()[1]
            if port not in _given:
                _given.append(port)
                return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def swallowing() -> Iterator[tuple[str, int]]:
    """An address that swallows the SYN of who connects: a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address: tuple[str, int] = full.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address


def link_local() -> str | None:
    """An IPv6 address of this machine that is valid on one interface only, with that scope; None where it has none."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET6 and each.address.startswith("fe80:") and "%" in each.address:
                return str(each.address)
    return None
