"""Every system that can be measured. One more: its own file, and its class in this list."""

from __future__ import annotations

from collections.abc import Callable

from loadtest.system import Options, System
from loadtest.systems.direct import Direct
from loadtest.systems.haproxy import HAProxy
from loadtest.systems.qmux import Qmux
from loadtest.systems.rathole import Rathole, RatholeNoise

SYSTEMS: dict[str, Callable[[Options], System]] = {
    system.name: system for system in (Direct, HAProxy, Qmux, Rathole, RatholeNoise)
}

DEFAULT = (Direct.name, HAProxy.name, Qmux.name)
"""What is measured unless others are named: what scripts/test-tools installs."""
