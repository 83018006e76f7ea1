"""Which worker slots QUIC packets may go to, and the kernel's copy of that knowledge."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from supervisor import programs
from supervisor.sockets import Group

log = logging.getLogger(__name__)


class Steering:
    """The slots of one daemon. Every change is in the kernel before the method returns."""

    def __init__(self, slots: Iterable[int], crash_grace_s: float) -> None:
        """At first every slot is active: its socket keeps what comes until its worker reads."""
        self._slots = tuple(slots)
        self._grace_s = crash_grace_s
        self._active = set(self._slots)
        self._live = set(self._slots)
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        self._groups: list[Group] = []

    @property
    def active(self) -> tuple[int, ...]:
        """Slots that take new connections; where there is none, the lowest live one, which refuses them."""
        return tuple(sorted(self._active)) or tuple(sorted(self._live))[:1] or self._slots[:1]

    @property
    def live(self) -> tuple[int, ...]:
        """Slots whose issued IDs find their worker. What ``active`` names is among them."""
        return tuple(sorted(self._live | set(self.active)))

    def add(self, group: Group) -> None:
        """Steer a QUIC group, whose socket number S is that of slot S."""
        self._groups.append(group)
        self._attach([group])

    def grow(self, slots: Iterable[int]) -> None:
        """There are more slots, for which every group has sockets by now. Nothing goes there before ``ready``."""
        self._slots = tuple(sorted({*self._slots, *slots}))
        self._attach(self._groups)

    def ready(self, slot: int) -> None:
        """The worker of ``slot`` takes connections."""
        self._stay(slot)
        self._change(self._active | {slot}, self._live | {slot})

    def draining(self, slot: int) -> None:
        """The worker of ``slot`` keeps what it has and takes no new connection."""
        self._stay(slot)
        self._change(self._active - {slot}, self._live | {slot})

    def crashed(self, slot: int) -> None:
        """The worker of ``slot`` is gone; unless it comes back, its packets go elsewhere after the grace time."""
        if slot in self._live and slot not in self._leaving:
            self._leaving[slot] = asyncio.get_running_loop().call_later(self._grace_s, self.gone, slot)

    def gone(self, slot: int) -> None:
        """No process serves ``slot``: its packets go to an active one from now on."""
        self._stay(slot)
        self._change(self._active - {slot}, self._live - {slot})

    def close(self) -> None:
        """Forget timers and groups; the programs end with their sockets."""
        for slot in list(self._leaving):
            self._stay(slot)
        self._groups.clear()

    def _stay(self, slot: int) -> None:
        if timer := self._leaving.pop(slot, None):
            timer.cancel()

    def _change(self, active: set[int], live: set[int]) -> None:
        if (active, live) == (self._active, self._live):
            return
        self._active, self._live = active, live
        self._attach(self._groups)
        log.debug("steering changed", extra={"active": self.active, "live": self.live})

    def _attach(self, groups: Iterable[Group]) -> None:
        program = programs.build({slot: slot for slot in self._slots}, self.live, self.active)
        for group in groups:
            programs.attach(group.sockets[0], program)
