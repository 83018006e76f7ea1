"""What dies, and who notices: workers, supervisors, servers, clients."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.daemons import Daemon, Deployment, free_port, until
from tests.integration.services import Service, echo, named
from tests.integration.users import says


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


def test_killed_worker_takes_only_its_own_users_and_is_back(deployment: Deployment) -> None:
    port = free_port()
    with Service(echo) as service, contextlib.ExitStack() as stack:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=4)
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=4)
        users = stack.enter_context(held_users(port, 80))
        victim = server.workers()[1]
        killed = psutil.Process(victim["pid"])
        killed.kill()
        until(lambda: not _lives(killed), "the kernel has ended it")
        survivors = alive(users)
        assert 80 - 45 <= len(survivors) < 80  # about a quarter was the victim's
        killed_at = time.monotonic()

        def is_back() -> bool:
            rows = [row for row in server.workers() if row["slot"] == victim["slot"]]
            return bool(rows) and rows[0]["state"] == "ready" and rows[0]["epoch"] == victim["epoch"] + 1

        until(is_back, "the successor in the same slot", 30)
        until(lambda: server.status()["clients"][0]["connections"] == 4, "the client's connection to it", 30)
        assert time.monotonic() - killed_at < 10.0 + newest_start_s(server, victim["name"])
        assert len(alive(survivors)) == len(survivors)
        with held_users(port, 40) as more:
            assert len(more) == 40


def test_no_user_is_refused_while_workers_are_killed(deployment: Deployment) -> None:
    """Connections wait in the dead worker's queue for its successor; only users it had accepted are lost."""
    port = free_port()
    with Service(named("x")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "30s"'}, workers=3)
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=3)
        refused = 0
        for number in range(3):
            psutil.Process(server.workers()[number]["pid"]).kill()
            for _ in range(30):
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=30) as user:
                        user.recv(2)
                except ConnectionRefusedError:
                    refused += 1
                except ConnectionResetError:
                    pass
            until(lambda: len(server.workers()) == 3 and all(w["state"] == "ready" for w in server.workers()), "back")
        assert refused == 0
        assert [says(port, 10) for _ in range(20)] == ["x"] * 20


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


@pytest.mark.engines("auto")
@pytest.mark.parametrize("which", ["server", "client"])
def test_killed_supervisor_leaves_no_orphans(deployment: Deployment, which: str) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=3)
        client = deployment.client("pod-1", {"web": service.target}).until_ready()
        server.until_clients(1, connections=3)
        daemon = server if which == "server" else client
        children = daemon.family()[1:]
        assert len(children) >= 2
        killed_at = time.monotonic()
        daemon.process.kill()
        daemon.process.wait()
        until(lambda: not any(_lives(child) for child in children), "the children end")
        assert time.monotonic() - killed_at < 8.0  # the promise is 2 s; the machine may stand still meanwhile
        if which == "server":
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                probe.listen()
        again = deployment.start("qmuxd" if which == "server" else "qmuxc", daemon.config).until_ready()
        until(lambda: says(port) == "x", "served again")
        assert again.process.poll() is None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_client_survives_a_server_restart(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
        assert server.stop() == 0
        until(lambda: "cannot connect to server" in client.log, "the client says that the server is gone")
        deployment.start("qmuxd", server.config).until_ready()
        until(lambda: says(port) == "x", "served again")
        assert client.process.poll() is None


def test_client_starts_before_its_server(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        client = deployment.client("pod-1", {"web": service.target}).until_ready()
        until(lambda: "nothing listens on UDP port" in client.log, "says why")
        deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        until(lambda: says(port) == "x", "served")


def test_killed_client_is_removed_and_its_users_are_reset(deployment: Deployment) -> None:
    port = free_port()
    with Service(echo) as service:
        server = deployment.server(
            {"web": f'bind = "127.0.0.1:{port}"'}, workers=2, quic='idle_timeout = "3s"\nkeep_alive = "1s"'
        )
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
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
            assert [says(port) for _ in range(10)] == ["good"] * 10
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


def test_client_stop_moves_users_to_others(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("a")) as first, Service(named("b")) as second:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        leaving = deployment.client("a", {"web": first.target})
        deployment.client("b", {"web": second.target})
        server.until_clients(2, connections=2)
        leaving.process.send_signal(signal.SIGTERM)
        answers = [says(port) for _ in range(60)]
        assert "" not in answers
        assert leaving.process.wait(30) == 0
        assert {says(port) for _ in range(10)} == {"b"}


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
        first = deployment.server({"web": f'bind = "127.0.0.1:{first_port}"'}, workers=2)
        text = deployment.server_text({"web": f'bind = "127.0.0.1:{second_port}"'}, workers=2)
        text = text.replace(f":{deployment.quic_port}", f":{second_quic}").replace("-server", "-second")
        second: Daemon = deployment.start("qmuxd", deployment.write("second.toml", text)).until_ready()
        servers = [f"127.0.0.1:{deployment.quic_port}", f"127.0.0.1:{second_quic}"]
        deployment.client("pod-1", {"web": service.target}, servers=servers)
        first.until_clients(1, connections=2)
        second.until_clients(1, connections=2)
        assert (says(first_port), says(second_port)) == ("x", "x")
        first.kill()
        assert [says(second_port) for _ in range(10)] == ["x"] * 10
