from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qmux.errors import StartError
from qmux.messages import DaemonIdentity
from supervisor.privileges import Owner
from supervisor.runtime import RuntimeDir, daemon_keys, private_dir

ME = Owner(os.geteuid(), os.getegid(), drops=False)


def test_the_directory_is_private(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "a" / "b", ME, 0)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    runtime.write_identity(
        DaemonIdentity(role="server", pid=1, source="x", version="1", started_at=1.0, admin_socket="/run/a")
    )
    assert stat.S_IMODE((tmp_path / "a" / "b" / "daemon.json").stat().st_mode) == 0o644
    runtime.close()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["lock"]


def test_a_second_daemon_is_told_who_runs(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "run", ME, 0)
    with pytest.raises(StartError, match=rf"another daemon runs here \(pid {os.getpid()}\)"):
        RuntimeDir(tmp_path / "run", ME, 0.1)
    runtime.close()
    RuntimeDir(tmp_path / "run", ME, 0).close()


def test_the_lock_lives_as_long_as_a_child_has_it(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "run", ME, 0)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[runtime.lock_fd])
    runtime.close()
    try:
        with pytest.raises(StartError, match="another daemon"):
            RuntimeDir(tmp_path / "run", ME, 0.1)
    finally:
        child.kill()
        child.wait()
    RuntimeDir(tmp_path / "run", ME, 1).close()


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("file", "link", "open/run"):
        with pytest.raises(StartError, match=str(tmp_path)):
            private_dir(tmp_path / name, ME.uid, ME.gid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(StartError, match="not a directory of this user"):
        private_dir(tmp_path / "theirs", ME.uid, ME.gid)
    with pytest.raises(StartError, match="another user can write there"):
        private_dir(tmp_path / "theirs" / "run", ME.uid, ME.gid)


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="too long for the Unix sockets in it"):
        RuntimeDir(tmp_path / ("x" * 90), ME, 0)


def test_keys_outlive_a_restart(tmp_path: Path) -> None:
    first, second = daemon_keys(tmp_path / "state"), daemon_keys(tmp_path / "state")
    assert (first.stateless_reset, first.retry, first.flow) == (second.stateless_reset, second.retry, second.flow)
    assert len({first.stateless_reset, first.retry, first.flow}) == 3
    assert len(first.retry) == 32
    assert daemon_keys(tmp_path / "other").retry != first.retry
    assert stat.S_IMODE((tmp_path / "state" / "secret").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_secret_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    """The state directory on a file system that has become read-only, at a restart."""
    state = tmp_path / "state"
    before = daemon_keys(state).retry.hex()
    code = (
        "import pathlib, sys; from supervisor.runtime import daemon_keys; "
        "print(daemon_keys(pathlib.Path(sys.argv[1])).retry.hex())"
    )
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "--mount", "sh", "-c", mount, "sh", str(state), sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, before), done.stderr


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    daemon_keys(tmp_path)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(StartError, match="chmod 600"):
        daemon_keys(tmp_path)


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    daemon_keys(tmp_path)
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(StartError, match="has 5 bytes"):
        daemon_keys(tmp_path)


def test_the_first_of_two_starters_makes_the_secret(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from supervisor.runtime import daemon_keys; "
        "print(daemon_keys(pathlib.Path(sys.argv[1])).retry.hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({starter.communicate()[0] for starter in starters}) == 1
