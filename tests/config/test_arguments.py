from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from qmux.config.arguments import client_from_arguments
from qmux.config.schema import ClientConfig, ServerAddress, Target
from qmux.errors import ConfigError, UsageError


def test_a_one_liner(place: Path) -> None:
    loaded = client_from_arguments(
        ["web=127.0.0.1:3000", "a=unix:/run/a=b.sock"], ["s.example", "[::1]:9"], Path("client.pem"),
        once=True, source="web=…",
    )  # fmt: skip
    config = loaded.config
    assert isinstance(config, ClientConfig)
    assert config.servers == (ServerAddress("s.example", 8443), ServerAddress("::1", 9))
    assert {name: service.target for name, service in config.services.items()} == {
        "web": Target("127.0.0.1", 3000),
        "a": Target(path="/run/a=b.sock"),
    }
    assert (config.once, config.source, config.process.workers) == (True, "web=…", 1)
    assert config.process.tls.bundle == str(place / "client.pem")
    assert loaded.material.key in Path("client.pem").read_bytes()
    assert loaded.warnings == ()


def test_a_service_that_the_certificate_does_not_name(place: Path) -> None:
    loaded = client_from_arguments(["x=h:1"], ["s"], Path("client.pem"), once=False, source="")
    (line,) = loaded.warnings
    assert line.startswith("--bundle client.pem: the certificate does not name service x")


@pytest.mark.parametrize(
    ("services", "servers", "says"),
    [
        ([], ["s"], "which service does this client serve?"),
        (["web=h:1"], [], "which server should it connect to?"),
        (["web"], ["s"], '"web": a service is a name and a target, as in web=127.0.0.1:3000'),
        (["web="], ["s"], "a service is a name and a target"),
        (["=h:1"], ["s"], '"" is not a name for a service'),
        (["a b=h:1"], ["s"], '"a b" is not a name for a service'),
        (["web=h:1", "web=h:2"], ["s"], "the service web is there twice"),
        (["web=3000"], ["s"], 'web=3000: a target is a host and a port; did you mean "127.0.0.1:3000"?'),
        (["web=h:1"], ["h:x"], '--server h:x: "x" is not a port'),
        (["web=h:1"], ["::1"], '--server ::1: an IPv6 address stands in brackets; did you mean "[::1]:8443"?'),
        ([f"s{n}=h:1" for n in range(257)], ["s"], "257 services; at most 256"),
        (["web=h:1"], ["s"] * 65, "65 servers; at most 64"),
    ],
)
def test_wrong_usage(place: Path, services: Sequence[str], servers: Sequence[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        client_from_arguments(services, servers, Path("client.pem"), once=False, source="")


def test_a_bundle_that_is_not_there(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        client_from_arguments(["web=h:1"], ["s"], Path("no.pem"), once=False, source="")
    assert str(caught.value).splitlines() == [
        f"--bundle no.pem: no such file ({place}/no.pem); make one: qmux pki issue client NAME --service SERVICE",
        "1 error in the arguments",
    ]
