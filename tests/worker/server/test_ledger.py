"""One count for each service: what tasks serve, what the engine serves, who waits, and what maxconn leaves."""

from __future__ import annotations

import pytest

from qmux.pool.pool import Pool
from qmux.quic.accepting import NoAccepting
from qmux.worker.server.ledger import Ledger

SLOT = 2


@pytest.fixture
def pool() -> Pool:
    return Pool(SLOT, 1)


@pytest.fixture
def ledger(pool: Pool) -> Ledger:
    return Ledger(pool, NoAccepting(), 2)


def test_places_are_taken_up_to_maxconn_and_come_back(pool: Pool, ledger: Ledger) -> None:
    assert ledger.admit("web", 2)
    assert ledger.admit("web", 2)
    assert not ledger.admit("web", 2)
    assert pool.active("web") == ledger.active("web") == 2
    ledger.release("web")
    assert ledger.places_left("web", 2) == 1
    assert ledger.admit("web", 2)


def test_without_maxconn_there_is_always_a_place(ledger: Ledger) -> None:
    assert all(ledger.admit("web", None) for _ in range(100))
    assert ledger.active("web") == 100


def test_what_the_engine_serves_counts_towards_maxconn(pool: Pool, ledger: Ledger) -> None:
    ledger.offloaded("web", 3)
    assert not ledger.admit("web", 3)
    assert ledger.admit("web", 4)
    assert pool.active("web") == 4
    assert ledger.active("web") == 1, "its own only"
    ledger.offloaded("web", 0)
    assert pool.active("web") == 1


def test_services_are_counted_apart(pool: Pool, ledger: Ledger) -> None:
    assert ledger.admit("web", 1)
    assert ledger.admit("ssh", 1)
    assert (pool.active("web"), pool.active("ssh")) == (1, 1)


def test_a_user_connection_that_the_engine_had_admitted_is_counted_whatever_maxconn_says(pool: Pool) -> None:
    ledger = Ledger(pool, NoAccepting(), 2)
    assert ledger.admit("web", 1)
    ledger.admitted("web")
    assert pool.active("web") == 2


def test_the_first_and_the_last_that_wait_are_told(ledger: Ledger) -> None:
    assert ledger.wait("web", 1)
    assert not ledger.wait("web", 1)
    assert ledger.waiting("web") == 2
    assert not ledger.wait("web", -1)
    assert ledger.wait("web", -1)
    assert ledger.waiting("web") == 0


def test_no_more_are_accepted_than_there_are_descriptors_for(ledger: Ledger) -> None:
    ledger.served(1)
    assert ledger.may_accept()
    ledger.served(1)
    assert not ledger.may_accept()
    assert ledger.total == 2
    ledger.served(-1)
    assert ledger.may_accept()
