"""One way to write an address, and to read it again."""

from __future__ import annotations

import pytest

from qmux.addresses import join, split, text_of

BOTH_WAYS = [
    ("192.0.2.1", 80, "192.0.2.1:80"),
    ("tunnel.example.com", 8443, "tunnel.example.com:8443"),
    ("::1", 80, "[::1]:80"),
    ("2001:db8::7", 443, "[2001:db8::7]:443"),
    ("fe80::1%eth0", 443, "[fe80::1%eth0]:443"),
    ("::ffff:192.0.2.1", 443, "[::ffff:192.0.2.1]:443"),
    ("", 80, ":80"),
]


@pytest.mark.parametrize(("host", "port", "text"), BOTH_WAYS)
def test_host_and_port_and_back(host: str, port: int, text: str) -> None:
    assert join(host, port) == text
    assert split(text) == (host, str(port))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/run/app.sock", "/run/app.sock"),
        ("", ""),
    ],
)
def test_what_a_socket_says(address: object, text: str) -> None:
    assert text_of(address) == text


def test_a_port_alone() -> None:
    assert split("80") == ("", "80")
