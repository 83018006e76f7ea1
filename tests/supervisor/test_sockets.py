from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Callable

import pytest

from qmux.addresses import socket_address
from qmux.config.schema import Bind
from qmux.errors import StartError
from supervisor.sockets import open_groups, receive_buffer_bytes, warn_of_small_buffer
from tests.ports import link_local
from tests.supervisor.made import datagrams, quic, traffic

Make = Callable[[str, int], Bind]
KINDS: list[tuple[Make, int]] = [
    (quic, socket.SOCK_DGRAM),
    (datagrams, socket.SOCK_DGRAM),
    (traffic, socket.SOCK_STREAM),
]


@pytest.mark.parametrize(("bind", "sock_type"), KINDS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_group_shares_one_port(bind: Make, sock_type: int, host: str) -> None:
    (group,) = open_groups(bind(host, 0), 3, "key")
    ports = {sock.getsockname()[1] for sock in group.sockets}
    assert len(ports) == 1
    assert group.address == (f"[::1]:{ports.pop()}" if host == "::1" else f"127.0.0.1:{ports.pop()}")
    assert all(sock.type == sock_type and not sock.getblocking() for sock in group.sockets)
    assert not any(sock.get_inheritable() for sock in group.sockets)
    group.close()


@pytest.mark.parametrize(("bind", "_type"), KINDS)
def test_no_host_means_both_families(bind: Make, _type: int) -> None:
    groups = open_groups(bind("", 0), 2, "key")
    port = groups[0].sockets[0].getsockname()[1]
    assert [group.address for group in groups] == [f"0.0.0.0:{port}", f"[::]:{port}"]
    for group in groups:
        group.close()


@pytest.mark.parametrize(("bind", "_type"), KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_second_daemon_is_refused(bind: Make, _type: int, count: int) -> None:
    """Both are of one user and use SO_REUSEPORT: the kernel alone would let them share."""
    (group,) = open_groups(bind("127.0.0.1", 0), count, "key")
    port = group.sockets[0].getsockname()[1]
    for host in ("127.0.0.1", ""):
        with pytest.raises(StartError, match=rf"cannot listen on {host}:{port} \(services.web.bind\): address in use"):
            open_groups(bind(host, port), count, "services.web.bind")
    group.close()
    for again in open_groups(bind("127.0.0.1", port), count, "key"):
        again.close()


def test_a_socket_that_shares_is_found_too() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        with pytest.raises(StartError, match=r"ss -lunp"):
            open_groups(quic("127.0.0.1", other.getsockname()[1]), 2, "quic.bind")


def test_time_wait_is_no_daemon() -> None:
    (group,) = open_groups(traffic("127.0.0.1", 0), 2, "key")
    address = group.sockets[0].getsockname()
    with socket.create_connection(address) as user:
        server = next(accepted for sock in group.sockets if (accepted := accept(sock)))
        server.close()  # the side that closes first keeps the port in TIME_WAIT
        assert user.recv(1) == b""
    group.close()
    for again in open_groups(traffic(*address), 2, "key"):
        again.close()


def accept(sock: socket.socket) -> socket.socket | None:
    try:
        return sock.accept()[0]
    except BlockingIOError:
        return None


def accept_all(sock: socket.socket) -> int:
    count = 0
    while accepted := accept(sock):
        accepted.close()
        count += 1
    return count


def test_shared_overlaps_with_our_own() -> None:
    (old,) = open_groups(traffic("0.0.0.0", 0), 2, "key")
    port = old.sockets[0].getsockname()[1]
    (new,) = open_groups(traffic("127.0.0.1", port), 2, "key", shared=True)
    new.close()
    old.close()


def test_users_reach_every_socket_of_a_group() -> None:
    (group,) = open_groups(traffic("127.0.0.1", 0), 3, "key")
    users = [socket.create_connection(group.sockets[0].getsockname()) for _ in range(120)]
    counts = [accept_all(sock) for sock in group.sockets]
    assert sum(counts) == 120
    assert all(counts)
    for user in users:
        user.close()
    group.close()


def test_what_cannot_be_had_says_why() -> None:
    with pytest.raises(StartError, match=r"192\.0\.2\.1:5000 \(k\): no interface of this machine has this address"):
        open_groups(traffic("192.0.2.1", 5000), 1, "k")
    with pytest.raises(StartError, match=re.escape("(services.web.bind): ") + ".*write an address of this machine"):
        open_groups(traffic("no-such-host.invalid", 5000), 1, "services.web.bind")


def test_a_privileged_port_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)  # we may be root here, who may
    with pytest.raises(StartError, match=r"127.0.0.1:80 .*CAP_NET_BIND_SERVICE"):
        open_groups(traffic("127.0.0.1", 80), 1, "services.web.bind")


def test_quic_sockets_say_where_they_were_asked() -> None:
    for host, level, option in (("127.0.0.1", socket.IPPROTO_IP, 8), ("::1", socket.IPPROTO_IPV6, 49)):
        (group,) = open_groups(quic(host, 0), 1, "key")
        assert group.sockets[0].getsockopt(level, option) == 1
        assert receive_buffer_bytes(group.sockets[0]) >= 212_992 // 2
        group.close()


def test_a_machine_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *arguments: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments)

    monkeypatch.setattr(socket, "socket", without_ipv6)  # the kernel here has it
    (group,) = open_groups(traffic("", 0), 1, "key")
    assert group.address.startswith("0.0.0.0:")
    group.close()
    with pytest.raises(StartError, match="has no IPv6; write an IPv4 address"):
        open_groups(traffic("::1", 0), 1, "key")


@pytest.mark.parametrize(("size_bytes", "lines"), [(65_536, 1), (2 << 20, 0)])
def test_a_small_receive_buffer_is_worth_a_line(size_bytes: int, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    (group,) = open_groups(quic("127.0.0.1", 0), 1, "key")
    group.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
    if receive_buffer_bytes(group.sockets[0]) != size_bytes:
        pytest.skip("net.core.rmem_max is too small here")
    warn_of_small_buffer(group)
    assert caplog.text.count("net.core.rmem_max") == lines
    group.close()


@pytest.mark.parametrize(("bind", "_type"), KINDS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_grown_group_is_as_one_that_was_opened_so(bind: Make, _type: int, host: str) -> None:
    (group,) = open_groups(bind(host, 0), 2, "key")
    first = list(group.sockets)
    group.grow(5, "key")
    assert group.sockets[:2] == first
    assert len({sock.getsockname() for sock in group.sockets}) == 1
    (other,) = open_groups(bind(host, 0), 5, "key")
    for sock, like in zip(group.sockets, other.sockets, strict=True):
        for level, option in OPTIONS:
            with contextlib.suppress(OSError):  # none of this kind of socket
                assert sock.getsockopt(level, option) == like.getsockopt(level, option)
        assert (sock.type, sock.getblocking(), sock.get_inheritable()) == (like.type, False, False)
    group.grow(3, "key")  # enough already
    assert len(group.sockets) == 5
    group.close()
    other.close()


OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_RCVBUF),
    (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    (socket.IPPROTO_IP, 8),  # IP_PKTINFO
    (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
]


def test_users_that_wait_in_a_group_are_still_there_when_it_has_grown() -> None:
    (group,) = open_groups(traffic("127.0.0.1", 0), 1, "key")
    users = [socket.create_connection(group.sockets[0].getsockname()) for _ in range(20)]
    group.grow(3, "key")
    more = [socket.create_connection(group.sockets[0].getsockname()) for _ in range(120)]
    counts = [accept_all(sock) for sock in group.sockets]
    assert sum(counts) == len(users) + len(more)
    assert counts[0] >= 20
    assert all(counts)
    for user in (*users, *more):
        user.close()
    group.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("bind", "_type"), KINDS)
def test_another_user_cannot_grow_a_group(bind: Make, _type: int) -> None:
    (group,) = open_groups(bind("127.0.0.1", 0), 1, "key")
    first = list(group.sockets)
    os.seteuid(65534)
    try:
        with pytest.raises(StartError, match=r"\(key\) for more workers: address in use"):
            group.grow(3, "key")
    finally:
        os.seteuid(0)
    assert group.sockets == first
    group.grow(3, "key")
    group.close()


@pytest.mark.parametrize(("bind", "_type"), KINDS)
def test_a_bind_on_one_link_keeps_its_scope(bind: Make, _type: int) -> None:
    """``fe80::1%eth0``: without its interface the address is none (RFC 4007 §6)."""
    if (host := link_local()) is None:
        pytest.skip("no interface has a link-local address")
    (group,) = open_groups(bind(host, 0), 1, "key")
    group.grow(2, "key")
    names = {sock.getsockname() for sock in group.sockets}
    assert names == {(*socket_address(host, names.copy().pop()[1]),)}
    group.close()
