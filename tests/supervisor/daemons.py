"""A real supervisor whose children are fakes, as a process of its own, and what is to be seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from typing_extensions import override

from qmux.config.schema import ListenAddress, ProcessConfig, QuicConfig, ServerConfig, ServiceConfig, TlsFiles
from tests import ports
from tests.daemons import Program
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """For TCP and UDP."""
    return ports.free_port(socket.SOCK_STREAM, socket.SOCK_DGRAM)


class FakeDaemon(Program):
    """One daemon with ``fake_child``. ``start`` it, look, and ``kill`` it in any case."""

    def __init__(self, directory: Path, *, stop_after_s: float = 3.0, **settings: Any) -> None:
        super().__init__(directory / "output")
        self.directory = directory
        self.port, self.quic_port = free_port(), free_port()
        self.web = ServiceConfig(name="web", bind=(ListenAddress("127.0.0.1", self.port),))
        self.process_config = ProcessConfig(
            tls=TlsFiles(bundle="/nowhere.pem"),
            workers=2,
            runtime_dir=str(directory / "run"),
            state_dir=str(directory / "state"),
            stop_after_s=stop_after_s,
        )
        (directory / "settings.json").write_text(
            json.dumps({"lock_wait_s": 0.3, "stop_timeout_s": 0.5, "table_s": 0.2, **settings})
        )
        (directory / "material").write_bytes(b"key")
        self.write()
        self._output_from = 0
        self._heard_from: dict[str, int] = {}

    def config(self, **changed: Any) -> ServerConfig:
        values: dict[str, Any] = {
            "source": str(self.directory / "server.toml"),
            "process": self.process_config,
            "quic": QuicConfig(bind=(ListenAddress("127.0.0.1", self.quic_port),)),
            "services": {"web": self.web},
        }
        return ServerConfig(**(values | changed))

    def write(self, **changed: Any) -> None:
        (self.directory / "config.json").write_bytes(msgspec.json.encode(self.config(**changed)))

    def tell(self, child: str, words: str) -> None:
        (self.directory / f"{child}.do").write_text(words)

    # --- the process ---

    def start(self, ready: bool = True, wrapper: Sequence[str] = ()) -> FakeDaemon:
        command = [*wrapper, sys.executable, "-m", "tests.supervisor.fake_daemon", str(self.directory)]
        self.launch(command, cwd=ROOT)
        if ready:
            until(lambda: self.ended() or self.said("qmuxd ready"), "ready")
            assert not self.ended(), self.log
        return self

    @override
    def kill(self) -> None:
        """Also children that outlived their supervisor, and where it never started."""
        children = self.children()
        if hasattr(self, "process"):
            super().kill()
        for pid in children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- what is to be seen ---

    @property
    @override
    def log(self) -> str:
        """Since ``forget``."""
        return super().log[self._output_from :] if self.log_path.exists() else ""

    def forget(self) -> None:
        """Show only what is said and sent from now on: for tests that share a daemon."""
        self._output_from += len(self.log)
        for child in ("worker-0", "worker-1", "admin"):
            self._heard_from[child] = self._heard_from.get(child, 0) + len(self.heard(child))

    def restore(self) -> None:
        """As it was started: the same configuration and certificates, and children that behave."""
        for path in self.directory.glob("*.do"):
            path.unlink()
        (self.directory / "material").write_bytes(b"key")
        self.write()
        ok, lines, _ = self.request()
        assert ok, lines

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log.splitlines() if text in line]

    def heard(self, child: str, kind: str = "") -> list[dict[str, Any]]:
        """The messages that a child noted."""
        path = self.directory / f"{child}.log"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        messages = [json.loads(line) for line in lines[self._heard_from.get(child, 0) :] if line.endswith("\n")]
        return [message for message in messages if kind in ("", message["type"])]

    def children(self) -> dict[str, int]:
        """Name and pid of every child that was started here and lives, whoever its parent is now."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if (
                    len(arguments) > 5
                    and arguments[2].endswith("fake_child.py")
                    and arguments[5] == str(self.directory)
                ):
                    found[arguments[4]] = int(entry.name)
        return found

    def ask(self, port: int | None = None, host: str = "127.0.0.1") -> Any:
        """Who serves a user now: (name, pid, epoch, key)."""
        with socket.create_connection((host, port or self.port), timeout=30) as sock:
            return json.loads(sock.makefile().readline())

    def ask_quic(self, prefix: int, timeout_s: float = 30.0) -> Any:
        """Which worker a short-header packet with these 16 steering bits reaches."""
        packet = b"\x40" + prefix.to_bytes(2, "big") + bytes(20)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(packet, ("127.0.0.1", self.quic_port))
            return json.loads(sock.recv(1000))

    def request(self, **wish: bool) -> tuple[bool, list[str], int]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(self.directory / "run" / "admin.sock"))
            sock.send(json.dumps(wish).encode())
            ok, lines, code = json.loads(sock.recv(100_000))
            return ok, lines, code


@contextlib.contextmanager
def running(directory: Path, **settings: Any) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(directory, **settings)
    try:
        yield daemon.start()
    finally:
        daemon.kill()
