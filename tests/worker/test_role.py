"""The first Configure makes a worker of the role, or ends the process with the reason."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from qmux import channel
from qmux.child import Child
from qmux.config.schema import ClientConfig, ServerConfig
from qmux.messages import Failed, Up
from qmux.worker.role import WorkerRole
from tests.admin.made import client_config, configure, server_config
from tests.aio import until


@pytest.mark.parametrize("config", [server_config(), client_config()], ids=["server", "client"])
async def test_a_worker_that_cannot_start_says_why_and_nothing_else(config: ServerConfig | ClientConfig) -> None:
    """Its material is empty. What its event loop would raise fails this test, too."""
    ours, theirs = channel.pair()
    heard: list[Up] = []
    supervisor = channel.supervisor_end(ours, lambda message, _: heard.append(message), lambda: None)
    child = Child("worker-0")
    running = asyncio.ensure_future(child.run(theirs, WorkerRole(child)))
    supervisor.send(replace(configure(config), slot=0, index=0, epoch=1))
    assert await asyncio.wait_for(running, 15) == 3
    await until(lambda: any(isinstance(message, Failed) for message in heard), what="the reason")
    [failed] = [message for message in heard if isinstance(message, Failed)]
    assert failed.exit_code == 3
    assert failed.fatal
    assert failed.message
    supervisor.close()
