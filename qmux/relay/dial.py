"""The client's side of a user connection: resolve the target, dial it, say how that went."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence

import aiohappyeyeballs

from qmux import sockets
from qmux.config.schema import Target
from qmux.paths import path_of
from qmux.protocol.frames import RefuseCode
from qmux.protocol.values import clipped

SECOND_FAMILY_AFTER_S = 0.25
"""When an address has not answered, the next one is tried beside it (RFC 8305 §5: 250 ms)."""

FULL_QUEUE_PAUSE_S = 0.01
"""A service that is busy accepts many users in this time."""

_OVERLOADED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class DialFailed(Exception):
    """The target was not reached: ``code`` for the server, ``reason`` for people."""

    def __init__(self, code: RefuseCode, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = clipped(reason)


async def dial(target: Target, timeout_s: float, waited_s: float = 0.0) -> socket.socket:
    """A connected socket to ``target``, resolved again, all its addresses tried. ``waited_s``: of the time that it may
    take, so much has passed. Raises DialFailed.
    """
    if waited_s >= timeout_s:
        raise DialFailed(RefuseCode.TIMEOUT, f"{target} did not answer within {timeout_s:g} s")
    try:
        async with asyncio.timeout(timeout_s - waited_s):
            sock = await (_dial_unix(path_of(target.path)) if target.path else _dial_tcp(target.host, target.port))
    except TimeoutError:
        raise DialFailed(RefuseCode.TIMEOUT, f"{target} did not answer within {timeout_s:g} s") from None
    except socket.gaierror as error:
        raise DialFailed(RefuseCode.NAME, f"{target}: {error.strerror}") from None
    except UnicodeError:  # a label of more than 63 bytes, or an empty one
        raise DialFailed(RefuseCode.NAME, f"{target}: this cannot be a host name") from None
    except OSError as error:
        raise DialFailed(_code_of(error), f"{target}: {_words_of(error)}") from None
    sockets.prepare(sock)
    if _is_connected_to_itself(sock):
        sockets.reset(sock)
        raise DialFailed(RefuseCode.REFUSED, f"{target}: {os.strerror(errno.ECONNREFUSED)}")
    return sock


async def _dial_tcp(host: str, port: int) -> socket.socket:
    if literal := literal_address(host, port):
        return await _connect(*literal[0])
    return await aiohappyeyeballs.start_connection(
        await _resolve(host, port),
        happy_eyeballs_delay=SECOND_FAMILY_AFTER_S,
        interleave=1,
        loop=asyncio.get_running_loop(),
    )


async def _connect(family: int, kind: int, protocol: int, _: str, address: tuple[str, int]) -> socket.socket:
    """To one address. Not by ``loop.sock_connect``: uvloop's asks a resolver thread even for an address."""
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        # The second call says how the first one went: over loopback the handshake is through by then (connect(2)).
        outcome = sock.connect_ex(address) and sock.connect_ex(address)
        if outcome in (errno.EINPROGRESS, errno.EALREADY):
            await _writable(sock)
            outcome = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if outcome not in (0, errno.EISCONN):
            raise OSError(outcome, os.strerror(outcome))
    except BaseException:
        sock.close()
        raise
    return sock


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_writer(sock.fileno(), ready)
    try:
        await waiter
    finally:
        loop.remove_writer(sock.fileno())


async def _resolve(host: str, port: int) -> Sequence[aiohappyeyeballs.AddrInfoType]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _dial_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                # The listener's queue is full. Unlike TCP, the attempt is over and nothing signals room (connect(2)).
                await asyncio.sleep(FULL_QUEUE_PAUSE_S)
    except BaseException:
        sock.close()
        raise


def literal_address(host: str, port: int) -> list[aiohappyeyeballs.AddrInfoType]:
    """The address info of an IP literal, without asking a resolver thread; empty for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        address = (host, port) if family == socket.AF_INET else (host, port, 0, 0)
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]
    return []


def _is_connected_to_itself(sock: socket.socket) -> bool:
    """A target port without a listener may be drawn as our own port: TCP then connects the socket to itself."""
    return sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername()


def _words_of(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _code_of(error: OSError) -> RefuseCode:
    if error.errno == errno.ECONNREFUSED:
        return RefuseCode.REFUSED
    if error.errno in _OVERLOADED:
        return RefuseCode.OVERLOADED
    return RefuseCode.TIMEOUT if error.errno == errno.ETIMEDOUT else RefuseCode.UNREACHABLE
