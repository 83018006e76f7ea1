"""A worker that ends takes what was handed to it until then, and nothing after."""

from __future__ import annotations

import socket

from qmux.relay.handoff import BATCH, Handoff, HandoffLink

ABOUT = Handoff("web", "192.0.2.1:4000", "192.0.2.2:80", 7, "pod-1", b"s" * 16, 1, 0)


async def test_what_was_handed_before_the_end_is_taken() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    taken: list[socket.socket] = []
    ours = HandoffLink(near, lambda user, about: None)
    theirs = HandoffLink(far, lambda user, about: taken.append(user), lambda: False)
    count = 2 * BATCH + 1
    sent = 0
    for _ in range(count):
        user, other = socket.socketpair()
        other.close()
        sent += ours.send(user, ABOUT)
    assert sent == count
    theirs.finish()
    assert len(taken) == count
    user, other = socket.socketpair()
    assert not ours.send(user, ABOUT)
    for each in (*taken, user, other):
        each.close()
    theirs.finish()  # nothing more
    ours.close()
