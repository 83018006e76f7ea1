"""Names whose name server does not answer: the client has a mount namespace with a resolv.conf of the test's."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.users import connect, read_line, says
from tests.waiting import until

UNSHARE = ("unshare", "--mount", "--propagation", "private")

pytestmark = pytest.mark.needs("unshare", "mount")


class NameServer:
    """Says 127.0.0.1 of every name, but nothing of names with ``silent`` in them, and nothing of any once it is."""

    def __init__(self) -> None:
        self.is_silent = False
        self.asked: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        pid = os.getpid()
        self.address = f"127.53.{pid >> 8 & 255}.{pid & 255}"  # each test process has its own
        self._socket.bind((self.address, 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.address, 53))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, address = self._socket.recvfrom(512)
            if not query:
                return
            name, rest = _question(query)
            self.asked.add(name)
            if not self.is_silent and "silent" not in name:
                self._socket.sendto(_answer(query, rest), address)


def _question(query: bytes) -> tuple[str, int]:
    """Its name, and where the question ends (RFC 1035 §4.1.2)."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), at + 5


def _answer(query: bytes, end: int) -> bytes:
    is_ipv4 = query[end - 4 : end - 2] == b"\0\x01"
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x7f\0\0\x01" if is_ipv4 else b""
    return query[:2] + struct.pack("!5H", 0x8180, 1, int(is_ipv4), 0, 0) + query[12:end] + record


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    if os.geteuid() != 0 or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0:
        pytest.skip("only root can have another resolv.conf, in a mount namespace")
    server = NameServer()
    try:
        yield server
    finally:
        server.close()


def client_of(
    deployment: Deployment, name_server: NameServer, targets: dict[str, str], options: str, server: str = "127.0.0.1"
) -> Daemon:
    """``options``: of its resolver."""
    resolv_conf = deployment.write("resolv.conf", f"nameserver {name_server.address}\noptions {options}\n")
    script = f'mount --bind "{resolv_conf}" /etc/resolv.conf && exec "$@"'
    text = deployment.client_text("pod-1", targets, servers=[f"{server}:{deployment.quic_port}"])
    config = deployment.write("pod-1.toml", text)
    return deployment.start("qmuxc", config, prefix=(*UNSHARE, "sh", "-c", script, "sh")).until_ready()


def test_a_name_server_that_does_not_answer_holds_no_other_service(
    deployment: Deployment, name_server: NameServer
) -> None:
    """Nor the server's own name."""
    ports = {name: free_port() for name in ("dark", "web")}
    binds = {name: f'bind = "127.0.0.1:{port}"' for name, port in ports.items()}
    server = deployment.server(binds)
    with Service(named("here")) as service:
        targets = {"dark": "app.silent.test:80", "web": f"localhost:{service.port}"}
        client_of(deployment, name_server, targets, "timeout:30", server="localhost")
        server.until_clients(1)
        waiting = [connect(ports["dark"]) for _ in range(8)]
        until(lambda: "app.silent.test" in name_server.asked, "the name is asked for")
        assert [says(ports["web"], timeout_s=4.0) for _ in range(8)] == ["here"] * 8
        server.kill()
        deployment.server(binds).until_clients(1)
        assert says(ports["web"], timeout_s=4.0) == "here"
        for user in waiting:
            user.close()


def test_the_last_good_addresses_serve_users_while_the_name_server_is_silent(
    deployment: Deployment, name_server: NameServer
) -> None:
    port = free_port()
    server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
    with Service(named("here")) as service:
        client = client_of(deployment, name_server, {"web": f"app.test:{service.port}"}, "timeout:1 attempts:1")
        server.until_clients(1)
        assert says(port) == "here"
        assert "app.test" in name_server.asked
        name_server.is_silent = True

        def failures() -> int:
            with connect(port) as user:
                assert read_line(user) == "here"
            (row,) = client.status().get("services", [{}])
            count: int = row.get("resolve_failed", 0)
            return count

        assert until(failures, "a lookup has failed, and every user was served") >= 1
        assert "name cannot be resolved; using its last addresses" in client.log
        assert client.status()["services"][0]["refused"] == {}
