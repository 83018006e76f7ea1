"""Who gets the next users of a service, decided before they come: for an engine that accepts users itself.

A plan is what the service's ``Selector`` would choose for these users, one after the other, if nothing else happened
meanwhile. It holds choices that are quick and usual only: ready sessions that are connected to this worker. Where the
next choice is another one, the plan ends, and whoever comes then is looked at in person.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from qmux.config.schema import ServiceConfig
from qmux.pool.candidates import READY, Candidate, SessionKey
from qmux.pool.selection import TIE_CONNECTIONS, TIE_SHARE, Selector, SessionClass, ties

PLANNED_USERS = 64
"""Among several sessions, or one for each where there are more. A plan does not know what other workers and servers do
meanwhile, so it is short: 13,000 users a second take it within 5 ms."""

SINGLE_USERS = 1 << 20
"""For the only session of a service: there is nothing to choose."""


_Choices = Callable[[SessionClass, int], Iterable[Candidate]]


class Grant(msgspec.Struct, frozen=True):
    """The connection of this row takes ``count`` users."""

    key: int
    count: int


def may_plan(config: ServiceConfig) -> bool:
    """Whether its users need not be looked at one by one."""
    by_user = config.balance in ("source-hash", "random-two-choices")
    return not (by_user or config.early_data or config.allow or config.deny)


class Planner:
    """The plans of one service at one worker. ``selector``: of the same service, whose turns a plan takes."""

    def __init__(self, config: ServiceConfig, selector: Selector, slot: int) -> None:
        self._selector = selector
        self._service = config.name
        self._slot = slot
        by_turn = config.balance == "round-robin"
        self._choices: _Choices = self._in_turn if by_turn else self._by_load
        self._ahead: list[SessionKey] = []  # planned by turn and, as far as known, not carried out
        self._weights: dict[SessionKey, int] = {}  # of all sessions among which ``_ahead`` was chosen
        # Equal ones take turns by the users that came: plans are renewed more often than that.
        self._turn = selector.next_turn()
        self._planned = 0

    def plan(
        self,
        candidates: Sequence[Candidate],
        usable: Callable[[int], bool],
        room: Callable[[int], int],
        most: int,
        unused: int,
    ) -> list[Grant]:
        """Grants in the order of users, for ``most`` of them at most. ``room``: how many users more the connection of
        a row may have. ``unused``: how many users of the last plan have not come; it is void with this one.
        """
        self.void(unused)
        among = self._selector.best_class(candidates, usable)
        if among is None or among.rank != READY or most <= 0:
            return []
        if len(among.candidates) == 1:
            return self._single(among.candidates[0], room, min(most, SINGLE_USERS))
        keys: list[int] = []
        left: dict[int, int] = {}
        for candidate in self._choices(among, min(most, max(PLANNED_USERS, len(among.candidates)))):
            if not self._selector.is_here(candidate, READY):
                break
            key = candidate.best[self._slot][1]
            left[key] = (left[key] if key in left else room(key)) - 1
            if left[key] < 0:
                break
            keys.append(key)
        self._take_back(len(keys))
        self._planned = len(keys)
        return _grants(keys)

    def void(self, unused: int) -> None:
        """The last plan is in force no more; ``unused``: how many of its users have not come."""
        self._turn += max(0, self._planned - unused)
        self._planned = 0
        self._take_back(max(0, len(self._ahead) - unused))
        self._ahead.clear()

    def _take_back(self, kept: int) -> None:
        """Of those that were planned by turn, all but the first ``kept`` have their turn again."""
        if len(self._ahead) > kept:
            self._selector.take_back(self._ahead[kept:], self._weights)
            del self._ahead[kept:]

    def _single(self, candidate: Candidate, room: Callable[[int], int], most: int) -> list[Grant]:
        if not self._selector.is_here(candidate, READY):
            return []
        key = candidate.best[self._slot][1]
        count = min(most, room(key))
        return [Grant(key, count)] if count > 0 else []

    def _in_turn(self, among: SessionClass, most: int) -> Sequence[Candidate]:
        self._weights = {each.key: each.offers[self._service].weight for each in among.candidates}
        chosen = self._selector.turns(among, most)
        self._ahead = [candidate.key for candidate in chosen]
        return chosen

    def _by_load(self, among: SessionClass, most: int) -> Iterator[Candidate]:
        """The rules of ``Selector`` for least connections: of those whose load ties with the lowest, and that are
        connected here, the one that this worker has given the least for its weight.

        Loads only grow here, and so does the lowest: a session that ties goes on tying until it gets a user.
        """
        turn, count, is_here = self._turn, len(among.candidates), self._selector.is_here
        levels = [
            _Level(each, each.offers[self._service].weight, each.held.get(self._slot, 0), (at + turn) % count)
            for at, each in enumerate(among.candidates)
        ]
        by_cost = [(level.cost, level.order, level) for level in levels]
        apart = [(level.entry(), level.order, level) for level in levels if is_here(level.candidate, READY)]
        tied: _Heap = []
        heapq.heapify(by_cost)
        heapq.heapify(apart)
        lowest = by_cost[0][0]
        for _ in range(most):
            _move(apart, tied, lowest)
            if not tied:
                return
            level = tied[0][2]
            yield level.candidate
            level.load += 1
            level.given += 1
            level.cost = level.load / level.weight
            while (cheapest := by_cost[0])[0] != cheapest[2].cost:
                heapq.heapreplace(by_cost, (cheapest[2].cost, cheapest[1], cheapest[2]))
            lowest = cheapest[0]
            if ties(level.cost, lowest, level.weight):
                heapq.heapreplace(tied, (level.given / level.weight, level.order, level))
            else:
                heapq.heappop(tied)
                heapq.heappush(apart, (level.entry(), level.order, level))


class _Level:
    """A session while a plan fills it. ``cost``: its load for its weight; ``given``: by this worker."""

    __slots__ = ("candidate", "cost", "given", "load", "order", "weight")

    def __init__(self, candidate: Candidate, weight: int, given: int, order: int) -> None:
        self.candidate = candidate
        self.weight = weight
        self.load = candidate.load
        self.cost = self.load / weight
        self.given = given
        self.order = order

    def entry(self) -> float:
        """The lowest cost of all with which it ties, or a little less: ``ties`` decides."""
        return min(self.cost - TIE_CONNECTIONS / self.weight, self.cost / (1 + TIE_SHARE)) - _ROUNDING * self.cost


_ROUNDING = 1e-12

_Heap = list[tuple[float, int, _Level]]


def _move(apart: _Heap, tied: _Heap, lowest: float) -> None:
    """Those that tie now, to their peers, by what this worker has given them for their weight."""
    not_yet = []
    while apart and apart[0][0] <= lowest:
        entry, order, level = heapq.heappop(apart)
        if ties(level.cost, lowest, level.weight):
            heapq.heappush(tied, (level.given / level.weight, order, level))
        else:
            not_yet.append((entry, order, level))
    for each in not_yet:
        heapq.heappush(apart, each)


def _grants(keys: list[int]) -> list[Grant]:
    grants: list[Grant] = []
    for key in keys:
        if grants and grants[-1].key == key:
            grants[-1] = Grant(key, grants[-1].count + 1)
        else:
            grants.append(Grant(key, 1))
    return grants
