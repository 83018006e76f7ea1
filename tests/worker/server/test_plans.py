"""Who is planned for the user connections that come next, and when a plan is made again."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from qmux.pool.planning import PLANNED_USERS
from qmux.protocol.frames import ConnReady, ConnRefused
from qmux.quic.engine import RelayLimits
from qmux.worker.server import plans
from tests.aio import until
from tests.worker.server.fakes import ABOUT, LIMIT, SLOT, config_of, worker_of


@pytest.fixture(autouse=True)
def hot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service falls idle because the machine stood still for a second."""
    monkeypatch.setattr(plans, "HOT_S", 60.0)


async def test_who_comes_first_is_served_here_and_the_next_are_planned() -> None:
    async with worker_of(web={"idle_timeout_s": 9.0}, ssh={}) as worker:
        assert worker.accepting.first == (SLOT << 40, LIMIT)
        assert worker.accepting.limits["web"] == RelayLimits(9.0, 300.0)
        client = worker.client("pod-1")
        worker.comes("ssh")
        await worker.until_planned("ssh")
        assert worker.planned() == []  # nobody came yet
        (await client.asked()).peer_sends(ConnRefused("refused"))
        await until(lambda: not worker.ledger.total)
        worker.comes()
        stream = await client.asked(1)
        assert stream.request()[1].conn_id == ABOUT.conn_id
        assert worker.accepting.others == worker.ledger.total == 1
        await until(lambda: worker.planned() == [(client, 4095)], what="one place is taken")


async def test_plans_follow_the_pool() -> None:
    async with worker_of() as worker:
        first = worker.client("pod-1")
        worker.comes()
        assert await worker.until_planned() == [(first, 4095)]
        second = worker.client("pod-2")
        await until(lambda: worker.accepting.unused("web") == PLANNED_USERS, what="two sessions take turns")
        assert {connection for connection, _ in worker.planned()} == {first, second}
        worker.pool.update(1, state="suspect")
        await until(lambda: worker.planned() == [(second, 4096)], what="nobody is planned for a suspect")
        worker.row(second).drain()
        await worker.until_void()


async def test_a_plan_that_is_low_is_made_anew() -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        worker.comes()
        await worker.until_planned()
        worker.accepting.plans["web"] = [(client, 3)]
        worker.accepting.handler.plan_low("web")
        await until(lambda: worker.planned() == [(client, 4095)])


async def test_a_service_that_nobody_uses_has_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    async with worker_of() as worker:
        client = worker.client("pod-1")
        worker.comes()
        await worker.until_planned()
        with monkeypatch.context() as later:
            later.setattr(plans, "HOT_S", -1.0)  # however short the time since then was, it is too long now
            worker.pool.update(1, active_total=5, active_at_ms=1)
            await worker.until_void()
        worker.accepting.serves(client, 3)  # its users come and go
        await until(lambda: worker.planned() == [(client, 4092)])


@pytest.mark.parametrize("options", [{"deny": ("10.0.0.0/8",)}, {"balance": "source-hash"}, {"early_data": True}])
async def test_a_service_whose_users_are_looked_at_has_no_plan(options: dict[str, Any]) -> None:
    async with worker_of(web=options, ssh={}) as worker:
        worker.client("pod-1")
        worker.comes()
        worker.comes("ssh")
        await worker.until_planned("ssh")
        assert "web" not in worker.accepting.plans


async def test_a_plan_keeps_to_the_share_of_maxconn() -> None:
    async with worker_of(web={"maxconn": 10}) as worker:
        client = worker.client("pod-1")
        worker.comes()
        assert await worker.until_planned() == [(client, 9)]
        for slot in (3, 4):  # two workers more
            worker.joins(slot)
        worker.accepting.serves(client, 2)
        await until(lambda: worker.planned() == [(client, 2)], what="a third of 10 - 1 - 2")
        worker.accepting.serves(client, 9)
        await worker.until_void()


async def test_who_gets_a_place_here_is_planned_for_nobody_else() -> None:
    """At once: until the next look somebody else might take the place, too."""

    async with worker_of(web={"maxconn": 2}) as worker:
        client = worker.client("pod-1")
        worker.comes()
        assert await worker.until_planned() == [(client, 1)]
        worker.accepting.on[client] = worker.accepting.by_service["web"] = 1  # which nobody has told us
        assert not worker.users.admit("web")
        worker.accepting.on[client] = worker.accepting.by_service["web"] = 0
        assert worker.users.admit("web")
        assert worker.planned() == []
        worker.users.release("web")


async def test_nobody_is_planned_while_others_wait() -> None:
    async with worker_of(web={"maxconn": 1}) as worker:
        client = worker.client("pod-1")
        worker.accepting.on[client] = worker.accepting.by_service["web"] = 1
        worker.comes()
        await until(lambda: worker.ledger.waiting("web") == 1)
        worker.accepting.serves(client, 0)
        stream = await client.asked()  # who waits is the next
        assert worker.ledger.waiting("web") == 0
        assert worker.planned() == []
        stream.peer_sends(ConnReady())
        await until(lambda: stream.relayed)
        stream.end()
        await until(lambda: worker.planned() == [(client, 1)])


async def test_a_plan_keeps_to_max_streams() -> None:
    async with worker_of(max_streams=5) as worker:
        client = worker.client("pod-1")
        worker.comes()
        await until(lambda: worker.planned() == [(client, 4)])
        worker.accepting.serves(client, 3)
        await until(lambda: worker.planned() == [(client, 1)])


async def test_a_reload_voids_every_plan() -> None:
    async with worker_of(web={}, ssh={}) as worker:
        worker.client("pod-1")
        worker.comes()
        await worker.until_planned()
        worker.users.reconfigure(config_of(ssh={"half_closed_timeout_s": 1.0}))
        assert worker.planned() == []
        assert worker.accepting.limits["ssh"] == RelayLimits(None, 1.0)


async def test_however_long_planning_takes_the_loop_has_most_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with worker_of() as worker:
        worker.client("pod-1")
        looks: list[float] = []
        loop = asyncio.get_running_loop()

        def slow(*_: object) -> None:
            looks.append(loop.time())
            until_s = loop.time() + 0.02
            while loop.time() < until_s:
                pass

        monkeypatch.setattr(worker.plans, "renew", slow)

        def has_looked_often() -> bool:
            worker.accepting.handler.plan_low("web")
            return len(looks) >= 5

        await until(has_looked_often)
        pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
        assert min(pauses) >= 0.02 * plans.REST
