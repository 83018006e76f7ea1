"""Addresses of names: one lookup at a time for each name, in a thread of its own, shared by all who wait for it.

A thread, because only getaddrinfo(3) knows everything that a name may depend on (nsswitch.conf, /etc/hosts, search
domains), and it blocks. One for each name, because a shared pool is full as soon as a few names have a name server
that does not answer. While a lookup is slow or fails, the last good addresses are used (RFC 8767).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

log = logging.getLogger(__name__)

Found = tuple[tuple[socket.AddressFamily, tuple[Any, ...]], ...]
"""Family and socket address, with port 0, of each address of a name: in the order of getaddrinfo(3)."""

FRESH_S = 1.0
"""An outcome is used again for this long: a name is followed nearly as closely as if each user asked."""

SLOW_S = 0.5
"""A lookup that takes longer is slow: who has older addresses does not wait on (RFC 8767 §5 allows 1.8 s)."""

ANSWER_S = 10.0
"""Nobody waits longer for a name without addresses: time for two name servers of 5 s each (resolv.conf(5))."""

MAX_STALE_S = 86_400.0
"""Addresses that could not be confirmed for longer are given up (RFC 8767 §5: one to three days)."""

MAX_ADDRESSES = 32
"""Of one name: more than any deployment has, and a bound on what a resolver can make us open."""

THREADS_PER_NAME = 3
"""A lookup that has no answer within ``ANSWER_S`` is left alone and may have successors: it ends when its resolver
gives up, which may be minutes later."""

MAX_THREADS = 1024
"""Of all names, those of former configurations included. Each name of the largest configuration has one."""

_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})
"""Answers, not failures: the name has no address (any more)."""

_Outcome = Found | socket.gaierror
_OnEnd = Callable[[_Outcome], None]


class Resolver:
    """For one event loop."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}
        self._threads = 0

    async def addresses(self, host: str) -> Found:
        """The addresses of ``host``: looked up now, a moment ago, or the last good ones. Raises socket.gaierror where
        it has none, or no answer within ``ANSWER_S``.
        """
        name = self._names.setdefault(host, _Name(host))
        if not name.is_fresh():
            lookup = self._lookup(name)
            if isinstance(lookup, OSError):
                return name.last_good(lookup)
            if not await lookup.ends_within(name.patience_s):
                return name.last_good(_no_answer())
        return name.outcome()

    def failures(self, host: str) -> int:
        """Lookups of ``host`` that failed or were not answered in time, since it was first asked for."""
        return self._names[host].failures if host in self._names else 0

    def keep(self, hosts: Collection[str]) -> None:
        """Forget every other name."""
        self._names = {host: name for host, name in self._names.items() if host in hosts}

    def _lookup(self, name: _Name) -> _Lookup | OSError:
        """The lookup of ``name`` that runs, or a new one; why there is none, where it cannot be started."""
        current = name.lookup
        if current is not None and not (current.is_overdue and name.threads < THREADS_PER_NAME):
            return current
        if self._threads >= MAX_THREADS:
            return socket.gaierror(socket.EAI_AGAIN, f"{MAX_THREADS} lookups without an answer are running already")
        lookup = _Lookup(name)
        name.lookup = lookup
        self._started(name, 1)
        try:
            lookup.start(lambda found: self._ended(name, lookup, found))
        except RuntimeError:  # no memory for a thread, or the limit of processes is reached
            self._ended(
                name, lookup, socket.gaierror(socket.EAI_AGAIN, "no thread can be started (limit of processes)")
            )
        return lookup

    def _ended(self, name: _Name, lookup: _Lookup, found: _Outcome) -> None:
        self._started(name, -1)
        name.ended(lookup, found)

    def _started(self, name: _Name, change: int) -> None:
        name.threads += change
        self._threads += change


class _Name:
    """What is known of one name."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.lookup: _Lookup | None = None
        self.threads = 0
        self.failures = 0
        self._good: Found = ()
        self._good_at = 0.0
        self._outcome: _Outcome = _no_answer()
        self._outcome_at: float | None = None
        self._is_troubled = False

    @property
    def patience_s(self) -> float:
        """How long a lookup may take until those who wait go on without it."""
        if not self._has_good():
            return ANSWER_S
        return 0.0 if self._is_troubled else SLOW_S

    def is_fresh(self) -> bool:
        """Whether the newest outcome is still to be used as it is."""
        return self._outcome_at is not None and time.monotonic() - self._outcome_at < FRESH_S

    def outcome(self) -> Found:
        """The newest outcome; the last good addresses in place of a failure."""
        return self.last_good(self._outcome) if isinstance(self._outcome, OSError) else self._outcome

    def last_good(self, problem: OSError) -> Found:
        """What was found before, or ``problem`` raised."""
        if not self._has_good():
            raise socket.gaierror(problem.errno, problem.strerror)  # not the same object for everybody
        self._trouble(problem)
        return self._good

    def unanswered(self) -> None:
        """The newest lookup has taken so long that nobody waits for it."""
        self.failures += 1

    def ended(self, lookup: _Lookup, found: _Outcome) -> None:
        """``lookup`` brought ``found``; another may have been started since."""
        is_current = lookup is self.lookup
        if is_current or not isinstance(found, OSError):
            current = self.lookup
            self.lookup = None
            self._outcome, self._outcome_at = found, time.monotonic()
            self._learn(found, was_counted=lookup.is_overdue)
            if current is not None:
                current.end()
        lookup.end()

    def _learn(self, found: _Outcome, was_counted: bool) -> None:
        if not isinstance(found, OSError):
            self._good, self._good_at = found, time.monotonic()
            if self._is_troubled:
                log.info("name resolves again", extra={"host": self.host})
            self._is_troubled = False
            return
        self.failures += not was_counted
        if found.errno in _NO_SUCH_NAME:
            self._good = ()
            self._is_troubled = False

    def _has_good(self) -> bool:
        return bool(self._good) and time.monotonic() - self._good_at < MAX_STALE_S

    def _trouble(self, problem: OSError) -> None:
        if not self._is_troubled:
            self._is_troubled = True
            text = "name cannot be resolved; using its last addresses"
            log.warning(text, extra={"host": self.host, "reason": problem.strerror})


class _Lookup:
    """One call of getaddrinfo in a thread."""

    def __init__(self, name: _Name) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = name.host
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._started_at = time.monotonic()
        self._overdue = self._loop.call_later(ANSWER_S, name.unanswered)

    @property
    def is_overdue(self) -> bool:
        """Whether nobody waits for it any more."""
        return time.monotonic() - self._started_at >= ANSWER_S

    def start(self, on_end: _OnEnd) -> None:
        """``on_end`` is called on the loop. Raises RuntimeError where there can be no thread."""
        # Its own, and a daemon: nobody waits for its end, neither a lookup of another name nor the end of the process.
        name = f"lookup of {self._host}"
        threading.Thread(target=self._run, args=(on_end,), name=name, daemon=True).start()

    async def ends_within(self, since_start_s: float) -> bool:
        """Wait for its end, until ``since_start_s`` after its start. Everybody waits for the same."""
        left_s = self._started_at + since_start_s - time.monotonic()
        if not self._done.done() and left_s > 0:
            await asyncio.wait([self._done], timeout=left_s)
        return self._done.done()

    def end(self) -> None:
        """Its name has an outcome."""
        self._overdue.cancel()
        if not self._done.done():
            self._done.set_result(None)

    def _run(self, on_end: _OnEnd) -> None:
        found = _look_up(self._host)
        try:
            self._loop.call_soon_threadsafe(on_end, found)
        except RuntimeError:  # the loop was closed meanwhile
            pass


def _look_up(host: str) -> _Outcome:
    """In a thread: it may take minutes."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error
    except OSError as error:  # no descriptor left
        return socket.gaierror(socket.EAI_SYSTEM, error.strerror or str(error))
    except ValueError:  # a label of more than 63 bytes, or an empty one: no encoding for DNS
        return socket.gaierror(socket.EAI_NONAME, "this cannot be a host name")
    return tuple(dict.fromkeys((family, address) for family, _, _, _, address in found))[:MAX_ADDRESSES]


def _no_answer() -> socket.gaierror:
    return socket.gaierror(socket.EAI_AGAIN, "no answer from the name server")
