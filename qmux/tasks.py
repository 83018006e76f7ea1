"""Tasks with an owner: named, referenced until they end, and an end by failure is always somebody's business; and calls
that may block, in a thread that nobody has to wait for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Never, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
"""Pauses before a kept task begins again, doubled each time: as long as those of a process that fails."""

STABLE_S = 10.0
"""One that ran for this long begins with the shortest pause again."""

OnFailure = Callable[[str, BaseException], None]
"""The task's name, and what it let out."""


def only_logged(name: str, error: BaseException) -> None:
    """For tasks that end everything of theirs themselves, such as a user's connection: the line in the log is all."""


class TaskSet:
    """The tasks of one owner. ``close`` cancels and awaits what still runs.

    An exception that a task lets out is a defect: it is logged with its traceback, and ``failed`` hears of it, which
    ends or repairs what depends on the task. A task that must not end at all is started with ``keep``.
    """

    def __init__(self, failed: OnFailure) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``coroutine``, which comes to an end, as a task of this set."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(
        self, make: Callable[[], Coroutine[Any, Any, Never]], name: str, failed: OnFailure = only_logged
    ) -> asyncio.Task[None]:
        """Run what shall not end before it is cancelled. Where it fails, ``failed`` hears of it in place of the owner,
        and it begins again after a pause that grows.
        """
        return self.start(self._keep(make, name, failed), name)

    async def close(self) -> None:
        """Cancel every task and wait until all have ended, also those that were started meanwhile. A task may close the
        set that it is in; it ends by itself then.
        """
        while tasks := self._tasks - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, make: Callable[[], Coroutine[Any, Any, Never]], name: str, failed: OnFailure) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_at = time.monotonic()
            try:
                await make()
            except Exception as error:
                _tell(failed, name, error)
            pause_s = FIRST_PAUSE_S if time.monotonic() - began_at >= STABLE_S else pause_s
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _tell(self._failed, task.get_name(), error)


def _tell(failed: OnFailure, name: str, error: BaseException) -> None:
    log.error("task %s failed", name, exc_info=error)
    failed(name, error)


async def in_thread(
    work: Callable[[], Result], name: str, abandoned: Callable[[Result], None] = lambda _: None
) -> Result:
    """What ``work`` returns or raises. It may block, on a disk or a name service, without holding the event loop.

    Cancelling gives up waiting, and the end of the process does not wait either, as it would for a thread of the loop's
    executor. What comes of ``work`` after that is passed to ``abandoned``, in its thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.done():
            give_up(result, error)
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # one of the two is there

    def give_up(result: Result | None, error: BaseException | None) -> None:
        if error is None:
            abandoned(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # whatever it is, the caller raises it
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop is closed
            give_up(result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
