from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from qmux import steering as model
from supervisor.sockets import Group, open_groups
from supervisor.steering import Steering
from tests import waiting
from tests.aio import until
from tests.supervisor.made import quic
from tests.supervisor.test_programs import sender, where

pytestmark = pytest.mark.asyncio_loop


@pytest.fixture
def group() -> Iterator[Group]:
    (group,) = open_groups(quic("127.0.0.1", 0), 3, "key")
    yield group
    group.close()


def reached(group: Group, prefix: int) -> int:
    with sender(group) as sock:
        return where(group, sock, b"\x40" + prefix.to_bytes(2, "big") + bytes(20))


def initial(lane: int) -> int:
    return model.INITIAL_FORM | lane


async def test_at_first_every_slot_keeps_its_packets(group: Group) -> None:
    steering = Steering(range(3), 1)
    steering.add(group)
    assert [reached(group, slot) for slot in range(3)] == [0, 1, 2]
    assert [reached(group, initial(lane)) for lane in range(3)] == [0, 1, 2]


async def test_a_crashed_slot_leaves_after_the_grace_time(group: Group) -> None:
    steering = Steering(range(3), 0.1)
    steering.add(group)
    steering.crashed(1)
    assert reached(group, 1) == 1
    assert reached(group, initial(1)) == 1
    await until(lambda: steering.active == (0, 2))
    assert reached(group, 1) == 2  # active[1 % 2]
    assert reached(group, initial(1)) == 2
    steering.ready(1)
    assert reached(group, 1) == 1


async def test_a_successor_in_time_keeps_the_slot(group: Group) -> None:
    steering = Steering(range(3), 0.05)
    steering.add(group)
    steering.crashed(1)
    steering.ready(1)
    await asyncio.sleep(0.15)  # longer than the grace time: nothing must happen
    assert steering.active == (0, 1, 2)


async def test_draining_slots_keep_what_they_have(group: Group) -> None:
    steering = Steering(range(3), 1)
    steering.add(group)
    steering.draining(0)
    assert reached(group, 0) == 0
    assert reached(group, initial(0)) == 1
    for slot in (1, 2):
        steering.draining(slot)
    assert (steering.active, steering.live) == ((0,), (0, 1, 2))
    assert [reached(group, initial(lane)) for lane in range(3)] == [0, 0, 0]
    steering.gone(0)
    assert [reached(group, initial(lane)) for lane in range(3)] == [1, 1, 1]
    assert [reached(group, slot) for slot in range(3)] == [1, 1, 2]


async def test_a_single_socket_gets_everything() -> None:
    (group,) = open_groups(quic("127.0.0.1", 0), 1, "key")
    steering = Steering(range(1), 1)
    steering.add(group)
    steering.gone(0)
    assert steering.active == (0,)
    assert [reached(group, prefix) for prefix in (0, 5, initial(0), initial(3))] == [0, 0, 0, 0]
    group.close()


@pytest.mark.parametrize("before", [1, 3])
async def test_a_grown_group_steers_to_new_slots_once_they_are_ready(before: int) -> None:
    (group,) = open_groups(quic("127.0.0.1", 0), before, "key")
    steering = Steering(range(before), 1)
    steering.add(group)
    group.grow(before + 2, "key")
    steering.grow(range(before + 2))
    assert [reached(group, slot) for slot in range(before)] == list(range(before))
    assert {reached(group, initial(lane)) for lane in range(20)} == set(range(before))
    steering.ready(before + 1)
    assert reached(group, before + 1) == before + 1
    assert {reached(group, initial(lane)) for lane in range(20)} == {*range(before), before + 1}
    for slot in range(before):
        steering.draining(slot)
    assert {reached(group, initial(lane)) for lane in range(20)} == {before + 1}
    assert [reached(group, slot) for slot in range(before)] == list(range(before))
    group.close()


@pytest.mark.parametrize("before", [1, 2])
async def test_growing_under_load_loses_and_misleads_nothing(before: int) -> None:
    """A thread sends while sockets are added and the program is replaced."""
    (group,) = open_groups(quic("127.0.0.1", 0), before, "key")
    steering = Steering(range(before), 1)
    steering.add(group)
    sent, taken = [0] * before, [0]
    stop = threading.Event()

    def may_send() -> bool:
        return sum(sent) - taken[0] <= IN_FLIGHT or stop.is_set()

    def send() -> None:
        with contextlib.ExitStack() as stack:  # many sources: the kernel's hash would spread them
            senders = [stack.enter_context(sender(group)) for _ in range(40)]
            while not stop.is_set():
                for number, sock in enumerate(senders):
                    slot = number % before
                    sock.send(b"\x40" + slot.to_bytes(2, "big") + bytes(20))
                    sent[slot] += 1
                # The reader is the slower one: its sockets hold some hundred.
                waiting.until(may_send, "the reader catches up", every_s=0.001)

    thread = threading.Thread(target=send)
    thread.start()
    received: Counter[tuple[int, int]] = Counter()  # socket, slot

    def read(at_least: int) -> bool:
        drain(group, received)
        taken[0] = received.total()
        return taken[0] >= at_least

    try:
        for count in range(before + 1, before + 100):
            await until(lambda least=2 * count: read(least), what="the senders go on meanwhile")
            group.grow(count, "key")
            steering.grow(range(count))
    finally:
        stop.set()
        thread.join()
    drain(group, received)
    assert received == {(slot, slot): sent[slot] for slot in range(before)}
    assert sum(sent) > 100
    group.close()


IN_FLIGHT = 80
"""Two rounds of the senders: more than a default receive buffer holds would be lost, whatever the group does."""


def drain(group: Group, received: Counter[tuple[int, int]]) -> None:
    for number, sock in enumerate(group.sockets):
        with contextlib.suppress(BlockingIOError):
            while True:
                received[number, int.from_bytes(sock.recv(100)[1:3], "big")] += 1


@pytest.mark.parametrize("slot", [0, 2])
async def test_the_model_agrees(group: Group, slot: int) -> None:
    steering = Steering(range(3), 1)
    steering.add(group)
    steering.gone(slot)
    with sender(group) as sock:
        for prefix in (0, 1, 2, 3, 0x8000, 0x8001, 0x8002, 0xFFFF, 0x7FFF):
            packet = b"\x40" + prefix.to_bytes(2, "big") + bytes(20)
            assert where(group, sock, packet) == model.choose(packet, steering.live, steering.active)
