"""A plan is what the selector would choose for the same users, one after the other."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmux.config.schema import Balance, ServiceConfig
from qmux.pool.candidates import Candidate
from qmux.pool.planning import PLANNED_USERS, SINGLE_USERS, Grant, Planner, may_plan
from qmux.pool.rows import Offer
from qmux.pool.selection import Choice, Selector
from tests.depth import examples
from tests.pool.examples import SERVICE, candidate, hold, row, seeded, session

SLOT = 0
SOURCE = "192.0.2.1:4000"


def everywhere(_: int) -> bool:
    return True


def endless(_: int) -> int:
    return 1 << 30


def planner(balance: Balance = "least-connections", slot: int = SLOT, seed: int = 1) -> Planner:
    return Planner(ServiceConfig(name=SERVICE, balance=balance), Selector(SERVICE, balance, slot, seeded(seed)), slot)


def keyed(sessions: Sequence[Candidate]) -> dict[int, Candidate]:
    """Sessions by the key of their row here; ``numbered`` made them differ."""
    return {held.best[SLOT][1]: held for held in sessions if SLOT in held.best}


def numbered(
    name: str, key: int, slots: Sequence[int] = (0,), load: int = 0, weight: int = 1, **changes: object
) -> Candidate:
    """As ``examples.session``, with a row key of its own."""
    return session(name, slots, load, weight, key=key, **changes)


def planned(
    made: Planner,
    sessions: Sequence[Candidate],
    room: Callable[[int], int] = endless,
    most: int = PLANNED_USERS,
    unused: int = 0,
    usable: Callable[[int], bool] = everywhere,
) -> list[str]:
    """Who gets the next users, by name."""
    by_key = keyed(sessions)
    grants = made.plan(sessions, usable, room, most, unused)
    assert all(grant.count > 0 for grant in grants)
    return [by_key[grant.key].key[0] for grant in grants for _ in range(grant.count)]


def possible(sessions: Sequence[Candidate], balance: Balance = "least-connections") -> set[tuple[str, int]]:
    """Whom the selector may choose now: equal ones take turns, so as many choices as there are sessions name all."""
    chooser = Selector(SERVICE, balance, SLOT, seeded())
    choices = [chooser.choose(sessions, SOURCE) for _ in sessions]
    return {(choice.session[0], choice.slot) for choice in choices if choice is not None}


SESSIONS = st.lists(
    st.tuples(
        st.sampled_from([(0,), (0,), (0, 1), (1,)]),
        st.integers(0, 40) | st.integers(95, 106),
        st.integers(1, 4),
        st.integers(0, 3),
    ),
    min_size=2,
    max_size=7,
)


def built(figures: Sequence[tuple[tuple[int, ...], int, int, int]]) -> list[Candidate]:
    made = []
    for number, (slots, load, weight, here) in enumerate(figures):
        name = f"pod-{number}"
        offers = (Offer(SERVICE, weight),)
        places = [(slot, row(number + 1, name, offers=offers, active_total=load, active_at_ms=1)) for slot in slots]
        made.append(candidate(name, *places))
        for _ in range(here if SLOT in slots else 0):
            hold(made[-1], SLOT)
    return made


# --- least connections ---


@settings(max_examples=examples(300), deadline=None)
@given(SESSIONS)
def test_by_load_each_choice_is_one_of_the_selector(figures: list[tuple[tuple[int, ...], int, int, int]]) -> None:
    sessions = built(figures)
    names = planned(planner(), sessions)
    by_name = {held.key[0]: held for held in sessions}
    for name in names:
        assert (name, SLOT) in possible(sessions)
        hold(by_name[name], SLOT)
    if len(names) < PLANNED_USERS:  # it ends where the next choice is connected elsewhere
        assert all(slot != SLOT for _, slot in possible(sessions))


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
def test_by_load_plans_follow_the_weights(weights: tuple[int, ...]) -> None:
    sessions = [numbered(f"pod-{at}", at + 1, weight=weight) for at, weight in enumerate(weights)]
    by_name = {held.key[0]: held for held in sessions}
    made, counts = planner(), collections.Counter[str]()
    while counts.total() < 3000:
        names = planned(made, sessions)
        for name in names:
            hold(by_name[name], SLOT)
        counts.update(names)
    for at, weight in enumerate(weights):
        assert counts[f"pod-{at}"] == pytest.approx(counts.total() * weight / sum(weights), rel=0.02)


def test_by_load_who_has_less_is_filled_first() -> None:
    sessions = [numbered("full", 1, load=20), numbered("empty", 2, load=0)]
    assert planned(planner(), sessions, most=18) == ["empty"] * 18


def test_by_load_users_who_come_one_after_the_other_take_turns() -> None:
    """Each is gone before the next one comes, and plans are renewed when they come, when they go, and in between."""
    made, sessions = planner(), [numbered("a", 1), numbered("b", 2)]
    served, unused = [], 0
    for _ in range(10):
        for _ in range(3):
            first = planned(made, sessions, unused=unused)[0]
            unused = PLANNED_USERS
        served.append(first)
        unused -= 1
    assert served in (["a", "b"] * 5, ["b", "a"] * 5)


def test_by_load_equal_ones_do_not_begin_with_the_same_one_everywhere() -> None:
    sessions = [numbered(f"pod-{at}", at + 1) for at in range(5)]
    firsts = {planned(planner(seed=seed), sessions, most=1)[0] for seed in range(50)}
    assert len(firsts) == 5


# --- round robin ---


@settings(max_examples=examples(200), deadline=None)
@given(SESSIONS, st.lists(st.tuples(st.integers(0, 70), st.booleans()), max_size=4))
def test_by_turn_plans_are_what_the_selector_chooses(
    figures: list[tuple[tuple[int, ...], int, int, int]], rounds: list[tuple[int, bool]]
) -> None:
    """Plans of which a part is carried out, and the selector asked directly in between, give one sequence."""
    sessions = built(figures)
    made, alone = planner("round-robin"), Selector(SERVICE, "round-robin", SLOT, seeded())
    unused = 0
    for carried_out, in_person in [*rounds, (PLANNED_USERS, False)]:
        names = planned(made, sessions, unused=unused)
        carried_out = min(carried_out, len(names))
        assert names[:carried_out] == [_name(alone.choose(sessions, SOURCE)) for _ in range(carried_out)]
        unused = len(names) - carried_out
        if in_person:
            planned(made, sessions, unused=unused, most=0)
            unused = 0
            assert _name(made._selector.choose(sessions, SOURCE)) == _name(alone.choose(sessions, SOURCE))


def _name(choice: Choice | None) -> str:
    assert choice is not None
    return choice.session[0]


def test_by_turn_a_plan_that_is_void_takes_nobodys_turn() -> None:
    """Sessions come and go, and of each plan but one user came."""
    made, alone = planner("round-robin"), Selector(SERVICE, "round-robin", SLOT, seeded())
    always = [numbered(f"pod-{at}", at + 1, weight=at + 1) for at in range(3)]
    unused = 0
    for turn in range(200):
        sessions = [*always, numbered("guest", 9)] if turn % 2 else always
        names = planned(made, sessions, unused=unused)
        assert names[0] == _name(alone.choose(sessions, SOURCE))
        unused = len(names) - 1


# --- what a plan leaves to others ---


@pytest.mark.parametrize("balance", ["least-connections", "round-robin"])
def test_a_plan_ends_where_the_next_session_is_connected_elsewhere(balance: Balance) -> None:
    sessions = [numbered("here", 1, load=5), numbered("there", 2, slots=[1], load=7)]
    names = planned(planner(balance), sessions)
    assert names == ["here"] * len(names)
    assert len(names) <= 4
    assert planned(planner(balance), sessions, usable=lambda slot: slot == SLOT) == ["here"] * PLANNED_USERS


@pytest.mark.parametrize("balance", ["least-connections", "round-robin"])
def test_a_plan_keeps_to_the_room_of_each_connection(balance: Balance) -> None:
    sessions = [numbered("a", 1), numbered("b", 2)]
    names = planned(planner(balance), sessions, room=lambda key: 3 if key == 1 else 100)
    assert names.count("a") == 3
    assert names.count("b") <= 4
    assert planned(planner(balance), sessions[:1], room=lambda _: 7) == ["a"] * 7
    assert planned(planner(balance), sessions[:1], room=lambda _: 0) == []


@pytest.mark.parametrize("balance", ["least-connections", "round-robin"])
def test_a_plan_keeps_to_maxconn(balance: Balance) -> None:
    sessions = [numbered("a", 1), numbered("b", 2)]
    assert len(planned(planner(balance), sessions, most=5)) == 5
    assert len(planned(planner(balance), sessions[:1], most=5)) == 5
    assert planned(planner(balance), sessions, most=0) == []
    assert planned(planner(balance), sessions, most=-3) == []


@pytest.mark.parametrize("balance", ["least-connections", "round-robin"])
def test_only_ready_sessions_are_planned(balance: Balance) -> None:
    good = numbered("good", 1)
    backup, suspect = numbered("backup", 2, backup=True), numbered("suspect", 3, state="suspect")
    draining = numbered("draining", 4, state="draining")
    assert set(planned(planner(balance), [backup, suspect, draining, good])) == {"good"}
    assert set(planned(planner(balance), [backup, suspect, draining])) == {"backup"}
    assert planned(planner(balance), [suspect, draining]) == []
    assert planned(planner(balance), []) == []


def test_one_session_is_one_grant() -> None:
    assert planner().plan([numbered("a", 5)], everywhere, endless, 1 << 40, 0) == [Grant(5, SINGLE_USERS)]
    assert planner().plan([numbered("a", 5, slots=[1])], everywhere, endless, 10, 0) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"balance": "round-robin"}, True),
        ({"balance": "source-hash"}, False),
        ({"balance": "random-two-choices"}, False),
        ({"early_data": True}, False),
        ({"allow": ("10.0.0.0/8",)}, False),
        ({"deny": ("10.0.0.0/8",)}, False),
        ({"maxconn": 3}, True),
    ],
)
def test_services_whose_users_are_looked_at_have_no_plan(changes: dict[str, object], expected: bool) -> None:
    assert may_plan(ServiceConfig(name=SERVICE, **changes)) is expected  # type: ignore[arg-type]


def test_a_plan_is_made_quickly() -> None:
    """A few microseconds for each user. Generous: this machine may be busy; an algorithm that is not is far off."""
    sessions = [numbered(f"pod-{at}", at + 1, load=at % 7) for at in range(20)]
    made = planner()
    started = time.process_time()
    for _ in range(50):
        assert len(planned(made, sessions)) == PLANNED_USERS
    assert (time.process_time() - started) / (50 * PLANNED_USERS) < 100e-6
