"""What the watchdog does with a process that never says a word: ``sleep`` is one, and starts at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisor.privileges import Owner
from supervisor.process import Launch, Process, all_ended
from supervisor.settings import Settings
from supervisor.watchdog import Watchdog
from tests.aio import until

pytestmark = pytest.mark.asyncio_loop

ME = Owner(os.geteuid(), os.getegid(), drops=False)


@contextlib.asynccontextmanager
async def a_sleeper(tmp_path: Path) -> AsyncIterator[Process]:
    with (tmp_path / "lock").open("w") as lock:
        process = Process(
            kind="worker",
            name="worker-0",
            index=0,
            slot=0,
            epoch=1,
            launch=Launch(lambda *_: ["sleep", "60"], ME, lock.fileno(), lambda: 2),
            on_message=lambda *_: None,
            on_ended=lambda _: None,
        )
        try:
            yield process
        finally:
            process.kill()
            assert await all_ended([process], 30)


async def test_a_process_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    async with a_sleeper(tmp_path) as process:
        watchdog = Watchdog(lambda: [process], Settings(start_timeout_s=0.1))
        watchdog.look()
        assert process.state == "starting"
        await until(lambda: process.lived_s > 0.1)
        watchdog.look()
        assert process.state == "stuck"
        assert await all_ended([process], 30)


async def test_silence_counts_from_the_last_message_and_is_forgiven_after_a_stall_of_ours(tmp_path: Path) -> None:
    async with a_sleeper(tmp_path) as process:
        watchdog = Watchdog(lambda: [process], Settings(watchdog_s=0.1))
        process.was_ready = process.was_heard = True
        await until(lambda: process.silent_s > 0.1)
        watchdog.look(stalled=True)
        watchdog.look()
        assert process.state == "starting"
        await until(lambda: process.silent_s > 0.1)
        watchdog.look()
        assert process.state == "stuck"
        assert await all_ended([process], 30)


async def test_a_process_that_is_being_stopped_may_be_silent(tmp_path: Path) -> None:
    async with a_sleeper(tmp_path) as process:
        watchdog = Watchdog(lambda: [process], Settings(watchdog_s=0.1, start_timeout_s=0.1))
        process.was_heard = True
        process.state = "stopping"
        await until(lambda: process.silent_s > 0.1)
        watchdog.look()
        assert process.state == "stopping"
        assert not process.ended.is_set()
