"""The log is a witness: nothing waits for it, and strangers cannot fill it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from qmux.heard import SAID_BYTES
from qmux.log.repeats import REPEAT_BURST
from qmux.quic.aioquic_engine.connection import AioquicConnection
from qmux.quic.choose import load_engine
from tests.aio import run
from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.strangers import Stranger, connect_config
from tests.integration.users import says
from tests.waiting import until

STOP_S = 15.0
"""A stop with ``stop_after`` = 5 s, on a busy machine; without the mend it never ended."""


class UnreadPipe:
    """A pipe at ``path`` into which nothing fits until ``read`` empties it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        found = path.stat()
        self.journal_stream = f"{found.st_dev}:{found.st_ino}"
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._got = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._fd, b"-\n" * 2048)

    def read(self) -> str:
        """Everything that was written until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._got += os.read(self._fd, 65536)
        return self._got.decode()

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def unread(path: Path) -> Iterator[UnreadPipe]:
    pipe = UnreadPipe(path)
    try:
        yield pipe
    finally:
        pipe.close()


def output_to(target: str) -> list[str]:
    """A prefix that starts a daemon with its output there."""
    return ["sh", "-c", f'exec "$0" "$@" {target}']


def killed_worker_is_back(daemon: Daemon) -> None:
    pid = daemon.workers()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: all(w["pid"] != pid and w["state"] == "ready" for w in daemon.workers()), "a worker was replaced")


def test_nobody_reads_the_log(deployment: Deployment) -> None:
    """``qmuxd 2>&1 | something-that-stopped``, and the client's alike: users, status, restarts and the stop go on. The
    client's pipe is the journal's.
    """
    port = free_port()
    folder = deployment.directory
    with (
        Service(named("x")) as service,
        unread(folder / "server.pipe") as server_log,
        unread(folder / "client.pipe") as client_log,
    ):
        text = deployment.server_text({"web": f'bind = "127.0.0.1:{port}"'}, workers=1)
        prefix = output_to(f"> {shlex.quote(str(folder / 'server.pipe'))} 2>&1")
        server = deployment.start("qmuxd", deployment.write("server.toml", text), prefix=prefix).until_ready()
        deployment.extra_environment["JOURNAL_STREAM"] = client_log.journal_stream
        prefix = output_to(f"> {shlex.quote(str(folder / 'client.pipe'))} 2>&1")
        config = deployment.write("pod-1.toml", deployment.client_text("pod-1", {"web": service.target}))
        client = deployment.start("qmuxc", config, prefix=prefix).until_ready()
        server.until_clients(1)
        assert says(port) == "x"
        killed_worker_is_back(server)
        killed_worker_is_back(client)
        server.until_clients(1)
        assert says(port) == "x"
        until(lambda: "qmuxc ready" in client_log.read(), "what waited is written once somebody reads")
        client.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert (client.process.wait(STOP_S), server.process.wait(STOP_S)) == (0, 0)
        said = client_log.read()
        lines = [line for line in said.splitlines() if line != "-"]
        assert all(re.match(r"<[2-7]>[a-z]+ +(supervisor|worker-0|admin) ", line) for line in lines), lines
        assert {line.split()[1] for line in lines} == {"supervisor", "worker-0"}
        assert said.index("worker-0 started") < said.index("qmuxc ready") < said.index("worker-0 died")
        assert said.index("worker-0 died") < said.index("qmuxc stopping") < said.index("supervisor  stopped")
        assert "qmuxd" not in server_log.read(), "nobody read it, and nothing waited"


def test_started_without_descriptors(deployment: Deployment) -> None:
    """``0<&- 1>&- 2>&-``: no socket or file takes their numbers and gets the log."""
    lines = deployment.server_text({"web": f'bind = "127.0.0.1:{free_port()}"'}, workers=1)
    config = deployment.write("server.toml", lines)
    server = deployment.start("qmuxd", config, prefix=output_to("<&- >&- 2>&-")).until_ready()
    for process in server.family():
        for number in range(3):
            target = Path(f"/proc/{process.pid}/fd/{number}").readlink()
            assert str(target) == os.devnull, (process, number)
    assert server.stop() == 0


def test_strangers_cannot_fill_the_log(deployment: Deployment) -> None:
    """A hundred closes, each with words of its own that would steer a terminal."""
    server = deployment.server({"web": f'bind = "127.0.0.1:{free_port()}"'}, workers=1)
    before = len(server.log)

    async def come_and_go(number: int) -> None:
        stranger = Stranger()
        config = connect_config(deployment.directory / deployment.bundle("pod-1"))
        connection = load_engine("aioquic").connect(("127.0.0.1", deployment.quic_port), config, stranger)
        assert isinstance(connection, AioquicConnection)
        await asyncio.wait_for(stranger.is_connected, 30)
        connection.quic.close(error_code=0x4000 + number, frame_type=0, reason_phrase=f"\x9b{number}\n{'ä' * 400}")
        connection.wake()
        await asyncio.wait_for(stranger.is_closed, 30)
        await asyncio.sleep(0)

    async def all_of_them() -> None:
        for number in range(3 * REPEAT_BURST):
            await come_and_go(number)

    run(all_of_them())

    def lines() -> list[str]:
        return [line for line in server.log[before:].split("\n") if "client could not connect" in line]

    until(lambda: server.status()["clients"] == [] and lines(), "the server has heard them")
    worker = psutil.Process(server.workers()[0]["pid"])
    assert worker.is_running()
    assert server.stop() == 0
    assert 1 <= len(lines()) <= REPEAT_BURST
    for line in lines():
        assert line.isprintable()
        assert len(line.encode()) < 2 * SAID_BYTES
