"""Medians with their spread; failures are added up."""

from __future__ import annotations

from loadtest.figures import FAILED, REQUESTS
from loadtest.summary import Key, summarize
from tests.loadtest.made import DIRECT, HAPROXY, samples


def test_the_median_with_the_smallest_and_the_largest() -> None:
    found = summarize(samples("wrk-c32", HAPROXY, {REQUESTS: 100}, {REQUESTS: 300}, {REQUESTS: 200}))
    assert found == {Key("loopback", HAPROXY, "wrk-c32", REQUESTS): (200, 100, 300)}


def test_failures_are_added_up() -> None:
    found = summarize(samples("wrk-c32", HAPROXY, {FAILED: 0}, {FAILED: 7}, {FAILED: 0}))
    assert found[Key("loopback", HAPROXY, "wrk-c32", FAILED)] == (7, 0, 7)


def test_a_round_without_a_result_does_not_count() -> None:
    found = summarize(samples("wrk-c32", HAPROXY, {REQUESTS: 100}, {}, {REQUESTS: 200}))
    assert found[Key("loopback", HAPROXY, "wrk-c32", REQUESTS)].value == 150


def test_paths_systems_and_cases_are_kept_apart() -> None:
    found = summarize(
        [
            *samples("wrk-c32", HAPROXY, {REQUESTS: 1}),
            *samples("wrk-c512", HAPROXY, {REQUESTS: 2}),
            *samples("wrk-c32", DIRECT, {REQUESTS: 3}),
            *samples("wrk-c32", DIRECT, {REQUESTS: 4}, path="veth"),
        ]
    )
    assert sorted(value.value for value in found.values()) == [1, 2, 3, 4]
