"""The bus between the workers of one daemon: ZeroMQ publish/subscribe through a proxy thread of the supervisor.

Nothing waits for it: a publisher drops what the proxy does not take, a slow subscriber misses messages, and the pool's
passes heal both within a second (``qmux.pool.pool``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from qmux.config import limits
from qmux.errors import StartError
from qmux.paths import path_of
from qmux.pool.rows import BusMessage

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1 << 20
"""The largest legitimate message is a chunk of 256 rows of at most 2 KiB; libzmq has no limit of its own."""

QUEUE_MESSAGES = 2000
"""Kept for a subscriber that does not read: at 4 workers some ten seconds' worth. What is older is of no use."""

NEEDED_DESCRIPTORS, NEEDED_THREADS = 24, 3
"""What a context takes, with room to spare: two threads of its own with an epoll and an eventfd each, and the sockets;
and the proxy's thread."""

BATCH = 200
"""Messages decoded in one turn of the loop: a flood must not starve the relays."""

CONTROL = "inproc://bus-control"
"""Where the proxy thread is told to end; inproc names belong to their context."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(BusMessage)


def endpoints(directory: str) -> tuple[str, str]:
    """Where to publish and where to subscribe, for a runtime directory (``paths.text_of``)."""
    return f"ipc://{directory}/bus-pub", f"ipc://{directory}/bus-sub"


def _for_system(endpoint: str) -> Any:
    """As text where it is text, else as bytes: pyzmq takes them, but its annotations do not say so."""
    path = path_of(endpoint)
    return path if path.isprintable() else os.fsencode(path)


class BusProxy:
    """XSUB/XPUB proxy in a thread. The sockets in ``directory`` belong to the user that the workers drop to.

    Raises StartError where they cannot be made.
    """

    def __init__(self, directory: str, uid: int, gid: int) -> None:
        self._context = _context()
        try:
            self._context.setsockopt(zmq.LINGER, 0)
            inlet, outlet = (
                self._bind(kind, endpoint, uid, gid)
                for kind, endpoint in zip((zmq.XSUB, zmq.XPUB), endpoints(directory), strict=True)
            )
            self._control = self._context.socket(zmq.PAIR)
            self._control.bind(CONTROL)
            told = self._context.socket(zmq.PAIR)
            told.connect(CONTROL)
            self._thread = threading.Thread(target=_proxy, args=(inlet, outlet, told), name="bus", daemon=True)
            self._thread.start()
        except (zmq.ZMQError, OSError, TypeError, RuntimeError) as error:
            # TypeError: pyzmq words an error about bytes as text; RuntimeError: no thread could be started
            self._context.destroy(0)
            raise StartError(f"{directory}: the bus between the workers cannot be opened there: {error}") from None

    def _bind(self, kind: int, endpoint: str, uid: int, gid: int) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        _limit(sock)
        sock.bind(_for_system(endpoint))
        path = Path(path_of(endpoint.removeprefix("ipc://")))
        os.chown(path, uid, gid)
        path.chmod(0o600)
        return sock

    def stop(self) -> None:
        """End the thread and free everything; nothing where that was done."""
        if self._context.closed:
            return
        if self._thread.is_alive():
            self._control.send(b"TERMINATE", zmq.NOBLOCK)
            self._thread.join()
        self._control.close(0)
        self._context.destroy(0)


class Publisher:
    """Sends to everybody; never blocks. ``dropped`` counts what the proxy did not take."""

    def __init__(self, endpoint: str) -> None:
        self._context = _context()
        self._socket = self._context.socket(zmq.PUB)
        _limit(self._socket)
        # A PUB socket drops in silence unless it is told to say so (zmq_setsockopt(3), ZMQ_XPUB_NODROP).
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.connect(_for_system(endpoint))
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
        self._context = _context()
        self._socket = self._context.socket(zmq.SUB)
        _limit(self._socket)
        self._socket.subscribe(b"")
        self._socket.connect(_for_system(endpoint))
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._scheduled: asyncio.Handle | None = None
        self.invalid = 0
        self._loop.add_reader(self._fd, self._drain)
        self._drain()

    def _drain(self) -> None:
        """The descriptor signals edges only (zmq_getsockopt(3), ZMQ_FD): read until nothing is left, or go on later."""
        if self._scheduled is not None:
            self._scheduled.cancel()
        # Before anything can fail: what was not read would never be signalled again.
        self._scheduled = self._loop.call_soon(self._drain)
        for _ in range(BATCH):
            if self._socket.closed:
                return
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                self._scheduled.cancel()
                self._scheduled = None
                return
            self._received(data)

    def _received(self, data: bytes) -> None:
        try:
            message = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.invalid += 1
            log.error("bus message cannot be decoded", extra={"reason": error})
            return
        self._on_message(message)

    def close(self) -> None:
        """Hear nothing more."""
        if self._socket.closed:
            return
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        self._loop.remove_reader(self._fd)
        self._socket.close(0)
        self._context.destroy(0)


def _proxy(inlet: zmq.Socket[bytes], outlet: zmq.Socket[bytes], told: zmq.Socket[bytes]) -> None:
    """The proxy thread; from its start the sockets are its own."""
    try:
        zmq.proxy_steerable(inlet, outlet, None, told)
    finally:
        for sock in (told, inlet, outlet):
            sock.close(0)


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context, with what it needs at hand: where libzmq gets no descriptor or thread, it aborts the process.

    Raises StartError where there is not so much left.
    """
    _try_descriptors()
    _try_threads()
    return zmq.Context()


def _try_descriptors() -> None:
    taken: list[int] = []
    try:
        for _ in range(NEEDED_DESCRIPTORS):
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise StartError(
            f"too few open files are left for the bus between the workers ({error.strerror}; the limit is {limit}): "
            "raise LimitNOFILE (systemd) or `ulimit -n`"
        ) from None
    finally:
        for fd in taken:
            os.close(fd)


def _try_threads() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, daemon=True) for _ in range(NEEDED_THREADS)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise StartError(
            f"no more threads can be started for the bus between the workers: {limits.of_tasks()}"
        ) from None
    finally:
        over.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _limit(sock: zmq.Socket[bytes]) -> None:
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    sock.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
    sock.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
    sock.setsockopt(zmq.LINGER, 0)
