"""The load generators of the soak: the same as in the load test, one short run after the other."""

from __future__ import annotations

import contextlib
import itertools
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from loadtest import generators
from loadtest.cases import GRACE_S
from loadtest.figures import FAILED, SampleFailed
from loadtest.generators import Generator
from loadtest.hosts import Host
from loadtest.soak.tally import Tally
from loadtest.start import Backends
from loadtest.system import Address, Addresses, StartFailed

PIECE_S = 10
"""Of one run of a load generator: its connections end with it, and new ones come."""

JOIN_S = PIECE_S + GRACE_S + 10.0


class Traffic(Protocol):
    """One kind of traffic, in a thread of its own."""

    tally: Tally

    def run(self, until: float) -> None:
        """Make traffic until the monotonic time ``until``, or until ``cancel``."""
        ...

    def cancel(self) -> None:
        """Stop at once; from another thread."""
        ...


class Repeated:
    """Load generators in turn, again and again. ``before`` is called before each run of one."""

    def __init__(
        self,
        name: str,
        host: Host,
        address: Address,
        turns: Sequence[Generator],
        before: Callable[[], None] | None = None,
    ) -> None:
        self.tally = Tally(name)
        self._turns = itertools.cycle(turns)
        self._host = host
        self._address = address
        self._before = before
        self._cancelled = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def run(self, until: float) -> None:
        while not self._cancelled.is_set() and (left_s := until - time.monotonic()) > 0:
            try:
                if self._before is not None:
                    self._before()
                self._piece(max(1, min(PIECE_S, math.ceil(left_s))))
            except (SampleFailed, StartFailed) as error:
                if not self._cancelled.is_set():
                    self.tally.fail(str(error))

    def cancel(self) -> None:
        self._cancelled.set()
        process = self._process
        if process is not None:
            process.kill()

    def _piece(self, duration_s: int) -> None:
        generator = next(self._turns)
        with generator.start(self._host, self._address, duration_s) as self._process:
            try:
                output, _ = self._process.communicate(timeout=duration_s + GRACE_S)
            except subprocess.TimeoutExpired:
                raise SampleFailed(f"no result within {duration_s + GRACE_S:.0f} s") from None
            finally:
                self._process.kill()
        said = generator.read(output)
        self.tally.add(said.requests or 1, int(said.figures.get(FAILED, 0)), said.bytes)


def generated(host: Host, addresses: Addresses, backends: Backends) -> list[Traffic]:
    """Bulk one way and then the other, requests on kept connections, and a new connection for each request."""
    # Not both ways at once: iperf3 tells its two connections apart by the order in which they arrive, which a proxy
    # does not keep.
    bulk = (generators.iperf3(), generators.iperf3("--reverse"))
    kept = (generators.wrk("64k", 16),)
    new = (generators.wrk("1k", 8, "--header", "Connection: close"),)
    return [
        Repeated("bulk", host, addresses["iperf3"], bulk, before=backends["iperf3"].restart),
        Repeated("keep-alive", host, addresses["http"], kept),
        Repeated("new connections", host, addresses["http"], new),
    ]


@contextlib.contextmanager
def running(traffic: Sequence[Traffic], until: float) -> Iterator[None]:
    """All of it, each in its thread, until the monotonic time ``until`` or the end of the block by an exception."""
    threads = [threading.Thread(target=each.run, args=(until,), name=each.tally.name) for each in traffic]
    try:
        for thread in threads:
            thread.start()
        yield
    except BaseException:
        for each in traffic:
            each.cancel()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join(JOIN_S)
