"""Nothing in between: what the load generator and the backend reach on this path by themselves."""

from __future__ import annotations

from typing import ClassVar

from loadtest.system import Addresses
from loadtest.systems.base import Started


class Direct(Started):
    """The backends themselves."""

    name: ClassVar[str] = "direct"

    def start(self, backends: Addresses) -> Addresses:
        return backends

    def about(self) -> str:
        return "the load generator on the backend itself"
