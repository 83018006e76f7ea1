from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux.protocol.attempt import MIN_PING_INTERVAL_S, MIN_SILENCE_S, AttemptClock, may_retry

PTO_S = 0.05


def test_pings_come_every_200_ms() -> None:
    clock = AttemptClock(10.0)
    assert clock.next_ping(PTO_S) == pytest.approx(10.2)
    clock.ping_sent(10.2)
    assert clock.next_ping(PTO_S) == pytest.approx(10.4)


def test_pings_keep_to_a_long_round_trip() -> None:
    assert AttemptClock(10.0).next_ping(1.5) == pytest.approx(11.5)


def test_nothing_is_dead_before_a_ping() -> None:
    clock = AttemptClock(10.0)
    clock.heard(9.0)
    assert not clock.is_dead(100.0, PTO_S)


def test_dead_after_500_ms_of_silence() -> None:
    clock = AttemptClock(10.0)
    clock.ping_sent(10.2)
    clock.heard(10.1)
    assert not clock.is_dead(10.2 + MIN_SILENCE_S, PTO_S)
    assert clock.is_dead(10.21 + MIN_SILENCE_S, PTO_S)


def test_three_pto_where_those_are_longer() -> None:
    clock = AttemptClock(10.0)
    clock.ping_sent(11.0)
    assert not clock.is_dead(13.9, 1.0)
    assert clock.is_dead(14.1, 1.0)


def test_further_pings_do_not_restart_the_clock() -> None:
    clock = AttemptClock(10.0)
    for fifth in range(1, 5):
        clock.heard(10.0)
        clock.ping_sent(10.0 + fifth / 5)
    assert clock.is_dead(10.8, PTO_S)


def test_anything_heard_restarts_it() -> None:
    clock = AttemptClock(10.0)
    clock.ping_sent(10.2)
    clock.heard(10.6)
    assert not clock.is_dead(10.8, PTO_S)
    clock.ping_sent(10.8)
    assert not clock.is_dead(11.2, PTO_S)
    assert clock.is_dead(11.4, PTO_S)


@given(
    rtt_s=st.floats(0.001, 0.4),
    dial_s=st.floats(0.0, 30.0),
)
def test_a_slow_dial_never_looks_dead(rtt_s: float, dial_s: float) -> None:
    """Every PING is answered after a round trip; the attempt itself is not, for any time."""
    now, pto_s = 100.0, 3 * rtt_s
    clock, last_received_at, under_way = AttemptClock(now), 100.0, []
    until = now + dial_s
    while now < until:
        now += 0.01
        while under_way and under_way[0] <= now:
            last_received_at = under_way.pop(0)
        clock.heard(last_received_at)
        assert not clock.is_dead(now, pto_s)
        if now >= clock.next_ping(pto_s):
            clock.ping_sent(now)
            under_way.append(now + rtt_s)


@given(pto_s=st.floats(0.001, 2.0))
def test_a_dead_client_is_noticed_in_time(pto_s: float) -> None:
    now = 100.0
    clock = AttemptClock(now)
    while not clock.is_dead(now, pto_s):
        if now >= clock.next_ping(pto_s):
            clock.ping_sent(now)
        now += 0.01
    assert now - 100.0 <= max(pto_s, MIN_PING_INTERVAL_S) + max(3 * pto_s, MIN_SILENCE_S) + 0.03


@pytest.mark.parametrize(
    ("answered", "early_data_sent", "expected"),
    [(True, True, True), (True, False, True), (False, False, True), (False, True, False)],
)
def test_may_retry(answered: bool, early_data_sent: bool, expected: bool) -> None:
    assert may_retry(answered=answered, early_data_sent=early_data_sent) is expected
