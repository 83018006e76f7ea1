"""Connections that come and go at random: whole, given up half-way, silent, reset, or kept for a while."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable

from loadtest.backends import FILE_BYTES
from loadtest.hosts import Host
from loadtest.soak.tally import Tally
from loadtest.system import Address

TIMEOUT_S = 10.0
PAUSE_S = 0.02
"""At most, between two connections: some hundred a second, which leaves the CPU to the other traffic."""

KEPT = 16
"""Silent connections that stay open meanwhile; one more, and one of them at random is closed."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close() sends a reset."""


class Churn:
    """One thread of it, which counts in ``tally``. The same seed makes the same choices."""

    def __init__(self, host: Host, address: Address, tally: Tally, seed: int) -> None:
        self.tally = tally
        self._host = host
        self._address = address
        self._random = random.Random(seed)
        self._cancelled = threading.Event()
        self._kept: list[socket.socket] = []

    def run(self, until: float) -> None:
        acts = (self._whole, self._aborted, self._half, self._silent, self._keep)
        try:
            with self._host.inside():
                while not self._cancelled.is_set() and time.monotonic() < until:
                    self._one(self._random.choice(acts))
                    self._cancelled.wait(self._random.random() * PAUSE_S)
        finally:
            for kept in self._kept:
                kept.close()

    def cancel(self) -> None:
        self._cancelled.set()

    def _one(self, act: Callable[[socket.socket], None]) -> None:
        try:
            user = socket.create_connection(self._address, TIMEOUT_S)
            try:
                act(user)
            finally:
                if user not in self._kept:
                    user.close()
            self.tally.add(1)
        except (OSError, EOFError) as error:
            self.tally.fail(f"{act.__name__.strip('_')}: {error!r}")

    def _whole(self, user: socket.socket) -> None:
        """A request and all of its answer."""
        user.sendall(_request("64k"))
        answer = bytearray()
        while data := user.recv(1 << 16):
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0] or body != b"q" * FILE_BYTES["64k"]:
            raise EOFError(f"not the answer: {bytes(head[:40])!r} and {len(body)} bytes")
        self.tally.add(0, transferred_bytes=len(answer))

    def _aborted(self, user: socket.socket) -> None:
        """Reset while the answer is under way."""
        user.sendall(_request("64k"))
        if not user.recv(1024):
            raise EOFError("no answer")
        user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _half(self, user: socket.socket) -> None:
        """Closed in the middle of the request."""
        request = _request("1k")
        user.sendall(request[: len(request) // 2])

    def _silent(self, user: socket.socket) -> None:
        """Closed without a byte."""

    def _keep(self, user: socket.socket) -> None:
        """Silent, and open for a while."""
        self._kept.append(user)
        if len(self._kept) > KEPT:
            self._kept.pop(self._random.randrange(KEPT)).close()


def _request(file: str) -> bytes:
    return f"GET /{file} HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n".encode()
