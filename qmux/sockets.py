"""Options and words for the TCP sockets of users and services."""

from __future__ import annotations

import select
import socket
import struct

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
"""A peer that vanished without FIN is noticed after two minutes (tcp(7)), long before a NAT forgets the rest."""

_LINGER_RST = struct.pack("ii", 1, 0)
_NO_LINGER = struct.pack("ii", 0, 0)


def prepare(sock: socket.socket) -> None:
    """Non-blocking, no Nagle delay, keep-alive, and urgent data in line: a stream has none (RFC 9293 §3.8.5).

    Closed with RST by whatever closes it but ``close``: also by the kernel, when this process is killed. A transfer
    that was cut off must not look complete (socket(7), SO_LINGER). Unix sockets have none of the TCP options.
    """
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def close(sock: socket.socket) -> None:
    """Close what has ended at both sides: what is still to be sent is delivered."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    sock.close()


def reset(sock: socket.socket) -> None:
    """Close with RST: the other end sees a refusal, not an empty answer."""
    if sock.fileno() < 0:
        return
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)  # also where the other end reset it
    sock.close()


def is_reset(sock: socket.socket) -> bool:
    """Whether the other end reset the connection; looking does not clear it. A FIN is no such sign: who has said all
    may still wait for the answer.
    """
    poller = select.poll()
    poller.register(sock, 0)
    return any(events & select.POLLERR for _, events in poller.poll(0))
