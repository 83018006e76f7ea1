"""A process that may open few descriptors and accepts on a listener: its own limit, so a process of its own.

Prints a line for each thing that happens; holds the users until the other end of standard input is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys

from qmux.relay.listener import Listener


def say(text: str) -> None:
    print(text, flush=True)


async def main(descriptors: int) -> None:
    held: list[socket.socket] = []

    def on_accept(user: socket.socket, _: object) -> None:
        held.append(user)
        say(f"accepted {len(held)}")

    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener = Listener(listening, "web", on_accept, lambda: True)
    listener.start()
    stop = asyncio.Event()

    def on_line() -> None:
        if os.read(0, 100).startswith(b"free"):
            while held:
                held.pop().close()
        else:
            stop.set()

    asyncio.get_running_loop().add_reader(0, on_line)
    first_free = os.dup(0)
    os.close(first_free)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + descriptors, hard))
    say(f"port {listening.getsockname()[1]}")
    await stop.wait()
    listener.close(shutdown=True)


logging.basicConfig(stream=sys.stdout, format="log %(message)s: %(reason)s")
asyncio.run(main(int(sys.argv[1])))
