"""``python -m loadtest``: measure, print the table, keep table and samples in ``loadtest/out``."""

from __future__ import annotations

import resource
import shlex
import signal
import sys
import time
from pathlib import Path

import click

from loadtest import report
from loadtest.cases import CASES, GRACE_S
from loadtest.run import run
from loadtest.system import StartFailed
from loadtest.systems import DEFAULT, SYSTEMS

OUT = Path(__file__).parent / "out"

EXAMPLE = """\b
Example:
  python -m loadtest --rounds 3 --seconds 5
  python -m loadtest --cases wrk-c32,wrk-close --systems direct,qmux
"""


class Names(click.ParamType[list[str]]):
    """Names out of a given set, with commas between them."""

    name = "names"

    def __init__(self, known: list[str]) -> None:
        self._known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        if unknown := [name for name in names if name not in self._known]:
            self.fail(f"unknown: {', '.join(unknown)}; there are: {', '.join(self._known)}", param, ctx)
        return list(dict.fromkeys(names)) or self.fail(f"which? there are: {', '.join(self._known)}", param, ctx)


CASE_NAMES = [case.name for case in CASES]


@click.command(epilog=EXAMPLE)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 50), help="Rounds; medians are printed.")
@click.option("--seconds", default=5, show_default=True, type=click.IntRange(1, 300), help="Length of one measurement.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="qmuxd workers.")
@click.option("--cases", default=",".join(CASE_NAMES), show_default=True, type=Names(CASE_NAMES))
@click.option("--systems", default=",".join(DEFAULT), show_default=True, type=Names(list(SYSTEMS)))
def main(rounds: int, seconds: int, workers: int, cases: list[str], systems: list[str]) -> None:
    """Measure systems side by side on this machine: iperf3 and wrk through each, with CPU, memory and latency.

    Needs iperf3, wrk, nginx and haproxy. Exits with 1 where a system does not start.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the processes are ended on the way out
    _raise_descriptor_limit()
    chosen = [case for case in CASES if case.name in cases]
    count = rounds * len(chosen) * len(systems)
    longest_s = count * (seconds + GRACE_S)
    click.echo(
        f"{count} measurements, about {count * (seconds + 1)} s, at most {longest_s:.0f} s, and the starts", err=True
    )
    try:
        result = run(chosen, systems, rounds, seconds, workers, lambda line: click.echo(line, err=True))
    except StartFailed as error:
        raise click.ClickException(str(error)) from None
    command = f"python -m loadtest {shlex.join(sys.argv[1:])}".strip()
    made = report.Run(command, chosen, systems, rounds, seconds, workers)
    table = report.markdown(made, result)
    _keep(table, report.to_json(made, result))
    click.echo(table)


def _raise_descriptor_limit() -> None:
    """As far as the hard limit allows: the daemons inherit it, and 512 connections take two descriptors each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep(table: str, samples: str) -> None:
    OUT.mkdir(exist_ok=True)
    stem = time.strftime("%Y%m%d-%H%M%S")
    (OUT / f"{stem}.md").write_text(table + "\n")
    (OUT / f"{stem}.json").write_text(samples + "\n")
    click.echo(f"kept as {OUT / stem}.md and .json", err=True)


if __name__ == "__main__":
    main()
