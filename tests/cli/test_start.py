"""Starts that cannot succeed: the exit code, words with a name in them, and never a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmux.cli import machine
from qmux.config.load import load
from qmux.errors import ConfigError
from tests.cli.programs import MODULES
from tests.daemons import Deployment, free_port
from tests.waiting import until


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.close()


@pytest.fixture
def config(deployment: Deployment) -> Path:
    return deployment.write("server.toml", deployment.server_text({"web": f'bind = "127.0.0.1:{free_port()}"'}))


def start(*words: str | Path, wrapper: tuple[str, ...] = (), env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what was said."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-P", "-m", MODULES["qmuxd"], *words],
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def test_a_disk_that_takes_nothing_is_named(config: Path) -> None:
    """As a full one: no file may grow (RLIMIT_FSIZE)."""
    code, said = start("-c", config, wrapper=("prlimit", "--fsize=0"))
    assert code == 4, said
    assert re.search(r"run-server/lock: cannot be written: File too large; ", said)
    assert "running as root" not in said


@pytest.mark.parametrize("files", [10, 14, 20, 26])
def test_few_descriptors(config: Path, files: int) -> None:
    code, said = start("-c", config, wrapper=("prlimit", f"--nofile={files}"))
    assert code == 4, said
    assert "open files" in said


@pytest.fixture
def pids_limit() -> Iterator[Path]:
    """A control group of version 1, with nobody in it."""
    group = Path(f"/sys/fs/cgroup/pids/qmux-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups of version 1 to be made here: {error}")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text(), "everybody has left")
    group.rmdir()


@pytest.mark.parametrize("tasks", [2, 4, 12])
def test_few_processes(config: Path, pids_limit: Path, tasks: int) -> None:
    (pids_limit / "pids.max").write_text(str(tasks))
    enter = ("sh", "-c", f'echo $$ > {pids_limit}/cgroup.procs; exec "$@"', "sh")
    code, said = start("-c", config, wrapper=enter)
    assert code == 4, said
    assert re.search(r"pids limit of this control group is \d+|its log lines above say why", said), said
    assert "Aborted" not in said


def test_no_home(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the environment nor in /etc/passwd: the check says what the start would."""
    config.write_text(config.read_text().replace('state_dir = "state-server"\n', ""))
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"uid 4242 has no home directory here; set server.state_dir"):
        machine.check(load(config), "server.toml")


def test_ctrl_c_while_modules_are_imported() -> None:
    code = (
        "import importlib, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "from qmux.cli import entry\n"
        "importlib.import_module = lambda _: signal.raise_signal(signal.SIGINT)\n"
        "entry.qmuxd()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_before_the_daemon_listens_to_signals() -> None:
    code = (
        "import signal, sys, click\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "from qmux.cli import boundary\n"
        "command = click.Command('x', callback=lambda: signal.raise_signal(signal.SIGINT))\n"
        "sys.exit(boundary.run(command, 'x', []))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "")
