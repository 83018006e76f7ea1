"""Every system that can be measured. One more: its own file, and its class in this list."""

from __future__ import annotations

from typing import Protocol

from loadtest.system import Setup, System
from loadtest.systems.direct import Direct
from loadtest.systems.haproxy import HAProxy
from loadtest.systems.qmux import QmuxAioquic, QmuxNative
from loadtest.systems.rathole import Rathole, RatholeNoise


class SystemClass(Protocol):
    """Makes a system; says beforehand whether it can run here, and whether its worker count matters."""

    @property
    def has_workers(self) -> bool: ...

    def missing(self) -> str: ...

    def __call__(self, setup: Setup) -> System: ...


SYSTEMS: dict[str, SystemClass] = {
    system.name: system for system in (Direct, HAProxy, Rathole, RatholeNoise, QmuxNative, QmuxAioquic)
}
