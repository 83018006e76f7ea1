from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from qmux.config.schema import ClientConfig, LogConfig, ServerAddress
from qmux.errors import StartError
from supervisor.run import run
from tests.supervisor.daemons import ROOT, FakeDaemon
from tests.waiting import until


def never() -> NoReturn:
    raise AssertionError("must not load")


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(StartError, match="need Linux"):
        run(never)


def test_neither_engine_nor_uvloop_is_imported() -> None:
    code = (
        "import sys, supervisor.run, supervisor.master;"
        "found = [name for name in ('aioquic', 'uvloop', 'aiohttp', 'click') if name in sys.modules];"
        "print(*found)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def client(daemon: FakeDaemon, once: bool) -> ClientConfig:
    process = msgspec.structs.replace(daemon.process_config, workers=1)
    return ClientConfig(source="x", process=process, servers=(ServerAddress("s", 1),), services={}, once=once)


def test_a_client_runs_one_worker_and_opens_nothing(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(client(daemon, once=False)))
    try:
        daemon.start(ready=False)
        until(lambda: daemon.said("qmuxc ready"), "ready")
        assert sorted(daemon.children()) == ["admin", "worker-0"]
        until(lambda: daemon.heard("worker-0", "Accept"), "accepts")
        assert daemon.heard("worker-0", "AddBind") == []
        assert not (tmp_path / "state").exists()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.heard("worker-0", "Drain")
    finally:
        daemon.kill()


@pytest.mark.parametrize("code", [0, 4])
def test_once_ends_with_the_attempts_code(tmp_path: Path, code: int) -> None:
    daemon = FakeDaemon(tmp_path)
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(client(daemon, once=True)))
    daemon.tell("worker-0", f"done-{code}")
    try:
        daemon.start(ready=False)
        assert daemon.wait() == code
        assert daemon.children() == {}
    finally:
        daemon.kill()


def test_the_terminal_and_the_log_file_say_why_it_ended(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    daemon.write(log=LogConfig(file=str(tmp_path / "log")))
    daemon.tell("worker-0", "fatal")
    try:
        daemon.start(ready=False)
        assert daemon.wait() == 4
        assert daemon.said("the engine is missing")
        assert "the engine is missing" in (tmp_path / "log").read_text()
    finally:
        daemon.kill()


# Where the interpreter lies below a closed /root, a mount namespace shows it to other users too.
OPEN_ROOT = """
mkdir -p "$1/root" && mount --bind /root "$1/root" && mount -t tmpfs -o mode=755 tmpfs /root
cd "$1/root" && for name in .[!.]* *; do
  [ -d "$name" ] && mkdir "/root/$name" && mount --bind "$name" "/root/$name"
done
cd / && shift && cd "$1" && shift && exec "$@"
"""


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop to another user")
def test_workers_run_as_the_user_and_root_stays_behind() -> None:
    wrapper = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        directory = Path(place)
        directory.chmod(0o777)  # the fake children write their logs here
        (directory / "owned").mkdir()
        daemon = FakeDaemon(directory)
        process = msgspec.structs.replace(
            daemon.process_config, user="nobody", runtime_dir=f"{place}/owned/run", state_dir=f"{place}/owned/state"
        )
        daemon.write(process=process)
        stack.callback(daemon.kill)
        daemon.start(wrapper=[*wrapper, "sh", "-c", OPEN_ROOT, "sh", place, str(ROOT)])
        for pid in daemon.children().values():
            status = Path(f"/proc/{pid}/status").read_text()
            assert "Uid:\t65534\t65534\t65534\t65534" in status
            assert "CapEff:\t0000000000000000" in status
        assert (directory / "owned" / "run").stat().st_uid == 65534
        assert (directory / "owned" / "run" / "bus-pub").stat().st_uid == 65534
        assert (directory / "owned" / "state" / "secret").stat().st_uid == 0
        assert daemon.ask()
        assert daemon.ask_quic(1)[0] == "worker-1"
        assert not daemon.said("running as root")
