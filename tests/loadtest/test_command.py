"""``python -m loadtest``: what it refuses, and what it leaves behind when it is told to stop: nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from loadtest import paths
from loadtest.__main__ import Workers, choose_paths, choose_systems
from loadtest.columns import Column, columns
from loadtest.system import StartFailed
from loadtest.systems.rathole import Rathole
from qmux.config.usable import usable_cpus
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
LOADTEST = [sys.executable, "-m", "loadtest"]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a Unix socket is short, and pytest's own folders are long."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        yield Path(folder)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOADTEST, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_worker_counts_are_numbers_or_auto() -> None:
    auto = max(2, usable_cpus())
    assert Workers().convert("1,auto", None, None) == list(dict.fromkeys([1, auto]))
    assert Workers().convert("4, 4,8", None, None) == [4, 8]
    for wrong in ("0", "many", "-1", ""):
        with pytest.raises(click.BadParameter):
            Workers().convert(wrong, None, None)


def test_a_system_has_a_column_for_each_worker_count_where_that_matters() -> None:
    found = columns(["direct", "haproxy", "qmux-native"], [1, 2])
    assert [column.label for column in found] == [
        "direct",
        *("haproxy/1", "haproxy/2"),
        *("qmux-native/1", "qmux-native/2"),
    ]
    assert found[0] == Column("direct")


def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    done = run("--cases", "wrk-c3")
    assert done.returncode == 2
    assert "unknown: wrk-c3; there are: idle, iperf3-up, " in done.stderr


def test_what_cannot_run_here_is_left_out_and_refused_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rathole, "missing", lambda: "not built")
    monkeypatch.setattr(paths, "missing", lambda name: "needs root" if name == "veth" else "")
    left_out: list[str] = []
    assert choose_systems(["direct"], left_out) == ["direct"]
    assert choose_paths("loopback", left_out) == ["loopback"]
    assert left_out == []
    chosen = choose_systems(None, left_out)
    assert "direct" in chosen
    assert not {"rathole", "rathole-noise"} & set(chosen)
    assert {"rathole: not built", "rathole-noise: not built"} <= set(left_out)
    assert choose_paths("both", left_out) == ["loopback"]
    assert left_out[-1] == "path veth: needs root"
    with pytest.raises(StartFailed, match="rathole: not built"):
        choose_systems(["direct", "rathole"], [])
    with pytest.raises(StartFailed, match="veth: needs root"):
        choose_paths("veth", [])


@pytest.mark.needs("iperf3")
def test_a_load_test_that_is_told_to_stop_leaves_nothing_behind(short_folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    arguments = ["--path", "loopback", "--cases", "iperf3-up", "--systems", "direct,qmux-aioquic", "--workers", "2"]
    command = [*LOADTEST, *arguments, "--seconds", "60", "--rounds", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True) as process:
        try:
            until(lambda: measures(process.pid), "a measurement", 60)
            process.terminate()
            assert process.wait(60) == 143
        finally:
            process.kill()
    until(lambda: not running_in(short_folder), "nothing runs there")
    assert list(short_folder.iterdir()) == []


@pytest.mark.needs("iperf3")
def test_a_system_that_does_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    long_folder = tmp_path / ("x" * 80)  # too long for the Unix sockets of qmuxd
    long_folder.mkdir()
    arguments = ["--path", "loopback", "--cases", "iperf3-up", "--systems", "qmux-aioquic"]
    done = run(*arguments, TMPDIR=str(long_folder))
    assert done.returncode == 1
    assert re.search(r"Error: qmux-aioquic on loopback: .*qmux[cd] ended with 3\n--- qmuxc.log\n", done.stderr)
    assert re.search("(server|client).runtime_dir = ", done.stderr)  # whichever said it first
    assert list(long_folder.iterdir()) == []


def measures(pid: int) -> bool:
    """Whether the load test ``pid`` has a load generator running."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any("--client" in command_line(child) and "--time" in command_line(child) for child in children)


def running_in(folder: Path) -> list[str]:
    lines = [command_line(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [line for line in lines if str(folder) in line]


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return ""
