"""A runtime directory that somebody removes, as cleaners of /tmp do: the daemon puts it back and is found again."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.programs import run
from tests.daemons import Daemon, Deployment, free_port
from tests.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    deployment = Deployment(tmp_path_factory.mktemp("directory"))
    try:
        yield deployment.server({"web": f'bind = "127.0.0.1:{free_port()}"'})
    finally:
        deployment.close()


def answers(server: Daemon) -> bool:
    """Every process reports, and the workers over the bus."""
    rows = server.workers()
    return len(rows) == 2 and all(row["state"] == "ready" and "endpoint" in row for row in rows)


@pytest.mark.parametrize("what", [".", "lock", "daemon.json", "admin.sock", "bus-pub"])
def test_what_was_removed_is_put_back(server: Daemon, what: str) -> None:
    until(lambda: answers(server), "before")
    path = server.runtime / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    until(path.exists, f"{what} is back")
    until(lambda: answers(server), "status")
    assert run("qmux", "reload", server.config).returncode == 0


def test_a_worker_that_starts_afterwards_is_on_the_bus(server: Daemon) -> None:
    shutil.rmtree(server.runtime)
    until(lambda: answers(server), "status")
    pid = server.workers()[0]["pid"]
    psutil.Process(pid).kill()
    until(lambda: answers(server) and server.workers()[0]["pid"] != pid, "its successor reports")


def test_a_second_start_in_its_place_takes_nothing_away(server: Daemon) -> None:
    until(lambda: answers(server), "before")
    server.process.send_signal(signal.SIGSTOP)  # so that it cannot put the directory back before the other is there
    try:
        shutil.rmtree(server.runtime)
        second = run("qmuxd", server.config)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert second.returncode == 4
    assert f"address in use by a QMux server that runs already (pid {server.process.pid}, " in second.stderr
    assert "running as root" not in second.stderr
    until(lambda: answers(server), "status")
    second = run("qmuxd", server.config)
    assert (second.returncode, "another daemon runs here" in second.stderr) == (4, True), second.stderr
    until(lambda: answers(server), "status")


def test_a_start_that_fails_leaves_what_is_there(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    config = deployment.write("server.toml", deployment.server_text({"web": 'bind = "203.0.113.1:80"'}))
    (tmp_path / "run-server").mkdir(0o700)
    (tmp_path / "run-server" / "daemon.json").write_text("{}")
    assert run("qmuxd", config).returncode == 4
    assert (tmp_path / "run-server" / "daemon.json").exists()
