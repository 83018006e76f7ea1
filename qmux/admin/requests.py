"""What users ask of the supervisor through the admin process, and the answers that are still awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from qmux.admin.view import STILL_S
from qmux.errors import QmuxError, UnreachableError
from qmux.messages import Reply, Request

ANSWER_TIMEOUT_S = 60.0
"""A reload of a large configuration waits for every worker; beyond this the supervisor is stuck."""

LOOK_S = 0.5
"""How often a request that waits looks whether the supervisor still lives: a stopped one answers nothing."""

MAX_WAITING = 16
"""Reloads are rare and run one after the other: more at a time are a mistake, or mischief."""


class Requests:
    """Sends with ``send``, and pairs each Reply with the Request that it answers.

    ``silent_s``: how long ago the supervisor was last heard.
    """

    def __init__(self, send: Callable[[Request], None], silent_s: Callable[[], float]) -> None:
        self._send = send
        self._silent_s = silent_s
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}

    async def reload(self, *, dry_run: bool, full: bool) -> Reply:
        """Ask for a reload and wait for what came of it; a failure is an answer too."""
        number = next(self._numbers)
        if len(self._waiting) >= MAX_WAITING:
            return _refused(number, QmuxError(f"{MAX_WAITING} reloads are waiting already; try again later"))
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send(Request(number, "reload", dry_run=dry_run, full=full))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while (silent_s := self._silent_s()) < STILL_S:
                    if (await asyncio.wait([answer], timeout=LOOK_S))[0]:
                        return answer.result()
            problem = (
                f"the supervisor stands still: nothing was heard of it for {silent_s:.0f} s (is it stopped, or out of "
                "CPU?); the reload may still happen when it goes on"
            )
            return _refused(number, UnreachableError(problem))
        except TimeoutError:
            problem = f"the supervisor did not answer within {ANSWER_TIMEOUT_S:.0f} s; its log may say why"
            return _refused(number, UnreachableError(problem))
        finally:
            del self._waiting[number]

    def answered(self, reply: Reply) -> None:
        """The supervisor answered; nothing where no request waits any more."""
        answer = self._waiting.get(reply.request_id)
        if answer is not None and not answer.done():
            answer.set_result(reply)


def _refused(number: int, error: QmuxError) -> Reply:
    return Reply(number, ok=False, lines=[str(error)], exit_code=error.exit_code)
