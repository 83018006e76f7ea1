"""The client's side of a user connection: resolve the target, dial it, say how that went."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

import aiohappyeyeballs

from qmux import sockets
from qmux.config.schema import Target
from qmux.paths import path_of
from qmux.protocol.frames import RefuseCode
from qmux.protocol.values import clipped
from qmux.resolver import Resolver

SECOND_FAMILY_AFTER_S = 0.25
"""When an address has not answered, the next one is tried beside it (RFC 8305 §5: 250 ms)."""

FULL_QUEUE_PAUSE_S = 0.01
"""A service that is busy accepts many users in this time."""

_OVERLOADED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_RESET = frozenset({errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE})
"""It was connected, and a moment later not any more."""


class DialFailed(Exception):
    """The target was not reached: ``code`` for the server, ``reason`` for people."""

    def __init__(self, code: RefuseCode, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = clipped(reason)


async def dial(target: Target, resolver: Resolver, timeout_s: float, waited_s: float = 0.0) -> socket.socket:
    """A connected socket to ``target``, all its addresses tried. ``waited_s``: of the time that it may take, so much
    has passed. Raises DialFailed.
    """
    if waited_s >= timeout_s:
        raise DialFailed(RefuseCode.TIMEOUT, f"{target} did not answer within {timeout_s:g} s")
    until = asyncio.get_running_loop().time() + timeout_s - waited_s
    addresses = await _addresses(target, resolver, until)
    try:
        async with asyncio.timeout_at(until):
            sock = await (_dial_unix(path_of(target.path)) if target.path else _dial_tcp(addresses))
    except TimeoutError:
        raise DialFailed(RefuseCode.TIMEOUT, f"{target} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise DialFailed(_code_of(error), f"{target}: {_words_of(error)}") from None
    try:
        _check(sock)
    except OSError as error:
        sockets.reset(sock)
        raise DialFailed(_code_of(error), f"{target}: {_words_of(error)}") from None
    return sock


def _check(sock: socket.socket) -> None:
    """Prepare a connected socket. Raises OSError where it is none any more, or none to a service."""
    sockets.prepare(sock)
    if sockets.is_reset(sock):
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    if _is_connected_to_itself(sock):
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def _addresses(target: Target, resolver: Resolver, until: float) -> Sequence[aiohappyeyeballs.AddrInfoType]:
    """Of a host; none of a Unix socket. ``until``: on the loop's clock."""
    if target.path or (literal := literal_address(target.host, target.port)):
        return () if target.path else literal
    try:
        async with asyncio.timeout_at(until):
            found = await resolver.addresses(target.host)
    except TimeoutError:
        raise DialFailed(RefuseCode.NAME, f"{target}: no answer from the name server") from None
    except socket.gaierror as error:
        raise DialFailed(RefuseCode.NAME, f"{target}: {error.strerror}") from None
    return [_tcp_address(family, address, target.port) for family, address in found]


def _tcp_address(family: int, address: tuple[Any, ...], port: int) -> aiohappyeyeballs.AddrInfoType:
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address[0], port, *address[2:])


async def _dial_tcp(addresses: Sequence[aiohappyeyeballs.AddrInfoType]) -> socket.socket:
    if len(addresses) == 1:
        return await _connect(*addresses[0])
    return await aiohappyeyeballs.start_connection(
        addresses,
        happy_eyeballs_delay=SECOND_FAMILY_AFTER_S,
        interleave=1,
        loop=asyncio.get_running_loop(),
    )


async def _connect(family: int, kind: int, protocol: int, _: str, address: tuple[Any, ...]) -> socket.socket:
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
    """A target port without a listener may be drawn as our own port: TCP then connects the socket to itself. Raises
    OSError (ENOTCONN) where the other end reset it meanwhile.
    """
    return sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername()


def _words_of(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _code_of(error: OSError) -> RefuseCode:
    if error.errno == errno.ECONNREFUSED:
        return RefuseCode.REFUSED
    if error.errno in _RESET:
        return RefuseCode.RESET
    if error.errno in _OVERLOADED:
        return RefuseCode.OVERLOADED
    return RefuseCode.TIMEOUT if error.errno == errno.ETIMEDOUT else RefuseCode.UNREACHABLE
