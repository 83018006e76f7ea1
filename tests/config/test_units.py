from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.config.units import UnitError, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("1h", 3600.0), ("5m", 300.0), ("2d", 172_800.0), ("0s", 0.0), ("1.5s", 1.5),
     ("1h30m", 5400.0), ("1m500ms", 60.5)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MiB", 16 << 20), ("1500B", 1500), ("1KiB", 1024), ("1kB", 1000), ("1KB", 1000), ("2GiB", 2 << 30),
     ("0.5MiB", 512 << 10), ("3MB", 3_000_000)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("value", "correction"),
    [(30, "30s"), (0.5, "500ms"), (2.0, "2s"), ("30", "30s"), ("5min", "5m"), ("30 s", "30s"), ("30S", "30s"),
     ("1Hour", "1h"), ("10 sec", "10s"), (1.25, "1250ms")],
)  # fmt: skip
def test_a_wrong_duration_gets_the_likely_correction(value: object, correction: str) -> None:
    with pytest.raises(UnitError, match=re.escape(f'did you mean "{correction}"?')):
        parse_duration(value)
    parse_duration(correction)


@pytest.mark.parametrize(
    ("value", "correction"),
    [(1 << 20, "1MiB"), (1500, "1500B"), ("64", "64B"), ("1Mb", "1MB"), ("16 MiB", "16MiB"), ("16mib", "16MiB"),
     ("16k", "16KiB"), ("16M", "16MiB")],
)  # fmt: skip
def test_a_wrong_size_gets_the_likely_correction(value: object, correction: str) -> None:
    with pytest.raises(UnitError, match=re.escape(f'did you mean "{correction}"?')):
        parse_size(value)
    parse_size(correction)


@pytest.mark.parametrize(
    "value",
    [None, True, [], {}, "", " ", "s", "-5s", "5s!", "1e3s", "5..s", "five s", "5s x", "9" * 40 + "s", -1,
     float("nan"), float("inf"), "5 parsecs", "1s2"],
)  # fmt: skip
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(UnitError):
        parse_duration(value)


@pytest.mark.parametrize("value", ["1.5B", "0.3B", "", "B", "-1B", "5s", True, None])
def test_anything_else_is_no_size(value: object) -> None:
    with pytest.raises(UnitError):
        parse_size(value)


@given(st.integers(0, 10**10))
def test_a_duration_is_read_as_it_is_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@given(st.integers(0, 10**14))
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except UnitError:
            pass  # any other exception fails the test
