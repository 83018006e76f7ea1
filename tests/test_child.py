from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import msgspec

from qmux.channel import pair, supervisor_end
from qmux.child import Child, Role
from qmux.messages import Accept, Down, Failed, Peers, Ready, Stop, Up
from tests.aio import until


def test_a_thread_that_hangs_does_not_hold_the_end() -> None:
    ours, theirs = pair()
    with ours:
        with theirs:
            command = [sys.executable, "-m", "tests.hanging_child", str(theirs.fileno())]
            child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE)
        ours.settimeout(20)
        while not isinstance(msgspec.msgpack.decode(ours.recv(4096)[1:], type=Up), Ready):
            pass
        started = time.monotonic()
        ours.send(b"\x00" + msgspec.msgpack.encode(Stop()))
        output, _ = child.communicate(timeout=20)
        assert child.returncode == 7
        assert output == b"closed\n"
        assert time.monotonic() - started < 20.0  # the thread sleeps for a minute


class SlowRole(Role):
    """Needs some time to close, and remembers what it heard."""

    def __init__(self, child: Child) -> None:
        self.heard: list[Down] = []
        self.is_closing = asyncio.Event()
        self.may_end = asyncio.Event()
        self._child = child

    def received(self, message: Down, fds: list[int]) -> None:
        self.heard.append(message)
        if isinstance(message, Stop):
            self._child.exit(0)

    def active(self) -> int:
        return 0

    async def close(self) -> None:
        self.is_closing.set()
        await self.may_end.wait()


class BrokenRole(SlowRole):
    """Cannot say how many users it has: the heartbeat fails."""

    def active(self) -> int:
        raise RuntimeError("a defect")


async def test_a_heartbeat_that_fails_ends_the_process() -> None:
    """At once, and with the reason; not as one whose event loop is stuck, ten seconds later."""
    ours, theirs = pair()
    heard: list[Up] = []
    supervisor = supervisor_end(ours, lambda message, _: heard.append(message), lambda: None)
    child = Child("worker-0")
    role = BrokenRole(child)
    role.may_end.set()
    assert await asyncio.wait_for(child.run(theirs, role), 15) == 1
    await until(lambda: heard)
    [failed] = heard
    assert isinstance(failed, Failed)
    assert "task heartbeat failed: RuntimeError('a defect')" in failed.message
    supervisor.close()


async def test_what_comes_after_the_end_is_nothing() -> None:
    """With many clients a close takes a while, and Peers come for every worker that ends meanwhile."""
    ours, theirs = pair()
    supervisor = supervisor_end(ours, lambda *_: None, lambda: None)
    child = Child("worker-0")
    role = SlowRole(child)
    running = asyncio.ensure_future(child.run(theirs, role))
    supervisor.send(Accept())
    supervisor.send(Stop())
    await role.is_closing.wait()
    reading, writing = os.pipe()
    supervisor.send(Peers([], [1]), [writing])
    os.close(writing)
    os.set_blocking(reading, False)
    await until(lambda: is_at_its_end(reading), what="its descriptor is closed, nobody heard of it")
    os.close(reading)
    role.may_end.set()
    assert await running == 0
    assert role.heard == [Accept(), Stop()]
    supervisor.close()


def is_at_its_end(fd: int) -> bool:
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False


NO_THREADS = """
import socket, sys, threading

def start(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = start
from qmux.child import run_child
near, far = socket.socketpair()
sys.exit(run_child(near.detach(), "worker-7", lambda child: None))
"""


def test_a_child_that_gets_no_thread_says_so_and_ends() -> None:
    """Not even the log has one: the words go straight to stderr, without a traceback at the exit either."""
    done = subprocess.run([sys.executable, "-c", NO_THREADS], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("worker-7: cannot start: no thread can be started")
    assert done.stderr.count("\n") == 1
