from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from qmux.config import directories
from qmux.config.schema import ClientConfig, Config, ProcessConfig, QuicConfig, ServerConfig, TlsFiles
from qmux.errors import StartError

PROCESS = ProcessConfig(tls=TlsFiles())
SERVER = ServerConfig(source="/etc/qmux/server.toml", process=PROCESS, quic=QuicConfig(), services={})
CLIENT = ClientConfig(source="web=127.0.0.1:3000 --server s", process=PROCESS, servers=(), services={})


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plain user with XDG_RUNTIME_DIR and XDG_STATE_HOME in this directory."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def hash_of(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def test_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert directories.runtime_dir(SERVER) == Path(f"/run/qmux/server-{hash_of('/etc/qmux/server.toml')}")
    assert directories.state_dir(CLIENT) == Path(f"/var/lib/qmux/client-{hash_of(CLIENT.source)}")


def test_of_a_user(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert directories.runtime_dir(CLIENT) == user / "qmux" / f"client-{hash_of(CLIENT.source)}"
    assert directories.state_dir(SERVER) == user / "state" / "qmux" / f"server-{hash_of(SERVER.source)}"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert directories.base_dir() == Path(tempfile.gettempdir()) / f"qmux-{os.geteuid()}"
    assert directories.state_base_dir() == Path("/home/me/.local/state/qmux")


def test_without_a_home_no_directory_is_made_up(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # neither HOME nor a line in /etc/passwd
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored
    with pytest.raises(StartError, match=r"has no home directory here; set server.state_dir"):
        directories.state_dir(SERVER)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert directories.base_dir() == Path(tempfile.gettempdir()) / f"qmux-{os.geteuid()}"


def test_what_the_configuration_says_wins(user: Path) -> None:
    process = msgspec.structs.replace(PROCESS, runtime_dir="/run/x", state_dir="/var/x")
    config: Config = msgspec.structs.replace(SERVER, process=process)
    assert directories.runtime_dir(config) == Path("/run/x")
    assert directories.state_dir(config) == Path("/var/x")


def test_running_dirs(user: Path) -> None:
    assert directories.running_dirs() == []  # there is no base directory yet
    base = user / "qmux"
    for name in ("server-1", "client-2", "client-3"):
        (base / name).mkdir(parents=True)
    (base / "server-1" / "lock").touch()
    (base / "client-2" / "lock").touch()
    (base / "file").touch()
    with (base / "client-2" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert directories.running_dirs() == [base / "client-2"]
        assert directories.running_dirs() == [base / "client-2"]  # looking changes nothing
    assert directories.running_dirs() == []
    with (base / "client-2" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nor did it keep the lock
