"""Users of a service: what they send, and what comes back however the network cut it into pieces."""

from __future__ import annotations

import socket
import struct
import threading

from tests.integration.services import PATTERN_BYTES, pattern
from tests.waiting import until


class Ended(AssertionError):
    """FIN where more was to come."""


RST = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER
CHUNK_BYTES = 64 << 10


def connect(port: int, timeout_s: float = 30.0, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=timeout_s)


def reset(user: socket.socket) -> None:
    """Leave with RST."""
    user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    user.close()


def read_exactly(user: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        chunk = user.recv(min(CHUNK_BYTES, size_bytes - len(data)))
        if not chunk:
            raise Ended(f"after {len(data)} of {size_bytes} bytes")
        data += chunk
    return bytes(data)


def read_to_end(user: socket.socket) -> bytes:
    data = bytearray()
    while chunk := user.recv(CHUNK_BYTES):
        data += chunk
    return bytes(data)


def read_line(user: socket.socket) -> str:
    """What ``services.named`` says, without the end of the line."""
    data = b""
    while not data.endswith(b"\n"):
        chunk = user.recv(100)
        if not chunk:
            raise Ended(f"after {data!r}")
        data += chunk
    return data[:-1].decode()


def says(port: int, timeout_s: float = 10.0, host: str = "127.0.0.1") -> str:
    """What ``services.named`` behind ``port`` says to a new user; "" where the user is reset or not served."""
    try:
        with connect(port, timeout_s, host) as user:
            return read_line(user)
    except (OSError, Ended):
        return ""


def ask(user: socket.socket, data: bytes) -> bytes:
    """What an echo makes of ``data``."""
    user.sendall(data)
    return read_exactly(user, len(data))


class EchoFlow:
    """A user of an echo that sends without end, and compares all that comes back, while the network changes."""

    def __init__(self, port: int) -> None:
        self.sent = self.received = 0
        self._failures: list[str] = []
        self._pattern = pattern(PATTERN_BYTES + CHUNK_BYTES)
        self._user = connect(port, timeout_s=60.0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def goes_on(self, size_bytes: int, timeout_s: float = 30.0) -> None:
        """Wait until that many bytes more have come back."""
        seen = self.received
        until(lambda: self._failures or self.received >= seen + size_bytes, "the bytes go on", timeout_s)
        assert self._failures == []

    def finish(self, timeout_s: float = 60.0) -> int:
        """End in good order: how many bytes made the whole way, each in its place."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout_s)
        assert not any(thread.is_alive() for thread in self._threads), f"{self.received} of {self.sent} bytes came back"
        self._user.close()
        assert self._failures == []
        assert self.received == self.sent
        return self.received

    def _expected(self, offset: int, size_bytes: int) -> bytes:
        start = offset % PATTERN_BYTES
        return self._pattern[start : start + size_bytes]

    def _send(self) -> None:
        try:
            while not self._stop.is_set():
                self._user.sendall(self._expected(self.sent, CHUNK_BYTES))
                self.sent += CHUNK_BYTES
            self._user.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._failures.append(f"after {self.sent} bytes: {error}")

    def _receive(self) -> None:
        try:
            while data := self._user.recv(CHUNK_BYTES):
                if data != self._expected(self.received, len(data)):
                    self._failures.append(f"other bytes after {self.received}")
                    return
                self.received += len(data)
        except OSError as error:
            self._failures.append(f"{error} after {self.received} bytes")
