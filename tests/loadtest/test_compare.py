"""A build is worse where it falls by more than the machine's noise, and by more than 3 %."""

from __future__ import annotations

import pytest

from loadtest.columns import Column
from loadtest.compare import AFTER, AGAIN, BEFORE, compare, table
from loadtest.figures import GBIT, P50, Figures
from loadtest.run import Sample
from tests.loadtest.made import samples


def found(figure: str, before: list[float], again: list[float], after: list[float]) -> list[Sample]:
    def of(build: str, values: list[float]) -> list[Sample]:
        rounds: list[Figures] = [{figure: value} for value in values]
        return samples("iperf3-up", Column(build, 1), *rounds)

    return [*of(BEFORE, before), *of(AGAIN, again), *of(AFTER, after)]


@pytest.mark.parametrize(
    ("after", "worse"),
    [
        pytest.param([8.0, 8.1, 7.9], True, id="a fifth less"),
        pytest.param([9.8, 9.8, 9.8], False, id="2 % less"),
        pytest.param([12.0, 12.0, 12.0], False, id="more"),
    ],
)
def test_worse_is_a_fall_outside_of_the_noise(after: list[float], worse: bool) -> None:
    [comparison] = compare(found(GBIT, [10.0, 10.0, 10.0], [10.1, 10.0, 9.9], after))
    assert comparison.is_worse is worse
    assert ("**worse**" in table([comparison])) is worse


def test_a_fall_within_the_noise_is_not_worse() -> None:
    [comparison] = compare(found(GBIT, [10.0] * 4, [7.0, 7.5, 12.0, 13.0], [9.0] * 4))
    assert comparison.ratio == pytest.approx(0.9)
    assert not comparison.is_worse


def test_a_longer_wait_is_worse() -> None:
    [comparison] = compare(found(P50, [0.5, 0.5], [0.5, 0.5], [0.6, 0.6]))
    assert comparison.ratio == pytest.approx(0.5 / 0.6)
    assert comparison.is_worse


def test_a_round_without_a_result_has_no_ratio() -> None:
    assert compare(found(GBIT, [10.0, 10.0], [10.0, 10.0], [9.0])) == []
