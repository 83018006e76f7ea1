"""QMux on either engine: ``qmuxd`` and one ``qmuxc``, with certificates as a deployment has them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from loadtest import processes
from loadtest.hosts import Host
from loadtest.system import Addresses, StartFailed
from loadtest.systems.base import Started
from qmux.cli import api
from qmux.config.schema import MAX_LANES, EngineName
from qmux.errors import StartError, UnreachableError
from qmux.quic.choose import load_engine

COMMAND_S = 60.0
NAME = "load"
WORKER = ["-m", "qmux.worker"]
"""In the command line of a process that moves bytes (supervisor.process)."""

SIDES = ("server", "client")
"""In the order of ``pids()``."""

SERVER = """
[server]
bundle = "{bundle}"
engine = "{engine}"
workers = {workers}
runtime_dir = "run-server"
state_dir = "state-server"
stop_after = "3s"

[quic]
bind = "{quic}"
"""

SERVER_SERVICE = """
[services.{kind}]
bind = "{address}"
"""

CLIENT = """
[client]
servers = ["{quic}"]
bundle = "load.pem"
engine = "{engine}"
workers = {client_workers}
runtime_dir = "run-client"
state_dir = "state-client"
stop_after = "3s"
"""

CLIENT_SERVICE = """
[services.{kind}]
target = "{address}"
"""


class Qmux(Started):
    """The tunnel: user → ``qmuxd`` → QUIC with mutual TLS → ``qmuxc`` → backend."""

    has_workers: ClassVar[bool] = True
    name: ClassVar[str]
    engine: ClassVar[EngineName]
    commands: ClassVar[Path | None] = None
    """The directory of ``qmuxd``, ``qmuxc`` and ``qmux``; None: that of this Python's environment."""

    @classmethod
    def missing(cls) -> str:
        try:
            load_engine(cls.engine)
        except StartError as error:
            return str(error)
        return ""

    def start(self, backends: Addresses) -> Addresses:
        users, service = self._setup.path.users, self._setup.path.service
        binds = {kind: processes.free_address(users) for kind in backends}
        self._certificates(users.address, list(backends))
        values = {
            "bundle": f"{users.address}.pem",
            "engine": self.engine,
            "workers": self._setup.workers,
            "client_workers": self._setup.client_workers,
            "quic": f"{users.address}:{processes.free_port(users, socket.SOCK_DGRAM)}",
        }
        self._daemon(users, "qmuxd", SERVER.format(**values), SERVER_SERVICE, binds)
        self._daemon(service, "qmuxc", CLIENT.format(**values), CLIENT_SERVICE, backends)
        return binds

    def is_complete(self) -> bool:
        """All workers of both ends are ready, and every client worker has its connection to every server worker."""
        try:
            server, client = (self.status(side) for side in SIDES)
        except UnreachableError:
            return False
        workers, client_workers = self._setup.workers, self._setup.client_workers
        connections = sum(session["connections"] for session in server["clients"])
        return (
            _ready(server) == workers
            and _ready(client) == client_workers
            and connections == min(workers, MAX_LANES) * client_workers
        )

    def worker_pids(self) -> list[int]:
        tree = processes.with_descendants(self.pids())
        return [pid for pid in tree if _has(processes.command_line(pid), WORKER)]

    def datagram_bytes(self) -> int:
        try:
            clients = self.status("server")["clients"]
        except UnreachableError:
            return 0
        return max((client["mtu_bytes"] for client in clients), default=0)

    def about(self) -> str:
        try:
            server = self.status("server")["server"]
        except UnreachableError as error:
            return f"its admin process does not answer: {error}"
        workers = f"workers: {self._setup.workers}, of its one client {self._setup.client_workers}"
        return f"{server['version']}, engine {server['engine']}, {workers}"

    def status(self, side: str) -> dict[str, Any]:
        """What ``qmux status`` says of the "server" or the "client". Raises UnreachableError."""
        return api.status(self._setup.directory / f"run-{side}" / "admin.sock")

    def _certificates(self, address: str, services: list[str]) -> None:
        directory = ["--dir", str(self._setup.directory)]
        self._pki("init", *directory)
        self._pki("issue", "server", address, *directory)
        named = [argument for service in services for argument in ("--service", service)]
        self._pki("issue", "client", NAME, *named, *directory)

    def _daemon(self, host: Host, command: str, config: str, service: str, addresses: Addresses) -> None:
        services = [service.format(kind=kind, address=address) for kind, address in addresses.items()]
        path = self._setup.directory / f"{command}.toml"
        path.write_text(config + "".join(services))
        self._group.start(host, command, [self._script(command), "-c", str(path)])

    def _pki(self, *arguments: str) -> None:
        command = [self._script("qmux"), "pki", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if run.returncode:
            raise StartFailed(f"qmux pki {' '.join(arguments)}: exit code {run.returncode}: {run.stderr.strip()}")

    def _script(self, name: str) -> str:
        path = (self.commands or Path(sys.executable).parent) / name
        return str(path) if path.exists() else processes.program(name)


class QmuxNative(Qmux):
    """The engine in Rust."""

    name = "qmux-native"
    engine = "native"


class QmuxAioquic(Qmux):
    """The engine in Python."""

    name = "qmux-aioquic"
    engine = "aioquic"


def _ready(status: dict[str, Any]) -> int:
    return sum(process["slot"] >= 0 and process["state"] == "ready" for process in status["workers"])


def _has(arguments: list[str], part: list[str]) -> bool:
    return any(arguments[start : start + len(part)] == part for start in range(len(arguments)))
