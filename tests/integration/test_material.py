"""A key that an engine does not take: ``check``, start and reload refuse it alike, at both ends, and name the file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.programs import run
from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.users import says
from tests.pki.openssl import CLIENT, SERVER, Issued, make

SERVER_NAMES = "subjectAltName = DNS:localhost,IP:127.0.0.1"
CLIENT_NAMES = "subjectAltName = URI:qmux:client:pod-1,URI:qmux:service:*"
UNKNOWN_EXTENSION = "1.2.3.4 = critical,DER:05:00"

pytestmark = pytest.mark.engines("native", extended=("aioquic",))


class Pair:
    """A server and its client, which keep serving whatever is tried."""

    def __init__(self, deployment: Deployment, target: str) -> None:
        self.directory = deployment.directory
        self.quic_port, self.port = deployment.quic_port, free_port()
        self.server = deployment.server({"web": f'bind = "127.0.0.1:{self.port}"'}, workers=1)
        self.client = deployment.client("pod-1", {"web": target}).until_ready()
        self.server.until_clients(1)

    def bundle(self, end: str, key: str = "P-256", extension: str = "") -> bytes:
        """Of the deployment's own CA, for one of both ends."""
        ca = Issued((self.directory / "ca.pem").read_bytes(), b"", self.directory / "ca")
        names, usage = (SERVER_NAMES, SERVER) if end == "server" else (CLIENT_NAMES, CLIENT)
        made = make(self.directory, "tried", f"{names}\n{usage}\n{extension}", ca, key)
        return made.certificate + made.key + ca.certificate

    def refused(self, end: str, bundle: bytes) -> list[str]:
        """What ``check`` and the reload of this end say of it; the good one is back afterwards, and in force."""
        daemon = self.server if end == "server" else self.client
        path = self.directory / ("localhost.pem" if end == "server" else "pod-1.pem")
        good = path.read_bytes()
        path.write_bytes(bundle)
        try:
            checked = run("qmux", "check", daemon.config)
            assert checked.returncode == 3, checked.stderr
            answer: dict[str, Any] = daemon.reload()
            assert not answer["ok"], answer
            assert answer["exit_code"] == 3
            started = self._start(daemon)
        finally:
            path.write_bytes(good)
        assert daemon.reload()["ok"]
        assert says(self.port) == "web"
        return [checked.stderr, "\n".join(answer["lines"]), started]

    def _start(self, daemon: Daemon) -> str:
        """A second daemon with the same material does not start."""
        text = daemon.config.read_text().replace('"run-', '"run-second-').replace('"state-', '"state-second-')
        text = text.replace(f':{self.port}"', f':{free_port()}"')
        text = text.replace(f':{self.quic_port}"', f':{free_port(socket.SOCK_DGRAM)}"')
        config = self.directory / "second.toml"
        config.write_text(text)
        program = "qmuxd" if daemon is self.server else "qmuxc"
        engine = daemon.process.args[daemon.process.args.index("--engine") + 1]  # type: ignore[union-attr,index]
        done = run(program, "-c", config, "--engine", engine)  # type: ignore[arg-type]
        assert done.returncode == 3, done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def pair(shared: Deployment) -> Iterator[Pair]:
    with Service(named("web")) as service:
        yield Pair(shared, service.target)


@pytest.mark.parametrize("end", ["server", "client"])
def test_a_key_that_not_both_engines_take(pair: Pair, end: str) -> None:
    file = "localhost.pem" if end == "server" else "pod-1.pem"
    for key, extension, says_what in (
        ("P-521", "", "the certificate's key is ECDSA secp521r1; accepted are "),
        ("P-256", UNKNOWN_EXTENSION, "1.2.3.4: certificate contains unaccounted-for critical extensions"),
    ):
        for text in pair.refused(end, pair.bundle(end, key, extension)):
            assert f'{end}.bundle = "{file}": ' in text
            assert says_what in text


@pytest.mark.parametrize("end", ["server", "client"])
def test_a_key_that_only_this_engine_does_not_take(pair: Pair, end: str, engine: str) -> None:
    """RSA with exponent 3: nothing but rustls' own loader says so."""
    if engine != "native":
        pytest.skip("aioquic takes what OpenSSL takes")
    for text in pair.refused(end, pair.bundle(end, "RSA e=3")):
        assert ("localhost.pem" if end == "server" else "pod-1.pem") in text
        assert "the native engine cannot use it: " in text
        assert "use a certificate with another key (ECDSA P-256 or P-384" in text
