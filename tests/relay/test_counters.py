from __future__ import annotations

import asyncio

from qmux.pool.rows import ServiceCounters
from qmux.quic.engine import Relay
from qmux.quic.offload import OffloadCounts
from qmux.relay.counters import Counters


class Moved(Relay):
    """A relay that moved this much."""

    done: asyncio.Future  # type: ignore[type-arg]

    def __init__(self, to_stream: int, to_socket: int) -> None:
        self._moved = (to_stream, to_socket)

    @property
    def bytes_to_stream(self) -> int:
        return self._moved[0]

    @property
    def bytes_to_socket(self) -> int:
        return self._moved[1]

    def more(self, to_stream: int) -> None:
        self._moved = (self._moved[0] + to_stream, self._moved[1])

    def abort(self) -> None:
        raise NotImplementedError


def test_running_and_finished_relays_are_summed_once() -> None:
    counters = Counters()
    first, second = Moved(10, 100), Moved(1, 2)
    counters.relay_started("web", first)
    counters.relay_started("web", second)
    assert counters.snapshot() == {"web": ServiceCounters(bytes_in=11, bytes_out=102)}
    counters.relay_ended("web", first)
    second.more(5)
    assert counters.snapshot() == {"web": ServiceCounters(bytes_in=16, bytes_out=102)}
    counters.relay_ended("web", second)
    assert counters.snapshot() == {"web": ServiceCounters(bytes_in=16, bytes_out=102)}


def test_services_and_reasons_are_kept_apart() -> None:
    counters = Counters()
    counters["web"].total += 1
    counters["web"].active = 1
    counters.refused("web", "maxconn")
    counters.refused("web", "maxconn")
    counters.refused("web", "denied")
    counters.refused("ssh", "denied")
    assert counters.snapshot() == {
        "web": ServiceCounters(active=1, total=1, refused={"maxconn": 2, "denied": 1}),
        "ssh": ServiceCounters(refused={"denied": 1}),
    }


def test_a_snapshot_does_not_change_later() -> None:
    counters = Counters()
    counters.refused("web", "denied")
    before = counters.snapshot()
    counters.refused("web", "denied")
    counters["web"].total += 1
    assert before == {"web": ServiceCounters(refused={"denied": 1})}


def test_what_the_engine_counted_is_added() -> None:
    engine = {"web": OffloadCounts(1, 2, 30, 40), "ssh": OffloadCounts(), "smtp": OffloadCounts(0, 1, 5, 6)}
    counters = Counters(lambda: engine)
    counters["web"].total = 1
    counters.refused("web", "refused")
    assert counters.snapshot() == {
        "web": ServiceCounters(active=1, total=3, bytes_in=40, bytes_out=30, refused={"refused": 1}),
        "smtp": ServiceCounters(total=1, bytes_in=6, bytes_out=5),
    }
