"""One run: on each path every system is started once, then come the cases in alternating rounds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest import cases, start
from loadtest.backends import Backend
from loadtest.cases import IDLE, IDLE_AFTER, Case
from loadtest.columns import Column
from loadtest.figures import Figures, SampleFailed
from loadtest.paths import PATHS, NetworkPath
from loadtest.start import Running
from loadtest.system import KINDS, BackendKind, Setup
from loadtest.systems import SYSTEMS

Progress = Callable[[str], None]


class Plan(NamedTuple):
    """What is to be measured."""

    paths: Sequence[str]
    columns: Sequence[Column]
    cases: Sequence[Case]
    rounds: int
    duration_s: int
    client_workers: int = 1
    """0: as many as the server has."""

    def samples(self) -> list[tuple[int, Case]]:
        """Every (round, case) of one column, in order: idle at both ends."""
        loaded = [case for case in self.cases if case.load is not None]
        before = [(0, case) for case in self.cases if case is IDLE]
        after = [(self.rounds - 1, case) for case in self.cases if case is IDLE_AFTER]
        return [*before, *((number, case) for number in range(self.rounds) for case in loaded), *after]


class Sample(NamedTuple):
    """One measurement: its figures, or why there are none."""

    path: str
    column: Column
    case: str
    round: int
    figures: Figures
    problem: str = ""
    datagram_bytes: int = 0


class Result(NamedTuple):
    """What a run has found so far."""

    samples: list[Sample]
    mtu_bytes: dict[str, int]
    """Of the link, by path."""
    about: dict[Column, str]
    """A line on each system."""


def run(plan: Plan, result: Result, progress: Progress) -> None:
    """Measure; ``result`` grows. Raises StartFailed where something does not start; nothing is left running then."""
    for name in plan.paths:
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(PATHS[name]())
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmux-load-")))
            result.mtu_bytes[name] = path.mtu_bytes
            kinds = {kind for case in plan.cases for kind in case.backends}
            backends = start.backends(stack, directory, path, sorted(kinds) or KINDS)
            running = {}
            for column in plan.columns:
                folder = start.folder(directory, column.label.replace("/", "-"))
                setup = Setup(path, column.workers, plan.client_workers or column.workers, folder)
                running[column] = start.system(stack, SYSTEMS[column.system](setup), setup, backends)
            result.about.update((column, each.system.about()) for column, each in running.items())
            _measure(plan, path, backends, running, result.samples, progress)


def _measure(
    plan: Plan,
    path: NetworkPath,
    backends: dict[BackendKind, Backend],
    running: dict[Column, Running],
    samples: list[Sample],
    progress: Progress,
) -> None:
    for number, case in plan.samples():
        for column in _rotated(plan.columns, number):
            if "iperf3" in case.backends:  # one test at a time: through a tunnel it may not have seen the last one end
                backends["iperf3"].restart()
            sample = _sample(case, path, column, number, plan.duration_s, running[column])
            for kind in case.backends:
                if problem := backends[kind].ended():
                    sample = sample._replace(figures={}, problem=problem)
                    backends[kind].restart()
            samples.append(sample)
            progress(f"{path.name} round {number + 1}/{plan.rounds} {case.name} {column.label}: {_told(sample)}")


def _sample(case: Case, path: NetworkPath, column: Column, number: int, duration_s: int, running: Running) -> Sample:
    system, addresses = running
    try:
        figures, problem = cases.sample(case, path.users, addresses, duration_s, system), ""
    except SampleFailed as error:
        figures, problem = {}, str(error)
    if ended := system.ended():
        figures, problem = {}, ended
    return Sample(path.name, column, case.name, number, figures, problem, system.datagram_bytes())


def _rotated(columns: Sequence[Column], by: int) -> list[Column]:
    """Another one goes first in each round: what follows a heavy load must not always be the same."""
    by %= len(columns)
    return [*columns[by:], *columns[:by]]


def _told(sample: Sample) -> str:
    return sample.problem or ", ".join(f"{value:.4g} {name}" for name, value in sample.figures.items())
