"""Which workers a session is connected to: all, or some by rendezvous hash."""

from __future__ import annotations

from collections import Counter

from qmux.config.schema import MAX_LANES
from qmux.worker.server.lane_choice import lanes_for

SESSIONS = [number.to_bytes(16, "big") for number in range(500)]


def test_all_workers_where_there_are_few() -> None:
    assert lanes_for(SESSIONS[0], (3, 0, 2), MAX_LANES) == (0, 2, 3)
    assert lanes_for(SESSIONS[0], tuple(range(MAX_LANES)), MAX_LANES) == tuple(range(MAX_LANES))
    assert lanes_for(SESSIONS[0], (), MAX_LANES) == ()


def test_as_many_as_are_allowed_each_once() -> None:
    for session in SESSIONS:
        lanes = lanes_for(session, range(64), 4)
        assert len(set(lanes)) == 4
        assert list(lanes) == sorted(lanes)


def test_the_order_of_the_workers_does_not_matter() -> None:
    for session in SESSIONS[:50]:
        assert lanes_for(session, range(64), 4) == lanes_for(session, tuple(reversed(range(64))), 4)


def test_when_a_worker_leaves_only_its_sessions_move_and_each_by_one_lane() -> None:
    without = [slot for slot in range(64) if slot != 17]
    for session in SESSIONS:
        before, after = set(lanes_for(session, range(64), 4)), set(lanes_for(session, without, 4))
        assert len(before - after) == (17 in before)
        assert before - after <= {17}


def test_a_new_worker_gets_its_share_from_all() -> None:
    moved = sum(64 in lanes_for(session, range(65), 4) for session in SESSIONS)
    assert 0.5 < moved / (len(SESSIONS) * 4 / 65) < 2
    for session in SESSIONS:
        before, after = set(lanes_for(session, range(64), 4)), set(lanes_for(session, range(65), 4))
        assert after - before <= {64}


def test_sessions_are_spread() -> None:
    counts = Counter(slot for session in SESSIONS for slot in lanes_for(session, range(32), 4))
    expected = len(SESSIONS) * 4 / 32
    assert set(counts) == set(range(32))
    assert expected / 2 < min(counts.values()) <= max(counts.values()) < expected * 2
