"""The client's side of a user's connection, on either engine: every kind of target, and what is counted and said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.daemons import Daemon, Deployment, free_port, until
from tests.integration.services import Service, echo, named
from tests.integration.users import ask, connect, read_line, says


def counted(daemon: Daemon, service: str) -> dict[str, Any]:
    rows = daemon.status().get("services", [])
    return next((row for row in rows if row["name"] == service), {})


def numbers(daemon: Daemon, services: Iterable[str]) -> set[tuple[int, ...]]:
    keys = ("connections", "total", "bytes_in", "bytes_out")
    return {tuple(counted(daemon, service).get(key, -1) for key in keys) for service in services}


def test_every_kind_of_target_is_served_and_counted(deployment: Deployment, tmp_path: Path) -> None:
    with (
        Service(echo) as v4,
        Service(echo, "::1") as v6,
        Service(echo) as behind_name,
        Service(echo, path=str(tmp_path / "service.sock")) as unix,
    ):
        name = f"localhost:{behind_name.port}"
        targets = {"v4": v4.target, "v6": v6.target, "name": name, "unix": unix.target}
        ports = {service: free_port() for service in targets}
        server = deployment.server({service: f'bind = "127.0.0.1:{port}"' for service, port in ports.items()})
        client = deployment.client("pod-1", targets)
        server.until_clients(1, connections=2)
        with contextlib.ExitStack() as stack:
            for port in ports.values():
                for _ in range(3):  # the first one resolves the name, the others need not
                    user = stack.enter_context(connect(port))
                    assert ask(user, b"hello") == b"hello"
            for daemon in (client, server):
                until(lambda daemon=daemon: numbers(daemon, targets) == {(3, 3, 15, 15)}, "all are counted as there")
        for daemon in (client, server):
            until(lambda daemon=daemon: numbers(daemon, targets) == {(0, 3, 15, 15)}, "nobody is left")
        assert "cannot reach the service" not in client.log


def test_the_target_changes_with_a_reload(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("old")) as old, Service(named("new")) as new:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'})
        client = deployment.client("pod-1", {"web": old.target})
        server.until_clients(1, connections=2)
        with connect(port) as stays:
            assert read_line(stays) == "old"
            text = deployment.client_text("pod-1", {"web": new.target})
            deployment.write("pod-1.toml", text)
            assert client.reload()["ok"]
            until(lambda: says(port) == "new", "users go to the new target")
            until(lambda: old.open == 1, "only who was there is left")
        until(lambda: old.open == 0, "who was there could stay to the end")


def test_why_a_service_cannot_be_reached_is_said(deployment: Deployment, tmp_path: Path) -> None:
    targets = {
        "refuses": f"127.0.0.1:{free_port()}",
        "nowhere": f"unix:{tmp_path}/nobody.sock",
        "nameless": "nobody.invalid:80",
    }
    ports = {service: free_port() for service in targets}
    server = deployment.server({service: f'bind = "127.0.0.1:{port}"\nretries = 0' for service, port in ports.items()})
    client = deployment.client("pod-1", targets)
    server.until_clients(1, connections=2)
    for service, code in (("refuses", "refused"), ("nowhere", "unreachable"), ("nameless", "name")):
        assert says(ports[service]) == ""
        until(lambda s=service, c=code: counted(client, s).get("refused") == {c: 1}, f"{service} is counted")
        until(lambda s=service, c=code: counted(server, s).get("refused") == {f"service_{c}": 1}, "at the server, too")
    assert client.log.count("cannot reach the service") == 3
