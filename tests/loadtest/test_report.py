"""The report: a table for each path, the verdicts, and the same with every sample as JSON."""

from __future__ import annotations

import json

from loadtest.figures import FAILED, GBIT, REQUESTS
from loadtest.report import Report
from loadtest.run import Result, Sample
from tests.loadtest.made import CASE, DIRECT, HAPROXY, NATIVE, RATHOLE, plan, samples


def report() -> Report:
    taken = [
        *samples(
            "wrk-c32", HAPROXY, {REQUESTS: 100, FAILED: 0}, {REQUESTS: 300, FAILED: 7}, {REQUESTS: 200, FAILED: 0}
        ),
        Sample("loopback", DIRECT, "wrk-c32", 0, {}, "no result 21 s later"),
        *samples("iperf3-up", NATIVE, {GBIT: 7.0}),
        *samples("iperf3-up", RATHOLE, {GBIT: 4.0}),
        Sample("veth", NATIVE, "wrk-c32", 0, {REQUESTS: 50}, datagram_bytes=1200),
        Sample("veth", NATIVE, "wrk-c32", 1, {REQUESTS: 50}, datagram_bytes=1472),
    ]
    made = plan("wrk-c32", "iperf3-up", columns=[DIRECT, HAPROXY, RATHOLE, NATIVE], paths=["loopback", "veth"])
    mtus = {"loopback": 65536, "veth": 1500}
    return Report("python -m loadtest", made, Result(taken, mtus, {HAPROXY: "2.6"}), ["rathole-noise: not installed"])


def test_each_path_has_its_table_with_the_mtu() -> None:
    lines = report().markdown().splitlines()
    assert "### loopback, link MTU 65536" in lines
    assert "### veth, link MTU 1500" in lines
    assert "| MTU of QUIC (UDP payload) | bytes | - | - | - | 1200 to 1472 |" in lines


def test_a_median_is_printed_and_failures_are_added_up() -> None:
    lines = report().markdown().splitlines()
    assert f"| {CASE['wrk-c32'].title} | requests/s | - | 200 | - | - |" in lines
    assert "|  | failed | - | 7 | - | - |" in lines


def test_what_is_missing_is_told() -> None:
    lines = report().markdown().splitlines()
    assert "- no result: loopback, direct, wrk-c32, round 1: no result 21 s later" in lines
    assert "- not measured: rathole-noise: not installed" in lines
    assert f"| {CASE['iperf3-up'].title} | | no result | no result | no result | no result |" in lines  # veth


def test_every_floor_has_a_line() -> None:
    lines = report().markdown().splitlines()
    assert "| loopback | iperf3-up | Gbit/s | ≥ 1.4 × rathole | qmux-native/1 | 7.00 | 4.00 | 1.75 | met |" in lines
    assert "| veth | iperf3-up | Gbit/s | ≥ 1 × rathole | qmux-native/1 | - | - | - | no result |" in lines


def test_a_path_that_was_not_reached_is_not_told() -> None:
    whole = report()
    reached = [sample for sample in whole.result.samples if sample.path == "loopback"]
    assert "veth" not in whole._replace(result=whole.result._replace(samples=reached)).markdown()


def test_json_has_samples_spread_and_verdicts() -> None:
    document = json.loads(report().json())
    assert document["samples"][1]["figures"][REQUESTS] == 300
    assert document["samples"][-1]["datagram_bytes"] == 1472
    spread = next(each for each in document["summary"] if each["figure"] == REQUESTS)
    assert (spread["column"], spread["value"], spread["low"], spread["high"]) == ("haproxy/1", 200, 100, 300)
    verdict = next(each for each in document["verdicts"] if each["floor"] == "≥ 1.4 × rathole")
    assert (verdict["met"], verdict["ratio"]) == (True, 1.75)
