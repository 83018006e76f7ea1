"""Generations: the workers that are started together from one configuration, and the slots that they take.

All of it is plain data, which can be written down; the processes themselves are the fleet's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from qmux.config.loaded import Loaded
from qmux.steering import MAX_SLOT
from supervisor.seats import Seat


@dataclass
class Slots:
    """The numbers by which QUIC packets find a worker: slot S is socket S of every QUIC group.

    ``epochs``, by slot, counts the processes that were ever started in it. Nothing resets one: whoever knows a slot
    ignores what comes with an older epoch, and would ignore a new seat there that counted from the beginning again.
    """

    epochs: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many slots there are, and so how many sockets each QUIC group needs."""
        return len(self.epochs)

    def take(self) -> int:
        """A slot for a new seat: the lowest free one, or one more at the end. Raises ValueError where none is left."""
        if self.free:
            slot = min(self.free)
            self.free.remove(slot)
            return slot
        if self.count > MAX_SLOT:
            raise ValueError(f"all {self.count} slots are taken")
        self.epochs.append(0)
        return self.count - 1

    def give_back(self, slot: int) -> None:
        """The seat of ``slot`` is filled no more: another one may take it."""
        if not 0 <= slot < self.count or slot in self.free:
            raise ValueError(f"slot {slot} is not taken")
        self.free.append(slot)

    def next_epoch(self, slot: int) -> int:
        """A process starts in ``slot``: its epoch, above that of every process before it."""
        self.epochs[slot] += 1
        return self.epochs[slot]


@dataclass
class Generation:
    """Workers that were started together. ``loaded``: their configuration, which changes with a reload in place.

    ``started_at`` is wall clock, in seconds since the epoch.
    """

    number: int
    loaded: Loaded
    seats: list[Seat]
    started_at: float = field(default_factory=time.time)


def first_generation(loaded: Loaded, workers: int, slots: Slots) -> Generation:
    """The one that a daemon starts with: a seat for each of its ``workers``."""
    seats = [Seat("worker", f"worker-{index}", index, slots.take()) for index in range(workers)]
    return Generation(1, loaded, seats)
