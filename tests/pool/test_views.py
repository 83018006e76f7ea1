"""Workers that publish and copy over a bus that loses, delays and mixes: one full pass of each heals every view."""

from __future__ import annotations

from collections import deque
from unittest import mock

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qmux.pool import chunks, publication
from qmux.pool.pool import Pool
from qmux.pool.rows import BusMessage, Delta, Offer, Pass, Row
from tests.depth import examples
from tests.pool.examples import expected_view, row, view_of_pool

SERVICES = ("a", "b", "c")

slots = st.integers(0, 3)
names = st.sampled_from(["pod-1", "pod-2", "pod-3"])
offers = st.lists(st.builds(Offer, st.sampled_from(SERVICES), st.integers(1, 3), st.booleans()), max_size=3)
states = st.sampled_from(["ready", "suspect", "draining"])
counts = st.integers(0, 20)

_decoder = msgspec.msgpack.Decoder(BusMessage)


class Bus(RuleBasedStateMachine):
    """``truth``: slot → the pool of the worker that lives there. Rows and passes are cut small, to have many chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._small = [
            mock.patch.object(publication, "ROWS_PER_PASS", 4),
            mock.patch.object(chunks, "ROWS_PER_CHUNK", 2),
        ]
        for patch in self._small:
            patch.start()
        self.now = 0.0
        self.keys = 0
        self.epochs: dict[int, int] = {}
        self.pools: dict[int, Pool] = {}
        self.under_way: dict[tuple[int, int], deque[Delta | Pass]] = {}
        self.changes: dict[int, int] = {}

    def teardown(self) -> None:
        for patch in self._small:
            patch.stop()

    # --- processes ---

    @initialize(alive=st.integers(1, 4))
    def begin(self, alive: int) -> None:
        for slot in range(alive):
            self._spawn(slot)

    @rule(slot=slots)
    def restart(self, slot: int) -> None:
        """A new process in the slot; what the old one said may still arrive, also at the new one."""
        self._spawn(slot)

    @rule(slot=slots)
    def die(self, slot: int) -> None:
        if slot in self.pools and len(self.pools) > 1:
            del self.pools[slot]

    @rule(slot=slots)
    def announce(self, slot: int) -> None:
        """The supervisor names the live workers, sooner or later."""
        if slot in self.pools:
            self.pools[slot].set_live({live: self.epochs[live] for live in self.pools})

    @rule(slot=slots, data=st.data())
    def forget(self, slot: int, data: st.DataObject) -> None:
        """The death of an earlier process of this slot alone."""
        if slot in self.pools:
            for other in self.pools.values():
                other.forget(slot, data.draw(st.integers(-1, self.epochs[slot] - 1)))

    def _spawn(self, slot: int) -> None:
        self.epochs[slot] = self.epochs.get(slot, 0) + 1
        self.pools[slot] = Pool(slot, self.epochs[slot])
        self.changes[slot] = 0
        self.pools[slot].subscribe(lambda: self._count(slot))

    def _count(self, slot: int) -> None:
        self.changes[slot] += 1

    # --- rows ---

    @rule(slot=slots, name=names, offers=offers, state=states, at=counts, load=counts, since=counts)
    def add(self, slot: int, name: str, offers: list[Offer], state: str, at: int, load: int, since: int) -> None:
        if slot not in self.pools:
            return
        self.keys += 1
        unique = tuple({offer.service: offer for offer in offers}.values())
        before = self.changes[slot]
        self.pools[slot].add(
            row(self.keys, name, offers=unique, state=state, active_at_ms=at, active_total=load, connected_at_ms=since)
        )
        assert self.changes[slot] == before + 1

    @rule(slot=slots, data=st.data(), active=counts, told=counts, load=counts, at=counts, state=states, offers=offers)
    def update(
        self,
        slot: int,
        data: st.DataObject,
        active: int,
        told: int,
        load: int,
        at: int,
        state: str,
        offers: list[Offer],
    ) -> None:
        if key := self._some_key(slot, data):
            self.pools[slot].update(
                key,
                active=active,
                active_here=told,
                active_total=load,
                active_at_ms=at,
                state=state,
                offers=tuple({offer.service: offer for offer in offers}.values()),
            )

    @rule(slot=slots, data=st.data())
    def remove(self, slot: int, data: st.DataObject) -> None:
        if key := self._some_key(slot, data):
            self.pools[slot].remove(key)
            assert self.pools[slot].own(key) is None

    @rule(slot=slots, service=st.sampled_from(SERVICES), count=counts)
    def users(self, slot: int, service: str, count: int) -> None:
        if slot in self.pools:
            self.pools[slot].set_active(service, count)

    def _some_key(self, slot: int, data: st.DataObject) -> int | None:
        keys = [each.key for at, each in self.pools[slot].rows() if at == slot] if slot in self.pools else []
        return data.draw(st.sampled_from(keys)) if keys else None

    # --- messages ---

    @rule(slot=slots, lost=st.booleans())
    def publish_delta(self, slot: int, lost: bool) -> None:
        if slot in self.pools and (delta := self.pools[slot].take_delta()) is not None and not lost:
            self._send(delta)

    @rule(slot=slots, lost=st.lists(st.booleans(), min_size=4, max_size=4))
    def publish_pass(self, slot: int, lost: list[bool]) -> None:
        if slot in self.pools:
            for number, message in enumerate(self.pools[slot].passes()):
                if not lost[number % len(lost)]:
                    self._send(message)

    @rule(sender=slots, receiver=slots, lost=st.booleans())
    def deliver(self, sender: int, receiver: int, lost: bool) -> None:
        """In order for one sender, as ZeroMQ keeps it; senders in any order among each other."""
        queue = self.under_way.get((sender, receiver))
        if queue:
            message = queue.popleft()
            if not lost and receiver in self.pools:
                self.pools[receiver].receive(message, self.now)

    def _send(self, message: Delta | Pass) -> None:
        copied = _decoder.decode(msgspec.msgpack.encode(message))
        assert copied == message
        for receiver in range(4):
            self.under_way.setdefault((message.slot, receiver), deque()).append(message)

    # --- what must hold ---

    @invariant()
    def indexes_agree_with_rows(self) -> None:
        for each in self.pools.values():
            assert view_of_pool(each, SERVICES) == expected_view(each.rows())
            assert each.session_count() == len({(held.principal, held.session) for _, held in each.rows()})

    @invariant()
    def nobody_invents_or_changes_own_rows(self) -> None:
        for slot, each in self.pools.items():
            assert {at for at, _ in each.rows()} <= set(self.epochs)
            assert all(each.own(held.key) == held for at, held in each.rows() if at == slot)

    @rule()
    def heal(self) -> None:
        """What is under way arrives, deaths are announced, one full pass of each: all views are the truth."""
        for (_, receiver), queue in self.under_way.items():
            while queue:
                message = queue.popleft()
                if receiver in self.pools:
                    self.pools[receiver].receive(message, self.now)
        for slot in self.pools:
            self.announce(slot)
        self.now += 1.0
        for sender in self.pools.values():
            for _ in range(2 + self.keys // 4):  # the first may have begun in the middle
                for message in sender.passes():
                    for other in self.pools.values():
                        other.receive(message, self.now)
        truth = [(slot, each) for slot, owner in self.pools.items() for at, each in owner.rows() if at == slot]
        for viewer in self.pools.values():
            assert sorted(viewer.rows(), key=_order) == sorted(truth, key=_order)
            assert view_of_pool(viewer, SERVICES) == expected_view(truth)
            for service in SERVICES:
                assert viewer.active(service) == sum(
                    owner._active[slot].get(service, 0) for slot, owner in self.pools.items()
                )
            assert not any(viewer.is_late(slot, self.now) for slot in self.pools)


def _order(place: tuple[int, Row]) -> tuple[int, int]:
    return place[0], place[1].key


Bus.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
test_views = Bus.TestCase
