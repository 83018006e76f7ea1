"""The endpoint's sockets: answers leave from the address that was asked, and a bad destination harms nobody."""

from __future__ import annotations

import socket

import pytest

from qmux.quic.aioquic_engine import udp
from tests.quic.harness import World, udp_socket


def test_a_datagram_to_port_0_is_lost_and_nothing_else() -> None:
    with udp_socket() as sock:
        assert udp.send(sock, b"x", ("127.0.0.1", 0), None) is False


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.9.9.9"])
async def test_answers_leave_from_the_address_that_was_asked(world: World, host: str) -> None:
    wildcard = udp_socket("0.0.0.0")
    wildcard.setsockopt(socket.IPPROTO_IP, udp.IP_PKTINFO, 1)
    server = world.serve(sock=wildcard)
    # The client's socket is connected: from another address it would hear nothing.
    await world.pair(server, via=(host, server.address[1]))


async def test_answers_over_ipv6_with_pktinfo(world: World) -> None:
    wildcard = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    wildcard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    wildcard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    wildcard.bind(("::", 0))
    server = world.serve(sock=wildcard)
    await world.pair(server, via=("::1", server.address[1]))
