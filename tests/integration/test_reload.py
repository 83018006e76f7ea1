"""Reload in place: services, limits and certificates change under load; a bad file changes nothing."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509

from qmux.pki import authority
from qmux.quic.aioquic_engine.connection import AioquicConnection
from qmux.quic.choose import load_engine
from tests.daemons import COMMANDS, Daemon, Deployment, free_port, until
from tests.integration.services import Service, echo, named
from tests.integration.strangers import Stranger, connect_config, hang_up
from tests.integration.users import Ended, ask, says


class Load:
    """Users one after the other in some threads, until told to stop; ``failures`` says what went wrong."""

    def __init__(self, port: int, threads: int = 4) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=30) as user:
                    answer = ask(user, b"ping")
                if answer != b"ping":
                    self.failures.append(f"answer {answer!r}")
                self.done += 1
            except (OSError, Ended) as error:
                self.failures.append(str(error))


def test_service_comes_and_goes(deployment: Deployment) -> None:
    first, second = free_port(), free_port()
    with Service(named("a")) as a, Service(named("b")) as b:
        web = {"a": f'bind = "127.0.0.1:{first}"'}
        server = deployment.server(web)
        deployment.client("pod-1", {"a": a.target, "b": b.target})
        server.until_clients(1, connections=2)
        both = {**web, "b": f'bind = "127.0.0.1:{second}"'}
        deployment.write("server.toml", deployment.server_text(both))
        answer = server.reload()
        assert answer["ok"], answer
        until(lambda: says(second) == "b", "the new service is served by the client that had offered it already")
        assert says(first) == "a"
        deployment.write("server.toml", deployment.server_text(web))
        assert server.reload()["ok"]
        until(lambda: says(second, 1) == "", "the removed bind refuses")
        assert says(first) == "a"


@pytest.mark.engines("auto")
def test_bad_file_changes_nothing_and_says_why(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("a")) as service:
        web = {"a": f'bind = "127.0.0.1:{port}"'}
        server = deployment.server(web)
        deployment.client("pod-1", {"a": service.target})
        server.until_clients(1, connections=2)
        pids = [row["pid"] for row in server.status()["workers"]]
        text = deployment.server_text(web)
        for bad in (text + "idle_timeout = 30\n", text + "[", text + '[services.x]\nballance = "x"\n'):
            deployment.write("server.toml", bad)
            answer = server.reload()
            assert not answer["ok"]
            assert answer["exit_code"] == 3
            assert any("server.toml:" in line for line in answer["lines"])
            assert says(port) == "a"
        assert [row["pid"] for row in server.status()["workers"]] == pids


@pytest.mark.engines("auto")
def test_port_in_use_changes_nothing(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("a")) as service, Service(named("other")) as other:
        server = deployment.server({"a": f'bind = "127.0.0.1:{port}"'})
        deployment.client("pod-1", {"a": service.target})
        server.until_clients(1, connections=2)
        taken = {"a": f'bind = ["127.0.0.1:{port}", "{other.target}"]'}
        deployment.write("server.toml", deployment.server_text(taken))
        answer = server.reload()
        assert not answer["ok"]
        assert any(str(other.port) in line for line in answer["lines"])
        assert says(port) == "a"


@pytest.mark.engines("auto")
def test_what_needs_a_restart_is_said(deployment: Deployment) -> None:
    server = deployment.server({"a": f'bind = "127.0.0.1:{free_port()}"'})
    path = server.config
    path.write_text(path.read_text().replace("workers = 2", "workers = 3"))
    ran = subprocess.run(
        [COMMANDS / "qmux", "reload", "-c", path], capture_output=True, text=True, timeout=60, env=server.environment
    )
    assert ran.returncode == 6, ran
    assert "server.workers" in ran.stdout + ran.stderr
    assert "restart" in ran.stdout + ran.stderr
    assert len(server.workers()) == 2


def test_no_user_fails_through_50_reloads(deployment: Deployment) -> None:
    # The load draws thousands of local ports on 127.0.0.1, and one that is in TIME_WAIT cannot be bound there, not even
    # with SO_REUSEADDR, since a user's socket does not have it: hence another address for the bind that comes and goes.
    port, extra = free_port(), free_port(host="127.0.0.2")
    with Service(echo) as service:
        web = {"a": f'bind = "127.0.0.1:{port}"'}
        both = {**web, "b": f'bind = "127.0.0.2:{extra}"'}
        server = deployment.server(web)
        deployment.client("pod-1", {"a": service.target, "b": service.target})
        server.until_clients(1, connections=2)
        with Load(port) as load:
            until(lambda: load.done > 10, "load")
            for number in range(50):
                services = both if number % 2 == 0 else web
                balance = "round-robin" if number % 3 else "least-connections"
                services = {**services, "a": f'{services["a"]}\nbalance = "{balance}"\nmaxconn = {1000 + number}'}
                deployment.write("server.toml", deployment.server_text(services))
                answer = server.reload()
                assert answer["ok"], answer
            seen = load.done
            until(lambda: load.done > seen + 20, "load after the last reload")
        assert load.failures == []


def test_changed_settings_reach_clients_without_a_failed_user(deployment: Deployment) -> None:
    """An idle_timeout is told at registration: clients register anew, make before break."""
    port = free_port()
    with Service(echo) as service:
        server = deployment.server({"a": f'bind = "127.0.0.1:{port}"'})
        deployment.client("pod-1", {"a": service.target})
        server.until_clients(1, connections=2)
        with Load(port) as load:
            until(lambda: load.done > 10, "load")
            for seconds in (30, 40, 50):
                lines = f'bind = "127.0.0.1:{port}"\nidle_timeout = "{seconds}s"'
                deployment.write("server.toml", deployment.server_text({"a": lines}))
                assert server.reload()["ok"]
                seen = load.done
                until(lambda seen=seen: load.done > seen + 50, "load goes on")
        assert load.failures == []
        until(lambda: [c["connections"] for c in server.status()["clients"]] == [2], "old connections are gone")


def _serial_at(port: int, directory: Path) -> int:
    """The serial number of the certificate that the server shows now."""

    async def ask() -> int:
        stranger = Stranger()
        config = connect_config(directory / "pod-1.pem")
        connection = load_engine("aioquic").connect(("127.0.0.1", port), config, stranger)
        await asyncio.wait_for(stranger.is_connected, 30)
        assert isinstance(connection, AioquicConnection)
        certificate = connection.quic.tls._peer_certificate
        assert isinstance(certificate, x509.Certificate)
        await hang_up(connection, stranger)
        return certificate.serial_number

    return asyncio.run(ask())


def test_certificates_are_renewed_in_place(deployment: Deployment) -> None:
    port = free_port()
    with Service(echo) as service:
        server = deployment.server({"a": f'bind = "127.0.0.1:{port}"'})
        client: Daemon = deployment.client("pod-1", {"a": service.target})
        server.until_clients(1, connections=2)
        before = _serial_at(deployment.quic_port, deployment.directory)
        with Load(port) as load:
            until(lambda: load.done > 10, "load")
            authority.issue_server(deployment.directory, ["localhost", "127.0.0.1", "::1"])
            authority.issue_client(deployment.directory, "pod-1", ["*"])
            assert server.reload()["ok"]
            assert client.reload()["ok"]
            assert _serial_at(deployment.quic_port, deployment.directory) != before
        assert load.failures == []


def test_client_reload_changes_targets_and_services(deployment: Deployment) -> None:
    first, second = free_port(), free_port()
    with Service(named("old")) as old, Service(named("new")) as new:
        services = {"a": f'bind = "127.0.0.1:{first}"', "b": f'bind = "127.0.0.1:{second}"\nqueue_timeout = "300ms"'}
        server = deployment.server(services)
        client = deployment.client("pod-1", {"a": old.target})
        server.until_clients(1, connections=2)
        assert (says(first), says(second)) == ("old", "")
        deployment.write("pod-1.toml", deployment.client_text("pod-1", {"a": new.target, "b": new.target}))
        assert client.reload()["ok"]
        until(lambda: says(second) == "new", "the added service is offered")
        assert says(first) == "new"
        deployment.write("pod-1.toml", deployment.client_text("pod-1", {"a": new.target}))
        assert client.reload()["ok"]
        until(lambda: [c["services"] for c in server.status()["clients"]] == [["a"]], "the removed is not offered")
        until(lambda: says(second) == "", "every worker knows it")
        assert says(first) == "new"


def test_users_on_a_server_that_is_not_wanted_any_more_may_finish(deployment: Deployment) -> None:
    """The same happens to an address that a name in ``servers`` has lost: nobody is cut off by a change of DNS."""
    port = free_port()
    with Service(echo) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'})
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as user:
            assert ask(user, b"before") == b"before"
            text = client.config.read_text().replace("127.0.0.1:", "localhost:", 1)
            client.config.write_text(text)
            assert client.reload()["exit_code"] == 0

            def registered() -> bool:
                servers = client.status().get("servers", [])
                return any(row["server"].startswith("localhost") and row["state"] == "registered" for row in servers)

            until(registered, "registered at the other name")
            until(lambda: any(row["state"] == "giving up" for row in client.status()["servers"]), "the old is given up")
            assert says_back(port)
            assert ask(user, b"after") == b"after"
        until(lambda: not any(row["state"] == "giving up" for row in client.status()["servers"]), "the end of the old")
        assert says_back(port)
        assert "Traceback" not in client.log + server.log


def says_back(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as user:
        return ask(user, b"hello") == b"hello"
