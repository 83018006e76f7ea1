from __future__ import annotations

import asyncio
import time

from qmux.worker.signal import BATCH, COALESCE_S, ChangeSignal
from tests.aio import until


async def test_everybody_is_woken_once_who_waits_longest_first() -> None:
    signal = ChangeSignal()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await signal.wait(10)
        woken.append(number)

    count = 3 * BATCH + 1
    tasks = [asyncio.ensure_future(wait(number)) for number in range(count)]
    await asyncio.sleep(0)
    signal.fire()
    signal.fire()
    seen = 0
    while len(woken) < count:  # turn by turn: a machine that stood still lets several timers be due at once
        await asyncio.sleep(0)
        assert len(woken) - seen <= BATCH
        seen = len(woken)
    await asyncio.gather(*tasks)
    assert woken == list(range(count))


async def test_a_change_during_a_round_reaches_those_that_were_woken_already() -> None:
    signal = ChangeSignal()
    rounds = [0] * (2 * BATCH)

    async def wait(number: int) -> None:
        while True:
            await signal.wait(10)
            rounds[number] += 1

    tasks = [asyncio.ensure_future(wait(number)) for number in range(len(rounds))]
    await asyncio.sleep(0)
    signal.fire()
    await until(lambda: rounds[0] == 1)
    signal.fire()
    await until(lambda: min(rounds) >= 2 or (rounds[0] >= 2 and min(rounds) >= 1))
    await asyncio.sleep(10 * COALESCE_S)  # nothing more must happen
    assert rounds[0] >= 2
    assert max(rounds) <= 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_timeout_and_cancellation_leave_nothing() -> None:
    signal = ChangeSignal()
    started = time.monotonic()
    await signal.wait(0.05)
    assert time.monotonic() - started < 30.0
    waiting = asyncio.ensure_future(signal.wait(10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    signal.fire()  # nobody waits: no timer
    assert signal._timer is None
    assert not signal._waiting


async def test_wait_until() -> None:
    signal = ChangeSignal()
    values: list[int] = []

    def change() -> None:
        values.append(1)
        signal.fire()

    asyncio.get_running_loop().call_later(0.02, change)
    assert await signal.wait_until(lambda: bool(values), 5.0)
    assert not await signal.wait_until(lambda: len(values) > 1, 0.02)
