from __future__ import annotations

import random

from supervisor.restart import GOOD_LIFE_S, JITTER, MAX_DELAY_S, RestartPause


def test_at_once_then_growing_to_a_limit() -> None:
    pause, rng = RestartPause(), random.Random(1)
    delays = [pause.delay_s(0.1, rng) for _ in range(12)]
    assert delays[0] == 0
    assert 0 < delays[1] < 0.2
    assert delays[3] > delays[1]
    assert all(delay <= MAX_DELAY_S * (1 + JITTER) for delay in delays)
    assert delays[-1] >= MAX_DELAY_S * (1 - JITTER)


def test_a_good_life_is_rewarded() -> None:
    pause = RestartPause()
    for _ in range(6):
        pause.delay_s(0.1)
    assert pause.delay_s(GOOD_LIFE_S) == 0
    assert pause.failures == 1


def test_workers_do_not_come_back_together() -> None:
    seconds = set()
    for seed in range(20):
        pause, rng = RestartPause(), random.Random(seed)
        pause.delay_s(0, rng)
        seconds.add(round(pause.delay_s(0, rng), 4))
    assert len(seconds) > 15


def test_never_overflows() -> None:
    pause = RestartPause()
    for _ in range(5000):
        assert pause.delay_s(0) <= MAX_DELAY_S * (1 + JITTER)
