"""The soak: what counts as a leak, and a short one through real daemons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.figures import MIB
from loadtest.soak import judge
from loadtest.soak.judge import Soak, problems, table, thirds
from loadtest.soak.tally import Tally
from loadtest.soak.watch import Held, Process, Snapshot

REPOSITORY = Path(__file__).parents[2]
WORKER = Process("server", "worker", 100)


def snapshot(mib: float = 40, descriptors: int = 30, threads: int = 4, streams: int | None = 0) -> Snapshot:
    return Snapshot({WORKER: Held(int(mib * MIB), descriptors, threads)}, streams)


BEFORE = AFTER = snapshot()


def soak(*during: float, after: Snapshot = AFTER, failed: int = 0) -> Soak:
    tally = Tally("keep-alive")
    tally.add(1000, failed)
    seen = [snapshot(mib, descriptors=200, streams=99) for mib in during or (40,) * 6]
    return Soak(BEFORE, seen, after, [tally])


def test_thirds_are_medians_and_the_first_is_not_looked_at() -> None:
    found = thirds(WORKER, soak(10, 20, 30, 41, 99, 40, 45, 46, 99).during)
    assert found == (41, 46)
    assert found.growth_mib == 5


def test_steady_memory_is_no_problem_whatever_the_warm_up_took() -> None:
    assert problems(soak(10, 30, 40, 40, 41, 40), 4) == []


def test_growth_from_the_second_third_to_the_last_is_one() -> None:
    assert problems(soak(40, 40, 40, 40, 44.1, 44.1), 4) == [
        "server worker 100: 4.1 MiB more in the last third than in the second (at most 4)"
    ]
    assert problems(soak(40, 40, 40, 40, 43.9, 43.9), 4) == []


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (snapshot(descriptors=31 + judge.DESCRIPTOR_SLACK), "35 descriptors after the traffic, 30 before"),
        (snapshot(threads=5 + judge.THREAD_SLACK), "9 threads after the traffic, 4 before"),
        (snapshot(streams=1), "streams after the traffic: 1"),
        (snapshot(streams=None), "streams after the traffic: unknown"),
        (Snapshot({}, 0), "server worker 100 ended"),
        (Snapshot({**snapshot().held, Process("server", "worker", 101): Held(0, 0, 0)}, 0), "101 was not there"),
    ],
)
def test_what_is_left_over_is_one(after: Snapshot, problem: str) -> None:
    (found,) = problems(soak(after=after), 4)
    assert problem in found


def test_a_failed_request_is_one_and_so_is_no_request() -> None:
    assert problems(soak(failed=1), 4) == ["keep-alive: 1 failed: as its load generator counts"]
    idle = soak()._replace(tallies=[Tally("bulk")])
    assert problems(idle, 4) == ["bulk: nothing was done"]


def test_only_the_first_problems_are_kept_and_all_are_counted() -> None:
    tally = Tally("bulk")
    for number in range(20):
        tally.fail(f"problem {number}")
    assert (tally.failed, len(tally.problems)) == (20, 5)


def test_the_table_has_each_process_and_the_traffic() -> None:
    lines = table(soak(40, 40, 40, 40, 42, 42, after=snapshot(41))).splitlines()
    assert "| server worker 100 | 40.0 | 40.0 | 42.0 | 2.0 | 41.0 | 30, 200, 30 | 4, 4, 4 |" in lines
    assert "- streams: at most 99, after the traffic 0" in lines
    assert "- keep-alive: 1,000 done, 0 failed, 0.00 GiB" in lines


@pytest.mark.extended
@pytest.mark.needs("iperf3", "wrk", "nginx")
def test_a_short_soak_finds_nothing() -> None:
    """So short that memory is warming up all the time: its bound is no matter here."""
    arguments = ["--minutes", "0.1", "--interval", "1", "--engine", "aioquic", "--workers", "2", "--growth", "1000"]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.soak", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| server worker ") == 2
    assert done.stdout.count("| client worker ") == 1
    for kind in ("bulk", "keep-alive", "new connections", "connections that come and go"):
        assert f"- {kind}: " in done.stdout


def test_too_few_looks_are_refused() -> None:
    arguments = [sys.executable, "-m", "loadtest.soak", "--minutes", "0.1", "--interval", "5"]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "at least 6 looks are needed" in done.stderr
