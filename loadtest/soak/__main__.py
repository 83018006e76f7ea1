"""``python -m loadtest.soak``: traffic for minutes, a table, and exit code 1 where something grew or failed."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from loadtest import processes, start
from loadtest.figures import MIB
from loadtest.keep import keep
from loadtest.paths import NetworkPath, loopback
from loadtest.soak import judge, traffic, watch
from loadtest.soak.churn import Churn
from loadtest.soak.judge import Soak
from loadtest.soak.tally import Tally
from loadtest.soak.traffic import Traffic
from loadtest.soak.watch import Snapshot
from loadtest.system import KINDS, Addresses, Setup, StartFailed
from loadtest.systems.qmux import Qmux, QmuxAioquic, QmuxNative
from qmux.config.usable import MIN_SERVER_WORKERS, usable_cpus

CHURN_THREADS = 4

QUIET_S = 60.0
"""How long the daemons may take to be idle again after the traffic: half-closed relays and open dials included."""

EXAMPLE = """\b
Example:
  python -m loadtest.soak --minutes 10
"""

ENGINES: dict[str, type[Qmux]] = {"native": QmuxNative, "aioquic": QmuxAioquic}


@click.command(epilog=EXAMPLE)
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.05, 1440), help="Of traffic.")
@click.option(
    "--interval", default=5.0, show_default=True, type=click.FloatRange(0.5, 60), help="Seconds between looks."
)
@click.option("--engine", type=click.Choice(list(ENGINES)), help="Without it native where that is installed.")
@click.option("--workers", type=click.IntRange(1, 64), help="Of qmuxd; without it one for each CPU, at least 2.")
@click.option(
    "--growth",
    default=judge.GROWTH_MIB,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="MiB that a process may grow from the second third to the last (loadtest/README.md).",
)
def main(minutes: float, interval: float, engine: str | None, workers: int | None, growth: float) -> None:
    """Bulk, kept, new and broken connections through qmuxd and qmuxc; what grows meanwhile is a leak.

    Exits with 1 where memory, descriptors, threads or streams are left over, or any request failed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the processes are ended on the way out
    processes.raise_descriptor_limit()
    if minutes * 60 / interval < judge.LEAST_SNAPSHOTS:
        raise click.UsageError(f"--interval {interval:g}: at least {judge.LEAST_SNAPSHOTS} looks are needed")
    try:
        soak = _soak(minutes * 60, interval, _engine(engine), workers or max(MIN_SERVER_WORKERS, usable_cpus()))
    except StartFailed as error:
        raise click.ClickException(str(error)) from None
    problems = judge.problems(soak, growth)
    table = "\n".join([judge.table(soak), *(f"- not met: {line}" for line in problems)])
    _say(f"kept as {keep('soak-', table, _to_json(soak))}.md and .json")
    click.echo(table)
    sys.exit(1 if problems else 0)


def _engine(name: str | None) -> type[Qmux]:
    chosen = ENGINES[name] if name else next((each for each in ENGINES.values() if not each.missing()), QmuxAioquic)
    if problem := chosen.missing():
        raise StartFailed(problem)
    return chosen


def _soak(duration_s: float, interval_s: float, engine: type[Qmux], workers: int) -> Soak:
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(loopback())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmux-soak-")))
        backends = start.backends(stack, directory, path, KINDS)
        setup = Setup(path, workers, 1, start.folder(directory, engine.name))
        system = engine(setup)
        addresses = start.system(stack, system, setup, backends).addresses
        _say(system.about())
        watch.until(lambda: watch.streams(system) == 0, QUIET_S)  # the probes of the start
        before = watch.look(system)
        kinds = _kinds(path, addresses, backends)
        tallies = list(dict.fromkeys(kind.tally for kind in kinds))
        until = time.monotonic() + duration_s
        with traffic.running(kinds, until):
            during = _look_until(system, until, interval_s)
        watch.until(lambda: not judge.left_over(before, watch.look(system)), QUIET_S)
        return Soak(before, during, watch.look(system), tallies)


def _kinds(path: NetworkPath, addresses: Addresses, backends: start.Backends) -> list[Traffic]:
    churn = Tally("connections that come and go")
    churns = [Churn(path.users, addresses["http"], churn, seed) for seed in range(CHURN_THREADS)]
    return [*traffic.generated(path.users, addresses, backends), *churns]


def _look_until(system: Qmux, until: float, interval_s: float) -> list[Snapshot]:
    begun = time.monotonic()
    snapshots: list[Snapshot] = []
    while (now := time.monotonic()) < until:
        time.sleep(min(interval_s, until - now))
        snapshot = watch.look(system)
        snapshots.append(snapshot)
        rss_mib = sum(held.rss_bytes for held in snapshot.held.values()) / MIB
        _say(f"{time.monotonic() - begun:.0f} s: {rss_mib:.1f} MiB, {snapshot.streams} streams")
    return snapshots


def _to_json(soak: Soak) -> str:
    def plain(snapshot: Snapshot) -> dict[str, object]:
        held = {str(process): each._asdict() for process, each in snapshot.held.items()}
        return {"streams": snapshot.streams, "held": held}

    during = [plain(snapshot) for snapshot in soak.during]
    return json.dumps({"before": plain(soak.before), "during": during, "after": plain(soak.after)}, indent=1)


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
