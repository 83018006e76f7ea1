from __future__ import annotations

import time

import pytest

from qmux.config.addresses import parse_bind
from qmux.config.schema import ListenAddress
from qmux.config.taken import Taken, TakenAddresses


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
        assert taken.take(("first",), parse_bind(first)) is None
        assert taken.take(("second",), parse_bind(second)) == (Taken(("first",), parse_bind(first)) if both else None)


def test_many_addresses_take_no_quadratic_time() -> None:
    taken = TakenAddresses()
    started = time.process_time()
    for number in range(100_000):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert taken.take(("x",), ListenAddress(host, 80)) is None
    assert time.process_time() - started < 10.0
