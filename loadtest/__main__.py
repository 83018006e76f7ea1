"""``python -m loadtest``: measure, print the tables, keep them and every sample in ``loadtest/out``."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

import click

from loadtest import paths, processes
from loadtest.cases import CASES, GRACE_S
from loadtest.columns import columns
from loadtest.keep import keep
from loadtest.prepare import prepare
from loadtest.report import Report
from loadtest.run import Plan, Result, run
from loadtest.system import StartFailed
from loadtest.systems import SYSTEMS
from qmux.config.schema import MAX_WORKERS
from qmux.config.usable import MIN_SERVER_WORKERS, usable_cpus

EXAMPLE = """\b
Example:
  python -m loadtest --prepare
  python -m loadtest --rounds 3 --seconds 5
  python -m loadtest --path loopback --cases wrk-c32,wrk-close --systems direct,qmux-native --workers auto
"""


class Names(click.ParamType[list[str]]):
    """Names out of a given set, with commas between them."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        if unknown := [name for name in names if name not in self._known]:
            self.fail(f"unknown: {', '.join(unknown)}; there are: {', '.join(self._known)}", param, ctx)
        return list(dict.fromkeys(names)) or self.fail(f"which? there are: {', '.join(self._known)}", param, ctx)


class Workers(click.ParamType[list[int]]):
    """Worker counts with commas between them; ``auto`` is what qmuxd makes of it on this machine."""

    name = "counts"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        counts = [self._count(word.strip(), param, ctx) for word in str(value).split(",") if word.strip()]
        return list(dict.fromkeys(counts)) or self.fail("how many?", param, ctx)

    def _count(self, word: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if word == "auto":
            return max(MIN_SERVER_WORKERS, usable_cpus())
        if not word.isdecimal() or not 1 <= int(word) <= MAX_WORKERS:
            self.fail(f'{word}: a count from 1 to {MAX_WORKERS}, or "auto"', param, ctx)
        return int(word)


CASE_NAMES = [case.name for case in CASES]


@click.command(epilog=EXAMPLE)
@click.option(
    "--prepare", "prepares", is_flag=True, help="Install what is missing, build rathole, and measure nothing."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 50), help="Rounds; medians are printed.")
@click.option("--seconds", default=5, show_default=True, type=click.IntRange(1, 300), help="Length of one measurement.")
@click.option(
    "--path",
    default="both",
    show_default=True,
    type=click.Choice([*paths.PATHS, "both"]),
    help="What lies between the hosts.",
)
@click.option("--workers", default="1,auto", show_default=True, type=Workers(), help="Of qmuxd; a column for each.")
@click.option(
    "--client-workers",
    default="1",
    show_default=True,
    type=click.Choice(["1", "same"]),
    help="Of qmuxc: one, or as many as qmuxd has.",
)
@click.option("--cases", default=",".join(CASE_NAMES), show_default=True, type=Names(CASE_NAMES))
@click.option(
    "--systems", type=Names(list(SYSTEMS)), help=f"Of {','.join(SYSTEMS)}; without it all that are installed."
)
def main(
    prepares: bool,
    rounds: int,
    seconds: int,
    path: str,
    workers: list[int],
    client_workers: str,
    cases: list[str],
    systems: list[str] | None,
) -> None:
    """Measure systems side by side on this machine: iperf3 and wrk through each, with CPU, memory and latency.

    Exits with 1 where a system does not start; what was measured until then is kept.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the processes are ended on the way out
    try:
        if prepares:
            prepare(_say)
            return
        left_out: list[str] = []
        chosen = [case for case in CASES if case.name in cases]
        plan = Plan(
            paths=choose_paths(path, left_out),
            columns=columns(choose_systems(systems, left_out), workers),
            cases=chosen,
            rounds=rounds,
            duration_s=seconds,
            client_workers=1 if client_workers == "1" else 0,
        )
        _measure(plan, left_out)
    except StartFailed as error:
        raise click.ClickException(str(error)) from None


def _measure(plan: Plan, left_out: list[str]) -> None:
    processes.raise_descriptor_limit()
    _announce(plan, left_out)
    result = Result([], {}, {})
    report = Report(f"python -m loadtest {shlex.join(sys.argv[1:])}".strip(), plan, result, left_out)
    try:
        run(plan, result, _say)
    finally:  # also what was measured until something failed, or somebody lost patience
        if result.samples:
            _say(f"kept as {keep('', report.markdown(), report.json())}.md and .json")
    click.echo(report.markdown())


def _announce(plan: Plan, left_out: Sequence[str]) -> None:
    for line in left_out:
        _say(f"not measured: {line}")
    each = [case for _, case in plan.samples()]
    times = len(plan.columns) * len(plan.paths)
    seconds = sum(case.seconds(plan.duration_s) + 1 for case in each) * times
    longest_s = seconds + len(each) * times * GRACE_S
    _say(f"{len(each) * times} measurements, about {seconds} s, at most {longest_s:.0f} s, and the starts")


def choose_paths(chosen: str, left_out: list[str]) -> list[str]:
    """Those that were asked for. With "both", one that cannot be had here is left out. Raises StartFailed."""
    wanted = list(paths.PATHS) if chosen == "both" else [chosen]
    problems = {name: problem for name in wanted if (problem := paths.missing(name))}
    if problems and chosen != "both":
        raise StartFailed(f"{chosen}: {problems[chosen]}")
    left_out += [f"path {name}: {problem}" for name, problem in problems.items()]
    return [name for name in wanted if name not in problems]


def choose_systems(chosen: Sequence[str] | None, left_out: list[str]) -> list[str]:
    """Those that were asked for, else all that can run here. Raises StartFailed."""
    problems = {name: problem for name in chosen or SYSTEMS if (problem := SYSTEMS[name].missing())}
    if problems and chosen:
        raise StartFailed("\n".join(f"{name}: {problem}" for name, problem in problems.items()))
    left_out += [f"{name}: {problem}" for name, problem in problems.items()]
    return [name for name in chosen or SYSTEMS if name not in problems]


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
