"""Users who come quickly: nearly all are the engine's alone, and who is not is served all the same."""

from __future__ import annotations

import asyncio
import collections
import signal
import socket
import threading
from collections.abc import Callable

import psutil
import pytest

from tests.daemons import Daemon, Deployment, free_port, until
from tests.integration.services import Service, named
from tests.integration.test_pool import names
from tests.integration.test_waiting import refused, users

pytestmark = pytest.mark.engines("native", "native-aioquic")


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


def test_nobody_is_lost_when_a_service_refuses(deployment: Deployment) -> None:
    port, nobody = free_port(), free_port()
    with Service(named("b")) as second:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=2)
        deployment.client("a", {"web": f"127.0.0.1:{nobody}"})
        deployment.client("b", {"web": second.target})
        server.until_clients(2, connections=2)
        assert collections.Counter(come_and_go(port, 8, 25)) == {"b": 200}
        assert refused(server) == {}


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


@pytest.mark.parametrize("workers", [1, 2])
def test_maxconn_is_kept(deployment: Deployment, workers: int) -> None:
    """40 at a time come where 10 have a place. Two workers may exceed it by what they accept at the same moment."""
    port = free_port()
    most = open_now = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, open_now
        open_now += 1
        most = max(most, open_now)
        writer.write(b"x\n")
        await reader.read()
        open_now -= 1

    with Service(counting) as service:
        lines = f'bind = "127.0.0.1:{port}"\nmaxconn = 10\nqueue_timeout = "60s"'
        server = deployment.server({"web": lines}, workers=workers)
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=workers)
        assert collections.Counter(come_and_go(port, 40, 15)) == {"x": 600}
        assert most <= 10 * workers
        assert most >= 5
        until(lambda: server.status()["services"][0]["connections"] == 0, "all are gone")
        assert come_and_go(port, 1, 1) == ["x"]


def test_a_thousand_users_leave_nothing(deployment: Deployment) -> None:
    port = free_port()
    with Service(named("x")) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
        client = deployment.client("pod-1", {"web": service.target}).until_ready()
        server.until_clients(1)
        workers = [worker_of(server), worker_of(client)]
        come_and_go(port, 2, 10)
        until(lambda: service.open == 0, "all gone")
        before = [worker.num_fds() for worker in workers]
        assert collections.Counter(come_and_go(port, 10, 100)) == {"x": 1000}
        until(lambda: service.open == 0, "all gone")
        for worker, held in zip(workers, before, strict=True):
            until(lambda worker=worker, held=held: worker.num_fds() <= held, "every descriptor is closed")

        def is_empty() -> bool:
            status = server.status()
            figures = status["services"][0]
            return (figures["connections"], figures["total"], status["clients"][0]["active"]) == (0, 1020, 0)

        until(is_empty, "the counters say so")


def test_a_reload_takes_the_bind_and_leaves_its_users(deployment: Deployment) -> None:
    port, other = free_port(), free_port()
    with Service(named("x")) as service:
        bind = {"web": f'bind = "127.0.0.1:{port}"', "other": f'bind = "127.0.0.1:{other}"'}
        server = deployment.server(bind, workers=2)
        deployment.client("pod-1", {"web": service.target, "other": service.target})
        server.until_clients(1, connections=2)
        come_and_go(port, 4, 10)
        with users(port, 30) as staying:
            assert names(staying) == {"x": 30}
            server.config.write_text(deployment.server_text({"other": bind["other"]}, workers=2))
            assert server.reload()["ok"]
            until(lambda: come_and_go(port, 1, 1) == ["ConnectionRefusedError"], "the bind is gone")
            until(lambda: service.open == 30, "those who are there, and nobody else")
            assert come_and_go(other, 2, 5) == ["x"] * 10
        until(lambda: service.open == 0, "all gone")
        server.config.write_text(deployment.server_text(bind, workers=2))
        assert server.reload()["ok"]
        assert come_and_go(port, 4, 10) == ["x"] * 40
