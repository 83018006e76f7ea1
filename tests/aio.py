"""Running asyncio code in tests: the loop that the workers use, a deadline, and waiting for a state by polling."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Result = TypeVar("Result")


def run(
    coroutine: Coroutine[Any, Any, Result], timeout_s: float = 60.0, loop_factory: LoopFactory = uvloop.new_event_loop
) -> Result:
    """Run a coroutine on a fresh loop: for tests that are no coroutines themselves, as those of real daemons."""

    async def bounded() -> Result:
        async with asyncio.timeout(timeout_s):
            return await coroutine

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(bounded())


def run_test(
    make: Callable[[], Coroutine[Any, Any, None]],
    timeout_s: float = 60.0,
    loop_factory: LoopFactory = uvloop.new_event_loop,
) -> None:
    """Run the coroutine that ``make`` gives, and fail where a callback raised: the loop would only log that."""
    failures: list[dict[str, Any]] = []

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        await make()

    run(body(), timeout_s, loop_factory)
    assert failures == []


async def until(condition: Callable[[], Any], timeout_s: float = 15.0, what: str = "") -> Any:
    """Poll until ``condition``, which may be a coroutine function, gives something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (result := await _given(condition)):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(0.005)  # the poller
    return result


async def _given(condition: Callable[[], Any]) -> Any:
    result = condition()
    return await result if inspect.iscoroutine(result) else result


async def stays(condition: Callable[[], Any], for_s: float) -> bool:
    """Whether it holds now and for all of that time: for what must not happen, which no state shows."""
    deadline = time.monotonic() + for_s
    while condition():
        if time.monotonic() > deadline:
            return True
        await asyncio.sleep(0.005)  # the poller
    return False


async def stands_still(counter: Callable[[], int], for_s: float = 0.6) -> None:
    """Wait until a counter has begun to count and then not moved for a while: everything between is full."""
    first = counter()
    await until(lambda: counter() != first, what="something moves")
    seen, since = counter(), time.monotonic()
    while time.monotonic() < since + for_s:
        await asyncio.sleep(0.005)  # the poller
        if (now := counter()) != seen:
            seen, since = now, time.monotonic()


async def lasts(for_s: float) -> None:
    """A fault, or a silence, that lasts for this time, which itself is what the test needs: no state tells its end."""
    await asyncio.sleep(for_s)  # what the caller asks for


async def polled() -> None:
    """Until the loop has looked at its sockets once: what could be read or written before has been told."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    looked: asyncio.Future[None] = loop.create_future()
    with near, far:
        far.send(b".")
        loop.add_reader(near, lambda: looked.done() or looked.set_result(None))
        try:
            await looked
        finally:
            loop.remove_reader(near)
