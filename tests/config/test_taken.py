from __future__ import annotations

import time

import pytest

from qmux.config.addresses import parse_bind
from qmux.config.schema import Bind, ListenAddress
from qmux.config.taken import Taken, TakenAddresses


def tcp(address: str) -> Bind:
    return Bind("traffic", "tcp", parse_bind(address))


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [(":80", ":80", True), (":80", "127.0.0.1:80", True), (":80", "[::1]:80", True),
     ("0.0.0.0:80", "127.0.0.1:80", True),
     ("[::]:80", "[::1]:80", True), (":80", "0.0.0.0:80", True), (":80", "[::]:80", True),
     (":80", ":81", False), ("127.0.0.1:80", "127.0.0.2:80", False), ("0.0.0.0:80", "[::]:80", False),
     ("0.0.0.0:80", "[::1]:80", False), ("[::]:80", "127.0.0.1:80", False)],
)  # fmt: skip
def test_overlaps(one: str, other: str, both: bool) -> None:
    for first, second in ((one, other), (other, one)):
        taken = TakenAddresses()
        assert taken.take(("first",), tcp(first)) is None
        assert taken.take(("second",), tcp(second)) == (Taken(("first",), tcp(first)) if both else None)


def test_each_protocol_has_ports_of_its_own() -> None:
    """QUIC and a service's datagrams share UDP's; a service's TCP connections do not meet them."""
    taken = TakenAddresses()
    clients = Bind("quic", "udp", parse_bind(":443"))
    assert taken.take(("quic",), clients) is None
    assert taken.take(("web",), tcp(":443")) is None
    datagrams = Bind("traffic", "udp", parse_bind("127.0.0.1:443"))
    assert taken.take(("dns",), datagrams) == Taken(("quic",), clients)


def test_many_addresses_take_no_quadratic_time() -> None:
    taken = TakenAddresses()
    started = time.process_time()
    for number in range(100_000):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert taken.take(("x",), Bind("traffic", "tcp", ListenAddress(host, 80))) is None
    assert time.process_time() - started < 10.0
