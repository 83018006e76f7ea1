"""The bus between the workers of one daemon: ZeroMQ publish/subscribe through a proxy thread of the supervisor.

Nothing waits for it: a publisher drops what the proxy does not take, a slow subscriber misses messages, and the pool's
passes heal both within a second (``qmux.pool.pool``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from qmux.pool.rows import BusMessage

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1 << 20
"""The largest legitimate message is a chunk of 256 rows of at most 2 KiB; libzmq has no limit of its own."""

QUEUE_MESSAGES = 2000
"""Kept for a subscriber that does not read: at 4 workers some ten seconds' worth. What is older is of no use."""

BATCH = 200
"""Messages decoded in one turn of the loop: a flood must not starve the relays."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(BusMessage)


def endpoints(directory: str) -> tuple[str, str]:
    """Where to publish and where to subscribe, for a runtime directory."""
    return f"ipc://{directory}/bus-pub", f"ipc://{directory}/bus-sub"


class BusProxy:
    """XSUB/XPUB proxy in a thread. The sockets in ``directory`` belong to the user that the workers drop to."""

    def __init__(self, directory: str, uid: int, gid: int) -> None:
        self._context = zmq.Context()
        publish, subscribe = endpoints(directory)
        self._inlet = self._bind(zmq.XSUB, publish)
        self._outlet = self._bind(zmq.XPUB, subscribe)
        for endpoint in (publish, subscribe):
            path = Path(endpoint.removeprefix("ipc://"))
            os.chown(path, uid, gid)
            path.chmod(0o600)
        control = f"inproc://bus-control-{id(self)}"
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind(control)
        self._thread = threading.Thread(target=self._run, args=(control,), name="bus", daemon=True)
        self._thread.start()

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        _limit(sock)
        sock.bind(endpoint)
        return sock

    def _run(self, control: str) -> None:
        steering = self._context.socket(zmq.PAIR)
        steering.connect(control)
        zmq.proxy_steerable(self._inlet, self._outlet, None, steering)
        for sock in (steering, self._inlet, self._outlet):
            sock.close(0)

    def stop(self) -> None:
        """End the thread and free everything."""
        self._control.send(b"TERMINATE")
        self._thread.join(2.0)
        self._control.close(0)
        self._context.destroy(0)


class Publisher:
    """Sends to everybody; never blocks. ``dropped`` counts what the proxy did not take."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        _limit(self._socket)
        self._socket.connect(endpoint)
        self.dropped = 0

    def send(self, message: BusMessage) -> None:
        """Publish ``message``."""
        try:
            self._socket.send(_encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            self.dropped += 1

    def close(self) -> None:
        """Drop what is queued."""
        self._socket.close(0)
        self._context.destroy(0)


class Subscriber:
    """Everything that is published, decoded, on the running loop. ``invalid`` counts what does not decode."""

    def __init__(self, endpoint: str, on_message: Callable[[BusMessage], None]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        _limit(self._socket)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._scheduled: asyncio.Handle | None = None
        self.invalid = 0
        self._loop.add_reader(self._fd, self._drain)
        self._drain()

    def _drain(self) -> None:
        """The descriptor signals edges only (zmq_getsockopt(3), ZMQ_FD): read until nothing is left, or go on later."""
        self._scheduled = None
        for _ in range(BATCH):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._received(data)
        self._scheduled = self._loop.call_soon(self._drain)

    def _received(self, data: bytes) -> None:
        try:
            message = _decoder.decode(data)
        except msgspec.DecodeError as error:
            self.invalid += 1
            log.error("a bus message does not decode", extra={"reason": error})
            return
        self._on_message(message)

    def close(self) -> None:
        """Hear nothing more."""
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close(0)
        self._context.destroy(0)


def _limit(sock: zmq.Socket[bytes]) -> None:
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    sock.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
    sock.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
    sock.setsockopt(zmq.LINGER, 0)
