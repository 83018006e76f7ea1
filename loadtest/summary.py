"""From samples to one value for each figure, with its spread."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from loadtest.columns import Column
from loadtest.figures import SUMMED
from loadtest.run import Sample


class Key(NamedTuple):
    """What a value is of."""

    path: str
    column: Column
    case: str
    figure: str


class Value(NamedTuple):
    """The median of all rounds (for a count of failures their sum), the smallest and the largest."""

    value: float
    low: float
    high: float


Summary = dict[Key, Value]


def summarize(samples: Iterable[Sample]) -> Summary:
    """Of every figure that any round has."""
    rounds: defaultdict[Key, list[float]] = defaultdict(list)
    for sample in samples:
        for figure, value in sample.figures.items():
            rounds[Key(sample.path, sample.column, sample.case, figure)].append(value)
    return {key: _value(key.figure, values) for key, values in rounds.items()}


def _value(figure: str, values: list[float]) -> Value:
    middle = sum(values) if figure in SUMMED else statistics.median(values)
    return Value(middle, min(values), max(values))
