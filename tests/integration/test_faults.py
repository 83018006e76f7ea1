"""What dies, and who notices: workers, supervisors, servers, clients."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, echo, named
from tests.integration.shared import Tunnel
from tests.integration.users import says
from tests.waiting import until


@contextlib.contextmanager
def held_users(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Users that have been served an echo and stay open."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(count)]
        for user in users:
            user.sendall(b"?")
            assert user.recv(1) == b"?"
        yield users


def alive(users: list[socket.socket]) -> list[socket.socket]:
    """Those that still echo."""
    found = []
    for user in users:
        with contextlib.suppress(OSError):
            user.sendall(b"!")
            if user.recv(1) == b"!":
                found.append(user)
    return found


def newest_start_s(daemon: Daemon, worker: str) -> float:
    """How long its last process took to begin: this much of a recovery is the machine's."""
    return float(re.findall(rf"{worker} ready .* after_s=([\d.]+)", daemon.log)[-1])


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Tunnel:
    """Its workers are killed, and a worker is back before a test ends."""
    return Tunnel(shared, {"echo": "", "named": 'queue_timeout = "30s"'}, workers=4)


def kill(server: Daemon, slot: int) -> dict[str, Any]:
    """Kill the worker in this slot and wait for its end: what ``status`` said of it."""
    (victim,) = (row for row in server.workers() if row["slot"] == slot)
    process = psutil.Process(victim["pid"])
    process.kill()
    until(lambda: not _lives(process), "the kernel has ended it")
    return victim


def until_back(server: Daemon, victim: dict[str, Any]) -> None:
    def is_back() -> bool:
        rows = [row for row in server.workers() if row["slot"] == victim["slot"]]
        return bool(rows) and rows[0]["state"] == "ready" and rows[0]["epoch"] == victim["epoch"] + 1

    until(is_back, "the successor in the same slot")
    until(lambda: server.status()["clients"][0]["connections"] == 4, "the client's connection to it")


def test_killed_worker_takes_only_its_own_users_and_is_back(tunnel: Tunnel) -> None:
    port, server = tunnel.ports["echo"], tunnel.server
    with tunnel.service("echo", echo), contextlib.ExitStack() as stack:
        users = stack.enter_context(held_users(port, 80))
        victim = kill(server, 1)
        survivors = alive(users)
        assert 80 - 45 <= len(survivors) < 80  # about a quarter was the victim's
        killed_at = time.monotonic()
        until_back(server, victim)
        assert time.monotonic() - killed_at < 10.0 + newest_start_s(server, victim["name"])
        assert len(alive(survivors)) == len(survivors)
        with held_users(port, 40) as more:
            assert len(more) == 40


def test_no_user_is_lost_while_workers_are_killed(tunnel: Tunnel) -> None:
    """Connections wait in the dead worker's queue for its successor: whoever comes after its death is served."""
    with tunnel.service("named", named("x")):
        for slot in (0, 2, 3):
            victim = kill(tunnel.server, slot)
            assert Counter(says(tunnel.ports["named"], 30) for _ in range(30)) == {"x": 30}
            until_back(tunnel.server, victim)


def test_single_worker_is_killed_and_its_client_is_back_soon(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1)
        killed_at = time.monotonic()
        psutil.Process(server.workers()[0]["pid"]).kill()
        until(lambda: says(port, 8) == "x", "served again", 30)
        assert time.monotonic() - killed_at < 12.0 + newest_start_s(server, "worker-0")


def test_killed_supervisor_leaves_no_orphans(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        client = deployment.client("pod-1", {"web": service.target}).until_ready()
        server.until_clients(1, connections=2)
        kill_supervisor(client, 2)
        client = deployment.start("qmuxc", client.config).until_ready()
        until(lambda: says(port) == "x", "served again")
        kill_supervisor(server, 3)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            probe.listen()
        server = deployment.start("qmuxd", server.config).until_ready()
        until(lambda: says(port) == "x", "served again")
        assert (server.process.poll(), client.process.poll()) == (None, None)


def kill_supervisor(daemon: Daemon, children_count: int) -> None:
    """Its children, at least so many, end by themselves."""
    children = daemon.family()[1:]
    assert len(children) >= children_count
    killed_at = time.monotonic()
    daemon.process.kill()
    daemon.process.wait()
    until(lambda: not any(_lives(child) for child in children), "the children end")
    assert time.monotonic() - killed_at < 8.0  # the promise is 2 s; the machine may stand still meanwhile


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_client_outlives_its_servers(deployment: Deployment) -> None:
    """It starts before there is one, and serves the one that comes, and the one after that."""
    port = free_port()
    with Service(named("x")) as service:
        client = deployment.client("pod-1", {"web": service.target}, client='reconnect_max = "1s"').until_ready()
        until(lambda: "nothing listens on UDP port" in client.log, "says why")
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
        until(lambda: says(port) == "x", "served")
        said = client.log.count("cannot connect to server")
        assert server.stop() == 0
        until(lambda: client.log.count("cannot connect to server") > said, "the client says that the server is gone")
        deployment.start("qmuxd", server.config).until_ready()
        until(lambda: says(port) == "x", "served again")
        assert client.process.poll() is None


def test_killed_client_is_removed_and_its_users_are_reset(deployment: Deployment) -> None:
    port = free_port()
    with Service(echo) as service:
        server = deployment.server(
            {"web": f'bind = "127.0.0.1:{port}"'}, workers=1, quic='idle_timeout = "3s"\nkeep_alive = "1s"'
        )
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=1)
        with held_users(port, 1) as users:
            client.kill()
            with pytest.raises(ConnectionResetError):
                users[0].recv(1)
        until(lambda: server.status()["clients"] == [], "removed")


def test_suspect_client_is_passed_over(deployment: Deployment) -> None:
    """A client that stopped (not dead: nothing tells) gets no new user while another is there."""
    port = free_port()
    with Service(named("good")) as good, Service(named("stopped")) as bad:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
        deployment.client("good", {"web": good.target})
        client = deployment.client("stopped", {"web": bad.target})
        server.until_clients(2)
        worker = psutil.Process(until(client.workers, "the client's processes")[0]["pid"])
        worker.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert [says(port, 30) for _ in range(10)] == ["good"] * 10
            assert time.monotonic() - started < 10.0
            # the admin process hears of it over the bus
            until(
                lambda: (
                    {c["client"]: c["state"] for c in server.status()["clients"]}
                    == {"good": "ready", "stopped": "suspect"}
                ),
                "the stopped client is suspect",
            )
        finally:
            worker.send_signal(signal.SIGCONT)
        until(lambda: {c["state"] for c in server.status()["clients"]} == {"ready"}, "ready again")


def test_graceful_stop_lets_users_finish(deployment: Deployment) -> None:
    port = free_port()
    with Service(echo) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2, stop_after="60s")
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
        with held_users(port, 10) as users:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: _refuses(port), "no new users")
            assert len(alive(users)) == 10
        assert server.process.wait(30) == 0


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionError:
        return True
    return False


def test_two_servers_one_dies(deployment: Deployment) -> None:
    """A client holds two servers; each serves on its own, and one goes on when the other dies."""
    first_port, second_port = free_port(), free_port()
    second_quic = free_port(socket.SOCK_DGRAM)
    with Service(named("x")) as service:
        first = deployment.server({"web": f'bind = "127.0.0.1:{first_port}"'}, workers=1)
        text = deployment.server_text({"web": f'bind = "127.0.0.1:{second_port}"'}, workers=1)
        text = text.replace(f":{deployment.quic_port}", f":{second_quic}").replace("-server", "-second")
        second: Daemon = deployment.start("qmuxd", deployment.write("second.toml", text)).until_ready()
        servers = [f"127.0.0.1:{deployment.quic_port}", f"127.0.0.1:{second_quic}"]
        deployment.client("pod-1", {"web": service.target}, servers=servers)
        first.until_clients(1, connections=1)
        second.until_clients(1, connections=1)
        assert (says(first_port), says(second_port)) == ("x", "x")
        first.kill()
        assert [says(second_port) for _ in range(10)] == ["x"] * 10
