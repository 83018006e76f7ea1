from __future__ import annotations

import itertools

import pytest

from qmux.pool.candidates import HASH_PRIME, spread_hash
from qmux.pool.rows import Offer
from tests.pool.examples import candidate, row


def test_load_is_what_we_hold_and_what_the_client_told_of_other_servers() -> None:
    held = candidate(
        "pod-1",
        (0, row(1, active=10, active_here=8, active_total=8, active_at_ms=100)),
        (1, row(1, active=4, active_here=11, active_total=16, active_at_ms=200)),
    )
    assert held.load == 10 + 4 + (16 - 11)


def test_the_newest_count_is_taken_whatever_order_rows_come_in() -> None:
    rows = [
        (0, row(1, active_total=5, active_at_ms=100)),
        (1, row(2, active_total=9, active_at_ms=100)),
        (2, row(3, active_total=1, active_at_ms=50)),
    ]
    assert {candidate("pod-1", *order).load for order in itertools.permutations(rows)} == {9}


def test_a_count_that_is_older_than_the_previous_one_of_its_connection() -> None:
    held = candidate("pod-1", (0, row(active_total=5, active_at_ms=100)))
    held.store(0, row(active_total=3, active_at_ms=50))  # the wall clock was set back
    assert held.load == 3


def test_load_is_never_negative() -> None:
    assert candidate("pod-1", (0, row(active=0, active_here=5))).load == 0


def test_a_dropped_row_takes_its_part_of_the_load_with_it() -> None:
    held = candidate(
        "pod-1",
        (0, row(1, active=3, active_total=2, active_at_ms=1)),
        (1, row(1, active=5, active_total=4, active_at_ms=2)),
    )
    assert held.load == 3 + 5 + 4
    held.drop(1, 1)
    assert held.load == 3 + 2
    held.drop(0, 1)
    assert held.load == 0
    assert not held.slots


def test_rank_and_best_connection() -> None:
    held = candidate(
        "pod-1",
        (0, row(1, state="suspect")),
        (0, row(2, state="draining")),
        (1, row(1, state="draining")),
        (2, row(7, state="suspect")),
        (2, row(5, state="ready")),
        (2, row(6, state="ready")),
    )
    assert held.rank == 0
    assert held.at(0) == 1
    assert held.at(1) is None
    assert held.at(2) == 6
    assert held.slots == {0, 2}
    held.drop(2, 5)
    held.drop(2, 6)
    assert (held.rank, held.at(2)) == (1, 7)


def test_offers_of_the_newest_connection_hold() -> None:
    older = (0, row(1, offers=(Offer("web", 1), Offer("old")), connected_at_ms=100))
    newer = (1, row(1, offers=(Offer("web", 5),), connected_at_ms=200))
    for order in ([older, newer], [newer, older]):
        assert candidate("pod-1", *order).offers == {"web": Offer("web", 5), "old": Offer("old")}


def test_offers_of_draining_connections_count_only_where_there_is_no_other() -> None:
    held = candidate("pod-1", (0, row(1, offers=(Offer("old"),), state="draining")))
    assert set(held.offers) == {"old"}
    held.store(1, row(2, offers=(Offer("web"),)))
    assert set(held.offers) == {"web"}


def test_expected_users_count_until_the_row_changes() -> None:
    held = candidate("pod-1", (1, row(1)), (2, row(2)))
    for _ in range(3):
        held.expect((1, 1), 10.0)
    held.expect((2, 2), 10.0)
    assert held.load == 4
    held.store(1, row(1, active=3))
    assert held.load == 4
    held.drop(2, 2)
    assert held.load == 3


def test_expected_users_end_one_by_one() -> None:
    held = candidate("pod-1", (1, row(1)))
    held.expect((1, 1), 10.0)
    held.expect((1, 1), 10.1)
    held.expire((1, 1), 9.9)
    assert held.load == 2
    held.expire((1, 1), 10.05)
    assert held.load == 1
    held.expire((1, 1), 11.0)
    assert held.load == 0
    held.expire((1, 1), 12.0)
    assert held.load == 0


@pytest.mark.parametrize("data", [b"", b"192.0.2.1", b"pod-1|" + bytes(16)])
def test_hashes_are_in_range_and_the_same_everywhere(data: bytes) -> None:
    assert 1 <= spread_hash(data) < HASH_PRIME
    assert spread_hash(data) == spread_hash(bytes(data))
    assert spread_hash(b"192.0.2.1") == 350_013_145_170_534_306
