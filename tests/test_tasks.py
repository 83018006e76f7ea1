from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from typing import Never

import pytest

from qmux.tasks import TaskSet, in_thread, only_logged
from tests import waiting
from tests.aio import polled, run, until


async def forever() -> None:
    await asyncio.Event().wait()


async def test_close_ends_everything() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    tasks = TaskSet(only_logged)
    for number in range(3):
        tasks.start(work(f"work {number}"), f"work {number}")
    await asyncio.sleep(0)
    assert len(tasks) == 3
    await tasks.close()
    assert len(tasks) == 0
    assert sorted(ended) == ["work 0", "work 1", "work 2"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_tasks_are_referenced_and_named() -> None:
    tasks = TaskSet(only_logged)
    reference = weakref.ref(tasks.start(forever(), "a name"))
    await asyncio.sleep(0)
    gc.collect()
    task = reference()
    assert task is not None
    assert task.get_name() == "a name"
    del task
    await tasks.close()


async def test_a_task_that_ends_is_forgotten() -> None:
    tasks = TaskSet(only_logged)
    tasks.start(asyncio.sleep(0), "short")
    await until(lambda: not len(tasks))


async def test_a_failure_is_logged_with_its_traceback_and_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    async def fail() -> None:
        raise RuntimeError("a defect")

    tasks = TaskSet(lambda name, error: told.append(f"{name}: {error}"))
    tasks.start(fail(), "user connection")
    await until(lambda: not len(tasks))

    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "task user connection failed")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a defect"
    assert told == ["user connection: a defect"]


async def test_a_cancelled_task_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    tasks = TaskSet(only_logged)
    tasks.start(forever(), "x").cancel()
    await until(lambda: not len(tasks))

    assert not caplog.records


async def test_a_task_may_close_its_own_set() -> None:
    tasks = TaskSet(only_logged)
    closed = asyncio.Event()

    async def close() -> None:
        await tasks.close()
        closed.set()

    tasks.start(forever(), "other")
    tasks.start(close(), "closing")
    await asyncio.wait_for(closed.wait(), 15)
    await until(lambda: not len(tasks))


async def test_what_a_task_starts_while_it_ends_is_ended_too() -> None:
    tasks = TaskSet(only_logged)

    async def work() -> None:
        try:
            await forever()
        finally:
            tasks.start(forever(), "late")

    tasks.start(work(), "work")
    await asyncio.sleep(0)
    await tasks.close()
    assert len(tasks) == 0


async def test_a_kept_task_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure, and told to who waits for it instead of the owner of the set; a cancel ends it."""
    monkeypatch.setattr("qmux.tasks.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("qmux.tasks.MAX_PAUSE_S", 0.002)
    told: list[str] = []
    owner: list[str] = []
    began = 0

    async def work() -> Never:
        nonlocal began
        began += 1
        if began < 4:
            raise RuntimeError(f"failure {began}")
        await forever()
        raise AssertionError("not reached")

    tasks = TaskSet(lambda name, _: owner.append(name))
    task = tasks.keep(work, "link", lambda name, error: told.append(f"{name}: {error}"))
    await until(lambda: began == 4)
    assert told == ["link: failure 1", "link: failure 2", "link: failure 3"]
    task.cancel()
    await until(lambda: not len(tasks))
    assert owner == []


async def test_a_kept_task_that_fails_at_once_does_not_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def no_time(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 10:
            await forever()

    async def fail() -> Never:
        raise RuntimeError("a defect")

    tasks = TaskSet(only_logged)
    monkeypatch.setattr("qmux.tasks.asyncio.sleep", no_time)
    tasks.keep(fail, "link")
    while len(pauses) < 10:
        await polled()
    await tasks.close()

    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == 5.0


# --- in a thread ---


async def test_work_in_a_thread_is_waited_for() -> None:
    def fails() -> int:
        raise ValueError("why")

    assert await in_thread(lambda: threading.current_thread().name, "work") == "work"
    with pytest.raises(ValueError, match="why"):
        await in_thread(fails, "work")


def test_nobody_has_to_wait_for_work_that_hangs() -> None:
    goes_on = threading.Event()
    late: list[str] = []

    def work() -> str:
        goes_on.wait()
        return "late"

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await in_thread(work, "work", abandoned=late.append)

    run(main())  # returns: nothing joins the thread
    goes_on.set()
    waiting.until(lambda: late == ["late"], "what came of it is given up")
