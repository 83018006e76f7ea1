from __future__ import annotations

import itertools
import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qmux import steering
from supervisor import programs
from supervisor.sockets import Group, open_groups
from tests.supervisor.made import quic
from tests.waiting import until

SLOTS = 4


@pytest.fixture(params=["127.0.0.1", "::1", "0.0.0.0"])
def group(request: Any) -> Iterator[Group]:
    (found,) = open_groups(quic(request.param, 0), SLOTS, "quic.bind")
    yield found
    found.close()


def destination(group: Group) -> tuple[socket.AddressFamily, tuple[str, int]]:
    host, port = group.sockets[0].getsockname()[:2]
    return group.sockets[0].family, ("127.0.0.1" if host == "0.0.0.0" else host, port)


def sender(group: Group) -> socket.socket:
    family, address = destination(group)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect(address)
    return sock


def where(group: Group, sock: socket.socket, packet: bytes) -> int:
    """The number of the socket that gets this packet. Loopback delivers before send returns."""
    sock.send(packet)
    readable, _, _ = select.select(group.sockets, [], [], 5)
    (found,) = readable
    found.recv(2048)
    return group.sockets.index(found)


def packets(rng: random.Random) -> Iterator[bytes]:
    """Short and long headers, every slot, issued and Initial form, foreign values, and too short ones."""
    values = [*range(SLOTS + 2), 5, 77, 0x7FFF, 0x4000, *(rng.randrange(0x8000) for _ in range(6))]
    for value, form, is_long in itertools.product(values, (0, steering.INITIAL_FORM), (False, True)):
        prefix = (value | form).to_bytes(2, "big")
        head = bytes([0xC0]) + b"\x00\x00\x00\x01\x0c" if is_long else bytes([0x40])
        yield head + prefix + rng.randbytes(30)
    for length in range(1, steering.MIN_STEERED_BYTES + 1):
        yield rng.randbytes(length)


SETS = [
    ((0, 1, 2, 3), (0, 1, 2, 3)),
    ((0, 1, 2, 3), (2,)),
    ((0, 1, 2, 3), (1, 3)),
    ((1, 3), (1, 3)),
    ((0, 2), (2,)),
    ((3,), (3,)),
    ((0, 1, 2), (2, 0)),
]


@pytest.mark.parametrize(("live", "active"), SETS)
def test_the_kernel_agrees_with_the_model(group: Group, live: tuple[int, ...], active: tuple[int, ...]) -> None:
    programs.attach(group.sockets[0], programs.build({slot: slot for slot in range(SLOTS)}, live, active))
    with sender(group) as sock:
        for packet in packets(random.Random(7)):
            assert where(group, sock, packet) == steering.choose(packet, live, active), packet.hex()


def test_positions_need_not_be_slots(group: Group) -> None:
    position = {10: 3, 0x7FFF: 0}
    programs.attach(group.sockets[0], programs.build(position, (10, 0x7FFF), (0x7FFF,)))
    with sender(group) as sock:
        assert where(group, sock, b"\x40" + steering.issued_id(10) + bytes(10)) == 3
        assert where(group, sock, b"\x40" + steering.issued_id(0x7FFF) + bytes(10)) == 0
        assert where(group, sock, b"\x40" + steering.issued_id(11) + bytes(10)) == 0


def test_an_empty_datagram_goes_to_the_first_active(group: Group) -> None:
    programs.attach(group.sockets[0], programs.build({slot: slot for slot in range(SLOTS)}, (0, 2), (2,)))
    with sender(group) as sock:
        assert where(group, sock, b"") == 2


def test_many_workers_fit() -> None:
    slots = range(128)
    program = programs.build({slot: slot for slot in slots}, slots, tuple(slots))
    assert len(program) < 1000
    (group,) = open_groups(quic("127.0.0.1", 0), 2, "quic.bind")
    programs.attach(group.sockets[0], program)
    group.close()
    with pytest.raises(ValueError, match="at most 4096 are possible"):
        programs.build({slot: slot for slot in range(1000)}, range(1000), tuple(range(1000)))


def test_a_changing_active_set_misdelivers_nothing() -> None:
    """1,000 replacements under load: packets of live slots reach their socket, each of them."""
    (group,) = open_groups(quic("127.0.0.1", 0), SLOTS, "quic.bind")
    counts, foreign = [0] * SLOTS, [0] * SLOTS
    done = threading.Event()

    def read() -> None:
        while True:
            ready, _, _ = select.select(group.sockets, [], [], 0.1)
            if not ready and done.is_set():
                return
            for sock in ready:
                at = group.sockets.index(sock)
                for _ in range(200):
                    try:
                        packet = sock.recv(100)
                    except BlockingIOError:
                        break
                    counts[at] += 1
                    foreign[at] += packet[1:3] != at.to_bytes(2, "big")

    live = tuple(range(SLOTS))
    programs.attach(group.sockets[0], programs.build({slot: slot for slot in live}, live, live))
    sent, changes = 0, 0
    reader = threading.Thread(target=read)
    reader.start()
    try:
        with sender(group) as sock:
            rng = random.Random(3)
            while changes < 1000:
                active = tuple(sorted(rng.sample(live, rng.randint(1, SLOTS))))
                programs.attach(group.sockets[changes % SLOTS], programs.build({s: s for s in live}, live, active))
                changes += 1
                for slot in live:
                    for _ in range(5):
                        sock.send(b"\x40" + steering.issued_id(slot) + os.urandom(8))
                        sent += 1
                if sent - sum(counts) > 2000:  # the receive buffers must not overflow
                    until(lambda sent=sent: sent - sum(counts) < 500, "the reader catches up")
    finally:
        done.set()
        reader.join()
        group.close()
    assert (sum(counts), sum(foreign)) == (sent, 0)
    assert counts == [sent // SLOTS] * SLOTS
