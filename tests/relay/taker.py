"""The other worker of a hand-off test: takes users, echoes what they send first, and ends with the link."""

from __future__ import annotations

import asyncio
import socket
import sys

from qmux.relay.handoff import Handoff, HandoffLink
from tests.aio import until


async def main(descriptor: int) -> None:
    sock = socket.socket(fileno=descriptor)

    def on_handed(user: socket.socket, about: Handoff) -> None:
        user.setblocking(True)
        user.settimeout(10)
        with user:
            user.sendall(user.recv(100))
        print(f"{about.service}:{about.conn_id}", flush=True)

    HandoffLink(sock, on_handed)
    await until(lambda: sock.fileno() < 0, 20.0)


asyncio.run(main(int(sys.argv[1])))
