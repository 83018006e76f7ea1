"""Tasks with an owner: named, referenced until they end, and their failures are logged instead of lost; and calls that
may block, in a thread that nobody has to wait for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class TaskSet:
    """The tasks of one owner. ``close`` cancels and awaits what still runs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``coroutine`` as a task of this set. An exception that it lets out is a defect: logged with traceback."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel every task and wait until all have ended, also those that were started meanwhile. A task may close the
        set that it is in; it ends by itself then.
        """
        while tasks := self._tasks - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)


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
