"""Few descriptors, many users: who has no place waits, nothing is lost, and everything goes on."""

from __future__ import annotations

import contextlib
import select
import socket

from tests.daemons import Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.users import read_line
from tests.waiting import stays, until

DESCRIPTORS = 256


LIMITED = ("sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh")
"""Starts a command with so many descriptors, every process of it."""


def outcomes(users: list[socket.socket], wanted: int, timeout_s: float = 60.0) -> tuple[int, int]:
    """(served, reset), once ``wanted`` users have heard something."""
    waiting = {user.fileno(): user for user in users}
    poller = select.poll()
    for descriptor in waiting:
        poller.register(descriptor, select.POLLIN)
    served = reset = 0

    def look() -> bool:
        nonlocal served, reset
        for descriptor, _ in poller.poll(0):
            poller.unregister(descriptor)
            try:
                served += bool(waiting[descriptor].recv(2))
            except ConnectionResetError:
                reset += 1
        return served + reset >= wanted

    until(look, f"{wanted} users", timeout_s)
    return served, reset


def test_server_without_descriptors(deployment: Deployment) -> None:
    """600 users where 2 × 192 have a place, all to be handed to one worker; a reload, which needs some too, works."""
    port, more = free_port(), free_port()
    with Service(named("x")) as service, contextlib.ExitStack() as stack:
        services = {"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "30s"'}
        config = deployment.write("server.toml", deployment.server_text(services, quic="lanes = 1"))
        server = deployment.start("qmuxd", config, prefix=LIMITED).until_ready()
        deployment.client("pod-1", {"web": service.target, "more": service.target})
        server.until_clients(1)
        server.until_one_lane()
        pids = [worker["pid"] for worker in server.workers()]
        users = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(600)]
        outcomes(users, 190)
        # The others wait, here and in the kernel.
        assert stays(lambda: service.open <= DESCRIPTORS - 64, 1.0)
        text = deployment.server_text({**services, "more": f'bind = "127.0.0.1:{more}"'}, quic="lanes = 1")
        server.config.write_text(text)
        assert server.reload()["ok"]
        for user in users:
            user.close()
        until(lambda: service.open == 0, "all gone")
        for where in (port, more):
            with socket.create_connection(("127.0.0.1", where), 30) as user:
                assert read_line(user) == "x"
        assert [worker["pid"] for worker in server.workers()] == pids
        assert server.log.count("client registered") <= 2
        assert "could not be received" not in server.log
        assert "Traceback" not in server.log


def test_client_without_descriptors(deployment: Deployment) -> None:
    """Users beyond what the client can dial are refused or wait; it stays connected and serves again."""
    port = free_port()
    with Service(named("x")) as service, contextlib.ExitStack() as stack:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"\nqueue_timeout = "3s"'}, workers=1)
        config = deployment.write("pod-1.toml", deployment.client_text("pod-1", {"web": service.target}))
        client = deployment.start("qmuxc", config, prefix=LIMITED).until_ready()
        server.until_clients(1)
        users = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(400)]
        served, reset = outcomes(users, 400)
        assert served > DESCRIPTORS - 64
        assert reset == 400 - served
        for user in users:
            user.close()
        until(lambda: service.open == 0, "all gone")
        with socket.create_connection(("127.0.0.1", port), 30) as user:
            assert read_line(user) == "x"
        assert server.log.count("client registered") == 1
        assert "Traceback" not in server.log + client.log
