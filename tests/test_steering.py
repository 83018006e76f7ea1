"""The model of steering; ``tests/supervisor`` holds the kernel program against it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmux import steering

slots = st.integers(0, steering.MAX_SLOT)


def short_header(connection_id: bytes) -> bytes:
    return b"\x40" + connection_id + bytes(20)


def long_header(connection_id: bytes) -> bytes:
    return b"\xc0\x00\x00\x00\x01" + bytes([len(connection_id)]) + connection_id + bytes(20)


@given(slots)
def test_issued_ids_name_their_slot(slot: int) -> None:
    connection_id = steering.issued_id(slot)
    assert len(connection_id) == steering.CONNECTION_ID_BYTES
    assert steering.issued_slot(connection_id) == slot
    assert not steering.has_initial_form(connection_id)


@given(st.none() | slots)
def test_initial_ids_have_initial_form(lane: int | None) -> None:
    connection_id = steering.initial_id(lane)
    assert len(connection_id) == steering.CONNECTION_ID_BYTES
    assert steering.has_initial_form(connection_id)
    assert steering.issued_slot(connection_id) is None
    if lane is not None:
        assert int.from_bytes(connection_id[:2], "big") == steering.INITIAL_FORM | lane


def test_the_rest_of_an_id_is_drawn() -> None:
    assert len({steering.issued_id(1)[2:] for _ in range(100)}) == 100
    assert len({steering.initial_id(1)[2:] for _ in range(100)}) == 100
    assert len({steering.initial_id()[:2] for _ in range(100)}) > 90


@pytest.mark.parametrize("slot", [-1, steering.MAX_SLOT + 1])
def test_slots_out_of_range(slot: int) -> None:
    for make in (steering.issued_id, steering.initial_id):
        with pytest.raises(ValueError, match="does not fit in 15 bits"):
            make(slot)


@pytest.mark.parametrize("connection_id", [b"", b"\x00", b"\x80"])
def test_ids_that_are_too_short_are_not_ours(connection_id: bytes) -> None:
    assert steering.issued_slot(connection_id) is None
    assert not steering.has_initial_form(connection_id)


@given(slots, st.lists(slots, unique=True, min_size=1, max_size=8), st.booleans())
def test_packets_of_a_connection_reach_the_worker_that_issued_its_id(
    slot: int, active: list[int], is_long: bool
) -> None:
    header = long_header if is_long else short_header
    assert steering.choose(header(steering.issued_id(slot)), {*active, slot}, active) == slot


@given(st.data())
def test_a_client_gets_the_lane_that_it_asks_for(data: st.DataObject) -> None:
    active = data.draw(st.lists(slots, unique=True, min_size=1, max_size=8))
    lane = data.draw(st.sampled_from(active))
    assert steering.choose(long_header(steering.initial_id(lane)), active, active) == lane


@given(slots, st.lists(slots, unique=True, min_size=1, max_size=8), st.lists(slots, unique=True, max_size=8))
def test_no_new_connection_for_a_worker_that_is_not_active(lane: int, active: list[int], draining: list[int]) -> None:
    chosen = steering.choose(long_header(steering.initial_id(lane)), {*active, *draining}, active)
    assert chosen in active
    if lane not in active:
        assert chosen == active[lane % len(active)]


@given(slots, st.lists(slots, unique=True, min_size=1, max_size=8))
def test_a_retired_slot_goes_to_an_active_one(slot: int, active: list[int]) -> None:
    chosen = steering.choose(short_header(steering.issued_id(slot)), active, active)
    assert chosen == (slot if slot in active else active[slot % len(active)])


def test_a_draining_worker_keeps_its_connections() -> None:
    assert steering.choose(short_header(steering.issued_id(9)), {1, 2, 9}, [1, 2]) == 9


@given(st.binary(max_size=steering.MIN_STEERED_BYTES - 1))
def test_short_datagrams(datagram: bytes) -> None:
    assert steering.packet_id_prefix(datagram) is None
    assert steering.choose(datagram, {3, 4}, [4, 3]) == 4


@given(st.binary(max_size=100), st.lists(slots, unique=True, min_size=1, max_size=8), st.sets(slots, max_size=8))
def test_any_datagram_goes_to_a_live_worker(datagram: bytes, active: list[int], draining: set[int]) -> None:
    assert steering.choose(datagram, {*active, *draining}, active) in {*active, *draining}


def test_first_contacts_spread_evenly() -> None:
    active = [5, 6, 7]
    chosen = [steering.choose(long_header(steering.initial_id()), active, active) for _ in range(6000)]
    for slot in active:
        assert chosen.count(slot) == pytest.approx(2000, rel=0.15)
