from __future__ import annotations

from supervisor.seats import Seat


def test_the_first_process_of_a_seat_is_no_restart() -> None:
    seat = Seat("worker", "worker-0", 0, 0)
    assert [seat.restarts for seat.starts in range(4)] == [0, 0, 1, 2]


def test_a_seat_that_takes_a_used_slot_starts_without_restarts() -> None:
    """Epochs go on where the slot's last seat ended; how often this seat was filled is another matter."""
    assert Seat("worker", "worker-0", 0, 2, epoch=9, starts=1).restarts == 0


def test_two_seats_are_never_one() -> None:
    assert len({Seat("admin", "admin"), Seat("admin", "admin")}) == 2
