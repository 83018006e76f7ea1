"""A transfer that is cut because a process is killed never looks complete: not to the user, not to the service."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import psutil
import pytest

from tests.daemons import Deployment, free_port
from tests.integration.services import Service
from tests.waiting import until

USERS = 4
MOVED_BYTES = 1 << 20
CHUNK = bytes(64 << 10)


class Transfers:
    """Users that receive without end, and others that send; ``ends`` has how each of them ended, and how each upload
    ended at the service: "reset", or "FIN" where it looks complete.
    """

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []
        self.moved: dict[str, int] = {}

    def start(self, port: int) -> None:
        self._users = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2 * USERS)]
        self._threads = [
            threading.Thread(target=self._run, args=(user, number)) for number, user in enumerate(self._users)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, user: socket.socket, number: int) -> None:
        kind = "download" if number % 2 else "upload"
        try:
            user.sendall(kind[:1].encode())
            while True:
                moved = len(user.recv(1 << 20)) if kind == "download" else user.send(CHUNK)
                if not moved:
                    break
                self.moved[f"{kind} {number}"] = self.moved.get(f"{kind} {number}", 0) + moved
            self.ends.append((kind, "FIN"))
        except (ConnectionResetError, BrokenPipeError):
            self.ends.append((kind, "reset"))
        finally:
            user.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What the service does with a user."""
        if await reader.readexactly(1) == b"d":
            while True:
                writer.write(CHUNK)
                await writer.drain()
        try:
            while await reader.read(1 << 20):
                pass
            self.ends.append(("service", "FIN"))
        except ConnectionResetError:
            self.ends.append(("service", "reset"))

    def is_moving(self) -> bool:
        return len(self.moved) == 2 * USERS and min(self.moved.values()) >= MOVED_BYTES

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


class Pair:
    """A server and a client of one worker each, and a service whose users' transfers are cut."""

    def __init__(self, deployment: Deployment) -> None:
        self.transfers: Transfers | None = None
        self.port = free_port()
        self.service = Service(self._serve)
        self._deployment = deployment

    def start(self) -> None:
        # That a client is gone is known at the server after its idle timeout at the latest.
        binds = {"web": f'bind = "127.0.0.1:{self.port}"'}
        self.server = self._deployment.server(binds, workers=1, quic='idle_timeout = "3s"\nkeep_alive = "1s"\n')
        targets = {"web": self.service.target}
        self.client = self._deployment.client("pod-1", targets, client="workers = 1").until_ready()

    def kill(self, name: str) -> None:
        """A supervisor is started again; a worker its supervisor starts."""
        daemon = self.server if name.startswith("server") else self.client
        if name.endswith("worker"):
            (pid,) = (row["pid"] for row in daemon.workers())
            psutil.Process(pid).kill()
            return
        daemon.process.kill()
        daemon.process.wait()
        command = "qmuxd" if daemon is self.server else "qmuxc"
        setattr(self, name, self._deployment.start(command, daemon.config).until_ready())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.transfers is not None
        await self.transfers.serve(reader, writer)


@pytest.fixture(scope="module")
def pair(shared: Deployment) -> Iterator[Pair]:
    pair = Pair(shared)
    with pair.service:
        pair.start()
        yield pair


@pytest.mark.parametrize("name", ["client worker", "server worker", "client", "server"])
def test_what_a_killed_process_relayed_is_reset(pair: Pair, name: str) -> None:
    pair.server.until_clients(1)
    pair.transfers = transfers = Transfers()
    transfers.start(pair.port)
    until(transfers.is_moving, "every transfer moves")
    pair.kill(name)
    transfers.join()
    until(lambda: pair.service.open == 0, "the service has heard of every end")
    expected = [("download", "reset"), ("upload", "reset"), ("service", "reset")]
    assert sorted(transfers.ends) == sorted(expected * USERS)
