"""The main job: users' TCP connections reach services behind clients."""

from __future__ import annotations

import hashlib
import random
import socket
import threading

import pytest

from qmux.quic.choose import load_engine
from tests.daemons import Daemon, Deployment
from tests.integration.services import blob, digest, echo, pattern
from tests.integration.shared import Tunnel
from tests.waiting import until

pytestmark = pytest.mark.engines("native", "aioquic", extended=("aioquic-native", "native-aioquic"))


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Tunnel:
    """Two clients offer ``crowd``."""
    tunnel = Tunnel(shared, dict.fromkeys(("answer", "up", "down", "crowd"), ""))
    shared.client("pod-2", {"crowd": tunnel.targets["crowd"]})
    tunnel.server.until_clients(2, connections=2)
    return tunnel


def exchange(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    """Send ``data`` and FIN, and everything that comes back."""
    with socket.create_connection((host, port), timeout=120) as user:
        sender = threading.Thread(target=_send, args=(user, data))
        sender.start()
        received = bytearray()
        while chunk := user.recv(262_144):
            received += chunk
        sender.join()
        return bytes(received)


def _send(user: socket.socket, data: bytes) -> None:
    user.sendall(data)
    user.shutdown(socket.SHUT_WR)


def until_told(daemon: Daemon, role: str, name: str) -> None:
    until(lambda: daemon.status()[role]["engine"] == name, "the engine is reported")
    until(lambda: f" engine={name}\n" in daemon.log, "the log says so, too")


def test_request_and_answer_and_which_engine_it_was(tunnel: Tunnel, engine: str) -> None:
    with tunnel.service("answer", echo):
        assert exchange(tunnel.ports["answer"], b"hello") == b"hello"
    names = engine.split("-")
    until_told(tunnel.server, "server", names[0])
    until_told(tunnel.client, "client", names[-1])


@pytest.mark.engines("auto", extended=())
def test_the_engine_that_is_there_runs_by_itself(deployment: Deployment) -> None:
    tunnel, name = Tunnel(deployment, {"web": ""}, workers=1), load_engine("auto").name
    until_told(tunnel.server, "server", name)
    until_told(tunnel.client, "client", name)


@pytest.mark.parametrize("mib", [8, pytest.param(190, marks=pytest.mark.extended)])
def test_hash_of_many_megabytes_both_ways(tunnel: Tunnel, mib: int) -> None:
    """On the native engine a gigabyte, too: test_fire.py."""
    data = pattern(1 << 20) * mib
    with tunnel.service("up", digest), tunnel.service("down", blob(len(data))):
        assert exchange(tunnel.ports["up"], data).decode() == hashlib.sha256(data).hexdigest()
        assert hashlib.sha256(exchange(tunnel.ports["down"], b"")).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("count", [200, pytest.param(500, marks=pytest.mark.extended)])
def test_connections_of_random_size_and_close_order(tunnel: Tunnel, count: int) -> None:
    rng = random.Random(4)
    sizes = [rng.choice((0, 1, 100, 5_000, 70_000, 200_000)) + rng.randrange(50) for _ in range(count)]
    failures: list[str] = []

    def one(number: int, size_bytes: int) -> None:
        data = random.Random(number).randbytes(size_bytes)
        if exchange(tunnel.ports["crowd"], data) != data:
            failures.append(f"connection {number} of {size_bytes} bytes")

    with tunnel.service("crowd", echo) as service:
        threads = [threading.Thread(target=one, args=item) for item in enumerate(sizes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(110)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        assert service.connections == count
