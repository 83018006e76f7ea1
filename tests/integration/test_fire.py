"""Correctness under fire: gigabytes, a network that gets worse, a crowd that comes and goes, thousands that stay.

Sizes are those of a quick run, and larger ones are ``extended``; with QMUX_FIRE set the crowd stays for a minute and
10,000 users are held.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.aio import run
from tests.daemons import Deployment, free_port
from tests.integration import strangers
from tests.integration.churn import ECHO, PATIENCE_S, Crowd, fickle
from tests.integration.services import Service, blob, digest, echo, pattern
from tests.integration.test_network import tunnelled
from tests.integration.users import EchoFlow, ask, connect, read_to_end
from tests.integration.watch import Held, Watch, open_connections, rss_bytes
from tests.netsim.proxy import Conditions
from tests.waiting import lasts, until

IS_LONG = bool(os.environ.get("QMUX_FIRE"))
GIGABYTE = 1 << 30
BLOCK = pattern(1 << 20)
KIB, MIB = 1 << 10, 1 << 20

STRANGERS = 1000 if IS_LONG else 300
CROWD_S = 60.0 if IS_LONG else 12.0
IDLE_USERS = 10_000 if IS_LONG else 2_000


def up(port: int) -> str:
    """Send a gigabyte to ``digest``, and what it answers."""
    with connect(port, 100) as user:
        for _ in range(GIGABYTE // len(BLOCK)):
            user.sendall(BLOCK)
        user.shutdown(socket.SHUT_WR)
        return read_to_end(user).decode()


def down(port: int) -> str:
    """The digest of all that ``blob`` sends."""
    hashed = hashlib.sha256()
    with connect(port, 100) as user:
        while chunk := user.recv(256 * KIB):
            hashed.update(chunk)
    return hashed.hexdigest()


@pytest.mark.engines(extended=("native",))
def test_hash_of_a_gigabyte_both_ways_at_once(deployment: Deployment) -> None:
    expected = hashlib.sha256()
    for _ in range(GIGABYTE // len(BLOCK)):
        expected.update(BLOCK)
    ports = {"up": free_port(), "down": free_port()}
    with Service(digest) as sink, Service(blob(GIGABYTE)) as source:
        server = deployment.server({name: f'bind = "127.0.0.1:{port}"' for name, port in ports.items()}, workers=1)
        deployment.client("pod-1", {"up": sink.target, "down": source.target})
        server.until_clients(1)
        found: dict[str, str] = {}
        sending = threading.Thread(target=lambda: found.update(up=up(ports["up"])))
        sending.start()
        found["down"] = down(ports["down"])
        sending.join(100)
        assert found == {"up": expected.hexdigest(), "down": expected.hexdigest()}


ROUGH = Conditions(loss=0.05, reorder=0.05, duplicate=0.02, delay_s=0.001, mtu_bytes=1400)


@pytest.mark.engines(extended=("auto", "aioquic"))
def test_one_flow_through_a_network_that_gets_worse(deployment: Deployment) -> None:
    """One connection lives through all of it: a path that shrinks, loses, reorders, doubles, rebinds and goes dark."""
    with (
        Service(echo) as service,
        tunnelled(deployment, Conditions(delay_s=0.001), workers=1, web=service.target) as (network, ports),
    ):
        server = deployment.daemons[0]
        flow = EchoFlow(ports["web"])
        until(lambda: server.status()["clients"][0]["mtu_bytes"] > 8000, "a large datagram size is found")
        flow.goes_on(MIB)
        network.change(Conditions(delay_s=0.001, mtu_bytes=1400))
        # What was under way may be more than a megabyte.
        until(lambda: network.proxy.counters.too_large > 0, "packets that are too large now")
        flow.goes_on(MIB)
        network.change(ROUGH)
        flow.goes_on(2 * MIB)
        network.change(ROUGH, rebind_every_s=1.0)
        until(lambda: network.proxy.counters.rebinds >= 3, "three rebindings")
        flow.goes_on(MIB)
        network.change(ROUGH)
        network.blackhole(True)
        until(lambda: network.proxy.counters.blackholed > 0, "packets vanish")
        lasts(2.0)  # the darkness that is asked for
        network.blackhole(False)
        flow.goes_on(MIB)
        assert flow.finish() > 6 * MIB
        counters = network.proxy.counters
        assert min(counters.dropped, counters.reordered, counters.duplicated, counters.blackholed) > 0


@pytest.mark.serial
@pytest.mark.engines("native", extended=("aioquic",))
@pytest.mark.parametrize(
    ("size", "crowd_s"), [(100, 3.0), pytest.param(1000, CROWD_S, marks=pytest.mark.extended, id="1000")]
)
def test_a_crowd_that_comes_and_goes_leaves_nothing(
    deployment: Deployment, engine: str, size: int, crowd_s: float
) -> None:
    """Half of the users are handed to the worker that has the only connection, whose streams a leak would use up."""
    size = size if engine == "native" else size // 10
    watch = Watch(deployment)
    port = free_port()
    with Service(fickle) as service:
        lines = f'bind = "127.0.0.1:{port}"\nqueue_timeout = "60s"\nsetup_timeout = "60s"'
        server = deployment.server({"web": lines}, quic=f"lanes = 1\nmax_streams = {size + 100}")
        client = deployment.client("pod-1", {"web": service.target}).until_ready()
        server.until_clients(1)
        crowd = Crowd(port, size)

        def is_quiet() -> bool:
            return service.open == 0 and all(
                row["connections"] == 0 for daemon in (server, client) for row in daemon.status()["services"]
            )

        def come_and_go(for_s: float) -> None:
            run(crowd.live(for_s), for_s + 2 * PATIENCE_S)
            assert crowd.failures == []
            until(is_quiet, "every user is gone", 30)

        come_and_go(crowd_s / 3)  # what is needed once: code, buffers, tables at their largest
        held = Held.by(watch, server, client)
        come_and_go(crowd_s)
        held.until_again(watch, server, client)
        assert set(crowd.ends) == set(Crowd.LIVES)
        with contextlib.ExitStack() as stack:
            users = [stack.enter_context(connect(port, 60)) for _ in range(size + 100)]
            for user in users:
                user.sendall(ECHO)
            assert all(ask(user, b"x") == b"x" for user in users)


QUICK = 'handshake_timeout = "6s"\nidle_timeout = "3s"\nkeep_alive = "1s"\n'


@pytest.mark.serial
@pytest.mark.engines("native", extended=())
@pytest.mark.parametrize("count", [50, pytest.param(STRANGERS, marks=pytest.mark.extended)])
def test_connections_of_clients_that_come_and_go_leave_nothing(deployment: Deployment, count: int) -> None:
    """Each ends in one of these ways, at random: before its handshake, after it, registered, or without a word."""
    watch = Watch(deployment)
    server = deployment.server({"web": f'bind = "127.0.0.1:{free_port()}"'}, workers=2, quic=QUICK)
    bundle = deployment.directory / deployment.bundle("pod-1")

    def come_and_go(count: int) -> None:
        run(strangers.come_and_go(deployment.quic_port, bundle, "web", count), 600.0)
        until(lambda: open_connections(server) == 0, "the server has none of them", 60)

    come_and_go(count)  # what is needed once; the sessions that can be resumed have a bound of their own
    held = Held.by(watch, server)
    come_and_go(count)
    held.until_again(watch, server)
    assert server.status()["clients"] == []
    assert "Traceback" not in server.log


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """Room for so many here; where the machine does not give it, the test cannot run."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, before[0]), max(count, before[1])))
    except (OSError, ValueError) as error:
        pytest.skip(f"{count} descriptors: {error}")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.serial
@pytest.mark.engines("native", extended=())
def test_what_an_idle_user_costs(deployment: Deployment) -> None:
    port = free_port()
    with many_descriptors(2 * IDLE_USERS + 1000), contextlib.ExitStack() as stack, Service(echo) as service:
        lines = f'bind = "127.0.0.1:{port}"\nqueue_timeout = "60s"\nsetup_timeout = "60s"'
        server = deployment.server({"web": lines}, workers=1, quic=f"max_streams = {IDLE_USERS + 1000}")
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1)
        for _ in range(200):  # what any worker holds after its first users
            with connect(port) as user:
                ask(user, b"x")
        until(lambda: service.open == 0, "they are gone")
        before = {daemon: rss_bytes(daemon) for daemon in (server, client)}
        users = [stack.enter_context(connect(port, 60)) for _ in range(IDLE_USERS)]
        assert all(ask(user, b"x") == b"x" for user in users)
        costs = {daemon.config.stem: (rss_bytes(daemon) - before[daemon]) / IDLE_USERS for daemon in before}
        print(costs)
        assert max(costs.values()) < 20 * KIB, costs
        assert all(ask(user, bytes(1000)) == bytes(1000) for user in users[:: IDLE_USERS // 100])
