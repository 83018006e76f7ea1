"""Which lines count as the same, and what is said of those that were held back."""

from __future__ import annotations

import logging

import pytest

from qmux.log.repeats import MAX_TRACKED_LINES, REPEAT_BURST, REPEAT_WINDOW_S, Reason, RepeatFilter
from qmux.quic.engine import CloseKind, CloseReason
from tests.log.made import configured


class Lines:
    """Lines at given times, and whether each was let through with which count."""

    def __init__(self) -> None:
        self.limit = RepeatFilter()

    def at(self, created: float, text: object = "x", **extra: object) -> int | None:
        """The count of those that were held back, or None where this one is."""
        record = logging.makeLogRecord({"msg": text, "created": created, "name": "n", "levelno": 20, **extra})
        return int(getattr(record, "repeated", 0)) if self.limit.filter(record) else None


def test_a_burst_is_let_through_and_the_rest_counted() -> None:
    lines = Lines()
    assert [lines.at(100.0 + each / 10) for each in range(10)] == [0] * REPEAT_BURST + [None] * 5
    assert lines.at(100.0 + REPEAT_WINDOW_S) == 5
    assert lines.at(100.1 + REPEAT_WINDOW_S) == 0
    assert lines.at(100.0 + 3 * REPEAT_WINDOW_S) == 0


def test_the_count_is_shown() -> None:
    written = configured()
    record = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "levelno": 20, "created": 100.0})
    handler = logging.getLogger().handlers[0]
    for _ in range(REPEAT_BURST + 3):
        handler.handle(record)
    record.created = 200.0
    handler.handle(record)
    assert written.lines[-1].endswith("x (3 more like this in the last 10 s were not shown)")


@pytest.mark.parametrize(
    ("extra", "is_same"),
    [
        ({"service": "b"}, False),
        ({"client": "pod-2"}, False),
        ({"reason": "other"}, True),
        ({"reason": ValueError("other")}, True),
        ({"reason": Reason("late", "r")}, False),
        ({"reason": CloseKind.IDLE}, False),
        ({"levelno": 30}, False),
        ({"name": "other"}, False),
        ({"source": "192.0.2.1:1"}, True),
        ({"conn": 8}, True),
    ],
)
def test_which_lines_are_the_same(extra: dict[str, object], is_same: bool) -> None:
    lines = Lines()
    first = {"service": "a", "client": "pod-1", "reason": "r", "conn": 7, "source": "x"}
    for _ in range(REPEAT_BURST):
        lines.at(100.0, **first)
    assert (lines.at(100.0, **{**first, **extra}) is None) is is_same


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (Reason("late", "a"), Reason("late", "b"), True),
        (Reason("late", "a"), Reason("lost", "a"), False),
        (CloseReason(CloseKind.APPLICATION, 1, "a"), CloseReason(CloseKind.APPLICATION, 2, "b"), True),
        (CloseReason(CloseKind.APPLICATION, 1, "a"), CloseReason(CloseKind.IDLE, 1, "a"), False),
    ],
)
def test_of_a_reason_only_our_own_word_counts(first: object, second: object, is_same: bool) -> None:
    lines = Lines()
    for _ in range(REPEAT_BURST):
        lines.at(100.0, reason=first)
    assert (lines.at(100.0, reason=second) is None) is is_same


def test_a_flood_of_different_lines_keeps_little() -> None:
    lines = Lines()
    for number in range(10 * MAX_TRACKED_LINES):
        assert lines.at(100.0, f"line {number}") == 0
    assert len(lines.limit._seen) == MAX_TRACKED_LINES


def test_a_clock_that_was_set_back_silences_nothing() -> None:
    lines = Lines()
    for _ in range(REPEAT_BURST + 2):
        lines.at(100_000.0)
    assert lines.at(50_000.0) == 2


def test_messages_of_any_type() -> None:
    lines = Lines()
    assert lines.at(100.0, {"not": "hashable"}) == 0
    assert lines.at(100.0, ValueError("x")) == 0
