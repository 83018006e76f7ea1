from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qmux.config.schema import LogConfig
from supervisor.sockets import open_groups
from tests.supervisor.daemons import ROOT, FakeDaemon, running
from tests.supervisor.made import quic, traffic
from tests.waiting import lasts, until


def test_starts_and_stops(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        assert sorted(daemon.children()) == ["admin", "worker-0", "worker-1"]
        assert daemon.ask()[0] in ("worker-0", "worker-1")
        assert daemon.ask_quic(0)[0] == "worker-0"
        assert daemon.ask_quic(1)[0] == "worker-1"
        facts = json.loads((tmp_path / "run" / "daemon.json").read_text())
        assert (facts["role"], facts["pid"]) == ("server", daemon.pid)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.children() == {}
        assert daemon.heard("worker-0", "Drain") == [{"type": "Drain", "fds": 0, "deadline_s": 3.0}]
        assert not (tmp_path / "run" / "daemon.json").exists()


def test_what_children_get(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        for number in (0, 1):
            # A worker that said that it is ready has still to hear the answer; what was sent before has come by then.
            until(lambda number=number: daemon.heard(f"worker-{number}", "Accept"), "accepts")  # type: ignore[misc]
            kinds = [message["type"] for message in daemon.heard(f"worker-{number}")]
            assert kinds[:4] == ["Configure", "AddBind", "AddBind", "Peers"]
            assert kinds.index("Accept") > kinds.index("Peers")
            assert [message["key"] for message in daemon.heard(f"worker-{number}", "AddBind")] == [
                f"quic|udp|127.0.0.1:{daemon.quic_port}|{number}",
                f"traffic|tcp|web|127.0.0.1:{daemon.port}|{number}",
            ]
        (configure,) = daemon.heard("worker-1", "Configure")
        assert (configure["slot"], configure["epoch"], configure["has_key"]) == (1, 1, True)
        (configure,) = daemon.heard("admin", "Configure")
        assert (configure["slot"], configure["has_key"]) == (-1, False)
        # One pair for the two workers, and in the end both know both as active.
        links = [[m["links"], m["fds"]] for n in (0, 1) for m in daemon.heard(f"worker-{n}", "Peers") if m["links"]]
        assert links == [[[1], 1], [[0], 1]]
        until(lambda: daemon.heard("worker-1", "Peers")[-1]["slots"] == [[0, 1, True], [1, 1, True]], "peers")
        table = until(lambda: [m for m in daemon.heard("admin", "Table") if m["facts"]["state"] == "ready"], "table")
        assert table[-1]["names"] == ["supervisor", "worker-0", "worker-1", "admin"]
        assert table[-1]["facts"]["engine"] == "fake"


def test_children_have_sessions_of_their_own_and_ignore_terminal_signals(daemon: FakeDaemon) -> None:
    children = daemon.children()
    for pid in children.values():
        assert os.getsid(pid) == pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard
        assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, signum)
    assert daemon.ask_quic(0)[1] == children["worker-0"]
    assert daemon.children() == children


def test_a_killed_worker_comes_back_in_its_place(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.ask_quic(0)
        os.kill(daemon.children()["worker-0"], signal.SIGKILL)
        name, _, epoch, key = daemon.ask_quic(0)  # queued while nobody reads, answered by the successor
        assert (name, epoch, key) == ("worker-0", 2, f"quic|udp|127.0.0.1:{daemon.quic_port}|0")
        until(lambda: any(m["died"] == [0] for m in daemon.heard("worker-1", "Peers")), "the sibling is told")
        until(lambda: daemon.heard("worker-1", "Peers")[-1]["slots"] == [[0, 2, True], [1, 1, True]], "both active")
        assert [m["links"] for m in daemon.heard("worker-1", "Peers") if m["links"]][-1] == [0]
        assert "out of memory?" in daemon.lines("worker-0 died")[0]


def test_users_do_not_notice_a_crash(tmp_path: Path) -> None:
    """Connections that the dead worker had not accepted wait for its successor."""
    with running(tmp_path) as daemon:
        os.kill(daemon.children()["worker-1"], signal.SIGKILL)
        assert all(daemon.ask()[0].startswith("worker-") for _ in range(30))


def test_a_stuck_worker_shows_its_stack_and_is_replaced(tmp_path: Path) -> None:
    # The others share two cores with the one that spins: they get some time.
    with running(tmp_path, watchdog_s=2.0, abort_s=10.0) as daemon:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.sendto(b"\x40\x00\x01" + bytes(20) + b"spin", ("127.0.0.1", daemon.quic_port))
        until(lambda: daemon.said("worker-1 is stuck"), "noticed")
        until(lambda: len(daemon.lines("worker-1 ready")) == 2, "replaced")
        assert daemon.ask_quic(1)[2] == 2
        assert "in _datagram" in daemon.log  # from faulthandler
        assert daemon.ask_quic(0)[2] == 1


def test_a_stopped_worker_is_killed(tmp_path: Path) -> None:
    """SIGSTOP: no stack can be had, SIGKILL works."""
    with running(tmp_path, watchdog_s=1.5, abort_s=0.2) as daemon:
        os.kill(daemon.children()["worker-0"], signal.SIGSTOP)
        until(lambda: len(daemon.lines("worker-0 ready")) == 2, "replaced")


def test_the_watchdogs_own_stall_kills_no_worker(tmp_path: Path) -> None:
    with running(tmp_path, watchdog_s=2.0) as daemon:
        before = daemon.children()
        daemon.signal(signal.SIGSTOP)
        lasts(2.5)  # longer than the watchdog's patience
        daemon.signal(signal.SIGCONT)
        tables = len(daemon.heard("admin", "Table"))
        until(lambda: len(daemon.heard("admin", "Table")) > tables + 2, "it runs again")
        assert daemon.children() == before


def test_a_worker_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path, start_timeout_s=3.0, abort_s=0.2)  # time for the interpreters of its siblings
    try:
        daemon.tell("worker-0", "never-ready")
        daemon.start(ready=False)
        until(lambda: daemon.said("not ready within 3 s"), "noticed")
        daemon.tell("worker-0", "")
        until(lambda: daemon.said("qmuxd ready"), "recovered")
    finally:
        daemon.kill()


def test_a_fatal_failure_ends_the_daemon(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    try:
        daemon.tell("worker-1", "fatal")
        daemon.start(ready=False)
        assert daemon.wait() == 4
        assert daemon.log.count("the engine is missing") == 1
        assert daemon.children() == {}
    finally:
        daemon.kill()


def test_what_only_a_user_can_put_right_ends_the_start(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    try:
        daemon.tell("worker-1", "refuse-start")
        daemon.start(ready=False)
        assert daemon.wait() == 3
        assert daemon.said("the certificate does not please me")
    finally:
        daemon.kill()


def test_workers_that_crash_at_the_start_end_it(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    try:
        daemon.tell("worker-0", "crash")
        daemon.start(ready=False)
        assert daemon.wait(30) == 4
        assert daemon.said("worker-0 fails to start (exited with status 7)")
    finally:
        daemon.kill()


def test_a_dead_admin_process_does_not_matter_to_users(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    try:
        daemon.tell("admin", "crash")
        daemon.start()
        assert daemon.ask()[0].startswith("worker-")
        daemon.tell("admin", "")
        until(lambda: daemon.said("admin ready"), "it is back")
    finally:
        daemon.kill()


def test_a_sibling_serves_the_users_of_a_worker_that_stays_away(tmp_path: Path) -> None:
    with running(tmp_path, crash_grace_s=0.2) as daemon:
        daemon.tell("worker-0", "crash")
        os.kill(daemon.children()["worker-0"], signal.SIGKILL)
        until(lambda: daemon.said("worker-1 accepts the user connections of worker-0"), "adopted")
        served = [daemon.ask() for _ in range(30)]
        assert {name for name, *_ in served} == {"worker-1"}
        assert {key[-1] for *_, key in served} == {"0", "1"}
        assert daemon.ask_quic(0)[0] == "worker-1"  # steering left the slot
        daemon.tell("worker-0", "")
        until(lambda: len(daemon.lines("worker-0 ready")) == 2, "back")
        taken_back = until(lambda: daemon.heard("worker-1", "RemoveBind"), "the sibling gives the sockets back")
        assert [message["key"] for message in taken_back] == [f"traffic|tcp|web|127.0.0.1:{daemon.port}|0"]
        assert daemon.ask_quic(0)[0] == "worker-0"
        until(lambda: daemon.ask()[0] == "worker-0", "its users come to it again")


WITHIN_S = 5.0
"""The promise is 2 s; the machine may stand still meanwhile."""


def test_the_supervisors_death_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        until(lambda: not daemon.children(), "the children end", WITHIN_S)
        for bind in (traffic("127.0.0.1", daemon.port), quic("127.0.0.1", daemon.quic_port)):
            (group,) = open_groups(bind, 1, "key")
            group.close()


def test_the_supervisors_death_ends_stuck_children_too(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.sendto(b"\x40\x00\x01" + bytes(20) + b"spin", ("127.0.0.1", daemon.quic_port))
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        until(lambda: not daemon.children(), "the children end", WITHIN_S)


def test_a_restart_right_after_a_kill_waits_for_the_orphans(tmp_path: Path) -> None:
    with running(tmp_path, lock_wait_s=WITHIN_S) as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        daemon.start(ready=False)
        until(lambda: len(daemon.lines("qmuxd ready")) == 2, "ready again")


def test_a_second_supervisor_is_refused(daemon: FakeDaemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "tests.supervisor.fake_daemon", str(daemon.directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 4
    assert f"another daemon runs here (pid {daemon.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    assert daemon.ask()


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_in_use_names_the_key(tmp_path: Path, kind: str) -> None:
    daemon = FakeDaemon(tmp_path)
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", daemon.port if kind == "tcp" else daemon.quic_port))
        try:
            daemon.start(ready=False)
            assert daemon.wait() == 4
            key = "services.web.bind" if kind == "tcp" else "quic.bind"
            assert daemon.said(f"({key}): address in use by another program")
            assert not daemon.said("Traceback")
            assert not (tmp_path / "run" / "daemon.json").exists()
        finally:
            daemon.kill()


def test_a_child_that_ignores_stop_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, stop_after_s=1.0) as daemon:
        daemon.tell("worker-0", "ignore-drain ignore-stop")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.said("1 worker not done after 1 s: stopping them")
        assert daemon.lines("worker-0 ended")[0].count("killed by the supervisor") == 1


def test_the_second_signal_stops_now(tmp_path: Path) -> None:
    # Without the second signal both would be waited for: longer than the test does.
    with running(tmp_path, stop_after_s=60.0, stop_timeout_s=60.0) as daemon:
        daemon.tell("worker-0", "ignore-drain")
        daemon.signal(signal.SIGINT)
        until(lambda: daemon.heard("worker-0", "Drain"), "draining")
        assert daemon.heard("worker-0", "Stop") == []
        daemon.signal(signal.SIGINT)
        assert daemon.wait(30) == 0
        assert daemon.said("SIGINT again: stopping now")
        assert daemon.heard("worker-0", "Stop")


def test_traffic_goes_on_during_the_drain_delay(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    daemon.write(drain_delay_s=2.0)
    try:
        daemon.start()
        daemon.signal(signal.SIGTERM)
        until(lambda: daemon.said("qmuxd stopping"), "stopping")
        assert daemon.ask()
        until(lambda: daemon.heard("admin", "Table")[-1]["facts"]["state"] == "stopping", "not ready any more")
        assert daemon.heard("worker-0", "Drain") == []
        assert daemon.wait() == 0
        assert daemon.heard("worker-0", "Drain")
    finally:
        daemon.kill()


def test_a_draining_worker_gets_no_new_clients(tmp_path: Path) -> None:
    with running(tmp_path, stop_after_s=60.0) as daemon:
        daemon.tell("worker-0", "ignore-drain")
        daemon.tell("worker-1", "ignore-drain")
        daemon.signal(signal.SIGTERM)
        none = [[0, 1, False], [1, 1, False]]  # is told when steering knows it
        until(lambda: daemon.heard("worker-0", "Peers")[-1]["slots"] == none, "draining")
        # No worker is active: the lowest live slot answers Initials, issued IDs still find their worker.
        assert daemon.ask_quic(0x8001)[0] == "worker-0"
        assert daemon.ask_quic(1)[0] == "worker-1"


def test_the_log_file_is_reopened_on_sigusr1(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    log = tmp_path / "qmuxd.log"
    daemon.write(log=LogConfig(file=str(log)))
    try:
        daemon.start(ready=False)
        until(lambda: log.exists() and "qmuxd ready" in log.read_text(), "ready")
        assert stat.S_IMODE(log.stat().st_mode) == 0o640
        log.rename(tmp_path / "qmuxd.log.1")
        daemon.signal(signal.SIGUSR1)
        until(lambda: log.exists() and "log file reopened" in log.read_text(), "reopened")
        children = daemon.children()
        until(lambda: all(os.readlink(f"/proc/{pid}/fd/2") == str(log) for pid in children.values()), "children")
    finally:
        daemon.kill()


@pytest.mark.needs("unshare", "nsenter", "ps")
def test_as_pid_1_strangers_are_reaped(tmp_path: Path) -> None:
    """In a pid namespace of its own, where the grandchildren of others become the supervisor's."""
    can = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    if can.returncode:
        pytest.skip("no pid namespaces here")
    daemon = FakeDaemon(tmp_path)
    try:
        daemon.start(ready=False, wrapper=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
        until(lambda: daemon.said("qmuxd ready"), "ready")
        first = next(iter(daemon.children().values()))
        inside = ["nsenter", "--target", str(first), "--pid", "--mount"]
        subprocess.run([*inside, "sh", "-c", "sh -c 'sleep 0.1' & exit 0"], check=True)

        def states() -> list[str]:
            shown = subprocess.run([*inside, "ps", "-eo", "stat,args"], capture_output=True, text=True, check=True)
            return [line for line in shown.stdout.splitlines() if line.startswith("Z") or "sleep 0.1" in line]

        until(lambda: not states(), "no zombie is left")
        assert daemon.ask_quic(0)[0] == "worker-0"
    finally:
        daemon.kill()
