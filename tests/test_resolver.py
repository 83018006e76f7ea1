"""Names that are slow, fail or change: against the real C library, and with name servers that do what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from qmux import resolver as resolving
from qmux.resolver import Resolver
from tests.aio import run, until

ADDRESS, OTHER = "192.0.2.1", "192.0.2.2"
Answer = str | socket.gaierror
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class NameServer:
    """In place of getaddrinfo(3): names that have no answer wait until they get one, or until ``close``."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._answers: dict[str, Answer] = {}
        self._changed = threading.Condition()

    def answer(self, host: str, answer: Answer | None) -> None:
        with self._changed:
            if answer is None:
                del self._answers[host]
            else:
                self._answers[host] = answer
            self._changed.notify_all()

    def close(self) -> None:
        for host in set(self.asked) - set(self._answers):
            self.answer(host, NO_NAME)

    def getaddrinfo(self, host: str, port: None, *, type: socket.SocketKind) -> list[Any]:
        with self._changed:
            self.asked[host] += 1
            assert self._changed.wait_for(lambda: host in self._answers, 60)
            answer = self._answers[host]
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, type, socket.IPPROTO_TCP, "", (answer, 0))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    with contextlib.closing(server):
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are never fresh, and a lookup is slow, or without an answer, soon."""
    monkeypatch.setattr(resolving, "FRESH_S", 0.0)
    monkeypatch.setattr(resolving, "SLOW_S", 0.05)
    monkeypatch.setattr(resolving, "ANSWER_S", 0.1)


async def found(resolver: Resolver, host: str = "app.internal") -> list[str]:
    return [address[0] for _, address in await resolver.addresses(host)]


def test_the_names_of_this_machine() -> None:
    """Through everything that getaddrinfo(3) looks at, /etc/hosts among it."""
    assert set(run(found(Resolver(), "localhost"))) <= {"127.0.0.1", "::1"}


def test_everybody_waits_for_the_same_lookup(names: NameServer) -> None:
    async def main() -> None:
        resolver = Resolver()
        waiting = [asyncio.ensure_future(found(resolver)) for _ in range(50)]
        await until(lambda: names.asked["app.internal"])
        names.answer("app.internal", ADDRESS)
        assert await asyncio.gather(*waiting) == [[ADDRESS]] * 50
        assert await found(resolver) == [ADDRESS], "still fresh"
        assert names.asked["app.internal"] == 1

    run(main())


def test_names_without_an_answer_hold_no_other(names: NameServer) -> None:
    async def main() -> None:
        resolver = Resolver()
        waiting = [asyncio.ensure_future(found(resolver, f"silent-{number}.internal")) for number in range(300)]
        await until(lambda: len(names.asked) == len(waiting))
        names.answer("app.internal", ADDRESS)
        assert await found(resolver) == [ADDRESS]
        assert not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(main())


@pytest.mark.usefixtures("quick")
def test_a_name_without_an_answer(names: NameServer) -> None:
    async def main() -> None:
        resolver = Resolver()
        for _ in range(10):
            with pytest.raises(socket.gaierror, match="no answer from the name server"):
                await found(resolver)
        assert names.asked["app.internal"] == resolving.THREADS_PER_NAME, "so many are left alone, and no more"
        await until(lambda: resolver.failures("app.internal") == resolving.THREADS_PER_NAME)
        names.answer("app.internal", ADDRESS)
        await until(lambda: resolver._names["app.internal"].threads == 0, what="they end")
        assert await found(resolver) == [ADDRESS]
        assert resolver.failures("app.internal") == resolving.THREADS_PER_NAME

    run(main())


@pytest.mark.usefixtures("quick")
def test_the_last_good_addresses_while_a_lookup_is_slow(names: NameServer, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        resolver = Resolver()
        names.answer("app.internal", ADDRESS)
        assert await found(resolver) == [ADDRESS]
        names.answer("app.internal", None)
        assert await found(resolver) == [ADDRESS]
        since = time.monotonic()
        for _ in range(50):
            assert await found(resolver) == [ADDRESS]
        assert time.monotonic() - since < 50 * resolving.SLOW_S, "only the first one waited"
        await until(lambda: resolver.failures("app.internal"))
        names.answer("app.internal", OTHER)
        await until(lambda: resolver._names["app.internal"].threads == 0)
        assert await found(resolver) == [OTHER]

    with caplog.at_level(logging.INFO, "qmux.resolver"):
        run(main())
    assert [record.message for record in caplog.records] == [
        "name cannot be resolved; using its last addresses",
        "name resolves again",
    ]


@pytest.mark.usefixtures("quick")
def test_a_failure_keeps_the_last_good_addresses_and_an_answer_does_not(names: NameServer) -> None:
    async def main() -> None:
        resolver = Resolver()
        names.answer("app.internal", ADDRESS)
        assert await found(resolver) == [ADDRESS]
        names.answer("app.internal", AGAIN)
        assert await found(resolver) == [ADDRESS]
        await until(lambda: resolver.failures("app.internal") == 1)
        names.answer("app.internal", NO_NAME)
        for _ in range(2):  # once it may be the last good ones, while it is looked up
            with contextlib.suppress(socket.gaierror):
                await found(resolver)
            await until(lambda: resolver._names["app.internal"].threads == 0)
        with pytest.raises(socket.gaierror, match="Name or service not known"):
            await found(resolver)

    run(main())


@pytest.mark.usefixtures("quick")
def test_addresses_grow_too_old(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        resolver = Resolver()
        names.answer("app.internal", ADDRESS)
        assert await found(resolver) == [ADDRESS]
        names.answer("app.internal", AGAIN)
        monkeypatch.setattr(resolving, "MAX_STALE_S", 0.0)
        with pytest.raises(socket.gaierror, match="Temporary failure"):
            await found(resolver)

    run(main())


def test_a_system_that_gives_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(socket.gaierror, match="no thread can be started"):
        run(found(Resolver()))


@pytest.mark.usefixtures("quick")
def test_lookups_have_a_cap_over_all_names(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "MAX_THREADS", 2)

    async def main() -> None:
        resolver = Resolver()
        for number in range(2):
            with pytest.raises(socket.gaierror):
                await found(resolver, f"silent-{number}.internal")
        resolver.keep(())
        with pytest.raises(socket.gaierror, match="2 lookups without an answer"):
            await found(resolver)
        names.close()
        await until(lambda: resolver._threads == 0)
        names.answer("app.internal", ADDRESS)
        assert await found(resolver) == [ADDRESS]

    run(main())


@pytest.mark.parametrize("host", ["x" * 70 + ".example", "a..b"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(socket.gaierror, match="cannot be a host name"):
        run(found(Resolver(), host))


def test_a_lookup_that_outlives_its_loop(names: NameServer) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(found(Resolver()))
        await until(lambda: names.asked["app.internal"])
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    run(main())
    names.close()
