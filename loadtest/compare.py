"""``python -m loadtest.compare``: another build of QMux against this one, in alternating rounds of one run.

The other build runs twice, under two names: what lies between these two is the machine's noise, and a case is worse
only where the new build lies outside of it.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import click

from loadtest.__main__ import CASE_NAMES, Names, choose_paths
from loadtest.cases import CASES
from loadtest.columns import Column
from loadtest.figures import FORMATS, GBIT, P50, REQUESTS
from loadtest.keep import keep
from loadtest.paths import PATHS
from loadtest.report import Report
from loadtest.run import Plan, Result, Sample, run
from loadtest.system import StartFailed
from loadtest.systems import SYSTEMS, SystemClass
from loadtest.systems.qmux import QmuxAioquic, QmuxNative

BEFORE, AGAIN, AFTER = "before", "before-again", "after"

ALLOWED = 0.03
"""A median that falls by less is no worse, however quiet the machine is."""

HIGHER_IS_BETTER = {GBIT: True, REQUESTS: True, P50: False}
"""The figures that are judged. Of a case beside bulk, p50 is the one that says something of the requests."""

ENGINES = {"native": QmuxNative, "aioquic": QmuxAioquic}

EXAMPLE = """\b
Example:
  git worktree add ../before main~20 && make -C ../before native
  python -m loadtest.compare --before ../before/.venv/bin --rounds 9 --seconds 2
"""


class Comparison(NamedTuple):
    """One figure of one case: medians of the ratios round by round, above 1 where the numerator is better."""

    path: str
    case: str
    figure: str
    before: float
    after: float
    ratio: float
    """Of this build to the other."""
    noise: tuple[float, float]
    """Of the other build to itself: the lower and the upper quartile of its rounds."""

    @property
    def is_worse(self) -> bool:
        """More than ``ALLOWED``, and outside the noise."""
        return self.ratio < 1 - ALLOWED and self.ratio < self.noise[0]


def compare(samples: Iterable[Sample]) -> list[Comparison]:
    """Every figure that both builds have in at least two rounds."""
    found: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for sample in samples:
        for figure, value in sample.figures.items():
            if figure in HIGHER_IS_BETTER:
                rounds = found.setdefault((sample.path, sample.case, figure), {}).setdefault(sample.column.system, {})
                rounds[sample.round] = value
    comparisons = []
    for (path, case, figure), by_build in found.items():
        before, again, after = (by_build.get(build, {}) for build in (BEFORE, AGAIN, AFTER))
        news, noise = _ratios(after, before, figure), sorted(_ratios(again, before, figure))
        if len(news) > 1 and len(noise) > 1:
            low, _, high = statistics.quantiles(noise, n=4, method="inclusive")
            medians = statistics.median(before.values()), statistics.median(after.values())
            comparisons.append(Comparison(path, case, figure, *medians, statistics.median(news), (low, high)))
    return comparisons


def table(comparisons: Sequence[Comparison]) -> str:
    """As Markdown, with a verdict in each line."""
    lines = [
        "| path | case | figure | before | after | after/before | noise: again/before | |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for each in comparisons:
        figures = f"{each.before:{FORMATS[each.figure]}} | {each.after:{FORMATS[each.figure]}}"
        noise = f"{each.noise[0]:.3f} to {each.noise[1]:.3f}"
        verdict = "**worse**" if each.is_worse else ""
        lines.append(
            f"| {each.path} | {each.case} | {each.figure} | {figures} | {each.ratio:.3f} | {noise} | {verdict} |"
        )
    return "\n".join(lines)


def _ratios(new: dict[int, float], old: dict[int, float], figure: str) -> list[float]:
    pairs = [(new[number], old[number]) for number in sorted(new.keys() & old.keys())]
    return [n / o if HIGHER_IS_BETTER[figure] else o / n for n, o in pairs if n and o]


@click.command(epilog=EXAMPLE)
@click.option(
    "--before",
    required=True,
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="The directory of the other build's qmuxd, qmuxc and qmux.",
)
@click.option("--engine", default="native", show_default=True, type=click.Choice(list(ENGINES)))
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(2, 50))
@click.option("--seconds", default=2, show_default=True, type=click.IntRange(1, 300), help="Length of one measurement.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Of qmuxd.")
@click.option("--path", default="both", show_default=True, type=click.Choice([*PATHS, "both"]))
@click.option("--cases", default=",".join(CASE_NAMES), show_default=True, type=Names(CASE_NAMES))
def main(before: Path, engine: str, rounds: int, seconds: int, workers: int, path: str, cases: list[str]) -> None:
    """Whether this build of QMux is worse than another one. Exits with 1 where a case is."""
    kind = ENGINES[engine]
    for name, commands in ((BEFORE, before), (AGAIN, before), (AFTER, None)):
        SYSTEMS[name] = cast(SystemClass, type(kind.__name__, (kind,), {"name": name, "commands": commands}))
    left_out: list[str] = []
    plan = Plan(
        paths=choose_paths(path, left_out),
        columns=[Column(name, workers) for name in (BEFORE, AGAIN, AFTER)],
        cases=[case for case in CASES if case.name in cases],
        rounds=rounds,
        duration_s=seconds,
    )
    result = Result([], {}, {})
    report = Report(f"python -m loadtest.compare {shlex.join(sys.argv[1:])}".strip(), plan, result, left_out)
    comparisons: list[Comparison] = []
    try:
        run(plan, result, lambda line: click.echo(line, err=True))
    except StartFailed as error:
        raise click.ClickException(str(error)) from None
    finally:  # also what was measured until something failed
        if result.samples:
            comparisons = compare(result.samples)
            kept = keep("compare-", f"{table(comparisons)}\n\n{report.markdown()}", report.json())
            click.echo(f"kept as {kept}.md and .json", err=True)
    click.echo(table(comparisons))
    sys.exit(any(each.is_worse for each in comparisons))


if __name__ == "__main__":
    main()
