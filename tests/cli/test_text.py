from __future__ import annotations

import pytest

from qmux.cli.text import duration, plural, rates, table


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (0, 0, "0 / 0 bit/s"),
        (999, 1, "999 / 1 bit/s"),
        (1000, 500, "1.00 / 0.50 kbit/s"),
        (1.2e9, 8.4e9, "1.20 / 8.40 Gbit/s"),
        (0, 2.5e6, "0.00 / 2.50 Mbit/s"),
    ],
)
def test_two_rates_share_the_unit_of_the_larger(first: float, second: float, text: str) -> None:
    assert rates(first, second) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (7860, "2h 11m"), (86400 * 88 + 5, "88d 5s"), (3600, "1h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "LONG"), [("abc", "1"), ("", "2")]) == ["A    LONG", "abc  1", "     2"]
    assert table(("A", "B"), []) == ["A  B"]


def test_plural() -> None:
    assert (plural(1, "worker"), plural(0, "worker"), plural(2, "worker")) == ("1 worker", "0 workers", "2 workers")
