"""Sums and rates over workers that come, go and fall silent."""

from __future__ import annotations

from qmux.admin.totals import SILENT_S, Totals
from tests.admin.made import report


def test_counters_of_all_workers_are_summed() -> None:
    totals = Totals()
    totals.receive(report(0, active=2, total=5, bytes_in=10, refused={"maxconn": 1}), now=1.0)
    totals.receive(report(1, active=1, total=4, bytes_in=20, refused={"maxconn": 2, "no_client": 1}), now=1.0)
    counters = totals.service("web", 1.0).counters
    assert (counters.active, counters.total, counters.bytes_in) == (3, 9, 30)
    assert counters.refused == {"maxconn": 3, "no_client": 1}
    assert totals.service("other", 1.0).counters.total == 0


def test_the_newest_report_counts_once() -> None:
    totals = Totals()
    for second in range(10):
        totals.receive(report(0, total=second), now=float(second))
    assert totals.service("web", 9.0).counters.total == 9


def test_a_rate_is_over_the_last_seconds() -> None:
    totals = Totals()
    sent = 0
    for second in range(30):
        sent += 1000 if second < 15 else 125_000
        totals.receive(report(0, bytes_in=sent, bytes_out=2 * sent), now=float(second))
    service = totals.service("web", 29.0)
    assert service.rate_in_bit_s == 1_000_000
    assert service.rate_out_bit_s == 2_000_000


def test_rates_of_workers_add_up() -> None:
    totals = Totals()
    for second in range(6):
        totals.receive(report(0, bytes_in=1000 * second), now=float(second))
        totals.receive(report(1, bytes_in=500 * second), now=second + 0.5)
    assert totals.service("web", 5.5).rate_in_bit_s == 12_000


def test_a_silent_worker_has_no_rate_but_keeps_its_counters() -> None:
    totals = Totals()
    for second in range(3):
        totals.receive(report(0, bytes_in=1000 * second), now=float(second))
    assert totals.service("web", 2.0).rate_in_bit_s > 0
    service = totals.service("web", 2.0 + SILENT_S)
    assert service.rate_in_bit_s == 0
    assert service.counters.bytes_in == 2000


def test_one_report_has_no_rate_yet() -> None:
    totals = Totals()
    totals.receive(report(0, bytes_in=1 << 40), now=1.0)
    assert totals.service("web", 1.0).rate_in_bit_s == 0


def test_a_restarted_worker_does_not_make_totals_fall() -> None:
    totals = Totals()
    totals.receive(report(0, active=4, total=100, bytes_in=1000), now=1.0)
    totals.receive(report(0, active=1, total=1, bytes_in=10, epoch=2), now=2.0)
    service = totals.service("web", 2.0)
    assert (service.counters.total, service.counters.bytes_in, service.counters.active) == (101, 1010, 1)
    assert service.rate_in_bit_s == 0
    totals.receive(report(0, total=99, epoch=1), now=2.5)  # late, from the process that ended
    assert totals.service("web", 3.0).counters.total == 101


def test_a_process_is_forgotten_once_and_only_itself() -> None:
    totals = Totals()
    totals.receive(report(0, total=7, active=3, epoch=2), now=1.0)
    totals.forget(0, 1)
    assert totals.service("web", 1.0).counters.active == 3
    totals.forget(0, 2)
    totals.forget(0, 2)
    totals.forget(5, 1)
    counters = totals.service("web", 1.0).counters
    assert (counters.total, counters.active) == (7, 0)
    assert totals.engine() == ""
