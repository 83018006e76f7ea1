"""Which session gets the next user of a service.

Every policy ranks all sessions of the service, wherever they are connected; being connected to this worker only decides
between loads within 1 connection or 2 %, since a hand-off costs a few microseconds and a skewed pool costs users.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from qmux.config.schema import Balance
from qmux.pool.candidates import HASH_PRIME, Candidate, SessionKey, spread_hash

TIE_CONNECTIONS = 1
TIE_SHARE = 0.02


class Choice(msgspec.Struct, frozen=True):
    """The session, and the worker and row key of the connection to use."""

    session: SessionKey
    slot: int
    key: int


class SessionClass(msgspec.Struct):
    """Sessions that are equally good but for their load; ``rank``: of the connections to use."""

    rank: int
    candidates: list[Candidate]


class Selector:
    """The selection of one service at one worker; holds what round-robin remembers."""

    def __init__(self, service: str, balance: Balance, slot: int, rng: random.Random | None = None) -> None:
        self._service = service
        self._slot = slot
        self._rng = rng or random.Random()
        self._credit: dict[SessionKey, float] = {}
        self._turn = self._rng.randrange(1 << 30)
        policies: dict[str, Callable[[SessionClass, str], Candidate]] = {
            "least-connections": self._least_connections,
            "round-robin": self._round_robin,
            "random-two-choices": self._two_choices,
            "source-hash": self._source_hash,
        }
        self._policy = policies[balance]

    def choose(
        self,
        candidates: Sequence[Candidate],
        source: str,
        exclude: Collection[SessionKey] = (),
        usable: Callable[[int], bool] = lambda slot: True,
    ) -> Choice | None:
        """The best session for a user from ``source``, or None. ``usable``: whether a worker may be handed users."""
        reachable = _Reachable(self._slot, usable)
        best = self._best_class(candidates, exclude, reachable)
        if best is None:
            return None
        chosen = self._policy(best, source) if len(best.candidates) > 1 else best.candidates[0]
        return self._connection_of(chosen, best.rank, reachable)

    def best_class(self, candidates: Sequence[Candidate], usable: Callable[[int], bool]) -> SessionClass | None:
        """Those among which ``choose`` would choose."""
        return self._best_class(candidates, (), _Reachable(self._slot, usable))

    def _best_class(
        self, candidates: Sequence[Candidate], exclude: Collection[SessionKey], reachable: _Reachable
    ) -> SessionClass | None:
        """Ready sessions, else ready backups, else suspect ones, else suspect backups; never draining ones."""
        service = self._service
        classes: tuple[list[Candidate], ...] = ([], [], [], [])
        for candidate in candidates:
            slots = reachable[candidate.slots]
            if not slots or candidate.key in exclude:
                continue
            rank = candidate.rank
            if len(slots) < len(candidate.slots):
                rank = min(candidate.best[slot][0] for slot in slots)
            classes[2 * rank + candidate.offers[service].backup].append(candidate)
        return next((SessionClass(at // 2, sessions) for at, sessions in enumerate(classes) if sessions), None)

    def _connection_of(self, chosen: Candidate, rank: int, reachable: _Reachable) -> Choice:
        """Its best connection here if that is of this rank, else the one at another worker, each in turn."""
        best = chosen.best
        if self.is_here(chosen, rank):
            return Choice(chosen.key, self._slot, best[self._slot][1])
        slots = sorted(slot for slot in reachable[chosen.slots] if best[slot][0] == rank)
        slot = slots[self.next_turn() % len(slots)]
        return Choice(chosen.key, slot, best[slot][1])

    def is_here(self, candidate: Candidate, rank: int) -> bool:
        """Whether its best connection to this worker is of this rank."""
        best = candidate.best.get(self._slot)
        return best is not None and best[0] == rank

    # --- policies ---

    def _least_connections(self, among: SessionClass, _: str) -> Candidate:
        return self._cheapest(among.candidates, among.rank)

    def _cheapest(self, candidates: Sequence[Candidate], rank: int) -> Candidate:
        """The lowest load for its weight. Of those that tie by the tolerance one that is connected here, and of those
        the one that this worker has given the least for its weight.

        What the others gave is some milliseconds old. Would a tie go to the lowest load, every worker would give its
        users to the same session until it hears of the others; by its own count each spreads them on its own.
        """
        service = self._service
        costs = [candidate.load / candidate.offers[service].weight for candidate in candidates]
        lowest = min(costs)
        # The widest tolerance that any has, so that few are looked at more closely.
        limit = lowest + max(TIE_CONNECTIONS, lowest * TIE_SHARE)
        near = [(cost, candidate) for cost, candidate in zip(costs, candidates, strict=True) if cost <= limit]
        tied = [
            (cost, each) for cost, each in near if self.is_here(each, rank) and ties(cost, lowest, self._weight(each))
        ]
        if tied:
            near = [(each.held.get(self._slot, 0) / self._weight(each), each) for _, each in tied]
            lowest = min(given for given, _ in near)
        equal = [each for cost, each in near if cost <= lowest]
        return equal[self.next_turn() % len(equal)]

    def _round_robin(self, among: SessionClass, _: str) -> Candidate:
        """Smooth weighted round-robin: each gains its weight, the richest is served and pays the sum. A session begins
        with a random credit, so that workers do not all begin with the same one.
        """
        credit, service = self._credits(among), self._service
        total, richest, chosen = 0, -math.inf, among.candidates[0]
        for candidate in among.candidates:
            weight = candidate.offers[service].weight
            total += weight
            held = credit.get(candidate.key)
            credit[candidate.key] = value = weight + (self._rng.random() * weight if held is None else held)
            if value > richest:
                richest, chosen = value, candidate
        credit[chosen.key] -= total
        return chosen

    def _credits(self, among: SessionClass) -> dict[SessionKey, float]:
        if len(self._credit) > 2 * len(among.candidates) + 16:
            known = {candidate.key for candidate in among.candidates}
            self._credit = {key: value for key, value in self._credit.items() if key in known}
        return self._credit

    def turns(self, among: SessionClass, count: int) -> list[Candidate]:
        """The next ``count`` choices of round-robin. Those of one weight gain alike, so the richest of them is the
        first of a heap, whatever the turn: many choices cost little more than one.
        """
        credit, service = self._credits(among), self._service
        by_weight: dict[int, list[tuple[float, int, Candidate]]] = {}
        for order, candidate in enumerate(among.candidates):
            weight = candidate.offers[service].weight
            held = credit.get(candidate.key)
            owed = -(self._rng.random() * weight if held is None else held)
            by_weight.setdefault(weight, []).append((owed, order, candidate))
        for heap in by_weight.values():
            heapq.heapify(heap)
        total = sum(weight * len(heap) for weight, heap in by_weight.items())
        chosen = []
        for turn in range(1, count + 1):
            _, _, heap = max((weight * turn - heap[0][0], -heap[0][1], heap) for weight, heap in by_weight.items())
            owed, order, candidate = heap[0]
            heapq.heapreplace(heap, (owed + total, order, candidate))
            chosen.append(candidate)
        for weight, heap in by_weight.items():
            for owed, _, candidate in heap:
                credit[candidate.key] = weight * count - owed
        return chosen

    def take_back(self, chosen: Collection[SessionKey], weights: Mapping[SessionKey, int]) -> None:
        """These choices by ``turns`` are not carried out; ``weights`` of all among which they were made."""
        total = sum(weights.values())
        for key, weight in weights.items():
            if key in self._credit:
                self._credit[key] -= weight * len(chosen)
        for key in chosen:
            if key in self._credit:
                self._credit[key] += total

    def _two_choices(self, among: SessionClass, _: str) -> Candidate:
        """The cheaper of two that are drawn by weight: drawn evenly, a heavy one would not come up often enough."""
        first = self._draw(among.candidates)
        second = self._draw([candidate for candidate in among.candidates if candidate is not first])
        return self._cheapest([first, second], among.rank)

    def _draw(self, candidates: Sequence[Candidate]) -> Candidate:
        weights = itertools.accumulate(map(self._weight, candidates))
        return self._rng.choices(candidates, cum_weights=list(weights))[0]

    def _source_hash(self, among: SessionClass, source: str) -> Candidate:
        """Weighted rendezvous hashing: a user moves only when the session that it was on leaves."""
        user, service, log = spread_hash(source.rpartition(":")[0].encode()), self._service, math.log
        highest, chosen = -math.inf, among.candidates[0]
        for candidate in among.candidates:
            unit = ((user * candidate.hash % HASH_PRIME >> 9) + 0.5) * 2.0**-52  # within 0 and 1, both excluded
            score = candidate.offers[service].weight / -log(unit)
            if score > highest:
                highest, chosen = score, candidate
        return chosen

    def _weight(self, candidate: Candidate) -> int:
        return candidate.offers[self._service].weight

    def next_turn(self) -> int:
        """Counts from a random start: equal ones take turns, and not the same one begins at every worker."""
        self._turn += 1
        return self._turn


def ties(cost: float, lowest: float, weight: int) -> bool:
    """Whether a load for its weight is as good as the lowest one."""
    return cost <= lowest + max(TIE_CONNECTIONS / weight, lowest * TIE_SHARE)


class _Reachable(dict[frozenset[int], frozenset[int]]):
    """Which of these slots can be used: this worker's own and those that may be handed users, each asked once."""

    def __init__(self, own: int, usable: Callable[[int], bool]) -> None:
        super().__init__()
        self._usable = {own: True}
        self._ask = usable

    def __missing__(self, slots: frozenset[int]) -> frozenset[int]:
        for slot in slots - self._usable.keys():
            self._usable[slot] = self._ask(slot)
        self[slots] = usable = frozenset(slot for slot in slots if self._usable[slot])
        return usable
