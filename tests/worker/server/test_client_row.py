"""A registered client in the pool: its user connections, whether it answers, and what it tells."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from qmux.pool.rows import Row
from qmux.protocol.frames import Heartbeat
from qmux.worker.server.client_row import MIN_SUSPECT_S, ClientRow
from tests.worker.server.fakes import FakeConnection, Worker, worker_of


def own(worker: Worker, connection: FakeConnection) -> Row:
    """The row as the pool has it."""
    found = worker.pool.own(worker.row(connection).key)
    assert found is not None
    return found


async def test_what_the_pool_begins_with() -> None:
    async with worker_of(web={}) as worker:
        connection = worker.client("pod-1")
        row = own(worker, connection)
        assert (row.principal, row.session, row.tenant) == ("pod-1", connection.session, "default")
        assert [offer.service for offer in row.offers] == ["web"]
        assert (row.state, row.active, row.address) == ("ready", 0, "192.0.2.1:4711")


async def test_user_connections_of_tasks_and_engine_count_together() -> None:
    async with worker_of(max_streams=3) as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        row.user_added()
        assert worker.accepting.room[connection] == (1, 3), "the engine has two places left"
        worker.accepting.on[connection] = 1
        row.recount()
        assert own(worker, connection).active == row.active == 2
        assert row.has_room()
        row.user_added()
        assert not row.has_room()
        row.user_removed()
        row.user_removed()
        assert own(worker, connection).active == 1
        assert worker.accepting.room[connection] == (0, 3)


async def test_a_heartbeat_tells_of_the_other_servers() -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        before = round(time.time() * 1000)
        worker.row(connection).heard(Heartbeat(7, 3))
        row = own(worker, connection)
        assert (row.active_total, row.active_here) == (7, 3)
        assert before <= row.active_at_ms <= round(time.time() * 1000)


# --- suspicion ---


@pytest.mark.parametrize(
    ("outstanding", "pto_s", "silent_s", "state"),
    [
        (True, 0.01, MIN_SUSPECT_S + 0.05, "suspect"),
        (True, 0.01, MIN_SUSPECT_S - 0.05, "ready"),
        (True, 1.0, 2.9, "ready"),  # three PTO of a long path
        (True, 1.0, 3.1, "suspect"),
        (False, 0.01, 20.0, "ready"),  # nothing was asked: an idle client is no suspect
    ],
)
async def test_data_that_is_not_acknowledged_makes_a_suspect(
    outstanding: bool, pto_s: float, silent_s: float, state: str
) -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        connection.ack_eliciting_outstanding, connection.pto_s = outstanding, pto_s
        worker.row(connection).sweep(connection.heard_at + silent_s)
        assert own(worker, connection).state == state


async def test_a_suspect_that_is_heard_of_is_ready_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        row.suspect()
        row.sweep(connection.heard_at + MIN_SUSPECT_S + 0.1)
        assert own(worker, connection).state == "suspect"
        row.sweep(connection.heard_at + 0.1)
        assert own(worker, connection).state == "ready"
    assert [record.message for record in caplog.records] == ["client is suspect", "client is ready"]


@pytest.mark.parametrize("end", [ClientRow.drain, ClientRow.replace])
async def test_a_client_that_drains_stays_so(end: Callable[[ClientRow], None]) -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        row.user_added()
        end(row)
        row.suspect()
        row.sweep(connection.heard_at)
        assert own(worker, connection).state == "draining"


async def test_after_its_end_nothing_changes_any_more() -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        connection.close(0, "done")
        row.heard(Heartbeat(7, 3))
        row.suspect()
        row.user_added()
        row.sweep(connection.heard_at + 60)
        row.measure()
        row.offers_changed()
        assert list(worker.pool.rows()) == []


# --- measures ---


async def test_only_a_visible_change_of_the_path_is_told() -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        row.measure()
        first = own(worker, connection)
        assert first.mtu_bytes == connection.stats().mtu_bytes
        connection.pto_s += 0.001  # a third of a millisecond of round-trip time
        row.measure()
        assert own(worker, connection) is first
        connection.pto_s += 0.010
        row.measure()
        assert own(worker, connection).rtt_ms == round(connection.stats().rtt_s * 1000, 2)


async def test_the_row_says_where_packets_come_from_now() -> None:
    async with worker_of() as worker:
        connection = worker.client("pod-1")
        row = worker.row(connection)
        connection.peer_address = ("2001:db8::7", 4712)
        row.measure()
        assert own(worker, connection).address == "[2001:db8::7]:4712"
