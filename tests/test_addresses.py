"""One way to write an address, and to read it again."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.addresses import AddressError, certified, host, ip, join, socket_address, split, text_of

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


# --- hosts ---

HOSTS = [
    # as written, as it is dialled, as a certificate has it
    ("tunnel.example.com", "tunnel.example.com", "tunnel.example.com"),
    ("Tunnel.Example.COM", "tunnel.example.com", "tunnel.example.com"),
    ("tunnel.example.", "tunnel.example.", "tunnel.example"),
    ("localhost", "localhost", "localhost"),
    ("b\u00fccher.example", "xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("stra\u00dfe.de.", "xn--strae-oqa.de.", "xn--strae-oqa.de"),
    ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
    ("2001:DB8:0::1", "2001:db8::1", "2001:db8::1"),
    ("fe80::1%eth0", "fe80::1%eth0", "fe80::1"),
    ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"),
    ("x" * 63 + ".com", "x" * 63 + ".com", "x" * 63 + ".com"),
]


@pytest.mark.parametrize(("text", "dialled", "in_certificates"), HOSTS)
def test_one_grammar_for_hosts(text: str, dialled: str, in_certificates: str) -> None:
    assert host(text) == dialled
    assert certified(text) == in_certificates


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "-a.b", "a-.b", "x" * 64, "a b", "a\n", "*.a", "127.1", "1.2.3.4.5", "0x7f.1", "fe80::1%", "a/b",
     "\u00fc" * 64, "[::1]", "a.\u3002b", f"{'a' * 60}." * 5],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(AddressError):
        host(text)


def test_a_name_that_resolvers_take_and_certificates_do_not() -> None:
    assert host("my_app") == "my_app"
    with pytest.raises(AddressError, match="an underscore"):
        certified("my_app")


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9:._%-]{0,40}", fullmatch=True))
def test_what_is_read_reads_the_same_again(text: str) -> None:
    try:
        name = certified(text)
    except AddressError:
        return
    assert certified(name) == host(name) == name
    assert ip(name) is not None or name.isascii()


def test_a_scope_is_a_number_to_the_system() -> None:
    name = socket.if_nameindex()[0][1]
    number = socket.if_nametoindex(name)
    assert socket_address(f"fe80::1%{name}", 7) == ("fe80::1", 7, 0, number)
    assert socket_address("fe80::1%3", 7) == ("fe80::1", 7, 0, 3)
    assert socket_address("::1", 7) == ("::1", 7)
    with pytest.raises(OSError, match="interface"):
        socket_address("fe80::1%no-such-one", 7)
