"""QMux: ``qmuxd`` and one ``qmuxc`` on this machine, with certificates as a deployment has them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from loadtest import processes
from loadtest.system import Address, Options, StartFailed

COMMAND_S = 60.0
SERVICE = "load"

SERVER = """
[server]
bundle = "127.0.0.1.pem"
workers = {workers}
runtime_dir = "run-server"
state_dir = "state-server"
stop_after = "3s"

[quic]
bind = "127.0.0.1:{quic_port}"

[services.{service}]
bind = "{bind}"
"""

CLIENT = """
[client]
servers = ["127.0.0.1:{quic_port}"]
bundle = "load.pem"
runtime_dir = "run-client"
state_dir = "state-client"
stop_after = "3s"

[services.{service}]
target = "{backend}"
"""


class Qmux:
    """The tunnel: user → ``qmuxd`` → QUIC with mutual TLS → ``qmuxc`` → backend."""

    name = "qmux"

    def __init__(self, options: Options) -> None:
        self._options = options
        self._directory = options.directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, backend: Address) -> Address:
        bind = processes.free_address()
        quic_port = processes.free_port(socket.SOCK_DGRAM)
        self._run("pki", "init", "--dir", str(self._directory))
        self._run("pki", "issue", "server", "127.0.0.1", "--dir", str(self._directory))
        self._run("pki", "issue", "client", SERVICE, "--service", SERVICE, "--dir", str(self._directory))
        values = {"workers": self._options.workers, "quic_port": quic_port, "service": SERVICE}
        self._daemon("qmuxd", "server.toml", SERVER.format(bind=bind, **values))
        self._daemon("qmuxc", "client.toml", CLIENT.format(backend=backend, **values))
        return bind

    def stop(self) -> None:
        processes.stop(list(reversed(self._processes)))
        self._processes.clear()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def about(self) -> str:
        status = json.loads(self._run("status", "--json", "-c", str(self._directory / "server.toml")))
        server = status["server"]
        mtu_bytes = max((client["mtu_bytes"] for client in status["clients"]), default=0)
        path = f"datagrams of up to {mtu_bytes} bytes"
        workers = f"{self._options.workers} workers and one client"
        return f"{server['version']}, engine {server['engine']}, {path}, {workers}"

    def _daemon(self, command: str, file: str, config: str) -> None:
        path = self._directory / file
        path.write_text(config)
        log = self._directory / f"{command}.log"
        self._processes.append(processes.start([_script(command), "-c", str(path)], log))

    def _run(self, *arguments: str) -> str:
        command = [_script("qmux"), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if run.returncode:
            raise StartFailed(f"qmux {' '.join(arguments)}: exit code {run.returncode}: {run.stderr.strip()}")
        return run.stdout


def _script(name: str) -> str:
    """The command of the environment that this Python belongs to."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.exists() else processes.program(name)
