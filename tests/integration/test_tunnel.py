"""The main job: users' TCP connections reach services behind clients."""

from __future__ import annotations

import hashlib
import random
import socket
import threading

import pytest

from qmux.quic.choose import load_engine
from tests.daemons import Deployment, free_port, until
from tests.integration.services import Service, blob, digest, echo, pattern

pytestmark = pytest.mark.engines("aioquic", "native", "aioquic-native", "native-aioquic")


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


@pytest.mark.engines("auto", "aioquic", "native", "aioquic-native", "native-aioquic")
def test_request_and_answer_and_which_engine_it_was(deployment: Deployment, engine: str) -> None:
    port = free_port()
    with Service(echo) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'})
        client = deployment.client("pod-1", {"web": service.target}).until_ready()
        server.until_clients(1, connections=2)
        assert exchange(port, b"hello") == b"hello"
        names = engine.replace("auto", load_engine("auto").name).split("-")
        for daemon, role, name in ((server, "server", names[0]), (client, "client", names[-1])):
            until(lambda d=daemon, r=role, n=name: d.status()[r]["engine"] == n, "the engine is reported")
            assert f" engine={name}\n" in daemon.log


@pytest.mark.engines("aioquic", "aioquic-native", "native-aioquic")  # native alone: a gigabyte, in test_fire.py
def test_hash_of_many_megabytes_both_ways(deployment: Deployment, engine: str) -> None:
    size_bytes = 200_000_000 if engine == "aioquic" else 50_000_000
    up, down = free_port(), free_port()
    with Service(digest) as sink, Service(blob(size_bytes)) as source:
        server = deployment.server({"up": f'bind = "127.0.0.1:{up}"', "down": f'bind = "127.0.0.1:{down}"'})
        deployment.client("pod-1", {"up": sink.target, "down": source.target})
        server.until_clients(1, connections=2)
        data = (pattern(1 << 20) * 200)[:size_bytes]
        assert exchange(up, data).decode() == hashlib.sha256(data).hexdigest()
        assert hashlib.sha256(exchange(down, b"")).digest() == hashlib.sha256(data).digest()


def test_500_connections_of_random_size_and_close_order(deployment: Deployment) -> None:
    port = free_port()
    rng = random.Random(4)
    sizes = [rng.choice((0, 1, 100, 5_000, 70_000, 200_000)) + rng.randrange(50) for _ in range(500)]
    failures: list[str] = []

    def one(number: int, size_bytes: int) -> None:
        data = random.Random(number).randbytes(size_bytes)
        if exchange(port, data) != data:
            failures.append(f"connection {number} of {size_bytes} bytes")

    with Service(echo) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'})
        deployment.client("pod-1", {"web": service.target})
        deployment.client("pod-2", {"web": service.target})
        server.until_clients(2, connections=2)
        threads = [threading.Thread(target=one, args=item) for item in enumerate(sizes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(110)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        assert service.connections == 500
