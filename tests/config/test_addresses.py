from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.config.addresses import (
    AddressError,
    parse_bind,
    parse_network,
    parse_server,
    parse_server_name,
    parse_target,
)
from qmux.config.load import load
from qmux.config.schema import ClientConfig, ListenAddress, ServerAddress, Target
from qmux.errors import ConfigError

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
     ("tunnel.example.:1", ServerAddress("tunnel.example.", 1)),
     ("B\u00fccher.example", ServerAddress("xn--bcher-kva.example", 8443)),
     ("[::ffff:192.0.2.1]:1", ServerAddress("192.0.2.1", 1)), ("[fe80::1%eth0]:1", ServerAddress("fe80::1%eth0", 1)),
     ("192.0.2.1", ServerAddress("192.0.2.1", 8443)), ("localhost:1", ServerAddress("localhost", 1))],
)  # fmt: skip
def test_servers(text: str, server: ServerAddress) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    "text", ["a b", "-x.com", "x..com", "x" * 64 + ".com", "1.2.3", "", "x\ny", "a" * 254, "127.1", "0x7f.1", "a.b.1"]
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(AddressError):
        parse_server_name(text)


@pytest.mark.parametrize(
    ("text", "network"), [("10.0.0.0/8", "10.0.0.0/8"), ("192.0.2.1", "192.0.2.1/32"), ("::/0", "::/0")]
)
def test_networks(text: str, network: str) -> None:
    assert parse_network(text) == network


@given(st.text() | st.from_regex(r"[\[\]:.0-9a-f/%*]{0,24}", fullmatch=True))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_bind, parse_server, parse_network, parse_server_name, lambda value: parse_target(value, HERE)):
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


def test_networks_that_are_written_for_the_other_family() -> None:
    with pytest.raises(AddressError, match=r'did you mean "10\.0\.0\.0/8"'):
        parse_network("::ffff:10.0.0.0/104")


def test_a_server_that_no_certificate_can_be_for_needs_a_server_name(place: Path) -> None:
    text = '[client]\nservers = ["my_server:1"]\nbundle = "client.pem"\n[services.web]\ntarget = "my_app:1"\n'
    Path("x.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"))
    (line,) = caught.value.problems
    assert line == (
        'x.toml:2: client.servers = "my_server:1": "my_server" has an underscore, so no certificate can be for it; '
        "set client.server_name to a name that the server's certificate has"
    )
    Path("x.toml").write_text(text.replace("bundle", 'server_name = "tunnel.example.com."\nbundle'))
    config = load(Path("x.toml")).config
    assert isinstance(config, ClientConfig)
    assert config.server_name == "tunnel.example.com"
