"""A subscriber in a process of its own, for a test that stops it: says ``heard`` once, then goes on reading."""

from __future__ import annotations

import asyncio
import sys

from qmux.bus import Subscriber
from qmux.pool.rows import BusMessage


async def main(endpoint: str) -> None:
    said = False

    def on_message(_: BusMessage) -> None:
        nonlocal said
        if not said:
            said = True
            print("heard", flush=True)

    subscriber = Subscriber(endpoint, on_message)
    try:
        await asyncio.Event().wait()
    finally:
        subscriber.close()


asyncio.run(main(sys.argv[1]))
