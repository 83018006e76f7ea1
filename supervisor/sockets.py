"""Opening listening sockets: ``SO_REUSEPORT`` groups that belong to this daemon alone.

The first socket of a group is bound (TCP: listens) without ``SO_REUSEPORT`` and gets the option only then: the kernel
thereby refuses an address that another program has, and refuses ours to a program that probes alike, with no moment
between a probe and the real thing. The others join afterwards. All must be opened under one euid.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from dataclasses import dataclass

import psutil

from qmux import addresses
from qmux.config.schema import Bind, ListenAddress, Protocol
from qmux.errors import StartError

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Users that wait for a worker to accept them (a crashed one is back in less than a second); somaxconn caps it."""

RECEIVE_BUFFER_BYTES = 8 << 20
SMALL_RECEIVE_BUFFER_BYTES = 1 << 20
"""Below this, bursts are lost that a 1 Gbit/s path brings while a worker is busy for some milliseconds."""

SEND_BUFFER_BYTES = 4 << 20
"""All connections of a worker send through it: while it is full, none does."""

PROGRAM, MAX_PROGRAM_WORDS, MAX_COMMAND = "qmuxd", 4, 200
"""A supervisor's command line has the name in its first words (interpreter, options, script); characters shown."""

PORT_TRIES = 8
"""Port 0 with IPv4 and IPv6: the port that one family gave may be taken in the other."""

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_SO_SNDBUFFORCE = 32
_IP_PKTINFO = 8  # linux/in.h


@dataclass
class Group:
    """The sockets of one numeric address, in the kernel's order: that of their bind calls."""

    protocol: Protocol
    address: str
    sockets: list[socket.socket]

    def grow(self, count: int, config_key: str) -> None:
        """Add sockets at the end until there are ``count``. None that is there moves, or loses what waits in it.

        Where a program steers, nothing comes to the new ones until it is replaced. Without one (traffic) the kernel's
        hash uses them at once: whoever grows the group has readers for them. The process must have the euid that
        opened the group. Raises StartError, naming ``config_key``, and leaves the group as it was.
        """
        first = self.sockets[0]
        host, port, *rest = first.getsockname()
        if rest and rest[1]:
            host = f"{host}%{rest[1]}"
        added: list[socket.socket] = []
        try:
            for _ in range(count - len(self.sockets)):
                added.append(_open(self.protocol, first.family, host, port, exclusive=False))
        except OSError as error:
            for sock in added:
                sock.close()
            why = _why(error, self.protocol, port)
            raise StartError(f"cannot listen on {self.address} ({config_key}) for more workers: {why}") from None
        self.sockets += added

    def close(self) -> None:
        """Close our descriptors. Workers may have others of the same sockets."""
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()


def open_groups(bind: Bind, count: int, config_key: str, shared: bool = False) -> list[Group]:
    """``count`` sockets for each address of ``bind``: two addresses where it names none (IPv4 and IPv6), else one.

    ``shared``: this daemon itself has an overlapping address, which it is about to close. Raises StartError, naming
    ``config_key``, where an address cannot be had.
    """
    for attempt in range(PORT_TRIES):
        groups: list[Group] = []
        port = bind.port
        try:
            for family, host in _addresses(bind.address, config_key):
                groups.append(_open_group(bind.protocol, family, host, port, count, shared))
                port = groups[0].sockets[0].getsockname()[1]
            return groups
        except OSError as error:
            for group in groups:
                group.close()
            if bind.port == 0 and error.errno == errno.EADDRINUSE and groups and attempt < PORT_TRIES - 1:
                continue
            raise StartError(
                f"cannot listen on {bind} ({config_key}): {_why(error, bind.protocol, bind.port)}"
            ) from None
    raise AssertionError("the last try returns or raises")


def printed(sock: socket.socket) -> str:
    """The address of a socket as binds and logs name it: numeric, IPv6 in brackets."""
    return addresses.text_of(sock.getsockname())


def _addresses(address: ListenAddress, config_key: str) -> list[tuple[socket.AddressFamily, str]]:
    if not address.host:
        every = [(socket.AF_INET, "0.0.0.0")]
        return [*every, (socket.AF_INET6, "::")] if _has_ipv6() else every
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartError(
            f"cannot listen on {address} ({config_key}): {error.strerror}; write an address of this machine, "
            'or only ":PORT" for all of them'
        ) from None
    # Of a literal, which a bind is, what is written is used: the system's answer is without its scope.
    return list(dict.fromkeys((family, address.host) for family, _, _, _, _ in found))


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False  # compiled out, or disabled with net.ipv6.conf.all.disable_ipv6
    return True


def _open_group(
    protocol: Protocol, family: socket.AddressFamily, host: str, port: int, count: int, shared: bool
) -> Group:
    opened: list[socket.socket] = []
    try:
        for number in range(count):
            opened.append(_open(protocol, family, host, port, exclusive=number == 0 and not shared))
            port = opened[0].getsockname()[1]
        if protocol == "udp" and count == 1:
            # Only the second socket of a port makes a group of it, to which a program can be attached; with it in
            # place, sockets that are added later get no packet too early.
            _open(protocol, family, host, port, exclusive=False).close()
    except OSError:
        for sock in opened:
            sock.close()
        raise
    return Group(protocol, printed(opened[0]), opened)


def _open(protocol: Protocol, family: socket.AddressFamily, host: str, port: int, exclusive: bool) -> socket.socket:
    is_udp = protocol == "udp"
    sock = socket.socket(family, socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if is_udp:
            _prepare_udp(sock, family)
        else:
            # Else connections in TIME_WAIT would look like a daemon. UDP must never have it: two sockets could share.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not exclusive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(addresses.socket_address(host, port))
        if not is_udp:
            sock.listen(BACKLOG)
        if exclusive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _prepare_udp(sock: socket.socket, family: socket.AddressFamily) -> None:
    """An answer must leave from the address that was asked (PKTINFO); bursts must fit."""
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except PermissionError:  # without CAP_NET_ADMIN, net.core.rmem_max and wmem_max cap them
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def receive_buffer_bytes(sock: socket.socket) -> int:
    """What the kernel gave: it doubles what was asked for, for its own bookkeeping (socket(7))."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def warn_of_small_buffer(group: Group) -> None:
    """One line where the receive buffer of a QUIC bind is too small for bursts."""
    given = receive_buffer_bytes(group.sockets[0])
    if given < SMALL_RECEIVE_BUFFER_BYTES:
        log.warning(
            "the receive buffer of QUIC sockets is small, bursts may be lost: "
            f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER_BYTES}, then restart",
            extra={"address": group.address, "given_bytes": given, "wanted_bytes": RECEIVE_BUFFER_BYTES},
        )


def _other_server(protocol: Protocol, port: int) -> str:
    """The qmuxd that has ``port``, "" where none does or we may not see it. Only supervisors are looked at, which hold
    every listening socket and no user's: that is quick on any machine.
    """
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid == os.getpid() or not any(PROGRAM in word for word in words[:MAX_PROGRAM_WORDS]):
            continue
        try:
            if any(row.laddr.port == port for row in process.net_connections(protocol) if row.laddr):
                return f"pid {process.pid}, {' '.join(words)[:MAX_COMMAND]}"
        except (psutil.Error, OSError):
            continue  # ended, or another user's
    return ""


def _why(error: OSError, protocol: Protocol, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            flags = "-lunp" if protocol == "udp" else "-ltnp"
            if server := _other_server(protocol, port):
                return f"address in use by a QMux server that runs already ({server}); stop it, or bind another one"
            return f"address in use by another program; find it with: ss {flags} 'sport = :{port}'"
        case errno.EACCES | errno.EPERM:
            return (
                "permission denied: a port below 1024 needs root or CAP_NET_BIND_SERVICE "
                "(systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)"
            )
        case errno.EADDRNOTAVAIL:
            return "no interface of this machine has this address; `ip address` lists those it has"
        case errno.EAFNOSUPPORT:
            return "this machine has no IPv6; write an IPv4 address"
        case errno.EMFILE | errno.ENFILE:
            return "too many open files; raise LimitNOFILE (systemd) or `ulimit -n`"
    return error.strerror or os.strerror(error.errno or 0)
