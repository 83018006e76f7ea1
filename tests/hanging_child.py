"""A child with a thread that does not end: as one that asks a name server that does not answer."""

from __future__ import annotations

import asyncio
import sys
import time

from qmux.child import Child, run_child
from qmux.messages import Down, Ready, Stop


class HangingRole:
    """Implements ``qmux.child.Role``."""

    def __init__(self, child: Child) -> None:
        self._child = child
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
        asyncio.get_running_loop().call_soon(lambda: child.send(Ready()))

    def received(self, message: Down, fds: list[int]) -> None:
        if isinstance(message, Stop):
            self._child.exit(7)

    def active(self) -> int:
        return 0

    async def close(self) -> None:
        print("closed")


sys.exit(run_child(int(sys.argv[1]), "worker-0", HangingRole))
