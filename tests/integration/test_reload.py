"""Reload in place: services, limits and certificates change under load; a bad file changes nothing."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from qmux.pki import authority
from qmux.quic.aioquic_engine.connection import AioquicConnection
from qmux.quic.choose import load_engine
from tests import aio
from tests.daemons import COMMANDS, Deployment, free_port
from tests.integration.services import Service, echo, named
from tests.integration.strangers import Stranger, connect_config, hang_up
from tests.integration.users import Ended, ask, says
from tests.waiting import until


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


class Pair:
    """A server and its client ``pod-1`` that run through the whole module; each test gives them what it needs."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.server = deployment.server({"none": f'bind = "127.0.0.1:{free_port()}"'})
        self.client = deployment.client("pod-1", {"none": "127.0.0.1:9"}).until_ready()

    def set_server(self, services: Mapping[str, str], **options: str) -> dict[str, Any]:
        """What a reload with these services answers."""
        self.server.config.write_text(self.deployment.server_text(services, **options))
        return self.server.reload()

    def set_client(self, targets: Mapping[str, str], **options: Any) -> dict[str, Any]:
        """What a reload with these targets answers."""
        self.client.config.write_text(self.deployment.client_text("pod-1", targets, **options))
        return self.client.reload()

    def begin(self, services: Mapping[str, str], targets: Mapping[str, str]) -> None:
        """Reload both, and wait until the client serves these services over both of its connections."""
        assert self.set_server(services)["ok"]
        assert self.set_client(targets)["ok"]
        offered = sorted(set(services) & set(targets))

        def is_there() -> bool:
            clients = self.server.status().get("clients", [])
            return [(sorted(c["services"]), c["connections"], c["state"]) for c in clients] == [(offered, 2, "ready")]

        until(is_there, f"{offered} are served")


@pytest.fixture(scope="module")
def pair(shared: Deployment) -> Pair:
    return Pair(shared)


def test_service_comes_and_goes(pair: Pair) -> None:
    first, second = free_port(), free_port()
    with Service(named("a")) as a, Service(named("b")) as b:
        web = {"a": f'bind = "127.0.0.1:{first}"'}
        pair.begin(web, {"a": a.target, "b": b.target})
        answer = pair.set_server({**web, "b": f'bind = "127.0.0.1:{second}"'})
        assert answer["ok"], answer
        until(lambda: says(second) == "b", "the new service is served by the client that had offered it already")
        assert says(first) == "a"
        assert pair.set_server(web)["ok"]
        until(lambda: says(second, 1) == "", "the removed bind refuses")
        assert says(first) == "a"


@pytest.mark.engines("auto", "aioquic")
def test_a_service_gets_another_name_on_the_same_bind(pair: Pair) -> None:
    port, kept = free_port(), free_port()
    other = {"kept": f'bind = "127.0.0.1:{kept}"'}
    with Service(named("a")) as a, Service(named("kept")) as service:
        targets = {"old": a.target, "new": a.target, "kept": service.target}
        for name in ("old", "new", "old"):
            pair.begin({name: f'bind = "127.0.0.1:{port}"', **other}, targets)
            assert [says(port) for _ in range(6)] == ["a"] * 6
            assert says(kept) == "kept"
        assert pair.server.status()["failed_binds"] == []


def test_bad_file_changes_nothing_and_says_why(pair: Pair) -> None:
    port = free_port()
    with Service(named("a")) as service:
        web = {"a": f'bind = "127.0.0.1:{port}"'}
        pair.begin(web, {"a": service.target})
        pids = [row["pid"] for row in pair.server.status()["workers"]]
        text = pair.deployment.server_text(web)
        for bad in (text + "idle_timeout = 30\n", text + "[", text + '[services.x]\nballance = "x"\n'):
            pair.server.config.write_text(bad)
            answer = pair.server.reload()
            assert not answer["ok"]
            assert answer["exit_code"] == 3
            assert any("server.toml:" in line for line in answer["lines"])
            assert says(port) == "a"
        assert [row["pid"] for row in pair.server.status()["workers"]] == pids


def test_port_in_use_changes_nothing(pair: Pair) -> None:
    port = free_port()
    with Service(named("a")) as service, Service(named("other")) as other:
        pair.begin({"a": f'bind = "127.0.0.1:{port}"'}, {"a": service.target})
        answer = pair.set_server({"a": f'bind = ["127.0.0.1:{port}", "{other.target}"]'})
        assert not answer["ok"]
        assert any(str(other.port) in line for line in answer["lines"])
        assert says(port) == "a"


def test_what_needs_a_restart_is_said(pair: Pair) -> None:
    path = pair.server.config
    path.write_text(path.read_text().replace("workers = 2", "workers = 3"))
    ran = subprocess.run(
        [COMMANDS / "qmux", "reload", "-c", path],
        capture_output=True,
        text=True,
        timeout=60,
        env=pair.server.environment,
    )
    assert ran.returncode == 6, ran
    assert "server.workers" in ran.stdout + ran.stderr
    assert "restart" in ran.stdout + ran.stderr
    assert len(pair.server.workers()) == 2


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.extended)])
def test_no_user_fails_through_many_reloads(pair: Pair, count: int) -> None:
    # The load draws thousands of local ports on 127.0.0.1, and one that is in TIME_WAIT cannot be bound there, not even
    # with SO_REUSEADDR, since a user's socket does not have it: hence another address for the bind that comes and goes.
    port, extra = free_port(), free_port(host="127.0.0.2")
    with Service(echo) as service:
        web = {"a": f'bind = "127.0.0.1:{port}"'}
        both = {**web, "b": f'bind = "127.0.0.2:{extra}"'}
        pair.begin(web, {"a": service.target, "b": service.target})
        with Load(port) as load:
            until(lambda: load.done > 10, "load")
            for number in range(count):
                services = both if number % 2 == 0 else web
                balance = "round-robin" if number % 3 else "least-connections"
                services = {**services, "a": f'{services["a"]}\nbalance = "{balance}"\nmaxconn = {1000 + number}'}
                answer = pair.set_server(services)
                assert answer["ok"], answer
            seen = load.done
            until(lambda: load.done > seen + 20, "load after the last reload")
        assert load.failures == []


def test_changed_settings_reach_clients_without_a_failed_user(pair: Pair) -> None:
    """An idle_timeout is told at registration: clients register again, make before break."""
    port = free_port()
    with Service(echo) as service:
        pair.begin({"a": f'bind = "127.0.0.1:{port}"'}, {"a": service.target})
        with Load(port) as load:
            until(lambda: load.done > 10, "load")
            for seconds in (30, 40, 50):
                registered = pair.server.log.count("client registered")
                assert pair.set_server({"a": f'bind = "127.0.0.1:{port}"\nidle_timeout = "{seconds}s"'})["ok"]
                until(lambda seen=registered: pair.server.log.count("client registered") > seen, "registered again")
                seen = load.done
                until(lambda seen=seen: load.done > seen + 50, "load goes on")
        assert load.failures == []
        until(lambda: [c["connections"] for c in pair.server.status()["clients"]] == [2], "old connections are gone")


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

    return aio.run(ask())


def test_certificates_are_renewed_in_place(pair: Pair) -> None:
    port, deployment = free_port(), pair.deployment
    with Service(echo) as service:
        pair.begin({"a": f'bind = "127.0.0.1:{port}"'}, {"a": service.target})
        before = _serial_at(deployment.quic_port, deployment.directory)
        with Load(port) as load:
            until(lambda: load.done > 10, "load")
            authority.issue_server(deployment.directory, ["localhost", "127.0.0.1", "::1"])
            authority.issue_client(deployment.directory, "pod-1", ["*"])
            assert pair.server.reload()["ok"]
            assert pair.client.reload()["ok"]
            assert _serial_at(deployment.quic_port, deployment.directory) != before
        assert load.failures == []


def test_client_reload_changes_targets_and_services(pair: Pair) -> None:
    first, second = free_port(), free_port()
    with Service(named("old")) as old, Service(named("new")) as new:
        services = {"a": f'bind = "127.0.0.1:{first}"', "b": f'bind = "127.0.0.1:{second}"\nqueue_timeout = "300ms"'}
        pair.begin(services, {"a": old.target})
        assert (says(first), says(second)) == ("old", "")
        assert pair.set_client({"a": new.target, "b": new.target})["ok"]
        until(lambda: says(second) == "new", "the added service is offered")
        assert says(first) == "new"
        assert pair.set_client({"a": new.target})["ok"]
        until(lambda: [c["services"] for c in pair.server.status()["clients"]] == [["a"]], "the removed is not offered")
        until(lambda: says(second) == "", "every worker knows it")
        assert says(first) == "new"


def test_users_on_a_server_that_is_not_wanted_any_more_may_finish(pair: Pair) -> None:
    """The same happens to an address that a name in ``servers`` has lost: nobody is cut off by a change of DNS."""
    port, client = free_port(), pair.client
    with Service(echo) as service:
        targets = {"web": service.target}
        pair.begin({"web": f'bind = "127.0.0.1:{port}"'}, targets)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as user:
            assert ask(user, b"before") == b"before"
            answer = pair.set_client(targets, servers=[f"localhost:{pair.deployment.quic_port}"])
            assert answer["exit_code"] == 0

            def registered() -> bool:
                servers = client.status().get("servers", [])
                return any(row["server"].startswith("localhost") and row["state"] == "registered" for row in servers)

            until(registered, "registered at the other name")
            until(lambda: any(row["state"] == "giving up" for row in client.status()["servers"]), "the old is given up")
            assert says_back(port)
            assert ask(user, b"after") == b"after"
        until(lambda: not any(row["state"] == "giving up" for row in client.status()["servers"]), "the end of the old")
        assert says_back(port)
        assert "Traceback" not in client.log + pair.server.log


def says_back(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as user:
        return ask(user, b"hello") == b"hello"
