from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.config.addresses import (
    AddressError,
    check_host,
    parse_bind,
    parse_network,
    parse_server,
    parse_target,
)
from qmux.config.schema import ListenAddress, ServerAddress, Target

HERE = Path("/etc/qmux")


@pytest.mark.parametrize(
    ("text", "bind"),
    [(":80", ListenAddress("", 80)), ("0.0.0.0:80", ListenAddress("0.0.0.0", 80)),
     ("[::1]:80", ListenAddress("::1", 80)),
     ("[0:0::1]:80", ListenAddress("::1", 80)), ("[fe80::1%eth0]:80", ListenAddress("fe80::1%eth0", 80)),
     ("127.0.0.1:65535", ListenAddress("127.0.0.1", 65535))],
)  # fmt: skip
def test_binds(text: str, bind: ListenAddress) -> None:
    assert parse_bind(text) == bind


@pytest.mark.parametrize(
    ("text", "target"),
    [("127.0.0.1:3000", Target("127.0.0.1", 3000)), ("[::1]:3000", Target("::1", 3000)),
     ("app.default.svc:3000", Target("app.default.svc", 3000)), ("my_app:1", Target("my_app", 1)),
     ("unix:/run/app.sock", Target(path="/run/app.sock")), ("unix:app.sock", Target(path="/etc/qmux/app.sock"))],
)  # fmt: skip
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text, HERE) == target


@pytest.mark.parametrize(
    ("text", "server"),
    [("tunnel.example.com:8444", ServerAddress("tunnel.example.com", 8444)),
     ("tunnel.example.com", ServerAddress("tunnel.example.com", 8443)),
     ("[2001:db8::1]", ServerAddress("2001:db8::1", 8443)), ("[2001:db8::1]:1", ServerAddress("2001:db8::1", 1)),
     ("192.0.2.1", ServerAddress("192.0.2.1", 8443)), ("localhost:1", ServerAddress("localhost", 1))],
)  # fmt: skip
def test_servers(text: str, server: ServerAddress) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    "text", ["a b", "-x.com", "x..com", "x" * 64 + ".com", "1.2.3", "", "x\ny", "é.com", "a" * 254]
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(AddressError):
        check_host(text)


@pytest.mark.parametrize(
    ("text", "network"), [("10.0.0.0/8", "10.0.0.0/8"), ("192.0.2.1", "192.0.2.1/32"), ("::/0", "::/0")]
)
def test_networks(text: str, network: str) -> None:
    assert parse_network(text) == network


@given(st.text() | st.from_regex(r"[\[\]:.0-9a-f/%*]{0,24}", fullmatch=True))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_bind, parse_server, parse_network, check_host, lambda value: parse_target(value, HERE)):
        try:
            parse(text)
        except AddressError:
            pass  # any other exception fails the test


@given(st.from_regex(r"(\[[0-9a-f:]{2,20}\]|[0-9.]{1,15}|):[0-9]{1,5}", fullmatch=True))
def test_a_bind_is_read_as_it_is_written(text: str) -> None:
    try:
        bind = parse_bind(text)
    except AddressError:
        return
    assert parse_bind(str(bind)) == bind
