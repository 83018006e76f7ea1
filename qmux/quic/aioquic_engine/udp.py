"""UDP sockets as a server needs them: an answer leaves from the address that was asked (``IP_PKTINFO``, ip(7))."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

MAX_DATAGRAM_BYTES = 65_535
"""A peer on the native engine may use jumbo datagrams: receive whatever UDP can carry."""

IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3  # linux/in.h: set DF, ignore what the kernel believes of the path

IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", 50)
IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
_ANCILLARY_BYTES = socket.CMSG_SPACE(20)
_LOST_ERRORS = frozenset(
    {
        errno.EAGAIN,
        errno.ENOBUFS,
        errno.EPERM,  # a firewall
        errno.EMSGSIZE,
        errno.EINTR,
        errno.EINVAL,  # a forged source port 0, or the local address is gone
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.EADDRNOTAVAIL,
    }
)
"""A datagram that the kernel does not take now is a lost datagram: QUIC sends it again, or gives up in the end."""

Address = tuple[Any, ...]
LocalAddress = tuple[int, int, bytes]
"""cmsg level, type and the pktinfo to send with."""


def forbid_fragments(sock: socket.socket) -> None:
    """Set "don't fragment", and let the engine alone search for the size (ip(7), ipv6(7); RFC 9000 §14)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)


def receive(sock: socket.socket) -> tuple[bytes, Address, LocalAddress | None]:
    """One datagram, who sent it, and the local address it came to. Raises BlockingIOError, OSError."""
    data, ancillary, _, address = sock.recvmsg(MAX_DATAGRAM_BYTES, _ANCILLARY_BYTES)
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            # struct in_pktinfo { ifindex; spec_dst; addr }: answer from the address in the header, interface free.
            return data, address, (level, kind, struct.pack("=I4s4s", 0, value[8:12], b"\0" * 4))
        if level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            return data, address, (level, kind, value)
    return data, address, None


def send(sock: socket.socket, data: bytes, address: Address, local: LocalAddress | None) -> bool:
    """Send from ``local`` (None: the kernel chooses). False where the datagram was lost here."""
    try:
        sock.sendmsg([data], [local] if local is not None else [], 0, address)
    except OSError as error:
        if error.errno in _LOST_ERRORS:
            return False
        raise
    return True
