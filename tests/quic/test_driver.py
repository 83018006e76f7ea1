"""What the native engine's driver does with defects: of the engine, and of the layer above."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from qmux.quic.engine import Stream
from tests.aio import until
from tests.quic.harness import World

pytestmark = pytest.mark.native

PROGRAM = """
import asyncio
from qmux import log
from qmux.quic.native_engine.driver import Driver
import qmux_native

async def main():
    log.configure("info", "human", "worker-7")
    loop = asyncio.get_running_loop()
    Driver(loop)
    loop.call_soon(qmux_native.panic_now)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_panic_ends_the_process_and_is_logged() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 101
    (line,) = [line for line in ended.stderr.splitlines() if "panicked, this process ends" in line]
    assert "critical" in line
    assert "as asked" in line
    assert "native/src" in line or "src/python.rs" in line


async def test_an_event_whose_handler_fails_does_not_take_the_next_ones_along(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pair = await world.pair()
    heard = pair.client.heard
    handle = heard.stream_opened
    failures = 0

    def fails_once(stream: Stream) -> None:
        nonlocal failures
        if not failures:
            failures += 1
            raise RuntimeError("a defect")
        handle(stream)

    heard.stream_opened = fails_once  # type: ignore[method-assign]
    streams = [pair.server.connection.open_stream() for _ in range(5)]
    await asyncio.gather(*(stream.write(b"!") for stream in streams))
    await until(lambda: heard.streams.qsize() == 4, what="the streams behind the first")
    assert "an event of the native engine was not handled" in caplog.text
