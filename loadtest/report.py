"""What a run found: medians as one Markdown table, everything as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest.cases import CPU_GIB, CPU_REQUEST, FAILED, GBIT, P50, P99, REQUESTS, RSS, Case
from loadtest.run import Result, Sample

FIGURES = (GBIT, REQUESTS, P50, P99, FAILED, CPU_GIB, CPU_REQUEST, RSS)

FORMATS = {GBIT: ".2f", REQUESTS: ",.0f", P50: ".2f", P99: ".2f", FAILED: ",.0f", CPU_GIB: ".2f", CPU_REQUEST: ".1f"}

COST = (CPU_GIB, CPU_REQUEST, RSS)
"""Of the processes under test; "direct" has none."""


class Run(NamedTuple):
    """How a run was made."""

    command: str
    cases: Sequence[Case]
    systems: Sequence[str]
    rounds: int
    duration_s: int
    workers: int


def markdown(run: Run, result: Result) -> str:
    """The table with what it takes to read it."""
    lines = [f"| case | | {' | '.join(run.systems)} |", f"|---|---|{'---:|' * len(run.systems)}"]
    for case in run.cases:
        lines += _rows(run, case, result.samples)
    lines += ["", _conditions(run), ""]
    lines += [f"- {name}: {about}" for name, about in result.about.items()]
    lines += [f"- `{run.command}`"]
    lines += _problems(result.samples)
    return "\n".join(lines)


def to_json(run: Run, result: Result) -> str:
    """Every sample, for later comparison."""
    return json.dumps(
        {
            "command": run.command,
            "conditions": _conditions(run),
            "about": result.about,
            "samples": [sample._asdict() for sample in result.samples],
        },
        indent=1,
    )


def _rows(run: Run, case: Case, samples: Sequence[Sample]) -> list[str]:
    rows: list[str] = []
    for figure in FIGURES:
        cells = [
            _cell(figure, [s for s in samples if s.case == case.name and s.system == name]) for name in run.systems
        ]
        if any(cells):
            title = "" if rows else case.title
            rows.append(f"| {title} | {figure} | {' | '.join(cell or '-' for cell in cells)} |")
    return rows or [f"| {case.title} | | {' | '.join('no result' for _ in run.systems)} |"]


def _cell(figure: str, samples: Sequence[Sample]) -> str:
    values = [sample.figures[figure] for sample in samples if figure in sample.figures]
    if not values or (figure in COST and samples[0].system == "direct"):
        return ""
    if figure == FAILED:  # a median would hide the only round that failed
        return format(sum(values), FORMATS[FAILED])
    return format(statistics.median(values), FORMATS.get(figure, ".0f"))


def _conditions(run: Run) -> str:
    mtu = Path("/sys/class/net/lo/mtu").read_text().strip()
    machine = f"{len(os.sched_getaffinity(0))} CPUs, loopback with MTU {mtu}, Linux {platform.release()}"
    return (
        f"Medians of {run.rounds} alternating rounds of {run.duration_s} s (failed: the sum of all rounds); everything "
        f"on one machine: {machine}, Python {platform.python_version()}. CPU and RSS are those of the system's own "
        "processes (server and client, with their children), without load generator and backend; RSS is the sum over "
        "them, during the load."
    )


def _problems(samples: Sequence[Sample]) -> list[str]:
    failed = [sample for sample in samples if sample.problem]
    return [f"- no result: {s.system}, {s.case}, round {s.round + 1}: {s.problem}" for s in failed]
