"""A run measures what it says: real load generators, real backends, on both paths, and nothing is left running."""

from __future__ import annotations

import os
import signal

import pytest

from loadtest import paths, processes
from loadtest.columns import Column
from loadtest.figures import CPU_REQUEST, FAILED, GBIT, P50, REQUESTS, RSS, RSS_WORKER
from loadtest.run import Result, run
from tests.loadtest.made import DIRECT, plan
from tests.waiting import until

HAPROXY, QMUX = Column("haproxy", 2), Column("qmux-aioquic", 2)

ONE_HEADER_BYTES = 28  # IPv4 and UDP


@pytest.mark.needs("iperf3", "wrk", "nginx", "haproxy")
def test_every_sample_of_a_run_has_figures_and_no_process_is_left() -> None:
    before = processes.cost([os.getpid()]).processes
    told: list[str] = []
    result = Result([], {}, {})
    made = plan("idle", "iperf3-up", "wrk-c32", "beside-down", columns=[DIRECT, HAPROXY], rounds=1)
    run(made, result, told.append)
    assert [(sample.case, sample.column) for sample in result.samples] == [
        (case.name, column) for case in made.cases for column in made.columns
    ]
    assert [sample.problem for sample in result.samples] == [""] * 8
    found = {(sample.case, sample.column): sample.figures for sample in result.samples}
    assert found["idle", DIRECT] == {}
    assert found["idle", HAPROXY][RSS_WORKER] == found["idle", HAPROXY][RSS] > 1
    assert found["iperf3-up", DIRECT][GBIT] > 0
    through_haproxy = found["wrk-c32", HAPROXY]
    assert through_haproxy[REQUESTS] > 0
    assert through_haproxy[FAILED] == 0
    assert through_haproxy[CPU_REQUEST] > 0
    assert found["beside-down", HAPROXY].keys() >= {GBIT, REQUESTS, P50, FAILED}
    assert CPU_REQUEST not in found["beside-down", HAPROXY]
    assert len(told) == 8
    assert set(result.about) == {DIRECT, HAPROXY}
    until(lambda: processes.cost([os.getpid()]).processes <= before, "every process has ended")


@pytest.mark.extended
@pytest.mark.needs("wrk", "nginx", "haproxy")
def test_two_hosts_with_the_mtu_of_ethernet() -> None:
    if problem := paths.missing("veth"):
        pytest.skip(problem)
    result = Result([], {}, {})
    run(plan("wrk-c32", columns=[DIRECT, HAPROXY, QMUX], paths=["veth"], rounds=1), result, lambda line: None)
    assert result.mtu_bytes == {"veth": 1500}
    assert [(sample.column, sample.problem) for sample in result.samples] == [(DIRECT, ""), (HAPROXY, ""), (QMUX, "")]
    *_, through_qmux = result.samples
    assert through_qmux.figures[REQUESTS] > 0
    assert through_qmux.figures[RSS] > through_qmux.figures[RSS_WORKER] > 1
    assert 1200 <= through_qmux.datagram_bytes <= 1500 - ONE_HEADER_BYTES


@pytest.mark.needs("wrk", "nginx")
def test_a_backend_that_is_gone_is_told_and_started_again() -> None:
    def kill_once(line: str) -> None:
        if "round 1/3" in line:
            (nginx,) = [pid for pid in children() if "nginx: master" in processes.command_line(pid)[0]]
            os.kill(nginx, signal.SIGKILL)

    result = Result([], {}, {})
    run(plan("wrk-c32", columns=[DIRECT]), result, kill_once)
    assert [sample.problem for sample in result.samples] == ["", "http ended with -9", ""]
    assert result.samples[1].figures == {}


def children() -> list[int]:
    return [pid for pid in processes.with_descendants([os.getpid()]) if processes.command_line(pid)]
