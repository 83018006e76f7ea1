"""Programs that people use, through the tunnel: curl, nginx, redis, ssh."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import find_program
from tests.daemons import Deployment
from tests.integration.services import pattern
from tests.integration.shared import Tunnel
from tests.waiting import until


@contextlib.contextmanager
def running(*command: str | Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the foreground that listens on ``port``."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: _listens(port), f"{command[0]} listens")
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def program(name: str) -> str:
    path = find_program(name)
    assert path is not None
    return path


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Tunnel:
    """Two clients offer every service."""
    tunnel = Tunnel(shared, {"web": "", "early": "early_data = true", "redis": "", "ssh": ""})
    shared.client("pod-2", tunnel.targets)
    tunnel.server.until_clients(2, connections=2)
    return tunnel


@pytest.fixture
def site(tmp_path: Path, tunnel: Tunnel) -> Iterator[Path]:
    """nginx with some files in this folder, behind ``web`` and ``early``."""
    files = tmp_path / "site"
    files.mkdir()
    port, early = tunnel.target_ports["web"], tunnel.target_ports["early"]
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{early}; root {files}; }} }}\n"
    )
    with running(program("nginx"), "-p", tmp_path, "-c", config, port=port):
        yield files


@pytest.mark.needs("curl", "nginx")
@pytest.mark.parametrize("service", ["web", "early"])
def test_page_of_200_parallel_requests(tunnel: Tunnel, site: Path, tmp_path: Path, service: str) -> None:
    files = site
    for number in range(200):
        (files / f"{number}.bin").write_bytes(pattern(500 + number * 997))
    urls = f"http://127.0.0.1:{tunnel.ports[service]}/[0-199].bin"
    out = tmp_path / "out"
    out.mkdir()
    ran = subprocess.run(
        [program("curl"), "--silent", "--show-error", "--fail", "--parallel", "--parallel-immediate", "--parallel-max",
         "200", "--max-time", "60", urls, "--output", f"{out}/#1.bin"],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for number in range(200):
        assert (out / f"{number}.bin").read_bytes() == (files / f"{number}.bin").read_bytes()


@pytest.mark.needs("redis-server", "redis-cli", "redis-benchmark")
def test_redis(tunnel: Tunnel) -> None:
    target, port = tunnel.target_ports["redis"], tunnel.ports["redis"]
    arguments = ("--port", str(target), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    with running(program("redis-server"), *arguments, port=target):
        cli = [program("redis-cli"), "-h", "127.0.0.1", "-p", str(port)]
        assert subprocess.run([*cli, "set", "k", "v"], capture_output=True, text=True, timeout=40).stdout == "OK\n"
        assert subprocess.run([*cli, "get", "k"], capture_output=True, text=True, timeout=40).stdout == "v\n"
        ran = subprocess.run(
            [program("redis-benchmark"), "-p", str(port), "-n", "2000", "-c", "20", "-P", "4", "-t", "set,get", "-q"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert "Error" not in ran.stdout + ran.stderr


@pytest.mark.needs("sshd", "ssh", "ssh-keygen", "scp")
def test_ssh_and_scp(tunnel: Tunnel, tmp_path: Path) -> None:
    target, port = tunnel.target_ports["ssh"], tunnel.ports["ssh"]
    for name in ("host", "user"):
        key = tmp_path / name
        subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=40)
    keys = tmp_path / "authorized_keys"
    keys.write_bytes((tmp_path / "user.pub").read_bytes())
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": target, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host", "AuthorizedKeysFile": keys,
        "StrictModes": "no", "UsePAM": "no", "PidFile": "none", "PermitRootLogin": "yes",
    }  # fmt: skip
    config = tmp_path / "sshd_config"
    config.write_text(
        "".join(f"{name} {value}\n" for name, value in options.items()) + "Subsystem sftp internal-sftp\n"
    )
    with running(program("sshd"), "-D", "-e", "-f", config, port=target):
        client = ["-i", str(tmp_path / "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                  "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"]  # fmt: skip
        user = os.environ.get("USER") or "root"
        ran = subprocess.run(
            [program("ssh"), "-p", str(port), *client, f"{user}@127.0.0.1", "echo through the tunnel"],
            capture_output=True, text=True, timeout=40,
        )  # fmt: skip
        assert ran.stdout == "through the tunnel\n", ran.stderr
        sent = tmp_path / "sent"
        sent.write_bytes(pattern(3_000_000))
        got = tmp_path / "got"
        ran = subprocess.run(
            [program("scp"), "-P", str(port), *client, sent, f"{user}@127.0.0.1:{got}"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(sent.read_bytes()).digest()
