"""A crowd of users that come and go at random, each in a way of its own, on one event loop."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import Counter

from tests.integration.services import pattern

RST = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER
ECHO, RESET, CLOSE = b"e", b"r", b"c"
"""The first byte of a user: what ``fickle`` does."""

SIZES = (0, 1, 100, 5_000, 70_000, 200_000)
PATIENCE_S = 60.0


async def fickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service that echoes, or ends in the middle as its user asks."""
    wish = await reader.readexactly(1)
    if wish == RESET:
        await reader.read(4096)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()
    elif wish == ECHO:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


class Crowd:
    """``size`` users at any time, until told to stop; ``ends`` counts how they ended, ``failures`` what went wrong."""

    LIVES = ("_finished", "_finished", "_reset", "_cut_off")

    def __init__(self, port: int, size: int, seed: int = 1) -> None:
        self.ends: Counter[str] = Counter()
        self.failures: list[str] = []
        self._port = port
        self._size = size
        self._random = random.Random(seed)
        self._pattern = pattern(max(SIZES) + 1)

    async def live(self, for_s: float) -> None:
        """Come and go for so long; every user is gone at the end."""
        until = time.monotonic() + for_s
        async with asyncio.timeout(for_s + PATIENCE_S):
            await asyncio.gather(*(self._place(until) for _ in range(self._size)))

    async def _place(self, until: float) -> None:
        await asyncio.sleep(self._random.random())  # not all at once
        while time.monotonic() < until:
            life = self._random.choice(self.LIVES)
            try:
                await getattr(self, life)()
            except OSError as error:
                self.failures.append(f"{life}: {error}")
            self.ends[life] += 1

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _finished(self) -> None:
        """Everything comes back, then both ends close."""
        size_bytes = self._random.choice(SIZES)
        reader, writer = await self._open()
        try:
            writer.write(ECHO + self._pattern[:size_bytes])
            await self._linger()
            writer.write_eof()
            if await reader.read(-1) != self._pattern[:size_bytes]:
                self.failures.append(f"{size_bytes} bytes did not come back")
        finally:
            writer.close()

    async def _reset(self) -> None:
        """The user leaves with RST: at once, or in the middle of its bytes."""
        _, writer = await self._open()
        writer.write(ECHO + self._pattern[: self._random.choice(SIZES)])
        await self._linger()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()

    async def _cut_off(self) -> None:
        """The service leaves, with RST or without: the user sees that."""
        reader, writer = await self._open()
        try:
            writer.write(self._random.choice((RESET, CLOSE)) + b"?")
            await reader.read(-1)
        except ConnectionResetError:
            pass  # what was asked for
        finally:
            writer.close()

    async def _linger(self) -> None:
        await asyncio.sleep(self._random.choice((0.0, 0.0, 0.05, 1.0)) * self._random.random())  # the user's pace
