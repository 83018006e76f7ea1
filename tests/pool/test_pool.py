from __future__ import annotations

import itertools

import msgspec
import pytest

from qmux.bus import MAX_MESSAGE_BYTES
from qmux.pool.pool import EXPECTED_S, LATE_S, Pool
from qmux.pool.publication import END_OF_KEYS, ROWS_PER_PASS
from qmux.pool.rows import Delta, Offer, Pass, Row
from tests.pool.examples import row
from tests.pool.test_chunks import largest_row


def counted(pool: Pool) -> list[int]:
    """Grows by one for each call of its subscribers."""
    calls: list[int] = []
    pool.subscribe(lambda: calls.append(1))
    return calls


def in_order(pool: Pool) -> list[tuple[int, Row]]:
    return sorted(pool.rows(), key=lambda place: (place[0], place[1].key))


# --- what a change was about ---


def test_touched_services_are_named_once() -> None:
    pool = Pool(0, 1)
    pool.add(row(1, offers=(Offer("a"), Offer("b"))))
    assert (pool.take_touched(), pool.take_touched()) == ({"a", "b"}, set())
    pool.update(1, active=1)
    pool.set_active("c", 1)
    assert pool.take_touched() == {"a", "b", "c"}
    pool.update(1, offers=(Offer("a"),))
    assert pool.take_touched() == {"a", "b"}
    pool.receive(Delta(1, 1, (row(7, "pod-2", offers=(Offer("d"),)),), (), {"e": 1}), 0.0)
    assert pool.take_touched() == {"d", "e"}
    pool.expect(1, 7, 0.0)
    assert pool.take_touched() == {"d"}
    pool.forget(1, 1)
    pool.remove(1)
    assert pool.take_touched() == {"a", "d"}


def test_only_what_makes_a_session_worse_is_urgent() -> None:
    pool = Pool(0, 1)
    pool.add(row(1))
    pool.update(1, active=5, rtt_ms=9.0)
    assert not pool.is_urgent
    pool.update(1, state="suspect")
    assert pool.is_urgent
    pool.take_touched()
    assert not pool.is_urgent
    pool.remove(1)
    assert pool.is_urgent


# --- what is published ---


def test_a_delta_has_what_changed_once() -> None:
    pool = Pool(3, 7)
    assert pool.take_delta() is None
    pool.add(row(1))
    pool.add(row(2))
    pool.update(1, active=5)
    pool.remove(2)
    pool.set_active("web", 4)
    assert pool.take_delta() == Delta(3, 7, (row(1, active=5),), (2,), {"web": 4})
    assert pool.take_delta() is None


def test_what_stays_the_same_is_not_published() -> None:
    pool = Pool(3, 7)
    pool.add(row(1))
    pool.set_active("web", 1)
    pool.take_delta()
    calls = counted(pool)
    pool.update(1, active=0)
    pool.set_active("web", 1)
    pool.update(99, active=1)
    pool.remove(99)
    assert pool.take_delta() is None
    assert not calls


def test_a_large_delta_comes_in_several_messages() -> None:
    pool = Pool(0, 1)
    for key in range(300):
        pool.add(largest_row(key))
    received = Pool(1, 1)
    sizes = []
    while (delta := pool.take_delta()) is not None:
        sizes.append(len(msgspec.msgpack.encode(delta)))
        received.receive(delta, 0.0)
    assert len(sizes) > 10
    assert max(sizes) < MAX_MESSAGE_BYTES / 2
    assert in_order(received) == in_order(pool)


def test_what_changed_first_is_published_first() -> None:
    pool = Pool(0, 1)
    for key in range(600):
        pool.add(row(key))
    first = pool.take_delta()
    pool.update(0, active=1)
    second, third = pool.take_delta(), pool.take_delta()
    assert first is not None
    assert second is not None
    assert third is not None
    assert [each.key for delta in (first, second, third) for each in delta.rows] == [*range(600), 0]


def test_an_empty_pass_says_that_there_is_nothing() -> None:
    pool = Pool(3, 7)
    assert pool.passes() == [Pass(3, 7, 0, END_OF_KEYS, (), {})]


def test_passes_of_many_rows_take_turns() -> None:
    pool, viewer = Pool(0, 1), Pool(1, 1)
    for key in range(2 * ROWS_PER_PASS + 100):
        pool.add(row(key, f"pod-{key % 50}"))
    seconds = []
    for _ in range(3):
        passes = pool.passes()
        seconds.append(sum(len(message.rows) for message in passes))
        for message in passes:
            assert len(msgspec.msgpack.encode(message)) < MAX_MESSAGE_BYTES / 2
            viewer.receive(message, 0.0)
    assert seconds == [ROWS_PER_PASS, ROWS_PER_PASS, 100]
    assert in_order(viewer) == in_order(pool)
    assert pool.passes()[0].first == 0


def test_ranges_of_a_pass_leave_no_gap() -> None:
    pool = Pool(0, 1)
    for key in range(5, 2000, 3):
        pool.add(row(key))
    passes = pool.passes()
    assert passes[0].first == 0
    assert passes[-1].last == END_OF_KEYS
    for message, following in itertools.pairwise(passes):
        assert message.last == following.first
    for message in passes:
        assert all(message.first <= each.key < message.last for each in message.rows)


def test_rows_at_the_end_of_a_long_pass_can_vanish_before_their_turn() -> None:
    pool, viewer = Pool(0, 1), Pool(1, 1)
    for key in range(ROWS_PER_PASS + 10):
        pool.add(row(key, f"pod-{key % 50}"))
    for message in pool.passes():
        viewer.receive(message, 0.0)
    for key in range(ROWS_PER_PASS, ROWS_PER_PASS + 10):
        pool.remove(key)
    for message in pool.passes():
        viewer.receive(message, 0.0)
    assert in_order(viewer) == in_order(pool)


# --- what is received ---


def test_messages_of_dead_epochs_are_ignored() -> None:
    pool = Pool(0, 1)
    pool.receive(Delta(1, 5, (row(1),), (), {"web": 2}), 0.0)
    assert pool.active("web") == 2
    pool.forget(1, 5)
    assert not list(pool.rows())
    assert pool.active("web") == 0
    for epoch in (4, 5):
        pool.receive(Delta(1, epoch, (row(1),), (), {"web": 2}), 0.0)
        pool.receive(Pass(1, epoch, 0, END_OF_KEYS, (row(1),), {}), 0.0)
        assert not list(pool.rows())
        assert pool.is_late(1, 0.0)
    pool.receive(Delta(1, 6, (row(1),), (), {}), 0.0)
    assert list(pool.rows()) == [(1, row(1))]


def test_a_new_epoch_replaces_the_old_one_and_an_old_one_changes_nothing() -> None:
    pool = Pool(0, 1)
    pool.receive(Delta(1, 5, (row(1), row(2)), (), {"web": 2}), 0.0)
    pool.receive(Delta(1, 6, (row(1, active=9),), (), {}), 0.0)
    pool.receive(Delta(1, 5, (row(3),), (1,), {"web": 9}), 0.0)
    assert list(pool.rows()) == [(1, row(1, active=9))]
    assert pool.active("web") == 0
    pool.forget(1, 5)
    assert list(pool.rows()) == [(1, row(1, active=9))]
    pool.receive(Delta(1, 5, (row(3),), (1,), {"web": 9}), 0.0)
    assert list(pool.rows()) == [(1, row(1, active=9))]
    pool.receive(Delta(1, 6, (row(2),), (1,), {}), 0.0)
    assert list(pool.rows()) == [(1, row(2))]


def test_only_live_workers_are_heard() -> None:
    pool = Pool(0, 1)
    pool.receive(Delta(1, 1, (row(1),), (), {}), 0.0)
    pool.receive(Delta(2, 4, (row(1, "pod-2"),), (), {}), 0.0)
    calls = counted(pool)
    pool.set_live({0: 1, 2: 5, 3: 1})
    assert not list(pool.rows())
    assert len(calls) == 2
    pool.receive(Delta(1, 2, (row(1),), (), {}), 0.0)
    pool.receive(Delta(2, 4, (row(1, "pod-2"),), (), {}), 0.0)
    assert not list(pool.rows())
    pool.receive(Delta(2, 5, (row(1, "pod-2"),), (), {}), 0.0)
    pool.receive(Delta(3, 1, (row(1, "pod-3"),), (), {}), 0.0)
    assert {slot for slot, _ in pool.rows()} == {2, 3}


def test_our_own_rows_are_ours() -> None:
    pool = Pool(0, 1)
    pool.add(row(1))
    pool.receive(Pass(0, 9, 0, END_OF_KEYS, (), {}), 0.0)
    pool.forget(0, 9)
    pool.set_live({})
    assert pool.own(1) == row(1)


def test_offers_that_shrink_leave_the_index() -> None:
    pool = Pool(0, 1)
    pool.add(row(1, offers=(Offer("a"), Offer("b"))))
    assert len(pool.sessions("b")) == 1
    pool.update(1, offers=(Offer("a"),))
    assert len(pool.sessions("a")) == 1
    assert not pool.sessions("b")


def test_a_key_that_names_another_session() -> None:
    """Keys grow and are not used twice; should one be, no session may keep a row that is not its own."""
    pool = Pool(0, 1)
    pool.receive(Delta(1, 1, (row(1, "pod-1"),), (), {}), 0.0)
    pool.receive(Delta(1, 1, (row(1, "pod-2"),), (), {}), 0.0)
    assert [held.key[0] for held in pool.sessions("web")] == ["pod-2"]
    assert pool.session_count() == 1


def test_late_workers() -> None:
    pool = Pool(0, 1)
    assert pool.is_late(1, 10.0)
    pool.receive(Delta(1, 1, (), (), {}), 10.0)
    assert pool.is_late(1, 10.0)
    pool.receive(Pass(1, 1, 0, END_OF_KEYS, (), {}), 10.0)
    assert not pool.is_late(1, 10.0 + LATE_S)
    assert pool.is_late(1, 10.1 + LATE_S)
    assert not pool.is_late(0, 1e9)


# --- subscribers ---


def test_on_change_once_for_each_message_that_changes_something() -> None:
    pool = Pool(0, 1)
    calls = counted(pool)
    delta = Delta(1, 1, (row(1), row(2)), (), {"web": 1})
    pool.receive(delta, 0.0)
    assert len(calls) == 1
    pool.receive(delta, 0.0)
    pool.receive(Pass(1, 1, 0, END_OF_KEYS, (row(1), row(2)), {"web": 1}), 0.0)
    assert len(calls) == 1
    pool.receive(Delta(1, 1, (), (), {"web": 2}), 0.0)
    assert len(calls) == 2
    pool.receive(Pass(1, 1, 0, END_OF_KEYS, (row(1),), {"web": 2}), 0.0)
    assert len(calls) == 3
    pool.forget(1, 1)
    assert len(calls) == 4
    pool.forget(1, 1)
    assert len(calls) == 4


def test_on_change_sees_the_change() -> None:
    pool = Pool(0, 1)
    seen: list[int] = []
    pool.subscribe(lambda: seen.append(len(pool.sessions("web"))))
    pool.add(row(1))
    pool.receive(Delta(1, 1, (row(1, "pod-2"),), (), {}), 0.0)
    pool.remove(1)
    assert seen == [1, 2, 1]


# --- users that are on the way ---


@pytest.fixture
def handing() -> Pool:
    pool = Pool(0, 1)
    pool.receive(Delta(1, 1, (row(7),), (), {}), 100.0)
    return pool


def load(pool: Pool, now: float | None = None) -> int:
    (held,) = pool.sessions("web", now)
    return held.load


def test_a_user_on_the_way_counts_until_the_row_changes(handing: Pool) -> None:
    handing.expect(1, 7, 100.0)
    assert load(handing) == 1
    handing.receive(Delta(1, 1, (row(7, active=1),), (), {}), 100.01)
    assert load(handing) == 1
    handing.receive(Delta(1, 1, (row(7, active=1, active_here=1, active_total=1, active_at_ms=1),), (), {}), 100.1)
    assert load(handing) == 1


def test_a_user_on_the_way_counts_for_a_quarter_of_a_second(handing: Pool) -> None:
    for tenth in range(3):
        handing.expect(1, 7, 100.0 + tenth / 10)
    assert load(handing, 100.2) == 3
    assert load(handing, 100.01 + EXPECTED_S) == 2
    handing.receive(Pass(2, 1, 0, END_OF_KEYS, (), {}), 100.11 + EXPECTED_S)
    assert load(handing) == 1
    handing.expect(1, 7, 101.0)
    assert load(handing) == 1
    assert load(handing, 102.0) == 0


def test_an_unchanged_row_in_a_pass_does_not_end_it(handing: Pool) -> None:
    """The pass was published before the user arrived there."""
    handing.expect(1, 7, 100.0)
    handing.receive(Pass(1, 1, 0, END_OF_KEYS, (row(7),), {}), 100.05)
    assert load(handing) == 1


def test_nothing_is_expected_of_what_is_not_there(handing: Pool) -> None:
    handing.add(row(1, "pod-1"))
    handing.expect(1, 99, 100.0)
    handing.expect(5, 7, 100.0)
    handing.expect(0, 1, 100.0)  # our own rows say it themselves
    assert load(handing) == 0


def test_a_session_that_leaves_takes_it_along(handing: Pool) -> None:
    handing.expect(1, 7, 100.0)
    handing.receive(Delta(1, 1, (), (7,), {}), 100.1)
    handing.receive(Delta(1, 1, (row(8),), (), {}), 100.2)
    assert load(handing, 200.0) == 0
