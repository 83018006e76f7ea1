"""``qmuxc --once``: one attempt by every way, and when all have failed, the exit code that tells most."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from qmux.worker.client.failures import UNREACHABLE, Failure


class Once:
    """The newest failure of each way. A way is an address of a server, or a server that has no address."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, Failure] = {}

    def reached(self) -> None:
        """A server answered: what failed before counts no more."""
        self._failures.clear()

    def failed(self, way: Hashable, failure: Failure, ways: Collection[Hashable]) -> int | None:
        """``way`` failed, one of ``ways``. Returns the exit code once none of them is left: what the user can mend (a
        certificate, a condition) before a server that does not answer; None while there is hope.
        """
        self._failures[way] = failure
        if not set(ways) <= set(self._failures):
            return None
        return min((each.exit_code for each in self._failures.values()), key=lambda code: (code == UNREACHABLE, code))
