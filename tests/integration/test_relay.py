"""What happens to one user's connection: half-close, resets, stopped readers, retries, limits and timeouts."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, echo, named
from tests.integration.shared import Tunnel
from tests.integration.users import RST, ask, connect, read_exactly, read_line, read_to_end, reset, says
from tests.ports import swallowing
from tests.waiting import stays, until

pytestmark = pytest.mark.engines("native", "aioquic")

SERVICES = {
    "user-closes": "",
    "service-closes": "",
    "user-resets": "",
    "service-resets": "",
    "retried": "",
    "refusing": 'queue_timeout = "60s"',
    "early": "early_data = true",
    "nowhere": 'queue_timeout = "700ms"',
    "late": 'queue_timeout = "20s"',
    "idle": 'idle_timeout = "1s"',
    "half-closed": 'idle_timeout = "60s"\nhalf_closed_timeout = "1s"',
    "swallowed": 'setup_timeout = "1s"',
    "full": 'maxconn = 2\nqueue_timeout = "2s"',
    "denied": 'allow = ["192.0.2.0/24"]',
    "thousand": "",
}
"""One for each test."""


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Iterator[Tunnel]:
    """A second client offers ``retried`` and ``early``, and cannot reach them."""
    with swallowing() as (host, port):
        tunnel = Tunnel(shared, SERVICES, {"swallowed": f"{host}:{port}"}, unserved=("nowhere", "late"), workers=1)
        nobody = f"127.0.0.1:{free_port()}"
        shared.client("bad", {"retried": nobody, "early": nobody})
        tunnel.server.until_clients(2)
        yield tunnel
        tunnel.until_left()


def test_half_close_by_the_user_first(tunnel: Tunnel) -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()  # to FIN
        writer.write(b"answer to " + request)
        await writer.drain()

    with tunnel.service("user-closes", late), connect(tunnel.ports["user-closes"]) as user:
        user.sendall(b"question")
        user.shutdown(socket.SHUT_WR)
        assert read_to_end(user) == b"answer to question"


def test_half_close_by_the_service_first(tunnel: Tunnel) -> None:
    received: list[bytes] = []

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"greeting")
        writer.write_eof()
        received.append(await reader.read())

    with tunnel.service("service-closes", early), connect(tunnel.ports["service-closes"]) as user:
        assert read_to_end(user) == b"greeting"
        user.sendall(b"still sending")
        user.shutdown(socket.SHUT_WR)
        assert until(lambda: received, "the service read to FIN") == [b"still sending"]


def test_reset_by_the_user_reaches_the_service(tunnel: Tunnel) -> None:
    errors: list[BaseException] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            while await reader.read(100):
                pass
        except ConnectionResetError as error:
            errors.append(error)

    with tunnel.service("user-resets", watch):
        user = connect(tunnel.ports["user-resets"])
        assert user.recv(1) == b"x"
        reset(user)
        until(lambda: errors, "RST at the service")


def test_reset_by_the_service_reaches_the_user(tunnel: Tunnel) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()

    with tunnel.service("service-resets", leave), connect(tunnel.ports["service-resets"]) as user:
        user.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            user.recv(1)


def test_refused_attempt_goes_to_another_client(tunnel: Tunnel) -> None:
    with tunnel.service("retried", named("good")):
        for _ in range(20):
            assert says(tunnel.ports["retried"]) == "good"
    until(lambda: tunnel.row("retried")["retried"] > 0, "some were tried twice")
    assert tunnel.refused("retried") == {}


def test_early_data_arrives_once(tunnel: Tunnel) -> None:
    with tunnel.service("early", echo):
        for number in range(20):
            with connect(tunnel.ports["early"]) as user:
                data = f"request {number}".encode() * 100
                user.sendall(data)
                user.shutdown(socket.SHUT_WR)
                assert read_to_end(user) == data
    until(lambda: tunnel.row("early")["retried"] > 0, "some were tried twice")


def test_every_client_refuses_then_the_user_is_reset_at_once(tunnel: Tunnel) -> None:
    with pytest.raises(ConnectionResetError), connect(tunnel.ports["refusing"]) as user:  # the reset may be there first
        user.recv(1)
    until(lambda: tunnel.refused("refusing") == {"service_refused": 1}, "counted")

    def lines() -> list[str]:
        return [line for line in tunnel.server.log.splitlines() if _says_refused(line, "refusing")]

    until(lines, "said")
    assert len(lines()) == 1


def _says_refused(line: str, service: str) -> bool:
    return "user connection refused" in line and f"service={service} " in f"{line} "


def test_queue_timeout_then_reset(tunnel: Tunnel) -> None:
    started = time.monotonic()
    with connect(tunnel.ports["nowhere"]) as user, pytest.raises(ConnectionResetError):
        user.recv(1)
    assert time.monotonic() - started > 0.5
    until(lambda: tunnel.refused("nowhere") == {"queue_timeout": 1}, "counted")


def test_user_waits_for_a_client_that_comes(tunnel: Tunnel) -> None:
    with Service(named("late")) as service, connect(tunnel.ports["late"], 30) as user:
        client = tunnel.deployment.client("pod-late", {"late": service.target})
        assert read_line(user) == "late"
    assert client.stop() == 0


def test_idle_timeout(tunnel: Tunnel) -> None:
    started = time.monotonic()
    with tunnel.service("idle", named("x")), connect(tunnel.ports["idle"], 30) as user:
        assert read_line(user) == "x"
        with pytest.raises(ConnectionResetError):
            user.recv(1)
        assert time.monotonic() - started > 1.0


def test_half_closed_timeout(tunnel: Tunnel) -> None:
    """It ends a connection whose user has sent FIN and whose service sends nothing, long before ``idle_timeout``."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        await asyncio.get_running_loop().create_future()  # until the connection is cut off, or the test ends

    port = tunnel.ports["half-closed"]
    with (
        Service(silent, port=tunnel.target_ports["half-closed"]),
        connect(port, 30) as open_both_ways,
        connect(port, 30) as user,
    ):
        assert ask(open_both_ways, b"x") == b"x"
        assert ask(user, b"x") == b"x"
        started = time.monotonic()
        user.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            user.recv(1)
        assert 0.9 < time.monotonic() - started < 20.0
        assert ask(open_both_ways, b"y") == b"y"


def test_setup_timeout(tunnel: Tunnel) -> None:
    started = time.monotonic()
    with connect(tunnel.ports["swallowed"], 30) as user, pytest.raises(ConnectionResetError):
        user.recv(1)
    assert time.monotonic() - started > 0.8
    until(lambda: tunnel.refused("swallowed") == {"setup_timeout": 1}, "counted")


def test_maxconn_queues_and_then_resets(tunnel: Tunnel) -> None:
    port = tunnel.ports["full"]
    with (
        tunnel.service("full", named("x")),
        connect(port, 30) as first,
        connect(port, 30) as second,
        connect(port, 30) as third,
    ):
        assert read_line(first) + read_line(second) == "xx"
        with pytest.raises(ConnectionResetError):
            third.recv(1)
        until(lambda: tunnel.refused("full") == {"maxconn": 1}, "counted")
        with connect(port, 30) as fourth:
            first.close()  # makes room for the one that waits
            assert read_line(fourth) == "x"


def test_denied_source(tunnel: Tunnel) -> None:
    with pytest.raises(ConnectionResetError), connect(tunnel.ports["denied"]) as user:  # the reset may be there first
        user.recv(1)
    until(lambda: tunnel.refused("denied") == {"denied": 1}, "counted")


def test_thousand_users_come_and_go_and_nothing_stays(tunnel: Tunnel) -> None:
    daemons = (tunnel.server, tunnel.client)
    # Over the bus, to which every process has connected then: that takes descriptors at both of its ends.
    until(lambda: tunnel.client.status().get("servers"), "the client's worker reports")

    def descriptors() -> int:
        return sum(process.num_fds() for daemon in daemons for process in daemon.family())

    port = tunnel.ports["thousand"]
    with tunnel.service("thousand", echo) as service:
        with connect(port) as user:
            assert ask(user, b"x") == b"x"
        until(lambda: service.open == 0, "the first user is gone")
        tunnel.until_left()
        before = descriptors()

        def many() -> None:
            for number in range(250):
                with connect(port) as user:
                    user.sendall(b"y" * (number % 7))
                    if number % 3 == 0:
                        user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until(lambda: service.open == 0, "every user is gone at the service")
        until(lambda: descriptors() <= before, "every descriptor is closed")


@pytest.mark.serial
@pytest.mark.engines("native", extended=("aioquic",))
def test_stopped_reader_is_bounded_and_disturbs_nobody(deployment: Deployment) -> None:
    """1 GB is offered to a user that does not read: our processes hold at most 4 MiB more, a sibling goes on."""
    chunk = bytes(1 << 20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"f":  # a flood
            for _ in range(1000):
                writer.write(chunk)
                await writer.drain()
        else:
            await echo(reader, writer)

    def rss_bytes(*daemons: Daemon) -> int:
        """Without the admin process, which the questions below let grow: no user's byte comes there."""
        family = [process for daemon in daemons for process in daemon.family()]
        return sum(process.memory_info().rss for process in family if process.cmdline()[-1] != "admin")

    tunnel = Tunnel(deployment, {"web": ""}, workers=1)
    port = tunnel.ports["web"]
    with Service(serve, port=tunnel.target_ports["web"]), connect(port) as stopped, connect(port) as sibling:
        sibling.sendall(b"e" + bytes(1_000_000))
        assert len(read_exactly(sibling, 1_000_000)) == 1_000_000
        before = rss_bytes(tunnel.server, tunnel.client)
        stopped.sendall(b"f")

        def stalls() -> bool:
            """The kernel's and our buffers are full: what the server moved does not grow any more."""
            moved = tunnel.row("web").get("bytes_out", 0)
            # It must still be so when the counters have been published again.
            return moved > 1_000_000 and stays(lambda: tunnel.row("web").get("bytes_out") == moved, 1.1)

        until(stalls, "the flood stalls", 60)
        assert rss_bytes(tunnel.server, tunnel.client) - before < 4 << 20
        sibling.sendall(bytes(3_000_000))
        assert len(read_exactly(sibling, 3_000_000)) == 3_000_000
