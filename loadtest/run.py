"""One run: every system started once for each kind of backend, then the cases in alternating rounds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest import cases
from loadtest.backends import Backend
from loadtest.cases import Case, Figures, SampleFailed
from loadtest.system import Address, BackendKind, Options, StartFailed, System
from loadtest.systems import SYSTEMS

Progress = Callable[[str], None]


class Sample(NamedTuple):
    """One measurement: its figures, or why there are none."""

    case: str
    system: str
    round: int
    figures: Figures
    problem: str = ""


class Result(NamedTuple):
    """All samples of a run, and a line about each system."""

    samples: list[Sample]
    about: dict[str, str]


class Running(NamedTuple):
    """A started system in front of a backend."""

    system: System
    address: Address
    backend: Backend


def run(
    chosen: Sequence[Case], names: Sequence[str], rounds: int, duration_s: int, workers: int, progress: Progress
) -> Result:
    """Measure. Raises StartFailed where a backend or a system does not start; nothing is left running then."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmux-load-")))
        running = _start(stack, directory, {case.backend for case in chosen}, names, workers)
        about = {name: _about(running, name) for name in names}
        samples = []
        for number in range(rounds):
            for case in chosen:
                for name in _rotated(names, number):
                    sample = _sample(case, running[case.backend, name], number, duration_s)
                    samples.append(sample)
                    progress(f"round {number + 1}/{rounds} {case.name} {name}: {_told(sample)}")
        return Result(samples, about)


def _start(
    stack: contextlib.ExitStack, directory: Path, kinds: set[BackendKind], names: Sequence[str], workers: int
) -> dict[tuple[BackendKind, str], Running]:
    running = {}
    for kind in sorted(kinds):
        folder = _folder(directory, kind)
        backend = Backend(kind, folder)
        stack.callback(backend.stop)
        backend.start()
        for name in names:
            system = SYSTEMS[name](Options(workers, _folder(directory, f"{kind}-{name}")))
            stack.callback(system.stop)
            address = system.start(backend.address)
            try:
                backend.wait_through(address, system.pids())
            except StartFailed as error:
                raise StartFailed(f"{name}: {error}{_logs(directory / f'{kind}-{name}')}") from None
            running[kind, name] = Running(system, address, backend)
    return running


def _sample(case: Case, running: Running, number: int, duration_s: int) -> Sample:
    name = running.system.name
    if (
        case.backend == "iperf3"
    ):  # one test at a time: it may not have seen the end of the last one through a tunnel yet
        running.backend.restart()
    try:
        return Sample(case.name, name, number, cases.run(case, running.address, duration_s, running.system.pids()))
    except SampleFailed as error:
        return Sample(case.name, name, number, {}, str(error))


def _about(running: dict[tuple[BackendKind, str], Running], name: str) -> str:
    return next(entry.system.about() for (_, system), entry in running.items() if system == name)


def _rotated(names: Sequence[str], by: int) -> list[str]:
    """Another one goes first in each round: what follows a heavy load must not always be the same."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def _folder(directory: Path, name: str) -> Path:
    path = directory / name
    path.mkdir()
    return path


def _logs(directory: Path) -> str:
    """The end of every log of a system that did not come up."""
    tails = (f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(directory.glob("*.log")))
    return "".join(tails)


def _told(sample: Sample) -> str:
    return sample.problem or ", ".join(f"{value:.4g} {name}" for name, value in sample.figures.items())
