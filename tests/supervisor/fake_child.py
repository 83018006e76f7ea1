"""A small real child for the supervisor's tests: it serves its sockets and says on them who it is.

Arguments: control descriptor, name, directory. In the directory ``NAME.do`` holds words that tell it how to misbehave,
and ``NAME.log`` gets a JSON line for each message.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from qmux import child as child_module
from qmux.child import Child, run_child
from qmux.errors import QmuxError, StartError
from qmux.messages import (
    Accept,
    AddBind,
    Configure,
    Configured,
    Done,
    Down,
    Drain,
    Failed,
    Peers,
    Ready,
    ReadyFacts,
    Relisten,
    RemoveBind,
    Reply,
    Request,
    Stop,
    StopAccepting,
    Table,
)


class FakeRole:
    def __init__(self, child: Child, directory: Path) -> None:
        self._child = child
        self._do = directory / f"{child.name}.do"
        self._log = (directory / f"{child.name}.log").open("a", buffering=1)
        self._loop = asyncio.get_running_loop()
        self._configure: Configure | None = None
        self._binds: dict[str, socket.socket] = {}
        self._reading: set[str] = set()
        self._held: list[socket.socket] = []
        self._admin: socket.socket | None = None
        self._asking: dict[int, socket.socket] = {}

    def words(self) -> list[str]:
        return self._do.read_text().split() if self._do.exists() else []

    def active(self) -> int:
        return len(self._held)

    async def close(self) -> None:
        for sock in self._binds.values():
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def received(self, message: Down, fds: list[int]) -> None:
        self._note(message, fds)
        match message:
            case Configure():
                self._configured(message)
            case AddBind():
                self._binds[message.key] = socket.socket(fileno=fds[0])
            case RemoveBind():
                self._remove(message)
            case Accept():
                for key in self._binds:
                    self._read(key)
            case StopAccepting():
                for key in [key for key in self._binds if key.startswith("traffic|")]:
                    self._remove(RemoveBind(key))
            case Drain():
                if "ignore-drain" not in self.words():
                    self._child.send(Done())
                    self._child.exit(0)
            case Stop():
                if "ignore-stop" not in self.words():
                    self._child.exit(0)
            case Relisten():
                assert self._configure is not None
                self._listen(Path(self._configure.runtime_dir) / "admin.sock")
            case Reply():
                with self._asking.pop(message.request_id) as asker:
                    asker.send(json.dumps([message.ok, message.lines, message.exit_code]).encode())
            case Peers():
                for fd in fds:
                    os.close(fd)

    def _configured(self, message: Configure) -> None:
        words = self.words()
        first, self._configure = self._configure is None, message
        if not first:
            if "silent-configure" not in words:
                self._child.send(Configured(message.version, "I do not want this" if "refuse" in words else ""))
            return
        if "fatal" in words:
            self._child.send(Failed("the engine is missing", 4, True))
            self._child.exit(4)
        elif "refuse-start" in words:
            raise QmuxConfigError("the certificate does not please me")
        elif done := [word for word in words if word.startswith("done-")]:
            self._loop.call_later(0.3, self._child.send, Done(int(done[0][5:])))
        elif "crash" in words:
            os._exit(7)
        elif "stuck" in words:
            self._loop.call_later(0.2, time.sleep, 60)
        if "never-ready" not in words:
            # Peers come after the binds; a real worker is ready when it has them, this one a moment later.
            self._loop.call_later(0.05, self._child.send, Ready(ReadyFacts(engine="fake")))
        if self._child.name == "admin":
            self._listen(Path(message.runtime_dir) / "admin.sock")

    def _remove(self, message: RemoveBind) -> None:
        sock = self._binds[message.key]
        while sock.type == socket.SOCK_STREAM and self._accept(message.key):
            pass
        del self._binds[message.key]
        self._loop.remove_reader(sock.fileno())
        if message.shutdown:
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def _read(self, key: str) -> None:
        sock = self._binds[key]
        if sock.type == socket.SOCK_STREAM:
            self._loop.add_reader(sock.fileno(), self._accept, key)
        else:
            self._loop.add_reader(sock.fileno(), self._datagram, key)

    def _whoami(self, key: str) -> bytes:
        assert self._configure is not None
        return json.dumps([self._child.name, os.getpid(), self._configure.epoch, key]).encode()

    def _accept(self, key: str) -> bool:
        try:
            user, _ = self._binds[key].accept()
        except BlockingIOError:
            return False
        user.send(self._whoami(key) + b"\n")
        if "hold" in self.words():
            self._held.append(user)
        else:
            user.close()
        return True

    def _datagram(self, key: str) -> None:
        try:
            data, sender = self._binds[key].recvfrom(2048)
        except BlockingIOError:
            return
        if data.endswith(b"spin"):
            while True:
                pass
        self._binds[key].sendto(self._whoami(key), sender)

    def _listen(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._admin = socket.socket(socket.AF_UNIX)
        self._admin.bind(str(path))
        self._admin.listen()
        self._admin.setblocking(False)
        self._loop.add_reader(self._admin.fileno(), self._asked)

    def _asked(self) -> None:
        assert self._admin is not None
        asker, _ = self._admin.accept()
        wish = json.loads(asker.recv(1000))
        number = len(self._asking) + 1
        self._asking[number] = asker
        self._child.send(Request(number, "reload", wish.get("dry_run", False), wish.get("full", False)))

    def _note(self, message: Down, fds: list[int]) -> None:
        about: dict[str, Any] = {"type": type(message).__name__, "fds": len(fds)}
        match message:
            case Configure():
                about |= {"version": message.version, "epoch": message.epoch, "slot": message.slot}
                about |= {"config": json.loads(msgspec_json(message.config)), "has_key": bool(message.material.key)}
            case AddBind() | RemoveBind():
                about |= {"key": message.key}
            case Peers():
                about |= {"slots": [[peer.slot, peer.epoch, peer.active] for peer in message.slots]}
                about |= {"links": message.links, "died": message.died}
            case Drain():
                about |= {"deadline_s": message.deadline_s}
            case Table():
                about |= {"names": [row.name for row in message.processes], "facts": msgspec.to_builtins(message.facts)}
        self._log.write(json.dumps(about) + "\n")


class QmuxConfigError(StartError):
    exit_code = 3


def msgspec_json(packed: bytes) -> bytes:
    return msgspec.json.encode(msgspec.msgpack.decode(packed))


def main() -> int:
    child_module.HEARTBEAT_S = 0.2  # tests of the watchdog need not wait for seconds
    fd, name, directory = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    return run_child(fd, name, lambda child: FakeRole(child, directory))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QmuxError as error:
        sys.exit(str(error))
