from __future__ import annotations

import mmap
import os
import subprocess
import time

import pytest

from supervisor.seats import Seat
from supervisor.table import process_rows, usage


@pytest.mark.parametrize(("is_stopping", "state"), [(False, "restarting"), (True, "ended")])
def test_an_empty_seat_is_filled_again_unless_the_daemon_stops(is_stopping: bool, state: str) -> None:
    seats = [Seat("worker", "worker-0", 0, 0), Seat("admin", "admin")]
    own, worker, admin = process_rows([(seat, None) for seat in seats], 5.0, is_stopping)
    assert (own.name, own.pid, own.state, own.started_at) == ("supervisor", os.getpid(), "ready", 5.0)
    assert own.rss_bytes > 0
    assert (worker.rss_bytes, worker.cpu_s) == (0, 0.0)
    assert [(row.name, row.slot, row.pid, row.state) for row in (worker, admin)] == [
        ("worker-0", 0, 0, state),
        ("admin", -1, 0, state),
    ]


def test_memory_and_cpu_are_those_of_the_process() -> None:
    rss_bytes, cpu_s = usage(os.getpid())
    with mmap.mmap(-1, 32 << 20) as held:  # what the allocator gives may have been ours before
        held.write(b"x" * len(held))
        until = cpu_s + 0.1
        while time.process_time() < until + 0.1:
            pass
        more_bytes, more_s = usage(os.getpid())
        assert more_bytes - rss_bytes > len(held) // 2
    assert more_s >= until
    assert abs(more_s - time.process_time()) < 0.1


def test_a_process_that_is_gone_uses_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert usage(gone.pid) == (0, 0.0)
