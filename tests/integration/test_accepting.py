"""Users who come quickly: nearly all are the engine's alone, and who is not is served all the same."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.shared import Tunnel
from tests.integration.test_pool import names
from tests.integration.test_waiting import refused, users
from tests.waiting import until

pytestmark = pytest.mark.engines("native", extended=("native-aioquic",))

SERVICES = {
    "refused": "",
    "full": 'maxconn = 10\nqueue_timeout = "60s"',
    "thousand": "",
    "leaving": "",
    "staying": "",
}


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Tunnel:
    return Tunnel(shared, SERVICES)


@contextlib.contextmanager
def second_client(tunnel: Tunnel, service: str, target: str) -> Iterator[Daemon]:
    """Another one, with this target for one of the services."""
    client = tunnel.deployment.client("second", {service: target})
    tunnel.server.until_clients(2, connections=2)
    yield client
    assert client.stop() == 0


def come_and_go(port: int, threads: int, each: int, meanwhile: Callable[[int], None] = lambda _: None) -> list[str]:
    """What ``threads`` × ``each`` users heard, who come one after the other and leave when they have heard it."""
    heard: list[str] = []

    def some(number: int) -> None:
        for at in range(each):
            try:
                with socket.create_connection(("127.0.0.1", port), 30) as user:
                    said = user.recv(100).decode().strip()
                    user.shutdown(socket.SHUT_WR)
                    while user.recv(100):
                        pass
            except OSError as error:
                said = type(error).__name__
            heard.append(said)
            if number == 0:
                meanwhile(at)

    running = [threading.Thread(target=some, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
    return heard


def worker_of(daemon: Daemon) -> psutil.Process:
    return psutil.Process(until(daemon.workers, "its worker")[0]["pid"])


def test_nobody_is_lost_when_a_client_dies_while_it_is_asked(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("a")) as first, Service(named("b")) as second:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        dying = deployment.client("a", {"web": first.target})
        deployment.client("b", {"web": second.target})
        server.until_clients(2, connections=2)
        assert set(come_and_go(port, 4, 10)) == {"a", "b"}
        worker = worker_of(dying)
        worker.send_signal(signal.SIGSTOP)  # it is asked and does not answer
        with users(port, 60) as asking:
            dying.kill()
            assert names(asking) == {"b": 60}
        assert refused(server) == {}
        assert until(lambda: server.status()["services"][0]["retried"], "some were tried twice") >= 1


def test_nobody_is_lost_when_a_service_refuses(tunnel: Tunnel) -> None:
    """At the target of the first client nothing listens."""
    with Service(named("b")) as service, second_client(tunnel, "refused", service.target):
        assert collections.Counter(come_and_go(tunnel.ports["refused"], 8, 25)) == {"b": 200}
    until(lambda: tunnel.row("refused")["retried"] > 0, "some were tried twice")
    assert tunnel.refused("refused") == {}


def test_nobody_is_lost_when_clients_come_and_go(deployment: Deployment) -> None:
    """While users come a client stops, and another one takes its place."""
    port = free_port()
    with Service(named("a")) as first, Service(named("b")) as second:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "20s"'}, workers=2)
        stopping = deployment.client("a", {"web": first.target})
        server.until_clients(1, connections=2)

        def act(turn: int) -> None:
            if turn == 20:
                deployment.client("b", {"web": second.target})
                server.until_clients(2, connections=2)
            elif turn == 40:
                stopping.process.send_signal(signal.SIGTERM)

        heard = collections.Counter(come_and_go(port, 8, 80, act))
        assert heard.keys() == {"a", "b"}, heard
        assert heard.total() == 640
        assert stopping.process.wait(30) == 0


def test_maxconn_is_kept(tunnel: Tunnel) -> None:
    """40 at a time come where 10 have a place. Two workers may exceed it by what they accept at the same moment."""
    most = open_now = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, open_now
        open_now += 1
        most = max(most, open_now)
        writer.write(b"x\n")
        await reader.read()
        open_now -= 1

    with tunnel.service("full", counting):
        assert collections.Counter(come_and_go(tunnel.ports["full"], 40, 10)) == {"x": 400}
        assert 5 <= most <= 10 * 2
        until(lambda: tunnel.row("full")["connections"] == 0, "all are gone")
        assert come_and_go(tunnel.ports["full"], 1, 1) == ["x"]


@pytest.mark.engines(extended=("native", "native-aioquic"))
def test_maxconn_is_kept_by_one_worker_to_the_connection(deployment: Deployment) -> None:
    tunnel = Tunnel(deployment, {"full": SERVICES["full"]}, workers=1)
    with tunnel.service("full", named("x")) as service:
        with users(tunnel.ports["full"], 40) as come:
            until(lambda: service.open == 10, "as many as are let in")
            for user in come[:30]:
                user.close()
            assert names(come[30:]) == {"x": 10}
            assert service.open <= 10
        until(lambda: tunnel.row("full")["connections"] == 0, "all are gone")


def test_a_thousand_users_leave_nothing(tunnel: Tunnel) -> None:
    port = tunnel.ports["thousand"]
    workers = [psutil.Process(row["pid"]) for row in tunnel.server.workers() + tunnel.client.workers()]
    with tunnel.service("thousand", named("x")) as service:
        come_and_go(port, 2, 10)
        until(lambda: service.open == 0, "all gone")
        tunnel.until_left()
        before = [worker.num_fds() for worker in workers]
        assert collections.Counter(come_and_go(port, 10, 100)) == {"x": 1000}
        until(lambda: service.open == 0, "all gone")
        for worker, held in zip(workers, before, strict=True):
            until(lambda worker=worker, held=held: worker.num_fds() <= held, "every descriptor is closed")

    def is_empty() -> bool:
        row, (client,) = tunnel.row("thousand"), tunnel.server.status()["clients"]
        return (row["connections"], row["total"], client["active"]) == (0, 1020, 0)

    until(is_empty, "the counters say so")


def test_a_reload_takes_the_bind_and_leaves_its_users(tunnel: Tunnel) -> None:
    """The last of its module: it takes the bind of a service away, and gives it back."""
    port, other, server = tunnel.ports["leaving"], tunnel.ports["staying"], tunnel.server
    with tunnel.service("leaving", named("x")) as service, tunnel.service("staying", named("x")):
        come_and_go(port, 4, 10)
        with users(port, 30) as staying:
            assert names(staying) == {"x": 30}
            left = {name: lines for name, lines in tunnel.binds.items() if name != "leaving"}
            server.config.write_text(tunnel.deployment.server_text(left))
            assert server.reload()["ok"]
            until(lambda: come_and_go(port, 1, 1) == ["ConnectionRefusedError"], "the bind is gone")
            until(lambda: service.open == 30, "those who are there, and nobody else")
            assert come_and_go(other, 2, 5) == ["x"] * 10
        until(lambda: service.open == 0, "all gone")
        server.config.write_text(tunnel.deployment.server_text(tunnel.binds))
        assert server.reload()["ok"]
        assert come_and_go(port, 4, 10) == ["x"] * 40
