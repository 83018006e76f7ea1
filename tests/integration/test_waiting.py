"""Users that wait: for a client, for a stream, for a place; and what waiting costs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.shared import Tunnel
from tests.integration.test_network import Network
from tests.integration.test_pool import names
from tests.integration.users import read_line, reset
from tests.netsim.proxy import Conditions
from tests.waiting import stays, until


@contextlib.contextmanager
def users(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(count)]


def refused(server: Daemon) -> dict[str, int]:
    found: dict[str, int] = server.status()["services"][0]["refused"]
    return found


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Tunnel:
    services = {"late": 'queue_timeout = "30s"', "one": 'queue_timeout = "20s"\nmaxconn = 1'}
    return Tunnel(shared, services, unserved=("late",), workers=1)


def test_more_users_than_a_new_client_has_streams(tunnel: Tunnel) -> None:
    """A client's first 64 streams are raised by its registration, one round trip later: who came earlier waits."""
    quic_port = tunnel.deployment.quic_port
    with (
        Service(named("x")) as service,
        users(tunnel.ports["late"], 200) as waiting,
        Network(quic_port, Conditions(delay_s=0.05)) as network,
    ):
        servers = ["{}:{}".format(*network.address)]
        client = tunnel.deployment.client("pod-2", {"late": service.target}, servers=servers)
        assert names(waiting) == {"x": 200}
        assert client.stop() == 0
    assert tunnel.refused("late") == {}


def test_users_wait_for_a_stream(deployment: Deployment) -> None:
    """Every stream of the only client is taken: the next user waits until one ends, or for queue_timeout."""
    port = free_port()
    with Service(named("x")) as service:
        lines = f'bind = "127.0.0.1:{port}"\nqueue_timeout = "6s"'
        server = deployment.server({"web": lines}, workers=1, quic="max_streams = 20")
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1)
        with users(port, 20) as served, users(port, 6) as waiting:
            assert names(served) == {"x": 20}
            assert stays(lambda: service.connections == 20, 0.3)  # they wait; nothing else is to be seen of that
            for user in served[:4]:
                user.close()
            assert names(waiting) == {"x": 4, "reset": 2}
        until(lambda: refused(server) == {"client_full": 2}, "counted")


def test_a_user_that_gave_up_is_not_connected(tunnel: Tunnel) -> None:
    port = tunnel.ports["one"]
    with tunnel.service("one", named("x")) as service:
        with users(port, 1) as served, users(port, 1) as waiting:
            assert names(served) == {"x": 1}
            reset(waiting[0])
            served[0].close()
            until(lambda: tunnel.refused("one") == {"user_reset": 1}, "the reset is seen")
        assert service.connections == 1


@pytest.mark.serial
def test_thousands_wait_and_the_worker_has_time_for_others(deployment: Deployment) -> None:
    """6,000 users wait for the client of one service; those of another service come and go as ever."""
    waiting_port, port = free_port(), free_port()
    with Service(named("x")) as service, contextlib.ExitStack() as stack:
        services = {
            "late": f'bind = "127.0.0.1:{waiting_port}"\nqueue_timeout = "60s"',
            "web": f'bind = "127.0.0.1:{port}"',
        }
        server = deployment.server(services, workers=1)
        deployment.client("pod-1", {"web": service.target})
        server.until_clients(1)
        worker = psutil.Process(server.workers()[0]["pid"])
        stack.enter_context(users(waiting_port, 6000))
        until(lambda: worker.num_fds() > 6000, "accepted", 60)
        stop = threading.Event()
        times_s: list[float] = []

        def come_and_go() -> None:
            while not stop.is_set():
                started = time.monotonic()
                with socket.create_connection(("127.0.0.1", port), 30) as user:
                    assert read_line(user) == "x"
                times_s.append(time.monotonic() - started)
                stop.wait(0.01)  # a pace that leaves most of a core

        before_s, started = sum(worker.cpu_times()[:2]), time.monotonic()
        thread = threading.Thread(target=come_and_go)
        thread.start()
        assert stays(thread.is_alive, 3.0)  # what is measured
        stop.set()
        thread.join(30)
        used = (sum(worker.cpu_times()[:2]) - before_s) / (time.monotonic() - started)
        assert used < 0.6, f"{used:.0%} of a core, {len(times_s)} users"
        assert sorted(times_s)[len(times_s) // 2] < 0.1
