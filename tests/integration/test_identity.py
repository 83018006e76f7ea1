"""Mutual TLS end to end: who is refused, that it never registers, and that the client's log says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmux.pki import authority
from qmux.protocol.frames import RegisterReject
from tests.aio import run
from tests.daemons import Daemon, Deployment, free_port
from tests.integration.strangers import heartbeat_flood, register, silent_client
from tests.waiting import until


def exit_of(deployment: Deployment, bundle: Path, services: str = "web", **client: str) -> tuple[int, str]:
    """``qmuxc --once`` with this bundle: its exit code and its log."""
    lines = "\n".join(f'{key} = "{value}"' for key, value in client.items())
    table = "".join(f'[services.{name}]\ntarget = "127.0.0.1:9"\n' for name in services.split(","))
    config = deployment.write(
        f"{bundle.stem}-once.toml",
        f'[client]\nservers = ["127.0.0.1:{deployment.quic_port}"]\nbundle = "{bundle}"\n'
        f'runtime_dir = "run-once"\nstate_dir = "state-once"\n{lines}\n{table}',
    )
    daemon = deployment.start("qmuxc", config, "--once")
    return daemon.process.wait(60), daemon.log


@pytest.fixture(scope="module")
def server(shared: Deployment) -> Daemon:
    return shared.server({"web": f'bind = "127.0.0.1:{free_port()}"'}, workers=1)


def clients(server: Daemon) -> list[object]:
    found: list[object] = server.status()["clients"]
    return found


def test_wrong_ca(shared: Deployment, server: Daemon, tmp_path: Path) -> None:
    """Another CA's bundle: the client does not accept the server, and says so."""
    other = tmp_path / "other"
    authority.init(other)
    code, log = exit_of(shared, authority.issue_client(other, "stranger", ["web"]))
    assert code == 3
    assert "server's certificate is not accepted" in log
    assert "CA" in log
    # The client has ended; the server reads its last packet whenever it comes to that.
    reason = "the client does not accept our certificate: the certificate is signed by another CA"
    until(lambda: reason in server.log, "the server says so, too")
    assert clients(server) == []


def test_certificate_of_another_ca(shared: Deployment, server: Daemon, tmp_path: Path) -> None:
    """The client trusts our server, but its own certificate is a stranger's: the server refuses it."""
    other = tmp_path / "other"
    authority.init(other)
    bundle = authority.issue_client(other, "stranger", ["web"])
    parts = bundle.read_bytes().split(b"-----BEGIN CERTIFICATE-----")
    kept = [part for part in parts if b"PRIVATE KEY" in part or part is parts[1]]
    leaf_and_key = b"-----BEGIN CERTIFICATE-----".join([parts[0], parts[1]])
    assert kept
    forged = tmp_path / "forged.pem"
    forged.write_bytes(leaf_and_key + (shared.directory / "ca.pem").read_bytes())
    forged.chmod(0o600)
    code, log = exit_of(shared, forged)
    assert code == 3
    assert "does not know the CA of our certificate" in log
    reason = "its certificate is not accepted: the certificate is signed by another CA"
    until(lambda: reason in server.log, "the server says why")
    assert clients(server) == []
    assert server.process.poll() is None


def test_wrong_name(shared: Deployment, server: Daemon) -> None:
    bundle = shared.directory / shared.bundle("pod-1")
    code, log = exit_of(shared, bundle, server_name="elsewhere.example.com")
    assert code == 3
    assert "the certificate is not for" in log
    assert "elsewhere.example.com" in log


def test_unauthorized_service(shared: Deployment, server: Daemon) -> None:
    """A client that offers a service that its certificate does not name: rejected, told why, never in the pool."""
    bundle = authority.issue_client(shared.directory, "thief", ["other"])
    answer = run(register(shared.quic_port, bundle, "web"))
    assert isinstance(answer, RegisterReject)
    assert answer.code == "unauthorized_service"
    assert '"web"' in answer.reason
    assert clients(server) == []


def test_unauthorized_service_in_a_configuration(shared: Deployment, server: Daemon) -> None:
    bundle = authority.issue_client(shared.directory, "thief-too", ["other"])
    code, log = exit_of(shared, bundle)
    assert code == 3
    assert "qmux pki issue client thief-too" in log


def test_server_without_that_service(shared: Deployment, server: Daemon) -> None:
    bundle = authority.issue_client(shared.directory, "pod-2", ["*"])
    code, log = exit_of(shared, bundle, services="nowhere")
    assert code == 3
    assert "the server has no such service" in log
    assert clients(server) == []


def test_unknown_service_beside_a_known_one_is_left_out(shared: Deployment, server: Daemon) -> None:
    authority.issue_client(shared.directory, "pod-3", ["*"])
    client = shared.client("pod-3", {"web": "127.0.0.1:9", "nowhere": "127.0.0.1:9"})
    server.until_clients(1)
    assert server.status()["clients"][0]["services"] == ["web"]
    until(lambda: "service not registered" in client.log, "the client says so")
    (line,) = (line for line in client.log.splitlines() if "service not registered" in line)
    assert "service=nowhere" in line
    assert "the server has no such service" in line
    assert client.stop() == 0
    until(lambda: clients(server) == [], "it has left")


def test_nothing_listens(deployment: Deployment) -> None:
    bundle = deployment.directory / deployment.bundle("pod-1")
    code, log = exit_of(deployment, bundle)
    assert code == 5
    assert "nothing listens on UDP port" in log


def test_a_name_without_address_is_told_and_shown(deployment: Deployment) -> None:
    """RFC 6761 §6.4: names below "invalid" never resolve."""
    client = deployment.client("pod-1", {"web": "127.0.0.1:9"}, servers=["tunnel.invalid:8443"]).until_ready()
    (row,) = until(lambda: client.status().get("servers"), "the server's row")
    assert (row["server"], row["address"], row["state"]) == ("tunnel.invalid:8443", "", "unresolved")
    until(lambda: "the name tunnel.invalid cannot be resolved" in client.log, "a line in the log")
    client.stop()
    config = deployment.write("once.toml", client.config.read_text())
    once = deployment.start("qmuxc", config, "--once")
    assert once.process.wait(60) == 5
    assert "cannot resolve server" in once.log
    assert "trying again" not in once.log


def test_silent_after_the_handshake_is_gone(deployment: Deployment) -> None:
    """A handshake without Register: closed after handshake_timeout, and never in the pool."""
    port = free_port()
    server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1, quic='handshake_timeout = "3s"')
    bundle = deployment.directory / deployment.bundle("pod-1")
    lived_s, reason = run(silent_client(deployment.quic_port, bundle))
    assert 2.5 < lived_s < 30.0
    assert "handshake_timeout" in reason
    until(lambda: "client did not register in time" in server.log, "a line in the log")
    assert clients(server) == []


def test_a_flood_of_heartbeats_is_read_at_a_pace(shared: Deployment, server: Daemon) -> None:
    bundle = shared.directory / shared.bundle("pod-1")
    # 50 at once, and then as many a second.
    assert run(heartbeat_flood(shared.quic_port, bundle, "web", 5000, 200)) > 2.5
