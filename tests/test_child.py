from __future__ import annotations

import subprocess
import sys
import time

import msgspec

from qmux.channel import pair
from qmux.messages import Ready, Stop, Up


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
