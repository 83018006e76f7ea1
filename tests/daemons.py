"""Real daemons for integration tests: certificates, configurations, ``qmuxd`` and ``qmuxc`` as processes."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from qmux.config.directories import runtime_dir
from qmux.config.load import load
from qmux.pki import authority
from tests.ports import free_port as free_port
from tests.waiting import stays, until

COMMANDS = Path(sys.executable).parent
START_S = 30.0
"""A start of several interpreters on a busy machine takes some seconds."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


class Program:
    """The process of a daemon: what it says, its signals, and its end."""

    process: subprocess.Popen[bytes]

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path

    def launch(self, command: Sequence[str | Path], **options: Any) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self, text: str) -> bool:
        return text in self.log

    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout_s: float = 30.0) -> int:
        """For its end: the exit code."""
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, and the exit code."""
        if not self.ended():
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def family(self) -> list[psutil.Process]:
        """The supervisor and its children."""
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """End everything at once; for the end of a test."""
        for process in reversed(self.family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait()


class Daemon(Program):
    """One running ``qmuxd`` or ``qmuxc``."""

    def __init__(
        self,
        command: str,
        config: Path,
        environment: Mapping[str, str],
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__(config.with_suffix(".log"))
        self.config = config
        self.environment = {**os.environ, **environment}
        self.launch([*prefix, COMMANDS / command, "-c", config, *arguments], env=self.environment)

    @functools.cached_property
    def runtime(self) -> Path:
        with _environment(self.environment):
            return runtime_dir(load(self.config).config)

    def _http(self, method: str, path: str, body: object = None) -> Any:
        connection = _UnixConnection(str(self.runtime / "admin.sock"))
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """The JSON of ``qmux status``; {} while the daemon does not answer."""
        try:
            status: dict[str, Any] = self._http("GET", "/v1/status")
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return {}
        return status

    def reload(self) -> dict[str, Any]:
        """Over the admin socket, once it is there: a client may serve users before its admin process does."""
        until(self.status, f"{self.config.name} answers", START_S)
        result: dict[str, Any] = self._http("POST", "/v1/reload", {})
        return result

    def workers(self) -> list[dict[str, Any]]:
        return [row for row in self.status().get("workers", []) if row["name"].startswith("worker")]

    def until_ready(self) -> Daemon:
        """Wait until every worker and the admin process serve."""

        def is_ready() -> bool:
            assert not self.ended(), f"{self.config.name} ended with {self.process.returncode}:\n{self.log}"
            rows = self.status().get("workers", [])
            return bool(rows) and all(row["state"] == "ready" for row in rows)

        try:
            until(is_ready, f"{self.config.name} ready", START_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None
        return self

    def until_clients(self, count: int, connections: int = 1) -> Daemon:
        """Wait until ``count`` clients are ready with ``connections`` connections each."""

        def there() -> bool:
            clients = self.status().get("clients", [])
            return sum(c["state"] == "ready" and c["connections"] >= connections for c in clients) >= count

        try:
            until(there, f"{count} clients with {connections} connections", START_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.status().get('clients')}\n{self.log}") from None
        return self

    def until_one_lane(self) -> None:
        """Wait until the only client has settled on its only lane: on its way there it may meet another worker."""

        def is_one() -> bool:
            return [client["connections"] for client in self.status().get("clients", [])] == [1]

        until(lambda: stays(is_one, 1.5), "one lane only")  # within this time all workers know of a new connection


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: values[name] for name in names if name in values})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


SERVER_NAMES = ("localhost", "127.0.0.1", "::1")


@functools.cache
def _issued() -> dict[str, bytes]:
    """A CA, the server's bundle and that of a client that may serve everything: made once, and copied from then on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority.init(folder)
        authority.issue_server(folder, SERVER_NAMES)
        authority.issue_client(folder, "pod-1", ["*"])
        return {path.name: path.read_bytes() for path in folder.iterdir()}


class Deployment:
    """A folder with a CA, and the daemons started from it. ``engine``: of both, or the server's and the client's with a
    hyphen between them.
    """

    def __init__(self, directory: Path, engine: str = "auto") -> None:
        self.directory = directory
        server_engine, _, client_engine = engine.partition("-")
        self._engines = {"qmuxd": server_engine, "qmuxc": client_engine or server_engine}
        self.daemons: list[Daemon] = []
        self.quic_port = free_port(socket.SOCK_DGRAM)
        for name, data in _issued().items():
            path = directory / name
            path.touch(0o600)
            path.write_bytes(data)
        self.state = directory / "state"
        self.extra_environment: dict[str, str] = {}

    def bundle(self, name: str) -> str:
        """A client's bundle for every service, issued where it does not exist yet."""
        if not (self.directory / f"{name}.pem").exists():
            authority.issue_client(self.directory, name, ["*"])
        return f"{name}.pem"

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def environment(self) -> dict[str, str]:
        """``qmuxd`` runs as root in some tests: everything stays below the test's own folder."""
        return {"XDG_STATE_HOME": str(self.state), **self.extra_environment}

    def start(self, command: str, config: Path, *arguments: str, prefix: Sequence[str] = ()) -> Daemon:
        """``prefix``: a command that runs the daemon, such as ``ip netns exec NAME``; it must exec."""
        arguments = ("--engine", self._engines[command], *arguments)
        daemon = Daemon(command, config, self.environment(), arguments, prefix)
        self.daemons.append(daemon)
        return daemon

    def server_text(
        self,
        services: Mapping[str, str],
        *,
        workers: int = 2,
        server: str = "",
        quic: str = "",
        stop_after: str = "5s",
    ) -> str:
        """``services``: name → the lines of its table."""
        lines = [
            f'[server]\nbundle = "localhost.pem"\nworkers = {workers}\n'
            f'runtime_dir = "run-server"\nstate_dir = "state-server"\nstop_after = "{stop_after}"\n{server}',
            f'[quic]\nbind = "127.0.0.1:{self.quic_port}"\n{quic}',
            *(f"[services.{name}]\n{text}" for name, text in services.items()),
        ]
        return "\n".join(lines) + "\n"

    def server(self, services: Mapping[str, str], **options: Any) -> Daemon:
        config = self.write("server.toml", self.server_text(services, **options))
        return self.start("qmuxd", config).until_ready()

    def client_text(
        self, name: str, targets: Mapping[str, str], *, servers: Sequence[str] = (), client: str = "", service: str = ""
    ) -> str:
        addresses = list(servers) or [f"127.0.0.1:{self.quic_port}"]
        lines = [
            f'[client]\nservers = {json.dumps(addresses)}\nbundle = "{self.bundle(name)}"\n'
            f'runtime_dir = "run-{name}"\nstate_dir = "state-{name}"\nstop_after = "5s"\n{client}',
            *(f'[services.{service_name}]\ntarget = "{target}"\n{service}' for service_name, target in targets.items()),
        ]
        return "\n".join(lines)

    def client(self, name: str, targets: Mapping[str, str], **options: Any) -> Daemon:
        config = self.write(f"{name}.toml", self.client_text(name, targets, **options))
        return self.start("qmuxc", config)

    def close(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.kill()
