"""The user connections that an engine accepts alone: how they are counted, and which are handed back."""

from __future__ import annotations

import asyncio

import pytest

from qmux.protocol.frames import ConnReady, ConnRefused
from qmux.quic.accepting import EngineAttempt
from qmux.quic.engine import RelayEnd
from qmux.quic.offload import OffloadEnd
from qmux.worker.server import plans
from tests.aio import until
from tests.worker.server.fakes import ABOUT, LIMIT, config_of, worker_of


@pytest.fixture(autouse=True)
def hot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service falls idle because the machine stood still for a second."""
    monkeypatch.setattr(plans, "HOT_S", 60.0)


# --- numbers ---


async def test_the_engines_users_count_in_the_pool() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        worker.accepting.serves(client, 7)
        await until(lambda: worker.pool.active("web") == 7)
        own = worker.pool.own(1)
        assert own is not None
        assert own.active == 7
        assert worker.ledger.total == 7
        worker.comes()
        await client.asked()
        assert worker.pool.active("web") == 8
        assert worker.ledger.total == 8
        counters = worker.users.counters.snapshot()["web"]
        assert (counters.active, counters.total, counters.bytes_in, counters.bytes_out) == (8, 100, 6, 5)
        worker.accepting.serves(client, 0)
        await until(lambda: worker.pool.active("web") == 1)


async def test_the_limit_counts_both() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        worker.accepting.on[client] = LIMIT - 1
        assert worker.ledger.may_accept()
        worker.comes()
        assert not worker.ledger.may_accept()


async def test_closing_closes_the_engines_side() -> None:
    async with worker_of() as worker:
        worker.comes()
    assert worker.accepting.is_closed
    assert worker.ledger.total == 0


# --- who is left over ---


async def test_a_refused_user_goes_on_with_another_client() -> None:
    async with worker_of() as worker:
        first, second = worker.client("pod-1"), worker.client("pod-2")
        ours, _ = worker.user()
        asked = EngineAttempt(first, 0.0, refused=ConnRefused("refused", "nobody listens"))
        worker.accepting.handler.handed_back(ABOUT, ours, asked)
        assert worker.pool.active("web") == 1
        stream = await second.asked()
        assert first.streams == []
        assert stream.request()[1].source == ABOUT.source
        counters = worker.users.counters["web"]
        assert (counters.retried, counters.active, counters.refused) == (1, 1, {})
        stream.peer_sends(ConnReady())
        await until(lambda: counters.total == 1)
        stream.end()
        await until(lambda: worker.ledger.total == 0)
        assert worker.pool.active("web") == 0


async def test_the_engines_attempt_is_one_of_those_that_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    async with worker_of(web={"retries": 0}) as worker:
        first, second = worker.client("pod-1"), worker.client("pod-2")
        ours, theirs = worker.user()
        asked = EngineAttempt(first, 0.0, refused=ConnRefused("refused", "nobody listens"))
        worker.accepting.handler.handed_back(ABOUT, ours, asked)
        await until(lambda: worker.ledger.total == 0)
        assert second.streams == []
        assert worker.users.counters["web"].refused == {"service_refused": 1}
        assert theirs.recv(1) == b""
    assert [record.__dict__["reason"] for record in caplog.records if "refused" in record.message] == [
        "service_refused: pod-1: refused: nobody listens"
    ]


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_user_of_a_lost_connection_goes_on(is_known: bool) -> None:
    async with worker_of() as worker:
        first, second = worker.client("pod-1"), worker.client("pod-2")
        if not is_known:
            first.close(0, "done")
        asked = EngineAttempt(first if is_known else None, 0.0, reason="the connection was lost")
        worker.accepting.handler.handed_back(ABOUT, worker.user()[0], asked)
        await second.asked()
        assert worker.users.counters["web"].retried == 1


async def test_an_open_attempt_goes_on() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        stream = client.open_stream()
        now = asyncio.get_running_loop().time()
        worker.accepting.handler.handed_back(ABOUT, worker.user()[0], EngineAttempt(client, now, stream))
        own = worker.pool.own(1)
        assert own is not None
        assert own.active == 1
        stream.peer_sends(ConnReady())
        await until(lambda: stream.relayed)
        assert stream.sent == b""
        stream.end()
        await until(lambda: worker.ledger.total == 0)
        own = worker.pool.own(1)
        assert own is not None
        assert own.active == 0


async def test_an_open_attempt_of_a_service_that_was_removed_meanwhile() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        stream = client.open_stream()
        worker.users.reconfigure(config_of(ssh={}))
        worker.accepting.handler.handed_back(ABOUT, worker.user()[0], EngineAttempt(client, 0.0, stream))
        await until(lambda: worker.ledger.total == 0)
        assert stream.aborted is not None
        assert worker.users.counters["web"].refused == {"unknown_service": 1}
        assert worker.pool.active("web") == 0


async def test_who_gave_up_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with worker_of() as worker:
        worker.accepting.handler.user_reset("web", ABOUT.conn_id, ABOUT.source)
        assert worker.users.counters["web"].refused == {"user_reset": 1}
    assert caplog.records[0].__dict__["source"] == ABOUT.source


async def test_who_may_not_connect_is_reset() -> None:
    async with worker_of(web={"deny": ("192.0.2.0/24",)}) as worker:
        ours, theirs = worker.user()
        worker.accepting.handler.unplanned(ABOUT, ours)
        assert theirs.recv(1) == b""
        assert worker.users.counters["web"].refused == {"denied": 1}
        assert worker.ledger.total == 0


@pytest.mark.parametrize(
    ("end", "level"), [(RelayEnd.FINISHED, "DEBUG"), (RelayEnd.SOCKET_RESET, "DEBUG"), (RelayEnd.IDLE_TIMEOUT, "INFO")]
)
async def test_ends_are_logged_as_those_of_our_own_users(
    end: RelayEnd, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async with worker_of() as worker:
        worker.accepting.handler.relay_ended(OffloadEnd("web", 0xABC, "192.0.2.1:5", end))
        worker.accepting.handler.accept_paused("web", "Too many open files")
    ended, paused = (record for record in caplog.records if record.name.startswith("qmux"))
    assert (ended.levelname, ended.__dict__["conn"], ended.__dict__["reason"]) == (level, "abc", end.value)
    assert paused.message == "accept paused"
