"""What a run found: medians and verdicts as Markdown, everything as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loadtest import generators
from loadtest.backends import NGINX_WORKERS
from loadtest.cases import Case
from loadtest.columns import Column
from loadtest.figures import FORMATS
from loadtest.floors import Verdict, judge
from loadtest.run import Plan, Result, Sample
from loadtest.summary import Key, Summary, summarize

MET = {True: "met", False: "**not met**", None: "no result"}


class Report(NamedTuple):
    """A run and what is told of it. ``left_out``: what was not measured, and why."""

    command: str
    plan: Plan
    result: Result
    left_out: Sequence[str] = ()

    def markdown(self) -> str:
        """The tables, with what it takes to read them."""
        summary = summarize(self.result.samples)
        lines = [line for path in self._paths() for line in self._table(path, summary)]
        lines += _verdicts(self._judged(summary))
        lines += [_conditions(self.plan), ""]
        lines += [f"- {column.label}: {about}" for column, about in self.result.about.items()]
        lines += [f"- not measured: {line}" for line in self.left_out]
        lines += [f"- `{self.command}`", *_problems(self.result.samples)]
        return "\n".join(lines)

    def json(self) -> str:
        """Every sample, the medians with their spread, and the verdicts, for later comparison."""
        summary = summarize(self.result.samples)
        document = {
            "command": self.command,
            "conditions": _conditions(self.plan),
            "mtu_bytes": self.result.mtu_bytes,
            "about": {column.label: about for column, about in self.result.about.items()},
            "left_out": list(self.left_out),
            "summary": [{**_plain(key), **value._asdict()} for key, value in summary.items()],
            "verdicts": [
                {**_plain(each), "floor": str(each.floor), "figure": each.floor.figure, "ratio": each.ratio}
                for each in self._judged(summary)
            ],
            "samples": [_plain(sample) for sample in self.result.samples],
        }
        return json.dumps(document, indent=1)

    def _paths(self) -> list[str]:
        """Those of which there is something to tell: a run may have been interrupted."""
        return [path for path in self.plan.paths if any(sample.path == path for sample in self.result.samples)]

    def _judged(self, summary: Summary) -> list[Verdict]:
        return judge(summary, [case.name for case in self.plan.cases], self.plan.columns, self._paths())

    def _table(self, path: str, summary: Summary) -> list[str]:
        columns = self.plan.columns
        datagrams = " | ".join(_datagram(self.result.samples, path, column) for column in columns)
        lines = [
            f"### {path}, link MTU {self.result.mtu_bytes[path]}",
            "",
            f"| case | | {' | '.join(column.label for column in columns)} |",
            f"|---|---|{'---:|' * len(columns)}",
            f"| MTU of QUIC (UDP payload) | bytes | {datagrams} |",
        ]
        for case in self.plan.cases:
            lines += _rows(path, case, columns, summary)
        return [*lines, ""]


def _plain(record: Key | Verdict | Sample) -> dict[str, object]:
    """As JSON has it."""
    return {**record._asdict(), "column": record.column.label}


def _datagram(samples: Iterable[Sample], path: str, column: Column) -> str:
    """What discovery found, from the first sample to the last."""
    sizes = sorted({s.datagram_bytes for s in samples if (s.path, s.column) == (path, column) and s.datagram_bytes})
    return " to ".join(str(size) for size in dict.fromkeys((*sizes[:1], *sizes[-1:]))) or "-"


def _rows(path: str, case: Case, columns: Sequence[Column], summary: Summary) -> list[str]:
    rows: list[str] = []
    for figure, format_ in FORMATS.items():
        values = [summary.get(Key(path, column, case.name, figure)) for column in columns]
        if any(values):
            cells = ("-" if value is None else format(value.value, format_) for value in values)
            rows.append(f"| {'' if rows else case.title} | {figure} | {' | '.join(cells)} |")
    return rows or [f"| {case.title} | | {' | '.join('no result' for _ in columns)} |"]


def _verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    counts = {text: sum(each.met is met for each in verdicts) for met, text in MET.items()}
    lines = [
        f"### Floors: {', '.join(f'{count} {text}' for text, count in counts.items() if count)}",
        "",
        "| path | case | figure | floor | column | value | reference | ratio | |",
        "|---|---|---|---|---|---:|---:|---:|---|",
    ]
    return [*lines, *(_verdict(each) for each in verdicts), ""]


def _verdict(verdict: Verdict) -> str:
    format_ = FORMATS[verdict.floor.figure]
    value, reference = (
        "-" if number is None else format(number, format_) for number in (verdict.value, verdict.reference)
    )
    ratio = "-" if verdict.ratio is None else f"{verdict.ratio:.2f}"
    names = (verdict.path, verdict.case, verdict.floor.figure, verdict.floor, verdict.column.label)
    return f"| {' | '.join(map(str, names))} | {value} | {reference} | {ratio} | {MET[verdict.met]} |"


def _conditions(plan: Plan) -> str:
    machine = f"{len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}, Python {platform.python_version()}"
    return (
        f"Medians of {plan.rounds} alternating rounds of {plan.duration_s} s (failed: their sum); everything "
        f"on one machine: {machine}; wrk with up to {generators.THREADS} threads, nginx with {NGINX_WORKERS} workers. "
        "NAME/N: N workers of qmuxd, N threads of haproxy. CPU and RSS are those of the system's own processes (server "
        "and client, with their children), without load generator and backend; RSS is that during the load."
    )


def _problems(samples: Iterable[Sample]) -> list[str]:
    failed = [sample for sample in samples if sample.problem]
    return [f"- no result: {s.path}, {s.column.label}, {s.case}, round {s.round + 1}: {s.problem}" for s in failed]
