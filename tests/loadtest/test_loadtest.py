"""The load test measures what it says: real load generators, real backends, medians, and nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest import processes
from loadtest.cases import CASES, FAILED, GBIT, GIB, REQUESTS, Loaded, SampleFailed
from loadtest.report import Run, markdown, to_json
from loadtest.run import Result, Sample, run

REPOSITORY = Path(__file__).parent.parent.parent
CASE = {case.name: case for case in CASES}
DEADLINE_S = 10.0


@pytest.mark.needs("iperf3", "wrk", "nginx", "haproxy")
def test_every_sample_of_a_run_has_figures_and_no_process_is_left() -> None:
    before = children()
    chosen = [CASE["iperf3-up"], CASE["wrk-c32"]]
    told: list[str] = []
    result = run(chosen, ["direct", "haproxy"], rounds=1, duration_s=1, workers=1, progress=told.append)
    assert [(s.case, s.system) for s in result.samples] == [
        ("iperf3-up", "direct"),
        ("iperf3-up", "haproxy"),
        ("wrk-c32", "direct"),
        ("wrk-c32", "haproxy"),
    ]
    assert [sample.problem for sample in result.samples] == [""] * 4
    through_haproxy = result.samples[3].figures
    assert through_haproxy[REQUESTS] > 100
    assert through_haproxy[FAILED] == 0
    assert through_haproxy["CPU µs/request"] > 0
    assert through_haproxy["RSS MiB"] > 1
    assert result.samples[0].figures[GBIT] > 0.01
    assert len(told) == 4
    assert children() == before


def test_a_median_is_printed_and_failures_are_added_up() -> None:
    chosen = [CASE["wrk-c32"]]
    values = ((100.0, 0.0), (300.0, 7.0), (200.0, 0.0))
    samples = [Sample("wrk-c32", "haproxy", n, {REQUESTS: r, FAILED: f}) for n, (r, f) in enumerate(values)]
    samples.append(Sample("wrk-c32", "direct", 0, {}, "no result within 21 s"))
    made = Run("python -m loadtest", chosen, ["direct", "haproxy"], 3, 1, 2)
    result = Result(samples, {"direct": "nothing in between", "haproxy": "2.6"})
    table = markdown(made, result)
    assert f"| {CASE['wrk-c32'].title} | requests/s | - | 200 |" in table
    assert "|  | failed | - | 7 |" in table
    assert "no result: direct, wrk-c32, round 1: no result within 21 s" in table
    assert json.loads(to_json(made, result))["samples"][1]["figures"][REQUESTS] == 300.0


def test_iperf3_figures_are_those_of_the_receiver() -> None:
    said = json.dumps({"end": {"sum_received": {"bytes": 2 * GIB, "bits_per_second": 1.5e9}}})
    figures = CASE["iperf3-up"].figures(Loaded(said, cpu_s=3.0, rss_bytes=5 << 20))
    assert figures == {GBIT: 1.5, "CPU s/GiB": 1.5, "RSS MiB": 5.0}


@pytest.mark.parametrize("said", ["", "not JSON", '{"error": "unable to connect"}'])
def test_iperf3_without_a_result_is_a_failed_sample(said: str) -> None:
    with pytest.raises(SampleFailed, match="iperf3"):
        CASE["iperf3-up"].figures(Loaded(said, 0.0, 0))


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
    assert 0.25 <= spent.cpu_s < DEADLINE_S
    assert spent.rss_bytes > 0
    assert spent.processes == 1


def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "loadtest", "--cases", "wrk-c3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "unknown: wrk-c3; there are: iperf3-up, " in done.stderr


def children() -> int:
    """Processes below this one, once those that are ending have ended."""
    deadline = time.monotonic() + DEADLINE_S
    while (count := processes.cost([os.getpid()]).processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    return count


@pytest.mark.needs("iperf3")
def test_a_load_test_that_is_told_to_stop_leaves_nothing_behind(short_folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    arguments = ["--cases", "iperf3-up", "--systems", "direct,qmux", "--seconds", "60", "--rounds", "1"]
    command = [sys.executable, "-m", "loadtest", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True) as process:
        try:
            wait_until(lambda: measures(process.pid))
            process.terminate()
            assert process.wait(DEADLINE_S * 3) == 143
        finally:
            process.kill()
    wait_until(lambda: not running_in(short_folder))
    assert list(short_folder.iterdir()) == []


@pytest.mark.needs("iperf3")
def test_a_system_that_does_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    long_folder = tmp_path / ("x" * 80)  # too long for the Unix sockets of qmuxd
    long_folder.mkdir()
    command = [sys.executable, "-m", "loadtest", "--cases", "iperf3-up", "--systems", "qmux"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(long_folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Error: qmux: a process of it ended\n--- qmuxc.log\n" in done.stderr
    assert "server.runtime_dir = " in done.stderr
    assert list(long_folder.iterdir()) == []


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a Unix socket is short, and pytest's own folders are long."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        yield Path(folder)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S * 3
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
