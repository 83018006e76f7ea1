from __future__ import annotations

import os

import pytest

from supervisor.seats import seats_for
from supervisor.table import process_rows


@pytest.mark.parametrize(("is_stopping", "state"), [(False, "restarting"), (True, "ended")])
def test_an_empty_seat_is_filled_again_unless_the_daemon_stops(is_stopping: bool, state: str) -> None:
    own, worker, admin = process_rows(seats_for(1), 5.0, is_stopping)
    assert (own.name, own.pid, own.state, own.started_at) == ("supervisor", os.getpid(), "ready", 5.0)
    assert own.rss_bytes > 0
    assert [(row.name, row.slot, row.pid, row.state) for row in (worker, admin)] == [
        ("worker-0", 0, 0, state),
        ("admin", -1, 0, state),
    ]
