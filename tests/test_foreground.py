"""``make demo`` under Ctrl-C: the terminal's SIGINT reaches the command and not make, which then ends without noise."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 20.0

COMMAND = """
import signal, time
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
print("up", flush=True)
while not stopped: time.sleep(0.01)
print("stopped", len(stopped), flush=True)
"""

MAKEFILE = f"""
demo:
\t@{sys.executable} {REPOSITORY}/scripts/foreground.py {sys.executable} command.py
"""


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def read_until(fd: int, text: bytes, seen: bytes = b"") -> bytes:
    deadline = time.monotonic() + DEADLINE_S
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {text!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def test_ctrl_c_on_a_terminal_ends_make_with_0_and_without_a_word(makefile: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("make", ["make", "-C", str(makefile), "--no-print-directory", "demo"])
    seen = read_until(terminal, b"up")
    os.write(terminal, b"\x03")
    seen = read_until(terminal, b"stopped 1", seen)
    try:
        while data := os.read(terminal, 4096):
            seen += data
    except OSError:  # EIO: the last process of the terminal has ended
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"make" not in seen, seen


def test_a_signal_to_the_process_is_passed_on_once(makefile: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "foreground.py"), sys.executable, "command.py"]
    with subprocess.Popen(command, cwd=makefile, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"up\n")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert output == b"stopped 1\n"
    assert process.returncode == 0


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    foreground = [sys.executable, str(REPOSITORY / "scripts" / "foreground.py"), sys.executable, "-c"]
    assert subprocess.run([*foreground, "import sys; sys.exit(4)"], timeout=DEADLINE_S, check=False).returncode == 4
    killed = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run([*foreground, killed], timeout=DEADLINE_S, check=False).returncode == 128 + 9
