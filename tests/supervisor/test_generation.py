from __future__ import annotations

import msgspec
import pytest

from qmux.config.loaded import Loaded
from qmux.config.schema import ProcessConfig, QuicConfig, ServerConfig, TlsFiles
from qmux.pki.material import Material
from qmux.pool.pool import Pool
from qmux.steering import MAX_SLOT
from supervisor.generation import Slots, first_generation
from tests.admin.made import row, whole_pass

LOADED = Loaded(
    ServerConfig(source="x", process=ProcessConfig(tls=TlsFiles()), quic=QuicConfig(), services={}),
    Material(b"chain", b"key", b"ca"),
)


def test_the_first_generation_has_a_seat_for_each_worker() -> None:
    slots = Slots()
    generation = first_generation(LOADED, 3, slots)
    assert (generation.number, slots.count) == (1, 3)
    assert [(seat.name, seat.index, seat.slot) for seat in generation.seats] == [
        ("worker-0", 0, 0),
        ("worker-1", 1, 1),
        ("worker-2", 2, 2),
    ]


def test_the_lowest_free_slot_is_taken_first() -> None:
    slots = Slots()
    assert [slots.take() for _ in range(4)] == [0, 1, 2, 3]
    slots.give_back(2)
    slots.give_back(1)
    assert [slots.take() for _ in range(3)] == [1, 2, 4]
    assert slots.count == 5


@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_only_a_taken_slot_can_be_given_back(slot: int) -> None:
    slots = Slots()
    slots.take()
    slots.take()
    slots.give_back(0)
    with pytest.raises(ValueError, match=f"slot {slot} is not taken"):
        slots.give_back(slot)


def test_there_are_as_many_slots_as_a_connection_id_can_name() -> None:
    slots = Slots(epochs=[1] * (MAX_SLOT + 1))
    with pytest.raises(ValueError, match="are taken"):
        slots.take()
    slots.give_back(7)
    assert slots.take() == 7


def test_a_new_seat_is_heard_in_the_slot_of_an_old_one() -> None:
    """The other workers ignore what an older process of a slot says: a new seat there counts on from the old one."""
    slots, others = Slots(), Pool(slot=1, epoch=1)
    slot = slots.take()
    for _ in range(3):  # two crashes
        old = slots.next_epoch(slot)
    others.set_live({slot: old})
    others.receive(whole_pass(slot, row(1), epoch=old), 1.0)
    assert len(others.sessions("web")) == 1
    slots.give_back(slot)
    others.set_live({})
    assert slots.take() == slot
    new = slots.next_epoch(slot)
    assert new == 4
    others.set_live({slot: new})
    others.receive(whole_pass(slot, row(1), epoch=old), 2.0)  # late words of the process before
    assert len(others.sessions("web")) == 0
    others.receive(whole_pass(slot, row(1), epoch=new), 2.0)
    assert len(others.sessions("web")) == 1


def test_all_of_it_can_be_written_down() -> None:
    slots = Slots()
    generation = first_generation(LOADED, 2, slots)
    generation.seats[1].epoch = slots.next_epoch(1)
    generation.seats[1].pause.delay_s(0.1)
    slots.give_back(0)
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
    assert unpack(pack(slots), type=Slots) == slots
    again = unpack(pack(generation), type=Written)
    assert (again.number, again.started_at, again.seats) == (
        1,
        generation.started_at,
        [msgspec.to_builtins(seat) for seat in generation.seats],
    )
    assert again.seats[1]["pause"] == {"failures": 1}


class Written(msgspec.Struct):
    """A generation as another program version would read it: ``loaded`` by itself, since it has a union of configs."""

    number: int
    seats: list[dict[str, object]]
    started_at: float
