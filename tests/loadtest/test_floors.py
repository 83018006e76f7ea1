"""Floors: which are judged against what, and on which side of the bound a figure is."""

from __future__ import annotations

import pytest

from loadtest.columns import Column
from loadtest.figures import CPU_GIB, FAILED, GBIT, P99, REQUESTS, RSS_WORKER
from loadtest.floors import FLOORS, Verdict, judge, reference_column
from loadtest.paths import PATHS
from loadtest.summary import summarize
from loadtest.systems import SYSTEMS
from tests.loadtest.made import AIOQUIC, CASE, HAPROXY, NATIVE, NATIVE_2, RATHOLE, samples


def test_floors_name_what_there_is() -> None:
    for floor in FLOORS:
        assert set(floor.cases) <= set(CASE)
        assert set(floor.paths) <= set(PATHS)
        assert not floor.against or floor.against in SYSTEMS
        assert floor.relation in ("≥", "≤")


def verdicts(figure: str, path: str, case: str, ours: float, **others: float) -> dict[str, Verdict]:
    """What is said of ``figure`` where we have ``ours`` and other systems theirs, by what it was compared with."""
    columns = {"rathole": RATHOLE, "haproxy": HAPROXY}
    taken = samples(case, NATIVE, {figure: ours}, path=path)
    for name, value in others.items():
        taken += samples(case, columns[name], {figure: value}, path=path)
    found = judge(summarize(taken), [case], [NATIVE, *columns.values()], [path])
    return {each.floor.against: each for each in found if each.floor.figure == figure}


@pytest.mark.parametrize(
    ("figure", "path", "case", "against", "met", "not_met"),
    [
        (GBIT, "loopback", "iperf3-up", "rathole", 14.0, 13.9),
        (GBIT, "loopback", "iperf3-down", "haproxy", 9.0, 8.9),
        (GBIT, "veth", "iperf3-up", "rathole", 10.0, 9.9),
        (GBIT, "loopback", "iperf3-32", "rathole", 11.0, 10.9),
        (GBIT, "veth", "iperf3-32", "rathole", 8.0, 7.9),
        (REQUESTS, "veth", "wrk-c512", "rathole", 13.0, 12.9),
        (REQUESTS, "loopback", "wrk-close", "rathole", 12.0, 11.9),
        (REQUESTS, "veth", "wrk-64k", "haproxy", 6.0, 5.9),
        (P99, "loopback", "wrk-c32", "haproxy", 20.0, 20.1),
        (CPU_GIB, "loopback", "iperf3-up", "rathole", 8.0, 8.1),
        (CPU_GIB, "veth", "iperf3-up", "rathole", 13.0, 13.1),
    ],
)
def test_a_ratio_is_on_the_right_side_or_not(
    figure: str, path: str, case: str, against: str, met: float, not_met: float
) -> None:
    assert verdicts(figure, path, case, met, **{against: 10.0})[against].met is True
    missed = verdicts(figure, path, case, not_met, **{against: 10.0})[against]
    assert missed.met is False
    assert missed.ratio == pytest.approx(not_met / 10)


@pytest.mark.parametrize(
    ("figure", "case", "met", "not_met"),
    [(FAILED, "wrk-close", 0, 1), (RSS_WORKER, "idle", 60, 60.1), (RSS_WORKER, "wrk-c512", 90, 90.1)],
)
def test_an_absolute_floor_needs_no_reference(figure: str, case: str, met: float, not_met: float) -> None:
    assert verdicts(figure, "veth", case, met)[""].met is True
    assert verdicts(figure, "veth", case, not_met)[""].met is False


def test_without_a_figure_or_a_reference_nothing_is_judged() -> None:
    found = verdicts(GBIT, "loopback", "iperf3-up", 5.0)
    assert (found["rathole"].value, found["rathole"].met) == (5.0, None)
    assert judge({}, ["iperf3-up"], [NATIVE], ["loopback"])[0].met is None


def test_only_what_was_to_be_measured_is_judged_and_only_the_native_engine() -> None:
    found = judge({}, ["iperf3-up"], [NATIVE, NATIVE_2, AIOQUIC, RATHOLE], ["veth"])
    assert {each.case for each in found} == {"iperf3-up"}
    assert {each.path for each in found} == {"veth"}
    assert {each.column for each in found} == {NATIVE, NATIVE_2}


def test_the_reference_has_as_many_workers_or_no_such_setting() -> None:
    columns = [RATHOLE, HAPROXY, Column("haproxy", 2), NATIVE]
    assert reference_column("haproxy", 2, columns) == Column("haproxy", 2)
    assert reference_column("haproxy", 4, columns) is None
    assert reference_column("rathole", 4, columns) == RATHOLE
