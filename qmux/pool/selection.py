"""Which session gets the next user of a service.

Every policy ranks all sessions of the service, wherever they are connected; being connected to this worker only decides
between loads within 1 connection or 2 %, since a hand-off costs a few microseconds and a skewed pool costs users.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Sequence

import msgspec

from qmux.config.schema import Balance
from qmux.pool.candidates import Candidate, SessionKey

TIE_CONNECTIONS = 1
TIE_SHARE = 0.02


class Choice(msgspec.Struct, frozen=True):
    """The session, and the worker and row key of the connection to use."""

    session: SessionKey
    slot: int
    key: int


class Selector:
    """The selection of one service at one worker; holds what round-robin remembers."""

    def __init__(self, service: str, balance: Balance, slot: int, rng: random.Random | None = None) -> None:
        self._service = service
        self._slot = slot
        self._rng = rng or random.Random()
        self._credit: dict[SessionKey, float] = {}
        self._turn = self._rng.randrange(1 << 30)
        policies: dict[str, Callable[[Sequence[Candidate], str], Candidate]] = {
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
        eligible = [(c, c.slots()) for c in candidates if c.key not in exclude]
        reachable = [c for c, slots in eligible if self._slot in slots or any(map(usable, slots))]
        best = self._best_class(reachable)
        if not best:
            return None
        chosen = self._policy(best, source) if len(best) > 1 else best[0]
        return self._connection_of(chosen, usable)

    def _best_class(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Ready sessions, else ready backups, else suspect ones, else suspect backups; never draining ones."""
        classes: dict[tuple[int, bool], list[Candidate]] = {}
        for candidate in candidates:
            rank = candidate.rank()
            if rank < 2:
                classes.setdefault((rank, candidate.offers[self._service].backup), []).append(candidate)
        return classes[min(classes)] if classes else ()

    def _connection_of(self, chosen: Candidate, usable: Callable[[int], bool]) -> Choice | None:
        here = chosen.at(self._slot)
        if here is not None:
            return Choice(chosen.key, self._slot, here)
        slots = sorted(slot for slot in chosen.slots() if usable(slot))
        slot = slots[self._next_turn() % len(slots)]
        key = chosen.at(slot)
        return None if key is None else Choice(chosen.key, slot, key)

    # --- policies ---

    def _least_connections(self, candidates: Sequence[Candidate], _: str) -> Candidate:
        lowest = min(self._cost(candidate) for candidate in candidates)
        tied = [c for c in candidates if self._cost(c) <= lowest + self._tolerance(c, lowest)]
        # A tie goes to one that is connected here, but not when it is already ahead of the others: ties are broken by
        # the exact cost first, so that the tolerance never adds up over many users.
        here = [c for c in tied if c.at(self._slot) is not None]
        pool = here or tied
        least = min(self._cost(candidate) for candidate in pool)
        equal = [candidate for candidate in pool if self._cost(candidate) <= least]
        return equal[self._next_turn() % len(equal)]

    def _tolerance(self, candidate: Candidate, lowest: float) -> float:
        return max(TIE_CONNECTIONS / self._weight(candidate), lowest * TIE_SHARE)

    def _round_robin(self, candidates: Sequence[Candidate], _: str) -> Candidate:
        """Smooth weighted round-robin: each gains its weight, the richest is served and pays the sum."""
        total = sum(self._weight(candidate) for candidate in candidates)
        credit = self._credit
        if len(credit) > 2 * len(candidates) + 16:
            known = {candidate.key for candidate in candidates}
            self._credit = credit = {key: value for key, value in credit.items() if key in known}
        for candidate in candidates:
            start = self._rng.random() * self._weight(candidate)
            credit[candidate.key] = credit.get(candidate.key, start) + self._weight(candidate)
        chosen = max(candidates, key=lambda candidate: credit[candidate.key])
        credit[chosen.key] -= total
        return chosen

    def _two_choices(self, candidates: Sequence[Candidate], _: str) -> Candidate:
        first, second = self._rng.sample(list(candidates), 2)
        return first if self._cost(first) <= self._cost(second) else second

    def _source_hash(self, candidates: Sequence[Candidate], source: str) -> Candidate:
        """Weighted rendezvous hashing: a user moves only when the session that it was on leaves."""
        host = source.rpartition(":")[0]

        def score(candidate: Candidate) -> float:
            principal, session = candidate.key
            digest = hashlib.blake2b(f"{host}|{principal}|".encode() + session, digest_size=8).digest()
            unit = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
            return -self._weight(candidate) / math.log(unit)

        return max(candidates, key=score)

    def _cost(self, candidate: Candidate) -> float:
        return candidate.load / self._weight(candidate)

    def _weight(self, candidate: Candidate) -> int:
        return candidate.offers[self._service].weight

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn
