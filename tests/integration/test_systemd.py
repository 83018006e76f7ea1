"""What systemd sees of a daemon, with this test in its place. The units: tests/docs/test_docs.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import run
from tests.daemons import Daemon, Deployment, free_port


class Systemd:
    """The socket that sd_notify(3) writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(30)
        self._socket.bind(str(path))

    def until(self, start: str) -> str:
        """The next message that starts so."""
        while True:
            message = self._socket.recv(4096).decode()
            if message.startswith(start):
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path_factory.mktemp("systemd") / "notify")
    yield systemd
    systemd.close()


@pytest.fixture(scope="module")
def server(systemd: Systemd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    deployment = Deployment(tmp_path_factory.mktemp("server"))
    deployment.extra_environment = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "3000000"}
    try:
        yield deployment.server({"web": f'bind = "127.0.0.1:{free_port()}"'})
    finally:
        deployment.close()


def test_the_supervisor_says_that_it_lives(systemd: Systemd, server: Daemon) -> None:
    systemd.until("READY=1\nSTATUS=serving")
    for _ in range(2):
        systemd.until("WATCHDOG=1")


def test_what_waits_for_a_restart_is_no_failure(systemd: Systemd, server: Daemon) -> None:
    text = server.config.read_text()
    server.config.write_text(text.replace("workers = 2", "workers = 3"))
    done = run("qmux", "reload", "--restart-later", server.config)
    assert done.returncode == 0, done.stderr
    assert "server.workers: 2 -> 3 needs a restart; still 2" in done.stdout
    systemd.until("READY=1\nSTATUS=serving; waits for a restart: server.workers")
    assert run("qmux", "reload", server.config).returncode == 6
    server.config.write_text("broken")
    assert run("qmux", "reload", "--restart-later", server.config).returncode == 3
    server.config.write_text(text)
    assert run("qmux", "reload", "--restart-later", server.config).returncode == 0
    while systemd.until("READY") != "READY=1\nSTATUS=serving":
        pass  # those of the reloads before
