"""Sample services behind a client: each runs in a thread of its own and ends with the test."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType

from qmux import addresses

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Service:
    """A TCP (or Unix) service; ``connections`` counts what was accepted, ``open`` what is open now."""

    def __init__(self, handler: Handler, host: str = "127.0.0.1", path: str = "", port: int = 0) -> None:
        self.port = port
        self.connections = 0
        self.open = 0
        self._handler = handler
        self._host = host
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()

    @property
    def target(self) -> str:
        if self._path:
            return f"unix:{self._path}"
        return addresses.join(self._host, self.port)

    def __enter__(self) -> Service:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        writers: set[asyncio.StreamWriter] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            writers.add(writer)
            self.connections += 1
            self.open += 1
            try:
                await self._handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass  # a test that resets its connection
            except asyncio.CancelledError:
                pass  # the end of the test; asyncio's stream server logs a task that ends as cancelled
            finally:
                self.open -= 1
                tasks.discard(task)
                writer.close()
                if writer.transport.get_write_buffer_size() == 0:
                    writers.discard(writer)

        if self._path:
            server = await asyncio.start_unix_server(connected, self._path)
        else:
            server = await asyncio.start_server(connected, self._host, self.port, backlog=4096)
            self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            # What a user never read. One that took the rest since is closed, and a closed transport cannot be aborted.
            if writer.get_extra_info("socket").fileno() != -1:
                writer.transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)  # transports close their sockets in the turns after


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every byte back, then FIN."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await writer.drain()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to FIN, answer with SHA-256 in hex."""
    hashed = hashlib.sha256()
    while data := await reader.read(262_144):
        hashed.update(data)
    writer.write(hashed.hexdigest().encode())
    await writer.drain()


def named(name: str) -> Handler:
    """Say ``name`` and stay open until the user leaves."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name.encode() + b"\n")
        await writer.drain()
        while await reader.read(4096):
            pass

    return handler


def blob(size_bytes: int) -> Handler:
    """Send ``size_bytes`` of ``pattern``, then FIN."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        chunk = pattern(1 << 20)
        while sent < size_bytes:
            part = chunk[: size_bytes - sent]
            writer.write(part)
            await writer.drain()
            sent += len(part)
        writer.write_eof()
        await writer.drain()

    return handler


PATTERN_BYTES = 65_521
"""``pattern`` begins anew after as many: a prime, so that no buffer has the same length."""


def pattern(size_bytes: int) -> bytes:
    """Bytes that differ at every offset of 64 KiB and so show what was lost, doubled or swapped."""
    block = hashlib.shake_256(b"qmux").digest(PATTERN_BYTES)
    return (block * (size_bytes // len(block) + 1))[:size_bytes]
