"""``status`` and ``reload`` against real daemons."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qmux import __version__
from qmux.quic.choose import load_engine
from tests.cli.programs import arguments, run
from tests.daemons import Deployment, free_port
from tests.waiting import until, until_line

ENGINE = load_engine("auto").name

SERVER = """\
[server]
bundle = "localhost.pem"
runtime_dir = "run/server"
state_dir = "state"
stop_after = "2s"
[quic]
bind = "127.0.0.1:{quic}"
[services.web]
bind = "127.0.0.1:{web}"
"""
CLIENT = """\
[client]
servers = ["127.0.0.1:{quic}"]
server_name = "localhost"
bundle = "pod-1.pem"
instance = "host-1"
runtime_dir = "run/client"
state_dir = "state"
stop_after = "2s"
[services.web]
target = "127.0.0.1:1"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server with a connected client; configurations and logs are in the folder."""
    path = tmp_path_factory.mktemp("live")
    with closing(Deployment(path)) as deployment:
        ports = {"quic": deployment.quic_port, "web": free_port(socket.SOCK_STREAM)}
        deployment.start(
            "qmuxd", deployment.write("server.toml", SERVER.format(**ports)), "--workers", "2"
        ).until_ready()
        deployment.start("qmuxc", deployment.write("client.toml", CLIENT.format(**ports))).until_ready()
        until_status(path, "server.toml", is_told_of_all)
        until_status(path, "client.toml", lambda status: status["servers"])
        yield path
        assert [daemon.stop() for daemon in reversed(deployment.daemons)] == [0, 0]


def is_told_of_all(status: dict[str, Any]) -> bool:
    """Whether the server's admin process has heard of everything: its workers, their engine, and the client."""
    processes, clients = status["workers"], status["clients"]
    return bool(
        len(processes) == 4
        and all(process["state"] == "ready" and process.get("rss_bytes") for process in processes)
        and status["server"].get("engine")
        and clients
        and clients[0]["state"] == "ready"
    )


def until_status(folder: Path, file: str, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """What ``qmux status --json`` says as soon as it is what is wanted."""

    def look() -> dict[str, Any]:
        done = run("qmux", "status", "-c", file, "--json", cwd=folder)
        status: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return status if status and wanted(status) else {}

    return until(look, f"the status of {file}")


def test_a_servers_status(folder: Path) -> None:
    status = until_status(folder, "server.toml", lambda seen: is_told_of_all(seen) and seen["clients"][0]["rtt_ms"])
    assert status["server"]["version"] == __version__
    assert status["server"]["engine"] == ENGINE
    assert status["server"]["workers"] == 2
    assert status["server"]["source"] == str(folder / "server.toml")
    assert {worker["name"] for worker in status["workers"]} == {"supervisor", "admin", "worker-0", "worker-1"}
    assert all(worker["rss_bytes"] > 0 for worker in status["workers"])
    assert all(worker["cpu_s"] > 0 for worker in status["workers"])
    (generation,) = status["generations"]
    assert (generation["number"], generation["workers"]) == (1, 2)
    (client,) = status["clients"]
    assert (client["client"], client["instance"], client["services"]) == ("pod-1", "host-1", ["web"])
    assert (status["services"][0]["clients_ready"], status["services"][0]["clients"]) == (1, 1)


def test_a_clients_status(folder: Path) -> None:
    status = until_status(folder, "client.toml", lambda status: status["servers"][0]["state"] == "registered")
    assert status["client"]["role"] == "client"
    assert len(status["servers"]) == 1
    assert status["services"][0]["target"] == "127.0.0.1:1"


def test_status_for_people_has_no_colour_in_a_pipe(folder: Path) -> None:
    done = run("qmux", "status", "-c", "server.toml", cwd=folder)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"qmuxd {__version__} · engine {ENGINE} · 2 workers · generation 1 since ")
    assert lines[1].split() == ["SERVICE", "BIND", "PROTO", "CLIENTS", "CONNS", "RATE", "IN/OUT", "REFUSED"]
    assert lines[4].startswith("pod-1   web")
    assert lines[5].split() == ["PROCESS", "PID", "MEMORY", "CPU", "TIME"]
    assert [line.split()[0] for line in lines[6:10]] == ["supervisor", "worker-0", "worker-1", "admin"]
    assert "\x1b" not in done.stdout


def test_the_socket_names_the_daemon_too(folder: Path) -> None:
    done = run("qmux", "status", "--json", "--socket", folder / "run" / "client" / "admin.sock")
    assert json.loads(done.stdout)["client"]["role"] == "client"


def test_watch_prints_until_it_is_interrupted(folder: Path) -> None:
    process = subprocess.Popen(
        arguments("qmux", "status", "-c", "server.toml", "--json", "--watch"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would what is started from it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    seen: list[dict[str, Any]] = []

    def enough(line: str) -> bool:
        seen.append(json.loads(line))
        return len(seen) == 2

    until_line(process, enough)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (130, "")
    assert all("server" in status for status in seen)


def test_reload_applies_what_changed_and_says_how(folder: Path) -> None:
    config = folder / "server.toml"
    before = config.read_text()
    port = free_port(socket.SOCK_STREAM)
    assert run("qmux", "reload", "-c", config).stdout == "nothing has changed\n"
    config.write_text(f'{before}[services.api]\nbind = "127.0.0.1:{port}"\n')
    try:
        dry = run("qmux", "reload", "-c", config, "--dry-run")
        assert (dry.returncode, dry.stderr) == (0, "")
        assert f'services.api.bind: - -> "127.0.0.1:{port}"; in place' in dry.stdout
        assert len(until_status(folder, "server.toml", lambda status: status)["services"]) == 1
        done = run("qmux", "reload", "-c", config)
        assert (done.returncode, done.stdout) == (0, dry.stdout)
        until_status(folder, "server.toml", lambda status: len(status["services"]) == 2)
    finally:
        config.write_text(before)
        assert run("qmux", "reload", "-c", config).returncode == 0
    until_status(folder, "server.toml", lambda status: len(status["services"]) == 1)


def test_a_reload_of_a_broken_file_changes_nothing_and_shows_every_error(folder: Path) -> None:
    config = folder / "server.toml"
    before = config.read_text()
    config.write_text(before + "idle_timeout = 30\nballance = 1\n")
    try:
        done = run("qmux", "reload", "-c", config)
        assert done.returncode == 3
        assert done.stdout == ""
        assert "server.toml:10: services.web.idle_timeout = 30" in done.stderr
        assert "server.toml:11: services.web.ballance" in done.stderr
        answer = json.loads(run("qmux", "reload", "-c", config, "--json").stdout)
        assert (answer["ok"], answer["exit_code"]) == (False, 3)
        assert run("qmux", "status", "-c", config).returncode == 0
    finally:
        config.write_text(before)


def test_full_is_not_there_yet(folder: Path) -> None:
    done = run("qmux", "reload", "-c", "server.toml", "--full", cwd=folder)
    assert done.returncode == 2
    assert "--full is not available in this version" in done.stderr


def test_a_second_daemon_of_the_same_file_is_refused(folder: Path) -> None:
    done = run("qmuxd", "-c", folder / "server.toml")
    assert done.returncode == 4
    assert "another daemon runs here" in done.stderr


def test_a_daemon_that_stopped_is_not_reachable(folder: Path, tmp_path: Path) -> None:
    text = (folder / "server.toml").read_text().replace("run/server", str(tmp_path / "run"))
    (folder / "other.toml").write_text(text)
    done = run("qmux", "status", "-c", folder / "other.toml")
    assert done.returncode == 5
    assert "no daemon runs with this configuration" in done.stderr
