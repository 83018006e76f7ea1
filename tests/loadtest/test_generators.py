"""How the load generators are called, and what is read of what they say."""

from __future__ import annotations

import json

import pytest

from loadtest.cases import Cost, figures_of
from loadtest.figures import CPU_GIB, CPU_REQUEST, FAILED, GBIT, GIB, P50, P99, REQUESTS, RSS, SampleFailed
from loadtest.generators import read_iperf3, read_wrk
from loadtest.system import Address
from tests.loadtest.made import CASE

ERRORS = {"connect": 1, "read": 2, "write": 3, "timeout": 4, "status": 5}
WRK = {"requests": 3000, "bytes": 3 << 20, "duration_us": 1_500_000, "p50_us": 400, "p99_us": 2500, **ERRORS}


def test_iperf3_tells_what_the_receiver_got() -> None:
    said = read_iperf3(json.dumps({"end": {"sum_received": {"bytes": 2 * GIB, "bits_per_second": 1.5e9}}}))
    assert said == ({GBIT: 1.5}, 2 * GIB, 0)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("", "no JSON"),
        ("not JSON", "no JSON"),
        ('{"error": "unable to connect"}', "unable to connect"),
        ('{"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}}', "nothing was received"),
    ],
)
def test_iperf3_without_a_result_is_a_failed_sample(said: str, problem: str) -> None:
    with pytest.raises(SampleFailed, match=problem):
        read_iperf3(said)


def test_wrk_tells_rates_percentiles_and_every_kind_of_failure() -> None:
    said = read_wrk(f"Running 1s test\nRESULT {json.dumps(WRK)}\n")
    assert said == ({REQUESTS: 2000.0, P50: 0.4, P99: 2.5, FAILED: 15.0}, 3 << 20, 3000)


def test_wrk_without_an_answer_is_a_failed_sample() -> None:
    with pytest.raises(SampleFailed, match="15 failed"):
        read_wrk(f"RESULT {json.dumps({**WRK, 'requests': 0})}")
    with pytest.raises(SampleFailed, match="unable to connect"):
        read_wrk("unable to connect")


def test_cost_is_told_for_what_passed() -> None:
    said = read_wrk(f"RESULT {json.dumps({**WRK, 'bytes': GIB})}")
    figures = figures_of(said, Cost(1.5, {RSS: 20.0}))
    assert (figures[CPU_GIB], figures[CPU_REQUEST], figures[RSS]) == (1.5, 500.0, 20.0)


def test_without_processes_there_is_no_cost() -> None:
    said = read_wrk(f"RESULT {json.dumps(WRK)}")
    assert figures_of(said, Cost(0.0, {})) == said.figures


def test_every_case_is_called_with_address_and_duration() -> None:
    for case in CASE.values():
        if case.load is None:
            assert case.name.startswith("idle")
            continue
        command = case.load.command(Address("10.0.0.1", 4711), 7)
        assert "4711" in command or any("10.0.0.1:4711" in argument for argument in command)
        assert "7" in command or "7s" in command
