"""The child processes of a daemon: starting them with what they need, and passing on what one leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from qmux.messages import Accept, LogTo, RemoveBind, Up
from supervisor.binds import Binds, Difference, Opened
from supervisor.daemon import Daemon
from supervisor.links import Links
from supervisor.process import Process
from supervisor.seats import Seat
from supervisor.steering import Steering

log = logging.getLogger(__name__)


class Fleet:
    """Who sits where, and the sockets that each process holds."""

    def __init__(
        self,
        daemon: Daemon,
        binds: Binds,
        on_message: Callable[[Seat, Process, Up], None],
        on_ended: Callable[[Seat, Process], None],
    ) -> None:
        self._processes: dict[Seat, Process] = {}
        self._admin_seat = Seat("admin", "admin")
        self.seats = [*daemon.generation.seats, self._admin_seat]
        self.steering = Steering((seat.slot for seat in self.worker_seats), daemon.settings.crash_grace_s)
        self._daemon = daemon
        self._binds = binds
        self._on_message = on_message
        self._on_ended = on_ended
        self._links = Links(self.workers, self._is_active)
        self._adopted: dict[
            int, Process
        ] = {}  # index of a worker that does not come up → the worker that serves its user connections

    @property
    def worker_seats(self) -> list[Seat]:
        """The workers' seats."""
        return [seat for seat in self.seats if seat.kind == "worker"]

    @property
    def admin(self) -> Process | None:
        """The admin process, where it lives."""
        return self._processes.get(self._admin_seat)

    def processes(self) -> list[Process]:
        """Every process that lives."""
        return [process for _, process in self.seated() if process is not None]

    def seated(self) -> list[tuple[Seat, Process | None]]:
        """Every seat and its process, where it has one."""
        return [(seat, self._processes.get(seat)) for seat in self.seats]

    def is_ready(self, seat: Seat) -> bool:
        """Whether a process serves there."""
        process = self._processes.get(seat)
        return process is not None and process.state == "ready"

    def workers(self) -> list[Process]:
        """Every worker that lives."""
        return [process for process in self.processes() if process.kind == "worker"]

    def start(self, seat: Seat) -> Process:
        """Fill ``seat`` with a new process and send it all it needs. Raises OSError where none can be started."""
        epoch = seat.starts + 1 if seat.kind == "admin" else self._daemon.slots.next_epoch(seat.slot)
        process = Process(
            kind=seat.kind,
            name=seat.name,
            index=seat.index,
            slot=seat.slot,
            epoch=epoch,
            launch=self._daemon.launch,
            on_message=lambda process, message: self._on_message(seat, process, message),
            on_ended=lambda process: self._on_ended(seat, process),
        )
        seat.epoch = epoch
        seat.starts += 1
        self._processes[seat] = process
        log.info(f"{seat.name} started", extra=process.log_fields)
        self.configure(process)
        if seat.kind == "worker":
            for opened in self._binds.of("quic"):
                self._give(process, opened, seat.slot)
            for opened in self._binds.of("traffic"):
                self._give(process, opened, seat.index)
            self._links.joined(process)
        return process

    def configure(self, process: Process) -> None:
        """Send the configuration in force."""
        process.send(self._daemon.configure(process.index, process.slot, process.epoch))

    def log_to(self, fd: int) -> None:
        """Every child writes its log to ``fd`` from now on."""
        for process in self.processes():
            process.send(LogTo(), [fd])

    def ready(self, process: Process) -> None:
        """It serves: user connections and clients may come to it."""
        process.state = "ready"
        process.was_ready = True
        if process.kind == "worker":
            self.steering.ready(process.slot)
            process.send(Accept())
            self._links.changed()
            self.share_orphans()

    def draining(self, process: Process) -> None:
        """It takes nothing new."""
        process.state = "draining"
        self.steering.draining(process.slot)
        self._links.changed()

    def ended(self, seat: Seat, process: Process) -> None:
        """It is gone: the others learn it, and its slot is kept for a successor for a moment."""
        del self._processes[seat]
        seat.last_end = process.exit_words
        for index in [index for index, adopter in self._adopted.items() if adopter is process]:
            del self._adopted[index]
        if process.kind == "worker":
            if process.state in ("draining", "stopping"):
                self.steering.gone(process.slot)  # it has no successor
            else:
                self.steering.crashed(process.slot)
            self._links.changed(died=[process.slot])

    def share_orphans(self) -> None:
        """A worker that does not come up leaves user connections in its queues: a sibling accepts them until then."""
        for seat in self.worker_seats:
            adopter = self._adopted.get(seat.index)
            if self.is_ready(seat) and adopter is not None:
                del self._adopted[seat.index]
                self._take_back(adopter, seat)
            elif (
                not self.is_ready(seat)
                and adopter is None
                and seat.pause.failures >= self._daemon.settings.quick_failures
            ):
                self._adopt(seat)

    def switch_binds(self, difference: Difference) -> None:
        """Make the addresses of another configuration those in use."""
        for process, index in self._shares():
            for opened in difference.removed:
                self._take(process, opened, index, shutdown=True)
            for opened, _ in difference.passed:
                self._take(process, opened, index, shutdown=False)
        self._binds.commit(difference)
        for process, index in self._shares():
            for opened in [*difference.opened, *(opened for opened, _ in difference.passed)]:
                self._give(process, opened, index)
        for process in self.workers():
            if process.state == "ready":
                process.send(Accept())
        for opened in difference.removed:
            opened.close()

    def _is_active(self, slot: int) -> bool:
        return any(seat.slot == slot and self.is_ready(seat) for seat in self.worker_seats)

    def _shares(self) -> Iterator[tuple[Process, int]]:
        """Who reads the traffic of which index."""
        for process in self.workers():
            yield process, process.index
        for index, adopter in self._adopted.items():
            yield adopter, index

    def _adopt(self, seat: Seat) -> None:
        sibling = next((worker for worker in self.workers() if worker.state == "ready"), None)
        if sibling is None:
            return
        log.warning(
            f"{sibling.name} accepts the user connections of {seat.name} until that is back", extra=sibling.log_fields
        )
        self._adopted[seat.index] = sibling
        for opened in self._binds.of("traffic"):
            self._give(sibling, opened, seat.index)
        sibling.send(Accept())

    def _take_back(self, adopter: Process, seat: Seat) -> None:
        for opened in self._binds.of("traffic"):
            self._take(adopter, opened, seat.index, shutdown=False)

    def _give(self, process: Process, opened: Opened, number: int) -> None:
        for message, fd in opened.messages(number):
            process.send(message, [fd])

    def _take(self, process: Process, opened: Opened, number: int, shutdown: bool) -> None:
        for key in opened.keys(number):
            process.send(RemoveBind(key, shutdown))
