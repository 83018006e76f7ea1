"""A network of its own for one test, with a far host whose packets take time: no time passes on loopback.

The far host is this one: what is sent to it comes back with both addresses swapped, so that a listener on the near
address has the far one as its peer, and the other way round. Checksums stay right (they are sums).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from types import TracebackType

import pytest

CLONE_NEWNET = 0x40000000  # sched.h
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LONGEST_BYTES = 65_536


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Sockets that this thread makes belong to an empty network, with loopback. Skips where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
        try:
            _ip("link", "set", "lo", "up")
            yield
        finally:
            if libc.setns(before.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Reflector:
    """``far`` is ``delay_s`` away in each direction."""

    near, far = "10.78.0.1", "10.78.0.2"

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._waiting: set[asyncio.TimerHandle] = set()

    def __enter__(self) -> Reflector:
        fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH22x", b"far0", IFF_TUN | IFF_NO_PI))
        _ip("addr", "add", f"{self.near}/24", "dev", "far0")
        _ip("link", "set", "far0", "up")
        asyncio.get_running_loop().add_reader(self._fd, self._received)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        for handle in self._waiting:
            handle.cancel()
        os.close(self._fd)

    def _received(self) -> None:
        packet = bytearray(os.read(self._fd, LONGEST_BYTES))
        if packet[0] >> 4 != 4:
            return  # IPv6 asks for neighbours
        packet[12:16], packet[16:20] = packet[16:20], packet[12:16]
        self._waiting.add(asyncio.get_running_loop().call_later(self._delay_s, os.write, self._fd, bytes(packet)))
