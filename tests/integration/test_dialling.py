"""The client's side of a user's connection, on either engine: every kind of target, and what is counted and said."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, echo, named
from tests.integration.shared import Tunnel
from tests.integration.users import ask, connect, read_line, reset, says
from tests.waiting import until


def counted(daemon: Daemon, service: str) -> dict[str, Any]:
    rows = daemon.status().get("services", [])
    return next((row for row in rows if row["name"] == service), {})


def numbers(daemon: Daemon, services: Iterable[str]) -> set[tuple[int, ...]]:
    keys = ("connections", "total", "bytes_in", "bytes_out")
    return {tuple(counted(daemon, service).get(key, -1) for key in keys) for service in services}


KINDS = ("v4", "v6", "name", "unix")
SERVICES = {
    **dict.fromkeys((*KINDS, "web"), ""),
    **dict.fromkeys(("refuses", "nowhere", "nameless", "resets"), "retries = 0"),
}


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Iterator[Tunnel]:
    by_name = free_port()
    targets = {
        "v6": f"[::1]:{free_port(host='::1')}",
        "name": f"localhost:{by_name}",
        "unix": f"unix:{shared.directory}/service.sock",
        "nowhere": f"unix:{shared.directory}/nobody.sock",
        "nameless": "nobody.invalid:80",
    }
    tunnel = Tunnel(shared, SERVICES, targets)
    yield tunnel
    tunnel.until_left()


def test_every_kind_of_target_is_served_and_counted(tunnel: Tunnel) -> None:
    v6_port, named_port = (int(tunnel.targets[kind].rpartition(":")[2]) for kind in ("v6", "name"))
    ports = [tunnel.ports[kind] for kind in KINDS]
    with (
        tunnel.service("v4", echo),
        Service(echo, "::1", port=v6_port),
        Service(echo, port=named_port),
        Service(echo, path=tunnel.targets["unix"].removeprefix("unix:")),
    ):
        with contextlib.ExitStack() as stack:
            for port in ports:
                for _ in range(3):  # the first one resolves the name, the others need not
                    user = stack.enter_context(connect(port))
                    assert ask(user, b"hello") == b"hello"
            for daemon in (tunnel.client, tunnel.server):
                until(lambda daemon=daemon: numbers(daemon, KINDS) == {(3, 3, 15, 15)}, "all are counted as there")
        for daemon in (tunnel.client, tunnel.server):
            until(lambda daemon=daemon: numbers(daemon, KINDS) == {(0, 3, 15, 15)}, "nobody is left")
    for target in (tunnel.targets[kind] for kind in KINDS):
        assert f"target={target}" not in tunnel.client.log


def test_the_target_changes_with_a_reload(tunnel: Tunnel) -> None:
    port = tunnel.ports["web"]
    with Service(named("old"), port=tunnel.target_ports["web"]) as old, Service(named("new")) as new:
        with connect(port) as stays:
            assert read_line(stays) == "old"
            tunnel.client.config.write_text(
                tunnel.deployment.client_text("pod-1", {**tunnel.targets, "web": new.target})
            )
            assert tunnel.client.reload()["ok"]
            until(lambda: says(port) == "new", "users go to the new target")
            until(lambda: old.open == 1, "only who was there is left")
        until(lambda: old.open == 0, "who was there could stay to the end")


@contextlib.contextmanager
def resetting(port: int) -> Iterator[None]:
    """A service that resets every connection as soon as it is there."""
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:

        def serve() -> None:
            while True:
                reset(listener.accept()[0])
                if over.is_set():
                    return

        over = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            with socket.create_connection(("127.0.0.1", port)):
                thread.join()


def test_a_service_that_resets_at_once(tunnel: Tunnel) -> None:
    """Whether that is seen before the answer or after it, it is the service that did it."""
    with resetting(tunnel.target_ports["resets"]), ThreadPoolExecutor(20) as pool:
        assert list(pool.map(says, [tunnel.ports["resets"]] * 200)) == [""] * 200

    def all_counted() -> bool:
        row = tunnel.row("resets")
        return row.get("connections") == 0 and row["total"] + sum(row["refused"].values()) == 200

    until(all_counted, "each was served or refused")
    assert set(tunnel.refused("resets")) <= {"service_reset"}
    assert "Traceback" not in tunnel.client.log


def test_why_a_service_cannot_be_reached_is_said(tunnel: Tunnel) -> None:
    reasons = (("refuses", "refused"), ("nowhere", "unreachable"), ("nameless", "name"))
    for service, code in reasons:
        assert says(tunnel.ports[service]) == ""
        until(lambda s=service, c=code: counted(tunnel.client, s).get("refused") == {c: 1}, f"{service} is counted")
        until(lambda s=service, c=code: tunnel.refused(s) == {f"service_{c}": 1}, "at the server, too")
    lines = [line for line in tunnel.client.log.splitlines() if "cannot reach the service" in line]
    assert [sum(f"service={service} " in f"{line} " for line in lines) for service, _ in reasons] == [1, 1, 1]
