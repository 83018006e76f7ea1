"""Counters of all workers together: they never fall when a worker is restarted, and they have a rate."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from qmux.pool.rows import FailedBind, ServerRow, ServiceCounters, WorkerReport

RATE_WINDOW_S = 5.0
"""Rates are over the last few seconds: long enough to be steady, short enough to be of now."""

SILENT_S = 3.0
"""A worker that has not reported for this long has no rate: it is stopped, or gone."""

_NOTHING = ServiceCounters()


class ServiceTotals:
    """One service: what ``qmux status`` shows of it. Rates are in bit/s, as links are."""

    def __init__(self) -> None:
        self.counters = ServiceCounters()
        self.rate_in_bit_s = 0.0
        self.rate_out_bit_s = 0.0


class Totals:
    """The newest report of each worker, the ones before it for the rate, and the sums of the workers that ended."""

    def __init__(self) -> None:
        self._reports: dict[int, deque[tuple[float, WorkerReport]]] = {}
        self._ended: defaultdict[str, ServiceCounters] = defaultdict(ServiceCounters)

    def receive(self, report: WorkerReport, now: float) -> None:
        """A worker reported. A report of an older process in its slot changes nothing."""
        reports = self._reports.get(report.slot)
        if reports and reports[-1][1].epoch > report.epoch:
            return
        if reports and reports[-1][1].epoch < report.epoch:
            self.forget(report.slot, reports[-1][1].epoch)
            reports = None
        if reports is None:
            reports = self._reports[report.slot] = deque()
        reports.append((now, report))
        while len(reports) > 1 and now - reports[0][0] > RATE_WINDOW_S:
            reports.popleft()

    def forget(self, slot: int, epoch: int) -> None:
        """This process ended: what it had counted stays in the sums, what was open in it is not."""
        reports = self._reports.get(slot)
        if reports is None or reports[-1][1].epoch > epoch:
            return
        del self._reports[slot]
        for name, counters in reports[-1][1].services.items():
            _add(self._ended[name], counters)
            self._ended[name].active = 0

    def service(self, name: str, now: float) -> ServiceTotals:
        """The sums of one service over all workers, those that ended included."""
        totals = ServiceTotals()
        _add(totals.counters, self._ended.get(name, _NOTHING))
        for reports in self._reports.values():
            newest_at, newest = reports[-1]
            counters = newest.services.get(name, _NOTHING)
            _add(totals.counters, counters)
            oldest_at, oldest = reports[0]
            if now - newest_at < SILENT_S and newest_at > oldest_at:
                before = oldest.services.get(name, _NOTHING)
                seconds = newest_at - oldest_at
                totals.rate_in_bit_s += 8 * (counters.bytes_in - before.bytes_in) / seconds
                totals.rate_out_bit_s += 8 * (counters.bytes_out - before.bytes_out) / seconds
        return totals

    def newest(self) -> Iterable[WorkerReport]:
        """The newest report of each worker, by slot."""
        return [self._reports[slot][-1][1] for slot in sorted(self._reports)]

    def engine(self) -> str:
        """The engine that the workers run, or "" before the first report."""
        return "/".join(sorted({report.engine for report in self.newest()}))

    def failed_binds(self) -> list[FailedBind]:
        """The binds that some worker does not read, each once."""
        failed = (each for report in self.newest() for each in report.failed_binds)
        return list({(each.service, each.address): each for each in failed}.values())

    def links(self) -> list[ServerRow]:
        """On a client: every server as every worker sees it."""
        return [link for report in self.newest() for link in report.links]


def _add(total: ServiceCounters, more: ServiceCounters) -> None:
    for field in ("active", "total", "bytes_in", "bytes_out", "retried", "handed_off", "resolve_failed"):
        setattr(total, field, getattr(total, field) + getattr(more, field))
    for reason, count in more.refused.items():
        total.refused[reason] = total.refused.get(reason, 0) + count
