"""What processes cost, and whether they listen."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import processes
from loadtest.hosts import ThisMachine
from loadtest.system import StartFailed
from tests.waiting import until

MOST_S = 10.0


def test_the_cost_of_a_process_includes_its_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    shell = f"{sys.executable} -c '{burn}'; echo done; read line"
    with subprocess.Popen(["sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            spent = processes.cost([process.pid])
        finally:
            process.kill()
    assert 0.25 <= spent.cpu_s < MOST_S
    assert spent.rss_bytes > 0
    assert spent.processes == 1


def test_a_group_ends_everything_that_it_started(tmp_path: Path) -> None:
    group = processes.Group(tmp_path)
    for number in range(2):
        group.start(ThisMachine(), f"{number}", ["sh", "-c", "echo started; exec sleep 60"])
    pids = group.pids()
    assert len(processes.with_descendants(pids)) == 2
    group.stop()
    assert processes.with_descendants(pids) == []
    assert group.pids() == []


def test_what_a_process_leaves_behind_is_ended_with_its_group(tmp_path: Path) -> None:
    group = processes.Group(tmp_path)
    group.start(ThisMachine(), "parent", ["sh", "-c", "sleep 60 & echo $!; exit 1"])
    until(group.ended, "it has ended")
    child = int((tmp_path / "parent.log").read_text())
    assert processes.with_descendants([child]) == [child]
    group.stop()
    until(lambda: processes.with_descendants([child]) == [], "the child is ended")


def test_a_process_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    group = processes.Group(tmp_path)
    try:
        group.start(ThisMachine(), "stays", ["sleep", "60"])
        group.start(ThisMachine(), "goes", ["sh", "-c", "exit 3"])
        until(group.ended, "it has ended")
        assert group.ended() == "goes ended with 3"
    finally:
        group.stop()
    assert group.ended() == ""


def test_a_listener_is_seen_and_nothing_else() -> None:
    machine = ThisMachine()
    with socket.create_server((machine.address, 0)) as server, socket.socket() as bound:
        bound.bind((machine.address, 0))
        assert processes.listens(machine, server.getsockname()[1])
        assert not processes.listens(machine, bound.getsockname()[1])


def test_the_end_of_the_logs_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.log").write_text("x" * 5000 + "the end")
    (tmp_path / "a.log").write_text("short")
    told = processes.logs(tmp_path)
    assert told.startswith("\n--- a.log\nshort\n--- b.log\nxxx")
    assert told.endswith("the end")
    assert len(told) < 2500


def test_a_program_that_is_missing_is_named() -> None:
    assert processes.missing("sh") == ""
    assert processes.missing("sh", "no-such-program").startswith("no-such-program is not installed")
    with pytest.raises(StartFailed, match="no-such-program"):
        processes.program("no-such-program")
