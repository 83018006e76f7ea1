"""What a worker counts for each service: finished relays summed up, running ones asked when somebody wants to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from qmux.pool.rows import ServiceCounters
from qmux.quic.engine import Relay
from qmux.quic.offload import OffloadCounts


class Counters:
    """Counters of all services at one worker. ``engine``: what the engine counted itself, of users whom it serves
    alone; ``snapshot`` adds it.
    """

    def __init__(self, engine: Callable[[], Mapping[str, OffloadCounts]] = dict) -> None:
        self._engine = engine
        self._services: defaultdict[str, ServiceCounters] = defaultdict(ServiceCounters)
        self._running: defaultdict[str, set[Relay]] = defaultdict(set)

    def __getitem__(self, service: str) -> ServiceCounters:
        """The counters of ``service``, to be raised; without the bytes of running relays."""
        return self._services[service]

    def refused(self, service: str, reason: str) -> None:
        """A user was turned away."""
        refused = self._services[service].refused
        refused[reason] = refused.get(reason, 0) + 1

    def relay_started(self, service: str, relay: Relay) -> None:
        """Count the bytes of ``relay`` from now on."""
        self._services[service]  # so that a snapshot has it
        self._running[service].add(relay)

    def relay_ended(self, service: str, relay: Relay) -> None:
        """Keep what it moved."""
        self._running[service].discard(relay)
        counters = self._services[service]
        counters.bytes_in += relay.bytes_to_stream
        counters.bytes_out += relay.bytes_to_socket

    def snapshot(self) -> dict[str, ServiceCounters]:
        """All counters, the bytes of running relays included."""
        engine = self._engine()
        names = [*self._services, *(name for name, users in engine.items() if users.total)]
        return {name: self._with_running(name, engine.get(name, OffloadCounts())) for name in dict.fromkeys(names)}

    def _with_running(self, name: str, engine: OffloadCounts) -> ServiceCounters:
        counters, running = self._services[name], self._running[name]
        return ServiceCounters(
            active=counters.active + engine.active,
            total=counters.total + engine.total,
            bytes_in=counters.bytes_in + engine.bytes_to_stream + sum(relay.bytes_to_stream for relay in running),
            bytes_out=counters.bytes_out + engine.bytes_to_socket + sum(relay.bytes_to_socket for relay in running),
            retried=counters.retried,
            handed_off=counters.handed_off,
            refused=dict(counters.refused),
        )
