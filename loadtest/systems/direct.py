"""Nothing in between: what the load generator and the backend reach on this machine by themselves."""

from __future__ import annotations

from loadtest.system import Address, Options


class Direct:
    """The backend itself."""

    name = "direct"

    def __init__(self, options: Options) -> None:
        pass

    def start(self, backend: Address) -> Address:
        return backend

    def stop(self) -> None:
        pass

    def pids(self) -> list[int]:
        return []

    def about(self) -> str:
        return "the load generator on the backend itself"
