"""A server in a process of its own, so that its memory can be watched.

``python -m tests.quic.victim ENGINE DIRECTORY STREAMS``: prints its port, and for every line on stdin one line of JSON
about itself. It writes 32 KiB to every stream that a client opens; once connected, a client may open STREAMS of them
(0: it stays unregistered).
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from pathlib import Path

import psutil
import uvloop

from qmux.pki.material import Keys
from qmux.quic.choose import load_engine
from qmux.quic.engine import CloseReason, Connection, ConnectionLost, EndpointConfig, Stream, StreamError
from qmux.tasks import TaskSet, only_logged
from tests.quic.certificates import read
from tests.quic.harness import udp_socket

STREAM_WINDOW_BYTES = 1 << 20


class Handler:
    """Answers every stream with more than a stranger reads."""

    def __init__(self, connection: Connection, max_streams: int, tasks: TaskSet) -> None:
        self._connection = connection
        self._max_streams = max_streams
        self._tasks = tasks

    def connected(self) -> None:
        if self._max_streams:
            self._connection.raise_limits(self._max_streams, STREAM_WINDOW_BYTES)

    def stream_opened(self, stream: Stream) -> None:
        self._tasks.start(self._answer(stream), "answer")

    def datagram_received(self, data: bytes) -> None:
        pass

    def closed(self, reason: CloseReason) -> None:
        pass

    async def _answer(self, stream: Stream) -> None:
        try:
            await stream.write(bytes(32 << 10))
            while await stream.read(65_536):
                pass
            stream.finish()
        except (StreamError, ConnectionLost):
            pass  # what the attacker wanted


async def serve(engine: str, directory: Path, max_streams: int) -> None:
    loop = asyncio.get_running_loop()
    tasks = TaskSet(only_logged)
    config = EndpointConfig(
        slot=0,
        material=read(directory / "localhost.pem"),
        keys=Keys(b"r" * 32, b"t" * 32, b"f" * 32),
        idle_timeout_s=30.0,
        keep_alive_s=10.0,
        handshake_timeout_s=5.0,
        retry_threshold=100,
        max_connections=4096,
    )
    endpoint = load_engine(engine).serve(config, lambda connection: Handler(connection, max_streams, tasks))
    sock = udp_socket()
    port = sock.getsockname()[1]
    endpoint.add_socket(sock)
    print(port, flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        gc.collect()
        stats = endpoint.stats()
        facts = {
            "rss_bytes": psutil.Process().memory_info().rss,
            "half_open": stats.half_open,
            "retries_sent": stats.retries_sent,
            "datagrams_received": stats.datagrams_received,
            "connections": stats.connections,
        }
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    logging.getLogger("quic").setLevel(logging.CRITICAL)  # as qmux.log does
    uvloop.run(serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
