from __future__ import annotations

import random

from qmux.worker.client.reconnect import FIRST_INTERVAL_S, ReconnectPause


class Longest(random.Random):
    """Draws the upper end."""

    def uniform(self, a: float, b: float) -> float:
        return b


def pause(max_s: float = 15.0) -> ReconnectPause:
    return ReconnectPause(max_s, 3.0, Longest())


def test_at_once_and_then_in_growing_intervals() -> None:
    waits = pause()
    assert [waits.next_s() for _ in range(8)] == [0.0, FIRST_INTERVAL_S, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_however_long_it_fails_the_limit_holds() -> None:
    waits = pause(max_s=2.0)
    assert max(waits.next_s() for _ in range(5000)) == 2.0


def test_a_connection_that_lived_starts_from_the_beginning() -> None:
    waits = pause()
    for _ in range(5):
        waits.next_s()
    waits.worked(3.0)
    assert [waits.next_s() for _ in range(2)] == [0.0, FIRST_INTERVAL_S]


def test_a_connection_that_ended_soon_is_one_more_failure() -> None:
    waits = pause()
    before = [waits.next_s() for _ in range(3)]
    waits.worked(2.9)
    assert waits.next_s() > before[-1]


def test_waits_are_spread_over_the_interval() -> None:
    waits = [ReconnectPause(15.0, 3.0, random.Random(seed)) for seed in range(500)]
    drawn = [[each.next_s() for _ in range(3)][-1] for each in waits]
    assert all(0.0 <= each <= 1.0 for each in drawn)
    quarters = [sum(low <= each < low + 0.25 for each in drawn) for low in (0.0, 0.25, 0.5, 0.75)]
    assert min(quarters) > 80
